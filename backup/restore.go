package backup

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/failpoint"
)

// Restore brings a volume of a backup back onto a block device or file.
//
// Everything that can be refused is refused before the first write: an unknown
// or damaged manifest, a target of another size, a target that somebody holds.
// Every chunk is checked before it is written, ranges that the backup has as
// zeroes are zeroed, and the target is synced. Writes go to the target in the order
// of its bytes. The target holds the volume only when the error is nil; when it is
// a [*DamagedError], all is right but the ranges that it lists, which are zeroed, or
// with Delta what the target had there, unless StopAtDamage was set.
//
// A restore that ended half-way, by an error or because ctx did, leaves a target
// that is partly what it was and partly the backup, as [RestoreResult].Incomplete
// says, and can be gone on with by Delta. Only a file that it made itself and had not
// written to yet is removed again.
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
	rs := &restoring{r: r, o: o, v: v, target: target, res: &res, backup: b.ID, order: newOrder()}
	err = rs.run(ctx, op, log)
	res.Seconds = time.Since(start).Seconds()
	if err != nil {
		return res, wrap(op, err)
	}
	log.Info("restore is complete", "backup", b.ID, "volume", v.name(), "target", o.Target,
		"data", res.DataBytes, "zero", res.ZeroBytes, "unchanged", res.UnchangedBytes, "verified", res.Verified, "duration", time.Since(start))
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
	order  *order
	t      *tracker
	wrote  atomic.Bool // the target is about to be written to, or was

	mu  sync.Mutex
	res *RestoreResult
	bad badList
}

// run does all that there is to do once the target is open.
func (rs *restoring) run(ctx context.Context, op string, log *slog.Logger) error {
	if err := checkSize(op, rs.v, rs.target, rs.o.AllowLarger); err != nil {
		return err
	}
	if rs.target.Created() {
		rs.o.Delta = false // there is nothing to compare with
	}
	failpoint.Hit("restore: target open")
	if rs.o.Ready != nil {
		if err := rs.o.Ready(); err != nil {
			rs.discard(log)
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	err := rs.write(ctx)
	rs.res.Bad, rs.res.MissingBytes = rs.bad.ranges, rs.bad.bytes
	if err != nil {
		rs.res.Incomplete = rs.wrote.Load()
		rs.discard(log)
		return err
	}
	if rs.o.VerifyAfter {
		at := time.Now()
		err := rs.verify(ctx, log)
		rs.res.VerifySeconds = time.Since(at).Seconds()
		if err != nil {
			return err
		}
		failpoint.Hit("restore: verified")
	}
	if len(rs.res.Bad) > 0 {
		return rs.damage(false)
	}
	return nil
}

// discard removes a new file that has nothing in it.
func (rs *restoring) discard(log *slog.Logger) {
	if rs.wrote.Load() {
		return
	}
	if err := rs.target.Discard(); err != nil {
		log.Warn("an empty file is left", "file", rs.target.Path(), "err", err)
	}
}

func (rs *restoring) targetError(what string, err error) error {
	return wrapTarget(fmt.Sprintf("restore volume %s of backup %s: %s", rs.v.name(), rs.backup, what), rs.target.Path(), err)
}

// damaged notes a range that can't be read back; its error ends the restore.
func (rs *restoring) damaged(off, n int64, object string, err error) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.bad.add(BadRange{Offset: off, Length: n, Object: object, Reason: reasonOf(err)})
	if rs.o.StopAtDamage {
		return rs.damage(true)
	}
	return nil
}

// damage is the error of a restore that found some. The caller holds rs.mu, or is
// alone.
func (rs *restoring) damage(stopped bool) error {
	return &DamagedError{Op: "restore", Backup: rs.backup, Volume: rs.v.name(), Ranges: slices.Clone(rs.bad.ranges),
		Bytes: rs.bad.bytes, Stopped: stopped, Kept: rs.o.Delta && !stopped}
}
