package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"github.com/swapback/swapback/backup/internal/codec"
	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pace"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/table"
	"github.com/swapback/swapback/failpoint"
)

// maxParallel bounds workers, and with them memory.
const maxParallel = 16

// MemoryLimit is what a program that backs up should set as the runtime's memory
// limit (debug.SetMemoryLimit), in bytes, so that it stays within 512 MiB with all
// that is not the runtime's.
const MemoryLimit = 400 << 20

// workMemory bounds what all workers of an operation have in memory, at
// workerChunks times the size of a chunk each.
const (
	workMemory   = 256 << 20
	workerChunks = 8
)

func parallel(n int) int {
	if n <= 0 {
		n = runtime.NumCPU() + 2
	}
	return min(n, maxParallel)
}

// workers is how many workers an operation on this repository has that asks for n.
func (r *Repository) workers(n int) int {
	return min(parallel(n), max(1, workMemory/(workerChunks*int(r.config.ChunkSize))))
}

// Create takes one backup of all sources. Of a source with Changes it reads those,
// and takes everything else over from the backup that they count from; when that
// can't be proved to be what it should be, it reads all of the source, and the
// backup's FullBecause says why.
//
// When it returns an error there is no backup, and what had been written of it is
// removed as far as that is possible. A [MissedError] is the exception: the backup
// that comes with it is there, and right.
func (r *Repository) Create(ctx context.Context, sources []Source, o CreateOptions) (Backup, error) {
	start := time.Now()
	names := make([]string, len(sources))
	for i, s := range sources {
		names[i] = s.Volume.name()
	}
	op := fmt.Sprintf("back up %s to %s", some(names), r.Location())
	if err := checkSources(op, sources); err != nil {
		return Backup{}, err
	}
	sources = slices.Clone(sources)
	files, err := openSources(op, sources)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return Backup{}, err
	}
	if o.At.IsZero() {
		o.At = r.now()
	}
	if id := makeID(o.At, format.ID{}); !validID(id) {
		return Backup{}, &Error{Kind: ErrInvalid, Op: op, Detail: fmt.Sprintf("no ID can be made of the instant %v", o.At)}
	}
	b := Backup{Created: o.At.UTC(), Comment: o.Comment, Tags: o.Tags, Job: o.Job, Step: o.Step, CopiedFrom: o.copiedFrom}
	for _, s := range sources {
		b.Volumes = append(b.Volumes, BackupVolume{VolumeRef: s.Volume})
	}
	if err := b.checkTexts(); err != nil {
		return Backup{}, &Error{Kind: ErrInvalid, Op: op, Err: err}
	}

	log := logger(o.Logger)
	s, err := r.begin(ctx, "backup", log)
	if err != nil {
		return Backup{}, wrap(op, err)
	}
	defer s.end()
	c, err := r.newCreation(s, o, len(sources), log)
	if err != nil {
		return Backup{}, wrap(op, err)
	}
	defer c.close()
	c.pace = c.newPace(sources)
	defer c.pace.Stop()
	failpoint.Hit("backup: session begun")
	if err := c.takeUp(ctx, sources); err != nil {
		return Backup{}, wrap(op, err)
	}
	if err := c.prepare(ctx, sources); err != nil {
		return Backup{}, wrap(op, err)
	}
	b.Volumes, err = c.volumes(ctx, sources, files)
	if errors.Is(err, errPoisoned) {
		log.Warn("beginning anew without using chunks of earlier backups again", "err", err)
		c.reuse.distrust()
		for i, s := range sources {
			if c.plans[i].base != nil {
				c.plans[i] = fullPlan(s.Volume, err.Error())
			}
		}
		b.Volumes, err = c.volumes(ctx, sources, files)
	}
	if err == nil {
		b.Seconds = time.Since(start).Seconds()
		err = c.commit(ctx, &b)
	}
	if err != nil {
		c.discard(ctx, err)
		return Backup{}, wrap(op, err)
	}
	c.settle(ctx)
	log.Info("backup is complete", "backup", b.ID, "repository", r.Location(),
		"size", b.Size(), "stored", b.StoredBytes(), "duration", time.Since(start))
	if len(c.missed) > 0 {
		return b, &MissedError{Backup: b.ID, Volumes: c.missed}
	}
	return b, nil
}

