package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/table"
)

// CopyOf names a backup in some repository.
type CopyOf struct {
	Repository string `json:"repository"` // its UUID
	Backup     string `json:"backup"`
}

// CopyOptions says how to copy.
type CopyOptions struct {
	// Backups are those to copy, as [Repository.Get] names them. Default all.
	Backups  []string
	Parallel int // of each backup, see [CreateOptions]
	// Progress is told of one backup after the other.
	Progress func(Progress)
	// Copied, if not nil, is told of each backup that is there now.
	Copied func(from, copy Backup)
	Logger *slog.Logger
}

// CopyReport tells what was copied.
type CopyReport struct {
	Copied  []Backup `json:"copied"`  // as they are in the other repository
	Skipped []string `json:"skipped"` // ids of those that were there already
	Size    int64    `json:"size"`    // of the volumes copied
	Read    int64    `json:"read"`    // of Size: read; the rest is as in a backup copied before
	Stored  int64    `json:"stored"`  // bytes added to the other repository
}

// CopyTo copies backups into another repository, which may have other keys and chunks
// of another size, the oldest first. A copy keeps the instant, the texts and the
// volumes of its backup and is named anew. What the other repository has already is
// not copied: the backups of which it has a copy, or is the origin, are passed over, and
// of a backup only what differs from one that was copied before is read. So a copying
// that was interrupted goes on where it was. Every chunk is checked against its hash on
// the way; the first damaged one ends it.
func (r *Repository) CopyTo(ctx context.Context, to *Repository, o CopyOptions) (rep CopyReport, err error) {
	log := logger(o.Logger)
	op := fmt.Sprintf("copy from %s to %s", r.Location(), to.Location())
	rep = CopyReport{Copied: []Backup{}, Skipped: []string{}}
	if r.ID() == to.ID() {
		return rep, &Error{Kind: ErrInvalid, Op: op, Detail: "they are one repository, or one is a copy of the other, object by object",
			Remedy: "name another repository, made with: swapback repo init"}
	}
	s, err := r.beginReading(ctx, "copy", log)
	if err != nil {
		return rep, wrap(op, err)
	}
	defer s.end()
	list, err := r.chosen(ctx, o.Backups)
	if err != nil {
		return rep, wrap(op, err)
	}
	there, err := to.list(ctx)
	if err != nil {
		return rep, wrap(op, err)
	}
	known := make(map[CopyOf]Backup) // what the other has, by where it comes from
	for _, b := range there {
		if b.Damaged == "" {
			known[to.origin(b)] = b
		}
	}
	for _, b := range list {
		origin := r.origin(b)
		if _, is := known[origin]; is {
			rep.Skipped = append(rep.Skipped, b.ID)
			continue
		}
		c := &copying{r: r, to: to, o: o, log: log, known: known}
		copied, err := c.backup(ctx, b, origin)
		if err != nil {
			return rep, wrap(op, err)
		}
		known[origin] = copied
		rep.Copied = append(rep.Copied, copied)
		rep.Size += copied.Size()
		rep.Read += copied.sum(func(v BackupVolume) int64 { return v.ReadBytes })
		rep.Stored += copied.StoredBytes()
		if o.Copied != nil {
			o.Copied(b, copied)
		}
	}
	return rep, nil
}

// origin is where a backup of this repository comes from.
func (r *Repository) origin(b Backup) CopyOf {
	if b.CopiedFrom != nil {
		return *b.CopiedFrom
	}
	return CopyOf{r.ID(), b.ID}
}

// chosen returns the backups that are named, or all, oldest first.
func (r *Repository) chosen(ctx context.Context, ids []string) (list []Backup, err error) {
	if len(ids) == 0 {
		if list, err = r.list(ctx); err != nil {
			return nil, err
		}
		for _, b := range list {
			if b.Damaged != "" {
				return nil, &Error{Kind: ErrDamaged, Op: "copy backup " + b.ID, Detail: b.Damaged, Remedy: "name those to copy, or delete this one"}
			}
		}
		return list, nil
	}
	for _, id := range ids {
		b, err := r.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(list, func(o Backup) bool { return o.ID == b.ID }) {
			list = append(list, b)
		}
	}
	slices.SortStableFunc(list, func(a, b Backup) int { return a.Created.Compare(b.Created) })
	return list, nil
}

