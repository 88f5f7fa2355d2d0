package backup

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
)

// HealOptions says where to look for what is damaged. It is always looked for in the
// repository itself.
type HealOptions struct {
	// Packs names the packs whose chunks are read, "packs/AA/ID" or ID, such as a
	// verification names. Default all. Tables are always read.
	Packs []string
	// From are block devices and files that may still have the data: volumes, or
	// images of them. They may be in use and change meanwhile: what is taken is what
	// has the right hash.
	From []string
	// Volumes, if not nil, is asked for more of From when something is damaged. It
	// is told which volumes' data that is.
	Volumes func(ctx context.Context, which []VolumeRef) []string
	// Repositories are others that may have it: copies of this one, object by object,
	// or such that backups were copied to or from.
	Repositories []*Repository
	// Scan looks everywhere in From, and not only where the backups have the data.
	Scan bool
	// DryRun tells what could be healed and writes nothing.
	DryRun   bool
	Parallel int
	Progress func(Progress)
	Logger   *slog.Logger
}

// HealReport is what was found and done.
type HealReport struct {
	Backups int   `json:"backups"`
	Chunks  int64 `json:"chunks"` // distinct, read
	Bytes   int64 `json:"bytes"`  // of volumes that these stand for
	// Bad are the distinct chunks and table nodes that could not be read, and packs
	// whose directory could not; Healed are those of them that are good again, or
	// would be when it was a dry run.
	Bad    HealCount `json:"bad"`
	Healed HealCount `json:"healed"`
	// Sources counts what came from where.
	Sources map[string]int `json:"sources"`
	// Changed are the backups that have new tables.
	Changed []string `json:"changed"`
	// Left is what still can't be read.
	Left    []*DamagedError `json:"left,omitempty"`
	Other   []string        `json:"other,omitempty"` // manifests
	DryRun  bool            `json:"dry_run,omitempty"`
	Seconds float64         `json:"seconds"`
}

// HealCount counts what can be damaged.
type HealCount struct {
	Chunks    int `json:"chunks"`
	Nodes     int `json:"nodes"`
	Packs     int `json:"packs"`
	Manifests int `json:"manifests"`
}

// Sum is how many there are of all kinds.
func (c HealCount) Sum() int { return c.Chunks + c.Nodes + c.Packs + c.Manifests }

// healing is a heal under way.
type healing struct {
	r       *Repository
	o       HealOptions
	s       *session
	log     *slog.Logger
	rep     *HealReport
	t       *tracker
	only    map[format.ID]bool // packs to read; nil for all
	dirs    *pack.Directories
	sources []healSource
	asked   bool    // for volumes
	listing listing // what packs list, when that was needed

	list    []Backup
	checked places                    // chunks that were read
	healed  map[format.Ref]format.Ref // where damaged blobs are now
	packs   map[format.ID]bool        // that do not list what tables name

	mu     sync.Mutex
	chunks map[format.Hash]*badBlob
	nodes  map[format.Hash]*badBlob
	known  map[blobKey]bool // bad ones that were counted, in any round

	// Likewise, and whether they were healed.
	knownPacks     map[format.ID]bool
	knownManifests map[string]bool
}

// badBlob is a chunk or node that can't be read.
type badBlob struct {
	hash   format.Hash
	length uint32
	refs   []format.Ref // where it can't
	copies []format.Ref // where else tables have it
	spots  []spot
	done   bool
}

// spot is a place in a volume.
type spot struct {
	b   Backup
	v   BackupVolume
	off int64
	n   int64
}

// maxSpots bounds the places that are remembered of one chunk.
const maxSpots = 64

// healRounds bounds how often it is looked for what lies below healed nodes, and for
// backups that were made meanwhile.
const healRounds = 16