func checkSources(op string, sources []Source) error {
	if len(sources) == 0 || len(sources) > maxVolumes {
		return &Error{Kind: ErrInvalid, Op: op, Detail: fmt.Sprintf("%d sources", len(sources)), Remedy: "name at least one volume"}
	}
	seen := make(map[string]bool)
	for _, s := range sources {
		if s.Volume.name() == "" || s.Path == "" {
			return &Error{Kind: ErrInvalid, Op: op, Detail: "a source has no name or no path"}
		}
		for _, key := range []string{"name " + s.Volume.name(), "uuid " + s.Volume.UUID} {
			if seen[key] && key != "uuid " {
				return &Error{Kind: ErrInvalid, Op: op, Detail: "two sources have the " + key, Remedy: "name each volume once"}
			}
			seen[key] = true
		}
	}
	return nil
}

// origin is where a source is read. It may be read at several places at once.
type origin interface {
	ReadAt(p []byte, off int64) (int, error)
	Size() int64
	Path() string // for people
	Close() error
}

// sparse is an origin that knows where it is zero.
type sparse interface {
	// zero tells whether the n bytes at off are known to be zero.
	zero(off, n int64) (bool, error)
}

func knownZero(f origin, off, n int64) (bool, error) {
	if s, is := f.(sparse); is {
		return s.zero(off, n)
	}
	return false, nil
}

// openSources opens all sources and fills in their sizes.
func openSources(op string, sources []Source) (files []origin, err error) {
	for i := range sources {
		s := &sources[i]
		f := s.from
		if f == nil {
			file, err := device.OpenSource(s.Path)
			if err != nil {
				return files, wrapSource(op, s.Path, err)
			}
			f = file
		}
		files = append(files, f)
		if s.Volume.Size != 0 && s.Volume.Size != f.Size() || f.Size() == 0 || f.Size() > format.MaxVolume {
			return files, &Error{Kind: ErrSize, Op: op, Object: s.Path,
				Detail: fmt.Sprintf("it has %d bytes, the volume %d", f.Size(), s.Volume.Size),
				Remedy: "name the device that shows this volume"}
		}
		s.Volume.Size = f.Size()
	}
	return files, nil
}

// creation is a backup under way. Its fields are used by the goroutine that
// called Create, except reuse and progress.
type creation struct {
	r        *Repository
	session  *session
	o        CreateOptions
	log      *slog.Logger
	reuse    *reuse
	progress *tracker
	chunks   *pack.Writer
	nodes    *pack.Writer
	stored   []int64 // of each source; a second attempt adds to the first's
	plans    []plan  // of each source
	loaded   bool    // what earlier backups hold is known
	missed   []Missed
	cache    *nodeCache // nil until there is a base
	noting   noting
	pace     *pace.Pacer

	// For nodes; every worker has its own.
	comp    *codec.Compressor
	reader  *pack.Reader
	buf     []byte
	scratch []byte
}

func (r *Repository) newCreation(s *session, o CreateOptions, sources int, log *slog.Logger) (*creation, error) {
	c := &creation{r: r, session: s, o: o, log: log, reuse: r.newReuse(o.Reuse, log), stored: make([]int64, sources)}
	wo := pack.WriterOptions{Kind: format.KindChunk, Repository: r.id, Session: s.id, Size: r.packSize, NewID: r.newID}
	c.chunks = pack.NewWriter(r.store, wo)
	wo.Kind = format.KindNode
	c.nodes = pack.NewWriter(r.store, wo)
	var err error
	if c.comp, err = codec.NewCompressor(format.MaxNode); err != nil {
		return nil, err
	}
	if c.reader, err = r.newReader(); err != nil {
		c.comp.Close()
		return nil, err
	}
	c.buf = make([]byte, c.room(c.comp, format.MaxNode))
	return c, nil
}