// copying is the copying of one backup.
type copying struct {
	r, to *Repository
	o     CopyOptions
	log   *slog.Logger
	known map[CopyOf]Backup
}

func (c *copying) backup(ctx context.Context, b Backup, from CopyOf) (Backup, error) {
	// The copy reads until the first error.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sources []Source
	for _, v := range b.Volumes {
		src, err := c.r.newVolumeReader(ctx, b, v)
		if err != nil {
			return Backup{}, err
		}
		defer src.free()
		s := Source{Volume: v.VolumeRef, Path: src.Path(), from: src}
		if s.Changes, err = c.changes(ctx, v); err != nil {
			return Backup{}, err
		}
		sources = append(sources, s)
	}
	return c.to.Create(ctx, sources, CreateOptions{
		At: b.Created, Comment: b.Comment, Tags: b.Tags, Job: b.Job, Step: b.Step, copiedFrom: &from,
		Parallel: c.o.Parallel, Progress: c.o.Progress, Logger: c.log,
	})
}

// changes finds the newest copy of another image of the volume, and in what this one
// differs from it. It is nil when there is none: then all is read. That it is the same
// volume, or only one of the same name, saves more or less; the tables tell what
// differs.
func (c *copying) changes(ctx context.Context, v BackupVolume) (*Changes, error) {
	list, err := c.r.list(ctx)
	if err != nil {
		return nil, err
	}
	for _, old := range slices.Backward(list) {
		copied, is := c.known[c.r.origin(old)]
		if old.Damaged != "" || !is {
			continue
		}
		was, why := imageOf(old, v.VolumeRef)
		if why != "" {
			was, why = imageNamed(old, v.name(), v.Size)
		}
		if why != "" {
			continue
		}
		// A copy is called what its original is.
		ch := &Changes{Base: copied.ID, image: was.name()}
		err := c.r.diffVolumes(ctx, was, v, func(r Range) error {
			ch.Ranges = append(ch.Ranges, r)
			return nil
		})
		switch {
		case err == nil:
			return ch, nil
		case unreadable(err):
			c.log.Warn("an earlier backup's table is damaged; all is read", "backup", old.ID, "err", err)
			return nil, nil
		}
		return nil, err
	}
	return nil, nil
}

// diffVolumes calls each for every range in which an image differs from an earlier one
// of the same repository, up to its end.
func (r *Repository) diffVolumes(ctx context.Context, was, now BackupVolume, each func(Range) error) error {
	reader, err := r.newReader()
	if err != nil {
		return err
	}
	defer reader.Close()
	var trees [2]table.Tree
	for i, v := range []BackupVolume{was, now} {
		shape, root, err := v.table()
		if err != nil {
			return err
		}
		trees[i] = table.Tree{Shape: shape, Root: root, Read: func(ref format.Ref, dst []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return reader.Read(ctx, ref, dst)
		}}
	}
	return table.Diff(trees[0], trees[1], func(off, n int64) error {
		if n = min(n, now.Size-off); n <= 0 {
			return nil
		}
		return each(Range{off, n})
	})
}

// volumeReader reads a volume of a backup, at several places at once. It has the context
// of whoever made it.
type volumeReader struct {
	ctx   context.Context
	r     *Repository
	name  string
	shape format.Shape

	mu     sync.Mutex
	cursor *table.Cursor
	nodes  *pack.Reader // of the cursor
	idle   []*chunkReader
}

// chunkReader reads chunks, for one goroutine at a time.
type chunkReader struct {
	*pack.Reader
	plain []byte // of the last chunk that was not wanted as a whole
	ref   format.Ref
}

func (r *Repository) newVolumeReader(ctx context.Context, b Backup, v BackupVolume) (*volumeReader, error) {
	shape, root, err := v.table()
	if err != nil {
		return nil, err
	}
	vr := &volumeReader{ctx: ctx, r: r, shape: shape, name: fmt.Sprintf("volume %s of backup %s in %s", v.name(), b.ID, r.Location())}
	if vr.nodes, err = r.newReader(); err != nil {
		return nil, err
	}
	vr.cursor = table.NewCursor(table.Tree{Shape: shape, Root: root, Read: func(ref format.Ref, dst []byte) error {
		return vr.nodes.Read(ctx, ref, dst)
	}})
	return vr, nil
}