// Heal reads what backups have, looks for what is damaged of it elsewhere, and makes
// it good: the good bytes, proven by their hash, go to new packs, and every backup
// that has them is told where. See moving. Backups and other operations may run
// beside it. What could not be healed is in the report, and no error.
func (r *Repository) Heal(ctx context.Context, o HealOptions) (rep HealReport, err error) {
	start := time.Now()
	log := logger(o.Logger)
	op := "heal " + r.Location()
	rep = HealReport{Sources: map[string]int{}, Changed: []string{}, DryRun: o.DryRun}
	only, err := packSet(op, o.Packs)
	if err != nil {
		return rep, err
	}
	begin := r.begin
	if o.DryRun {
		begin = r.beginReading
	}
	s, err := begin(ctx, "heal", log)
	if err != nil {
		return rep, wrap(op, err)
	}
	defer s.end()
	h := &healing{r: r, o: o, s: s, log: log, rep: &rep, only: only, dirs: pack.NewDirectories(r.store),
		checked: make(places), healed: make(map[format.Ref]format.Ref), known: make(map[blobKey]bool),
		knownPacks: make(map[format.ID]bool), knownManifests: make(map[string]bool)}
	defer h.close()
	if err := h.open(op); err != nil {
		return rep, err
	}
	for range healRounds {
		again, err := h.round(ctx)
		if err != nil {
			return rep, wrap(op, err)
		}
		if !again {
			break
		}
	}
	if rep.Bad.Sum() > rep.Healed.Sum() {
		if err := h.left(ctx); err != nil {
			return rep, wrap(op, err)
		}
	}
	rep.Seconds = time.Since(start).Seconds()
	log.Info("repository is healed", "repository", r.Location(), "bad", rep.Bad, "healed", rep.Healed)
	return rep, nil
}

func packSet(op string, names []string) (map[format.ID]bool, error) {
	if len(names) == 0 {
		return nil, nil
	}
	set := make(map[format.ID]bool)
	for _, name := range names {
		id, err := format.ParseID(name[strings.LastIndexByte(name, '/')+1:])
		if err != nil {
			return nil, &Error{Kind: ErrInvalid, Op: op, Detail: "no pack is called " + name, Remedy: "name it as a verification does: packs/AA/ID"}
		}
		set[id] = true
	}
	return set, nil
}

// round looks for damage and mends what can be mended. again says that there may be
// more to see now.
func (h *healing) round(ctx context.Context) (again bool, err error) {
	if err := h.find(ctx); err != nil {
		return false, err
	}
	if len(h.chunks)+len(h.nodes)+len(h.packs)+len(h.healed) == 0 {
		return false, nil
	}
	if err := h.locate(ctx); err != nil {
		return false, err
	}
	h.askVolumes(ctx)
	m, err := h.r.newMoving(h.s, h.log)
	if err != nil {
		return false, err
	}
	defer m.close()
	m.damaged = true
	for from, to := range h.healed {
		m.move(from, to)
	}
	nodes, err := h.mend(ctx, m)
	for _, b := range h.chunks {
		for _, ref := range b.refs {
			if !b.done { // it is bad in the next round, too
				delete(h.checked[ref.Pack], ref.Offset)
			}
		}
	}
	if err != nil || h.o.DryRun {
		m.discard(ctx)
		return false, err
	}
	changed, others, err := m.commit(ctx)
	for _, id := range changed {
		if !slices.Contains(h.rep.Changed, id) {
			h.rep.Changed = append(h.rep.Changed, id)
		}
	}
	if err != nil {
		return false, err
	}
	newer, err := h.newer(ctx)
	return nodes > 0 || others || newer, err
}

// newer tells whether there are backups that were not looked at.
func (h *healing) newer(ctx context.Context) (bool, error) {
	ids, err := h.r.ids(ctx)
	for _, id := range ids {
		if !slices.ContainsFunc(h.list, func(b Backup) bool { return b.ID == id }) && !slices.ContainsFunc(h.rep.Other, func(s string) bool { return strings.Contains(s, id) }) {
			return true, err
		}
	}
	return false, err
}

// find reads everything that was not read yet.
func (h *healing) find(ctx context.Context) error {
	list, err := h.manifests(ctx)
	if err != nil {
		return err
	}
	h.list = list
	h.chunks, h.nodes, h.packs = make(map[format.Hash]*badBlob), make(map[format.Hash]*badBlob), make(map[format.ID]bool)
	h.rep.Backups = len(list)
	var total int64
	for _, b := range list {
		total += b.Size()
	}
	h.t = track(PhaseVerify, total, -1, h.o.Progress)
	defer h.t.finish()
	runs := make(chan []format.Ref)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(runs)
		return h.walk(ctx, runs)
	})
	for range parallel(h.o.Parallel) {
		g.Go(func() error { return h.readRuns(ctx, runs) })
	}
	return g.Wait()
}

