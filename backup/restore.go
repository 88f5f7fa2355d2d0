package backup

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/swapback/swapback/backup/internal/codec"
	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/failpoint"
)

// Restore brings a volume of a backup back onto a block device or file.
//
// Everything that can be refused is refused before the first write: an unknown
// or damaged manifest, a target of another size, a target that somebody holds.
// Every chunk is checked before it is written, ranges that the backup has as
// zeroes are zeroed, and the target is synced. The target holds the volume only
// when the error is nil; when it is a [*DamagedError], the ranges that it lists
// are zeroed and all else is right, unless StopAtDamage was set.
func (r *Repository) Restore(ctx context.Context, o RestoreOptions) (RestoreResult, error) {
	start := time.Now()
	log := logger(o.Logger)
	op := fmt.Sprintf("restore backup %q from %s to %s", o.Backup, r.Location(), o.Target)
	res := RestoreResult{Target: o.Target}
	s, err := r.beginReading(ctx, "restore", log)
	if err != nil {
		return res, wrap(op, err)
	}
	defer s.end()
	b, err := r.Get(ctx, o.Backup)
	if err != nil {
		return res, err
	}
	v, err := b.volume(op, o.Volume)
	if err != nil {
		return res, err
	}
	op = fmt.Sprintf("restore volume %s of backup %s to %s", v.name(), b.ID, o.Target)
	res.Backup, res.Created, res.Volume = b.ID, b.Created, v.VolumeRef
	target, err := device.OpenTarget(o.Target, device.TargetOptions{Held: o.Held, Create: o.CreateTarget, Size: v.Size})
	if err != nil {
		return res, wrapTarget(op, o.Target, err)
	}
	defer target.Close()
	if err := checkSize(op, v, target, o.AllowLarger); err != nil {
		return res, err
	}

	failpoint.Hit("restore: target open")
	if o.Ready != nil {
		if err := o.Ready(); err != nil {
			return res, fmt.Errorf("%s: %w", op, err)
		}
	}
	rs := &restoring{r: r, o: o, v: v, target: target, res: &res, backup: b.ID}
	err = rs.write(ctx)
	if err == nil && o.VerifyAfter {
		at := time.Now()
		err = rs.verify(ctx, log)
		res.VerifySeconds = time.Since(at).Seconds()
		failpoint.Hit("restore: verified")
	}
	res.Seconds = time.Since(start).Seconds()
	if err == nil && len(res.Bad) > 0 {
		err = rs.damage(false)
	}
	if err != nil {
		log.Error("restore failed", "backup", b.ID, "volume", v.name(), "target", o.Target, "err", err)
		return res, wrap(op, err)
	}
	log.Info("restore is complete", "backup", b.ID, "volume", v.name(), "target", o.Target,
		"data", res.DataBytes, "zero", res.ZeroBytes, "verified", res.Verified, "duration", time.Since(start))
	return res, nil
}

