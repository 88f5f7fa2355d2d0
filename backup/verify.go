package backup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// place is where a blob lies.
type place struct {
	pack   format.ID
	offset uint32
}

// verifying is a verification under way.
type verifying struct {
	r       *Repository
	o       VerifyOptions
	rep     *VerifyReport
	t       *tracker
	seen    map[place]bool // blobs that were counted; true when of a volume without damage
	current map[place]bool // of the volume being looked at
	dirs    *pack.Directories
	sample  sample
	objects []Finding // what Other of the report tells, by object

	mu  sync.Mutex
	bad []BadRange
}

// errTooBad ends looking at a volume with very many damaged ranges.
var errTooBad = errors.New("too many damaged ranges")

// sample is a window in the range of a hash's first 64 bits. The windows of seeds
// that follow each other lie side by side.
type sample struct {
	start, width uint64
	all          bool
}

func sampleOf(share float64, seed uint64) sample {
	const whole = 1 << 64 // of the range
	if share == 0 || share >= 1 {
		return sample{all: true}
	}
	width := max(uint64(math.Ceil(share*whole)), 1)
	return sample{start: seed * width, width: width}
}

// has tells whether a chunk of this name is in the sample. Names are spread evenly:
// they are hashes.
func (s sample) has(h format.Hash) bool {
	return s.all || binary.BigEndian.Uint64(h[:])-s.start < s.width
}

// Verify checks backups, all of them when no ID is given: their tables, and that
// the packs list what the tables name. It reads their chunks, or the sample that
// the options say, and compares each with its hash. What several backups share is
// read once, the newest backup comes first. The error is not nil when anything is
// damaged; the report then says what.
func (r *Repository) Verify(ctx context.Context, o VerifyOptions, ids ...string) (rep VerifyReport, err error) {
	start := time.Now()
	log := logger(o.Logger)
	op := "verify backups in " + r.Location()
	if o.Sample < 0 || o.Sample > 1 || math.IsNaN(o.Sample) {
		return rep, &Error{Kind: ErrInvalid, Op: op, Detail: fmt.Sprintf("a sample of %v", o.Sample), Remedy: "name a share above 0 and up to 1"}
	}
	s, err := r.beginReading(ctx, "verify", log)
	if err != nil {
		return rep, wrap(op, err)
	}
	defer s.end()
	if _, err := r.verify(ctx, o, &rep, ids); err != nil {
		return rep, wrap(op, err)
	}
	rep.Seconds = time.Since(start).Seconds()
	var errs []error
	for _, d := range rep.Damage {
		log.Error("backup is damaged", "backup", d.Backup, "volume", d.Volume, "ranges", len(d.Ranges))
		errs = append(errs, d)
	}
	if len(rep.Other) > 0 {
		errs = append(errs, &Error{Kind: ErrDamaged, Op: op, Detail: some(rep.Other),
			Remedy: "delete these backups, or copy their manifests back from another copy of the repository"})
	}
	return rep, errors.Join(errs...)
}