// manifests lists the backups, newest first. One that can't be read is replaced by
// what a copy of the repository has.
func (h *healing) manifests(ctx context.Context) ([]Backup, error) {
	all, err := h.r.list(ctx)
	if err != nil {
		return nil, err
	}
	h.rep.Other = nil
	var list []Backup
	for _, b := range slices.Backward(all) {
		if b.Damaged == "" {
			list = append(list, b)
			continue
		}
		good, from, err := h.manifest(ctx, b.ID)
		if err != nil {
			return nil, err
		}
		if h.knownManifests[b.ID] = from != ""; from == "" {
			h.rep.Other = append(h.rep.Other, b.Damaged)
			continue
		}
		h.rep.Sources[from]++
		list = append(list, good)
	}
	h.rep.Bad.Manifests, h.rep.Healed.Manifests = count(h.knownManifests)
	return list, nil
}

// count tells how many there are, and how many of them are true.
func count[K comparable](in map[K]bool) (all, good int) {
	for _, is := range in {
		if is {
			good++
		}
	}
	return len(in), good
}

// walk goes through all tables and sends what chunks to read.
func (h *healing) walk(ctx context.Context, runs chan<- []format.Ref) error {
	t, err := h.r.newTables(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	t.chunks = h.checked
	var run []format.Ref
	var size int64
	flush := func() error {
		if len(run) == 0 {
			return nil
		}
		select {
		case runs <- run:
			run, size = nil, 0
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s := seen{
		chunk: func(_ int64, ref format.Ref) error {
			if h.only != nil && !h.only[ref.Pack] {
				return h.listed(ctx, ref)
			}
			h.rep.Chunks++
			h.rep.Bytes += int64(ref.Length)
			if n := len(run); n > 0 && (!pack.Follows(run[n-1], ref) || size+int64(ref.Length) > taskBytes) {
				if err := flush(); err != nil {
					return err
				}
			}
			run, size = append(run, ref), size+int64(ref.Length)
			return h.listed(ctx, ref)
		},
		node: func(_ int64, ref format.Ref) error { return h.listed(ctx, ref) },
		bad: func(_, _ int64, ref format.Ref, err error) error {
			h.log.Warn("table node is damaged", "pack", pack.Name(ref.Pack), "err", err)
			h.bad(h.nodes, ref, &h.rep.Bad.Nodes)
			return nil
		},
	}
	for _, b := range h.list {
		for _, v := range b.Volumes {
			if err := t.volume(b, v, s); err != nil {
				return err
			}
			h.t.done.Add(v.Size)
		}
	}
	return flush()
}

// listed notes a pack that does not list what a table names.
func (h *healing) listed(ctx context.Context, ref format.Ref) error {
	ok, err := h.dirs.Lists(ctx, ref)
	if err != nil && !unreadable(err) {
		return err
	}
	if !ok && !errors.Is(err, store.ErrNotExist) {
		h.packs[ref.Pack] = true
	}
	return nil
}

func (h *healing) readRuns(ctx context.Context, runs <-chan []format.Ref) error {
	reader, err := h.r.newReader()
	if err != nil {
		return err
	}
	defer reader.Close()
	buf := device.Buffer(int(max(taskBytes, h.r.config.ChunkSize)))
	for run := range runs {
		err := reader.ReadRun(ctx, run, buf, func(i int, err error) {
			h.log.Warn("chunk is damaged", "pack", pack.Name(run[i].Pack), "err", err)
			h.bad(h.chunks, run[i], &h.rep.Bad.Chunks)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *healing) bad(in map[format.Hash]*badBlob, ref format.Ref, count *int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := (blobKey{ref.Hash, ref.Kind}); !h.known[k] {
		h.known[k] = true
		*count++
	}
	b := in[ref.Hash]
	if b == nil {
		b = &badBlob{hash: ref.Hash, length: ref.Length}
		in[ref.Hash] = b
	}
	if !slices.Contains(b.refs, ref) {
		b.refs = append(b.refs, ref)
	}
}