// volume finds a volume by name, POOL/NAME or UUID.
func (b Backup) volume(op, want string) (BackupVolume, error) {
	var found []BackupVolume
	var names []string
	for _, v := range b.Volumes {
		names = append(names, v.name())
		if want == "" || want == v.Name || want == v.name() || want == v.UUID {
			found = append(found, v)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return BackupVolume{}, &Error{Kind: ErrNoVolume, Op: op, Object: want,
		Detail: "the backup has " + some(names), Remedy: "name one of them as POOL/NAME or by its UUID"}
}

func checkSize(op string, v BackupVolume, target *device.File, allowLarger bool) error {
	e := &Error{Kind: ErrSize, Op: op,
		Detail: fmt.Sprintf("it has %d bytes, the volume %d", target.Size(), v.Size)}
	switch {
	case target.Size() < v.Size:
		e.Remedy = "give a target of the volume's size; nothing was written"
	case target.Size() > v.Size && !allowLarger:
		e.Remedy = "give a target of the volume's size, or allow a larger one, whose rest is zeroed; nothing was written"
	default:
		return nil
	}
	return e
}

// restoring is a restore under way.
type restoring struct {
	r      *Repository
	o      RestoreOptions
	v      BackupVolume
	backup string
	target *device.File
	t      *tracker

	mu  sync.Mutex
	res *RestoreResult
}

const (
	// zeroPiece is how much is zeroed at once, so that an end of ctx is seen
	// in between.
	zeroPiece = 128 << 20
	// maxBad is how many damaged ranges are listed before a restore gives up.
	maxBad = 10000
)

// write fills the target and syncs it.
func (rs *restoring) write(ctx context.Context) error {
	rs.t = track(PhaseRestore, rs.v.Size, rs.v.DataBytes, rs.o.Progress)
	defer rs.t.finish()
	err := rs.r.eachTask(ctx, rs.v, rs.o.Parallel, everything, rs.writeTask)
	rs.sortBad()
	if err != nil {
		return err
	}
	for off := rs.v.Size; off < rs.target.Size(); off += zeroPiece {
		if err := rs.zero(ctx, off, min(zeroPiece, rs.target.Size()-off)); err != nil {
			return err
		}
	}
	if err := rs.target.Sync(); err != nil {
		return rs.targetError("sync", err)
	}
	failpoint.Hit("restore: synced")
	return nil
}

// writeTask brings one task onto the target. It runs on several goroutines.
func (rs *restoring) writeTask(ctx context.Context, w *taskWorker, t task) error {
	switch {
	case t.err != nil:
		if err := rs.bad(t.off, t.n, t.object, t.err); err != nil {
			return err
		}
		rs.t.done.Add(t.n)
		return rs.zero(ctx, t.off, t.n)
	case t.refs == nil:
		if err := rs.zero(ctx, t.off, t.n); err != nil {
			return err
		}
		failpoint.Hit("restore: zeroes written")
		rs.count(0, t.n, 0)
		rs.t.zero.Add(t.n)
		rs.t.done.Add(t.n)
		return nil
	}
	before := w.reader.Bytes()
	plain, good, err := w.read(ctx, t, rs.bad)
	read := w.reader.Bytes() - before
	rs.t.stored.Add(read)
	rs.count(0, 0, read)
	if err != nil {
		return err
	}
	// Good chunks that follow each other are written at once.
	for off, i := int64(0), 0; i < len(t.refs); {
		end, j := off, i
		for j < len(t.refs) && good[j] == good[i] {
			end += int64(t.refs[j].Length)
			j++
		}
		if !good[i] {
			err = rs.zero(ctx, t.off+off, end-off)
		} else if _, err = rs.target.WriteAt(plain[off:end], t.off+off); err != nil {
			err = rs.targetError(fmt.Sprintf("write %d bytes at %d", end-off, t.off+off), err)
		} else {
			rs.count(end-off, 0, 0)
			failpoint.Hit("restore: run written")
		}
		if err != nil {
			return err
		}
		rs.t.done.Add(end - off)
		off, i = end, j
	}
	return nil
}

func (rs *restoring) zero(ctx context.Context, off, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		piece := min(n, zeroPiece)
		if err := rs.target.Zero(off, piece); err != nil {
			return rs.targetError(fmt.Sprintf("zero %d bytes at %d", piece, off), err)
		}
		off, n = off+piece, n-piece
	}
	return nil
}

func (rs *restoring) targetError(what string, err error) error {
	return wrapTarget(fmt.Sprintf("restore volume %s of backup %s: %s", rs.v.name(), rs.backup, what), rs.target.Path(), err)
}

func (rs *restoring) count(data, zero, read int64) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.res.DataBytes += data
	rs.res.ZeroBytes += zero
	rs.res.ReadBytes += read
}