func (v *volumeReader) Size() int64  { return v.shape.Size }
func (v *volumeReader) Path() string { return v.name }

// Close does nothing: whoever made it frees it.
func (v *volumeReader) Close() error { return nil }

func (v *volumeReader) free() {
	v.nodes.Close()
	for _, c := range v.idle {
		c.Close()
	}
}

// piece is a chunk, and what of it is wanted.
type piece struct {
	ref     format.Ref
	skip, n int // plaintext that is not wanted before, and that is
}

// pieces says which chunks the n bytes at off are in.
func (v *volumeReader) pieces(off, n int64) (list []piece, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for n > 0 {
		at := off - off%v.shape.ChunkSize
		part := min(n, at+v.shape.Covers(1, at)-off)
		ref, err := v.cursor.Entry(1, at)
		if err != nil {
			return nil, err
		}
		list = append(list, piece{ref, int(off - at), int(part)})
		off, n = off+part, n-part
	}
	return list, nil
}

// zero tells whether the table has nothing but zeroes there.
func (v *volumeReader) zero(off, n int64) (bool, error) {
	list, err := v.pieces(off, n)
	if err != nil {
		return false, v.failed(err)
	}
	return !slices.ContainsFunc(list, func(p piece) bool { return !p.ref.IsZero() }), nil
}

// ReadAt fills p, which lies within the volume.
func (v *volumeReader) ReadAt(p []byte, off int64) (int, error) {
	list, err := v.pieces(off, int64(len(p)))
	if err != nil {
		return 0, v.failed(err)
	}
	c, err := v.reader()
	if err != nil {
		return 0, err
	}
	defer v.back(c)
	n := len(p)
	for i := 0; i < len(list); {
		if err := v.ctx.Err(); err != nil {
			return 0, err
		}
		l := list[i]
		switch {
		case l.ref.IsZero():
			clear(p[:l.n])
			p, i = p[l.n:], i+1
		case l.n < int(l.ref.Length):
			if err := c.part(v.ctx, l, p[:l.n]); err != nil {
				return 0, v.failed(err)
			}
			p, i = p[l.n:], i+1
		default:
			refs, size := []format.Ref{l.ref}, l.n
			for i++; i < len(list) && list[i].n == int(list[i].ref.Length) && pack.Follows(refs[len(refs)-1], list[i].ref); i++ {
				refs, size = append(refs, list[i].ref), size+list[i].n
			}
			var bad error
			err := c.ReadRun(v.ctx, refs, p[:size], func(_ int, err error) { bad = cmp.Or(bad, err) })
			if err = errors.Join(err, bad); err != nil {
				return 0, v.failed(err)
			}
			p = p[size:]
		}
	}
	return n, nil
}

// part reads a part of a chunk, and keeps the chunk for the next part.
func (c *chunkReader) part(ctx context.Context, l piece, p []byte) error {
	if c.ref != l.ref {
		c.ref, c.plain = format.Ref{}, slices.Grow(c.plain[:0], int(l.ref.Length))[:l.ref.Length]
		if err := c.Read(ctx, l.ref, c.plain); err != nil {
			return err
		}
		c.ref = l.ref
	}
	copy(p, c.plain[l.skip:])
	return nil
}

func (v *volumeReader) failed(err error) error {
	if !unreadable(err) {
		return err
	}
	// Its text only: to whoever writes the copy a node that can't be read is one of
	// the copy's base.
	return &Error{Kind: ErrDamaged, Op: "read " + v.name, Detail: err.Error(), Remedy: healRemedy}
}

func (v *volumeReader) reader() (*chunkReader, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := len(v.idle); n > 0 {
		c := v.idle[n-1]
		v.idle = v.idle[:n-1]
		return c, nil
	}
	r, err := v.r.newReader()
	return &chunkReader{Reader: r}, err
}

func (v *volumeReader) back(c *chunkReader) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.idle = append(v.idle, c)
}