// newPace returns what holds up the reading of sources.
func (c *creation) newPace(sources []Source) *pace.Pacer {
	burst := int(max(c.r.config.ChunkSize, batchBytes))
	if c.o.FullSpeed {
		return pace.New(c.o.Limit, burst, nil)
	}
	var paths []string
	for _, s := range sources {
		paths = append(paths, s.Path)
	}
	own := ""
	if f, ok := c.r.store.(*store.Folder); ok {
		own = f.Location()
	}
	m, err := pace.Watch(paths, own)
	if err != nil {
		c.log.Debug("not looking out for others who need the disks", "err", err)
		return pace.New(c.o.Limit, burst, nil)
	}
	return pace.New(c.o.Limit, burst, m)
}

func (c *creation) close() {
	c.chunks.Abort()
	c.nodes.Abort()
	c.comp.Close()
	c.reader.Close()
	if c.cache != nil {
		c.cache.close()
	}
}

// prepare finds out what of each source is to be read, and what of the repository is
// worth knowing for that.
func (c *creation) prepare(ctx context.Context, sources []Source) error {
	for _, s := range sources {
		p, err := c.plan(ctx, s)
		if err != nil {
			return err
		}
		c.plans = append(c.plans, p)
		if p.base == nil {
			continue
		}
		if err := c.reuse.loadBase(ctx, c.reader, p.base.volume, p.bytes/c.r.config.ChunkSize); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(c.plans, func(p plan) bool { return p.base == nil }) {
		return c.load(ctx, sources)
	}
	return nil
}

// load has reuse know what earlier backups hold. That takes as long as they are
// large, so it is done for a full backup only.
func (c *creation) load(ctx context.Context, sources []Source) error {
	if c.loaded {
		return nil
	}
	c.loaded = true
	return c.reuse.load(ctx, c.r, sources)
}

// left is how many bytes are to be read from the i-th source on.
func (c *creation) left(i int) (n int64) {
	for _, p := range c.plans[i:] {
		n += p.bytes
	}
	return n
}

// volumes stores all sources.
func (c *creation) volumes(ctx context.Context, sources []Source, files []origin) ([]BackupVolume, error) {
	c.missed = nil
	phase := PhaseBackup
	if c.o.copiedFrom != nil {
		phase = PhaseCopy
	}
	c.progress = track(phase, c.left(0), -1, c.o.Progress)
	defer c.progress.finish()
	volumes := make([]BackupVolume, len(sources))
	for i := range sources {
		err := c.attempt(ctx, sources[i], &volumes[i], files[i], i)
		if why := notProved(err); why != nil && c.plans[i].base != nil {
			// All of this source is read after all.
			c.plans[i] = fullPlan(sources[i].Volume, fmt.Sprintf("backup %s, which it was to be made against, is damaged: %v", c.plans[i].base.id, why))
			c.progress.total.Store(c.progress.done.Load() + c.left(i))
			if err = c.load(ctx, sources); err == nil {
				err = c.attempt(ctx, sources[i], &volumes[i], files[i], i)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return volumes, nil
}

// attempt stores the i-th source by its plan.
func (c *creation) attempt(ctx context.Context, s Source, v *BackupVolume, f origin, i int) error {
	p := &c.plans[i]
	*v = BackupVolume{VolumeRef: s.Volume, ChunkSize: c.r.config.ChunkSize, StoredBytes: c.stored[i], FullBecause: p.why}
	log := c.log.With("volume", s.Volume.name())
	switch {
	case p.base != nil:
		v.Base = p.base.id
		log.Info("backup is incremental", "base", v.Base, "bytes", p.bytes)
	case p.why != "":
		log.Warn("backup is a full one", "because", p.why)
	}
	missed, err := c.volume(ctx, v, f, p)
	c.stored[i] = v.StoredBytes
	if err == nil && missed.Bytes > 0 {
		c.missed = append(c.missed, missed)
	}
	return err
}

// volume stores one source: chunks, then what is left of its table. It returns what
// has changed although that was said to be unchanged.
func (c *creation) volume(ctx context.Context, v *BackupVolume, f origin, p *plan) (missed Missed, err error) {
	missed = Missed{Volume: v.name(), Base: v.Base}
	shape, err := format.ShapeOf(v.Size, v.ChunkSize)
	if err != nil {
		return missed, err
	}
	var taken int64 // data that is taken over from the base
	if p.base != nil {
		taken = p.base.volume.DataBytes
	}
	tree := table.NewBuilder(shape, p.cursor(), func(node []byte, was format.Ref) (format.Ref, error) {
		return c.node(ctx, v, node, was)
	})
	err = c.readChunks(ctx, f, p, func(ck *chunk) error {
		if err := tree.CopyTo(ck.off); err != nil {
			return err
		}
		n := int64(len(ck.plain))
		v.ReadBytes += n
		c.progress.done.Add(n)
		if was := ck.before; p.base != nil {
			taken -= int64(was.ref.Length)
			if !was.sameAs(ck) {
				v.ChangedBytes += n
				c.progress.changed.Add(n)
				if was.clean {
					missed.add(ck.off, n)
				}
			}
		}
		if ck.zero {
			c.progress.zero.Add(n)
			return tree.Append(format.Ref{})
		}
		v.DataBytes += n
		ref, err := c.chunk(ctx, v, ck)
		if err != nil {
			return err
		}
		return tree.Append(ref)
	})
	if err != nil {
		return missed, err
	}
	if err := tree.CopyTo(v.Size); err != nil {
		return missed, err
	}
	root, err := tree.Finish()
	if err != nil {
		return missed, err
	}
	if taken < 0 || taken > v.Size-v.ReadBytes {
		return missed, fmt.Errorf("%w: by its table it would have %d bytes of data in %d", errFigures, taken, v.Size-v.ReadBytes)
	}
	v.DataBytes += taken
	v.ReusedBytes += taken
	v.ZeroBytes = v.Size - v.DataBytes
	v.Table = tableOf(root)
	return missed, nil
}

// chunk stores a chunk that is not all zero, if it is not there yet.
func (c *creation) chunk(ctx context.Context, v *BackupVolume, ck *chunk) (format.Ref, error) {
	reused := ck.reused
	if !reused {
		// Another worker may have had the same chunk at the same time.
		if ref, ok := c.reuse.own(ck.ref.Hash, format.KindChunk); ok {
			ck.ref, reused = ref, true
		}
	}
	if !reused && v.Base == "" {
		c.progress.changed.Add(int64(len(ck.plain)))
	}
	if reused {
		v.ReusedBytes += int64(len(ck.plain))
		c.progress.reused.Add(int64(len(ck.plain)))
		return ck.ref, nil
	}
	return c.add(ctx, v, c.chunks, ck.ref, ck.payload)
}

// node stores a node, if it is not there yet. was is what the base has in its place.
func (c *creation) node(ctx context.Context, v *BackupVolume, node []byte, was format.Ref) (format.Ref, error) {
	hash := c.r.hash(node)
	c.scratch = slices.Grow(c.scratch[:0], len(node))
	if !was.IsZero() && was.Hash == hash {
		if ok, err := c.reuse.usable(ctx, c.reader, was, c.scratch[:len(node)]); ok || err != nil {
			return was, err
		}
	}
	ref, ok, err := c.reuse.find(ctx, c.reader, hash, format.KindNode, len(node), c.scratch[:len(node)])
	if ok || err != nil {
		return ref, err
	}
	ref = format.Ref{Hash: hash, Kind: format.KindNode, Length: uint32(len(node))}
	payload, err := c.payload(c.comp, c.buf, &ref, node)
	if err != nil {
		return ref, err
	}
	return c.add(ctx, v, c.nodes, ref, payload)
}

func (c *creation) add(ctx context.Context, v *BackupVolume, w *pack.Writer, ref format.Ref, payload []byte) (format.Ref, error) {
	ref, err := w.Add(ctx, ref, payload)
	if err != nil {
		return ref, err
	}
	failpoint.Hit("backup: blob added")
	c.reuse.add(ref)
	n := int64(format.BlobHeaderSize + len(payload))
	v.StoredBytes += n
	c.progress.stored.Add(n)
	c.noteNow(ctx)
	return ref, nil
}

// commit makes everything durable and then writes the manifest.
func (c *creation) commit(ctx context.Context, b *Backup) error {
	for _, w := range []*pack.Writer{c.chunks, c.nodes} {
		if err := w.Flush(ctx); err != nil {
			return err
		}
	}
	failpoint.Hit("backup: packs durable")
	if err := c.reuse.stillThere(ctx); err != nil {
		return fmt.Errorf("a pack that chunks were taken from has gone: %w", err)
	}
	if _, err := c.r.store.Size(ctx, c.session.name); err != nil {
		return fmt.Errorf("somebody removed this backup's lease, and maybe its packs: %w", err)
	}
	if err := c.session.hold.Err(); err != nil {
		return fmt.Errorf("this backup's lease is lost, and maybe its packs: %w", err)
	}
	// Eight random digits may be taken, though hardly twice.
	for range 4 {
		b.ID = makeID(b.Created, c.r.newID())
		err := c.r.putSealed(ctx, backupDir+"/"+b.ID, format.TextBackup, b)
		if errors.Is(err, store.ErrExist) {
			continue
		}
		if err == nil {
			failpoint.Hit("backup: manifest written")
			c.log.Debug("manifest is written", "backup", b.ID)
			return nil
		}
		return c.retract(ctx, b.ID, err)
	}
	return fmt.Errorf("no ID is free for %v", b.Created)
}

// visibleError says that the manifest was visible, or may have been: somebody may
// be using the packs, which therefore must stay.
type visibleError struct{ err error }

func (e *visibleError) Error() string { return e.err.Error() }
func (e *visibleError) Unwrap() error { return e.err }

// retract takes back a manifest whose writing ended with err, when it is visible
// although perhaps not durable.
func (c *creation) retract(ctx context.Context, id string, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	name := backupDir + "/" + id
	if _, serr := c.r.store.Size(ctx, name); errors.Is(serr, store.ErrNotExist) {
		return err
	}
	if rerr := c.r.removeManifest(ctx, name); rerr != nil {
		err = fmt.Errorf("backup %s may be there nevertheless: %w", id, errors.Join(err, rerr))
	}
	return &visibleError{err}
}

// cleanupTime bounds what a failed or cancelled backup does to clean up.
const cleanupTime = 30 * time.Second

// discard removes the packs of a backup that failed, unless the next one is to go
// on from them. Nobody else knows them, as no manifest names them, and nobody reads
// the note of a session that is there. What can't be removed is for Prune.
func (c *creation) discard(ctx context.Context, err error) {
	c.chunks.Abort()
	c.nodes.Abort()
	var visible *visibleError
	if errors.As(err, &visible) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if c.keep(ctx, err) {
		return
	}
	if c.noting.packs > 0 {
		if c.session.hold.Err() != nil {
			return // somebody may be going on from the note by now
		}
		if err := c.r.removeManifest(ctx, c.noteName()); err != nil {
			c.log.Warn("note and packs of the failed backup are left; prune removes them", "err", err)
			return
		}
	}
	var names []string
	for _, id := range append(slices.Clone(c.chunks.Packs()), c.nodes.Packs()...) {
		names = append(names, pack.Name(id))
	}
	if err := c.r.store.Delete(ctx, names...); err != nil {
		c.log.Warn("packs of the failed backup are left; prune removes them", "err", err)
	}
}