// bad notes a range that can't be read back; its error ends the restore.
func (rs *restoring) bad(off, n int64, object string, err error) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.res.Bad = append(rs.res.Bad, BadRange{Offset: off, Length: n, Object: object, Reason: err.Error()})
	if rs.o.StopAtDamage || len(rs.res.Bad) == maxBad {
		return rs.damage(true)
	}
	return nil
}

func (rs *restoring) damage(stopped bool) error {
	return &DamagedError{Op: "restore", Backup: rs.backup, Volume: rs.v.name(), Ranges: slices.Clone(rs.res.Bad), Stopped: stopped}
}

func (rs *restoring) sortBad() { rs.res.Bad = mergeBad(rs.res.Bad) }

// mergeBad sorts ranges and joins neighbours whose object is the same.
func mergeBad(bad []BadRange) []BadRange {
	slices.SortFunc(bad, func(a, b BadRange) int { return cmp.Compare(a.Offset, b.Offset) })
	var merged []BadRange
	for _, b := range bad {
		if n := len(merged) - 1; n >= 0 && merged[n].Object == b.Object && merged[n].Offset+merged[n].Length == b.Offset {
			merged[n].Length += b.Length
			continue
		}
		merged = append(merged, b)
	}
	return merged
}

// verify reads the target back and compares it with the table.
func (rs *restoring) verify(ctx context.Context, log *slog.Logger) error {
	if !rs.target.Direct() {
		log.Warn("target has no O_DIRECT; it is read back through the page cache", "target", rs.target.Path())
	}
	rs.t = track(PhaseVerify, rs.v.Size, -1, rs.o.Progress)
	defer rs.t.finish()
	bad := func(off, n int64) error {
		return rs.targetError("read back", fmt.Errorf("bytes %d-%d are not what was written", off, off+n-1))
	}
	err := rs.r.eachTask(ctx, rs.v, rs.o.Parallel, everything, func(ctx context.Context, w *taskWorker, t task) error {
		rs.t.done.Add(t.n)
		if t.err != nil && !rs.isBad(t.off) {
			return fmt.Errorf("%s was good when the target was written: %w", t.object, t.err)
		}
		if t.refs == nil {
			return rs.verifyZero(ctx, w, t.off, t.n, bad)
		}
		plain := w.plain[:t.n]
		if _, err := rs.target.ReadAt(plain, t.off); err != nil {
			return rs.targetError(fmt.Sprintf("read %d bytes at %d", t.n, t.off), err)
		}
		off := t.off
		for _, ref := range t.refs {
			ck := plain[:ref.Length]
			plain = plain[ref.Length:]
			isBad := rs.isBad(off)
			if isBad && !codec.IsZero(ck) || !isBad && rs.r.hash(ck) != ref.Hash {
				return bad(off, int64(ref.Length))
			}
			off += int64(ref.Length)
		}
		return nil
	})
	if err == nil && len(rs.res.Bad) == 0 {
		rs.res.Verified = true
	}
	return err
}

func (rs *restoring) verifyZero(ctx context.Context, w *taskWorker, off, n int64, bad func(off, n int64) error) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		plain := w.plain[:min(n, int64(len(w.plain)))]
		if _, err := rs.target.ReadAt(plain, off); err != nil {
			return rs.targetError(fmt.Sprintf("read %d bytes at %d", len(plain), off), err)
		}
		if !codec.IsZero(plain) {
			return bad(off, int64(len(plain)))
		}
		off, n = off+int64(len(plain)), n-int64(len(plain))
	}
	return nil
}

// isBad tells whether the chunk at off was found bad. rs.res.Bad is sorted and
// nobody writes it any more.
func (rs *restoring) isBad(off int64) bool {
	i, found := slices.BinarySearchFunc(rs.res.Bad, off, func(r BadRange, off int64) int {
		return cmp.Compare(r.Offset, off)
	})
	return found || i > 0 && off < rs.res.Bad[i-1].Offset+rs.res.Bad[i-1].Length
}