// verify verifies within a session. What is damaged is in the report.
func (r *Repository) verify(ctx context.Context, o VerifyOptions, rep *VerifyReport, ids []string) (*verifying, error) {
	list, objects, err := r.verifyList(ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, f := range objects {
		rep.Other = append(rep.Other, f.Detail)
	}
	var total int64
	for _, b := range list {
		total += b.Size()
	}
	vf := &verifying{r: r, o: o, rep: rep, seen: make(map[place]bool), dirs: pack.NewDirectories(r.store), sample: sampleOf(o.Sample, o.Seed), objects: objects}
	if !vf.sample.all && !o.StructureOnly {
		rep.Sample, rep.Seed = o.Sample, o.Seed
	}
	vf.t = track(PhaseVerify, total, -1, o.Progress)
	defer vf.t.finish()
	for _, b := range list {
		for _, v := range b.Volumes {
			if err := vf.volume(ctx, b, v); err != nil {
				return nil, err
			}
		}
		rep.Backups++
	}
	return vf, nil
}

// verifyList returns the backups to verify, newest first so that what matters
// most is looked at first, and what can't be read at all.
func (r *Repository) verifyList(ctx context.Context, ids []string) (list []Backup, damaged []Finding, err error) {
	if len(ids) == 0 {
		all, err := r.list(ctx)
		if err != nil {
			return nil, nil, err
		}
		for i := range all {
			if b := all[len(all)-1-i]; b.Damaged != "" {
				damaged = append(damaged, Finding{Object: backupDir + "/" + b.ID, Detail: b.Damaged})
			} else {
				list = append(list, b)
			}
		}
		return list, damaged, nil
	}
	for _, id := range ids {
		b, err := r.Get(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, b)
	}
	return list, nil, nil
}

func (vf *verifying) volume(ctx context.Context, b Backup, v BackupVolume) error {
	vf.current, vf.bad = make(map[place]bool), nil
	begin := vf.t.done.Load()
	keep := filter{
		chunk: func(ref format.Ref) bool {
			fresh, first := vf.fresh(ctx, ref)
			read := fresh && !vf.o.StructureOnly && vf.sample.has(ref.Hash)
			if first {
				vf.rep.Chunks++
				vf.rep.ChunkBytes += int64(ref.Length)
				if read {
					vf.rep.ChunksRead++
					vf.rep.BytesRead += int64(ref.Length)
				}
			}
			return read
		},
		node: func(ref format.Ref) bool {
			fresh, first := vf.fresh(ctx, ref)
			if first {
				vf.rep.Nodes++
			}
			return fresh
		},
	}
	err := vf.r.eachTask(ctx, v, vf.o.Parallel, keep, vf.task)
	if err != nil && !errors.Is(err, errTooBad) {
		return err
	}
	vf.t.done.Store(begin + v.Size)
	vf.rep.Bytes += v.Size
	if len(vf.bad) > 0 {
		vf.rep.Damage = append(vf.rep.Damage, &DamagedError{Op: "verify", Backup: b.ID, Volume: v.name(), Ranges: mergeBad(vf.bad), Stopped: err != nil})
		return nil
	}
	for p := range vf.current {
		vf.seen[p] = true
	}
	return nil
}

// fresh tells whether a blob must be looked at: it is not known to be good. first
// tells whether it comes for the first time, so that it counts.
func (vf *verifying) fresh(ctx context.Context, ref format.Ref) (fresh, first bool) {
	p := place{ref.Pack, ref.Offset}
	good, counted := vf.seen[p]
	if good {
		return false, false
	}
	if !counted {
		vf.seen[p] = false
	}
	vf.current[p] = true
	vf.checkListed(ctx, ref)
	return true, !counted
}

// checkListed looks whether the blob's pack is whole and lists it. Restoring does
// not need that, but using chunks again and rescue do.
func (vf *verifying) checkListed(ctx context.Context, ref format.Ref) {
	listed, err := vf.dirs.Lists(ctx, ref)
	if err != nil {
		vf.other(ref, err.Error())
	} else if !listed {
		vf.other(ref, fmt.Sprintf("%s does not list the blob at offset %d", pack.Name(ref.Pack), ref.Offset))
	}
}

// other notes what is wrong with a pack, once and up to a bound.
func (vf *verifying) other(ref format.Ref, text string) {
	if slices.Contains(vf.rep.Other, text) {
		return
	}
	switch n := len(vf.rep.Other); {
	case n < maxOther:
		vf.rep.Other = append(vf.rep.Other, text)
		vf.objects = append(vf.objects, Finding{Object: pack.Name(ref.Pack), Detail: text})
	case n == maxOther:
		vf.rep.Other = append(vf.rep.Other, "and more of the kind")
	}
}

// task reads one task. It runs on several goroutines.
func (vf *verifying) task(ctx context.Context, w *taskWorker, t task) error {
	vf.t.done.Add(t.n)
	bad := func(off, n int64, object string, err error) error {
		vf.mu.Lock()
		defer vf.mu.Unlock()
		vf.bad = append(vf.bad, BadRange{Offset: off, Length: n, Object: object, Reason: err.Error()})
		if len(vf.bad) == maxBad {
			return errTooBad
		}
		return nil
	}
	if t.err != nil {
		return bad(t.off, t.n, t.object, t.err)
	}
	if t.refs == nil {
		vf.t.zero.Add(t.n)
		return nil
	}
	before := w.reader.Bytes()
	_, _, err := w.read(ctx, t, bad)
	vf.t.stored.Add(w.reader.Bytes() - before)
	return err
}
