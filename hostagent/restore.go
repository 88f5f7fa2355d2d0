package hostagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/failpoint"
)

// RestoreOptions says what to bring back onto which volume.
type RestoreOptions struct {
	Service api.Service
	Repo    *backup.Repository
	// Locks keep others from the target; nil for none.
	Locks *Locks
	// Backup is an id, a unique beginning of one, or "latest".
	Backup string
	// Volume is the target, whose content is lost.
	Volume string
	// Seen is what the caller saw the target show when it decided that this may
	// be lost; another content is refused. Nil means what it shows now.
	Seen *api.Position
	// From names the volume in the backup. Empty means the backup's only
	// volume, or the one with the target's UUID, or else its name.
	From string
	// Overwrite allows a target that is not an unused volume, see the package
	// documentation. A target that is held or in quarantine is refused anyway.
	Overwrite bool
	// Delta writes only what differs from the backup, see [backup.RestoreOptions].
	Delta bool
	// StopAtDamage ends the restore at the first damaged chunk instead of
	// restoring everything else.
	StopAtDamage bool
	// VerifyAfter reads the target back from the disk and compares.
	VerifyAfter bool
	Progress    func(backup.Progress)
	Logger      *slog.Logger
}

// Restore brings a volume of a backup back onto a volume. A target without a
// block device gets one for the time of the restore. The device is held
// exclusively meanwhile. When Restore fails half-way the target's content is
// neither the old nor the new one, and the error and the result say so. When it
// ends with a [*backup.DamagedError] that is not Stopped, all that could be read is
// back; the volume then does not count as descending from the backup.
func Restore(ctx context.Context, o RestoreOptions) (backup.RestoreResult, error) {
	var none backup.RestoreResult
	first, err := o.Service.Volume(ctx, o.Volume)
	if err != nil {
		return none, fmt.Errorf("restore: %w", err)
	}
	unlock, err := o.Locks.Volume(first)
	if err != nil {
		return none, fmt.Errorf("restore onto volume %s: %w", full(first), err)
	}
	defer unlock()
	// Seen again: whoever had the lock before may have swapped it.
	target, err := o.Service.Volume(ctx, first.UUID)
	if err != nil {
		return none, fmt.Errorf("restore: %w", err)
	}
	if o.Seen == nil {
		o.Seen = &first.Position
	}
	if err := sameContent(target, *o.Seen); err != nil {
		return none, fmt.Errorf("restore onto volume %s: %w", full(target), err)
	}
	b, err := o.Repo.Get(ctx, o.Backup)
	if err != nil {
		return none, fmt.Errorf("restore onto volume %s: %w", full(target), err)
	}
	from, err := imageFor(b, target, o.From)
	if err != nil {
		return none, err
	}
	if from.Size != target.Size {
		return none, &api.Error{
			Code:    api.CodeInvalid,
			Message: fmt.Sprintf("restore onto volume %s: it has %d bytes, volume %s in backup %s has %d", full(target), target.Size, from.Name, b.ID, from.Size),
			Remedy:  fmt.Sprintf("name a volume of %d bytes, or create one", from.Size),
		}
	}
	if err := checkTarget(ctx, o.Service, target); err != nil {
		return none, err
	}
	if !o.Overwrite && !isSpareOf(target.Name, from.Name) {
		return none, &api.Error{
			Code:    api.CodeInvalid,
			Message: fmt.Sprintf("restore onto volume %s: what it holds would be lost", full(target)),
			Remedy:  fmt.Sprintf("name a volume called %s…, or say that it may be overwritten", spareName(from.Name)),
		}
	}
	failpoint.Hit("restore: target chosen")
	attached := target.Device != ""
	result, err := restoreOnto(ctx, &target, b, from, o)
	if !attached && target.Device != "" {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
		defer cancel()
		if _, derr := o.Service.Detach(after, target.UUID); derr != nil {
			logger(o.Logger).Warn("volume stays attached after the restore", "volume", full(target), "err", derr)
		}
	}
	return result, err
}

// restoreOnto attaches the target when need be (target then says so), writes the
// image onto it and records the backup with the target's position. A target that
// shows other content than target says is not written to.
func restoreOnto(ctx context.Context, target *api.Volume, b backup.Backup, from backup.BackupVolume, o RestoreOptions) (backup.RestoreResult, error) {
	var none backup.RestoreResult
	seen := target.Position
	// Of another machine it may be served, and have no device here.
	if target.Device == "" && (target.State != api.StateServing || target.NQN != "") {
		v, err := o.Service.Attach(ctx, target.UUID, api.AttachRequest{})
		if err != nil {
			return none, fmt.Errorf("restore onto volume %s: %w", full(*target), err)
		}
		*target = v
		failpoint.Hit("restore: target attached")
	}
	if target.Device == "" {
		return none, &api.Error{
			Code:    api.CodeUnsupported,
			Message: fmt.Sprintf("restore onto volume %s: this machine has no block device of it", full(*target)),
			Remedy:  "connect it (NVMe/TCP: a device with the volume's UUID, " + target.UUID + "), or restore on the storage machine",
		}
	}
	var changed error
	result, err := o.Repo.Restore(ctx, backup.RestoreOptions{
		// While the device is held nobody can swap the volume or take the device
		// away, so this look is good until the end.
		Ready: func() error {
			changed = stillTarget(ctx, o.Service, *target, seen)
			return changed
		},
		Backup: b.ID, Volume: imageName(b, from), Target: target.Device,
		// A volume that grew after the backup gets the image it had then; its
		// tail reads as zeroes.
		AllowLarger: from.Size < target.Size,
		Delta:       o.Delta, StopAtDamage: o.StopAtDamage,
		VerifyAfter: o.VerifyAfter, Progress: o.Progress, Logger: o.Logger,
	})
	if changed != nil {
		return none, fmt.Errorf("restore backup %s onto volume %s: %w", b.ID, full(*target), changed)
	}
	if err != nil {
		err = fmt.Errorf("restore backup %s onto volume %s: %w", b.ID, full(*target), err)
		if result.Incomplete {
			err = fmt.Errorf("%w\n  volume %s holds an incomplete image now", err, full(*target))
		}
		return result, err
	}
	failpoint.Hit("restore: content back")
	v, err := o.Service.SetDescendsFrom(ctx, target.UUID, api.DescendsRequest{Backup: b.ID, Generation: target.Position.Generation})
	if err != nil {
		return result, fmt.Errorf("restore backup %s onto volume %s: the content is back but not recorded: %w", b.ID, full(*target), err)
	}
	failpoint.Hit("restore: recorded")
	*target = v
	return result, nil
}

// sameContent refuses a volume that does not show what it was seen to show.
func sameContent(v api.Volume, seen api.Position) error {
	if v.Position.ID == seen.ID && v.Position.Generation == seen.Generation {
		return nil
	}
	return &api.Error{
		Code:    api.CodeGeneration,
		Message: fmt.Sprintf("volume %s shows other content than when it was chosen: somebody has swapped it", full(v)),
		Remedy:  fmt.Sprintf("see what it shows now (swapback volume show %s), and choose again", full(v)),
	}
}

// stillTarget looks again at a volume whose device is open to be written to.
func stillTarget(ctx context.Context, svc api.Service, v api.Volume, seen api.Position) error {
	now, err := svc.Volume(ctx, v.UUID)
	if err != nil {
		return fmt.Errorf("look at it before it is written to: %w", err)
	}
	if err := sameContent(now, seen); err != nil {
		return err
	}
	if now.Device != v.Device {
		return &api.Error{
			Code:    api.CodeGeneration,
			Message: fmt.Sprintf("volume %s was detached, or attached anew, since it was chosen: %s is not its device", full(v), v.Device),
			Remedy:  "try again",
		}
	}
	return refuseQuarantine(now)
}

func refuseQuarantine(v api.Volume) error {
	q := v.Position.Quarantine
	if q == nil {
		return nil
	}
	return &api.Error{
		Code:    api.CodeQuarantined,
		Message: fmt.Sprintf("volume %s is in quarantine: %s", full(v), q.Reason),
		Remedy:  "it is evidence of a failure; release it first (swapback volume release), or use another volume",
	}
}

// checkTarget refuses a volume that must not be written to.
func checkTarget(ctx context.Context, svc api.Service, v api.Volume) error {
	if err := refuseQuarantine(v); err != nil {
		return err
	}
	if v.ReadOnly {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("volume %s is read-only", full(v)), Remedy: "detach it and attach it writable, or use another volume"}
	}
	if v.Degraded {
		return &api.Error{Code: api.CodeDegraded, Message: fmt.Sprintf("volume %s is degraded: %s", full(v), v.Error), Remedy: "use another volume, or connect the disk and say swapback pool rejoin " + v.Pool}
	}
	switch v.State {
	case api.StateBusy:
		return &api.Error{Code: api.CodeBusy, Message: fmt.Sprintf("volume %s is busy: a swap is under way", full(v)), Remedy: "try again when it has ended"}
	case api.StateFailed:
		return &api.Error{Code: api.CodeInternal, Message: fmt.Sprintf("volume %s should be served but is not: %s", full(v), v.Error), Remedy: "attach it again, or use another volume"}
	}
	if v.Snapshot {
		return &api.Error{Code: api.CodeBusy, Message: fmt.Sprintf("volume %s is being backed up", full(v)), Remedy: "try again when the backup has ended"}
	}
	return refuseHolders(ctx, svc, v)
}

// refuseHolders returns an error that names everybody who holds the volume.
func refuseHolders(ctx context.Context, svc api.Service, v api.Volume) error {
	held, err := svc.Holders(ctx, v.UUID)
	if err != nil {
		return fmt.Errorf("who holds volume %s: %w", full(v), err)
	}
	if len(held) == 0 {
		return nil
	}
	return &api.Error{
		Code: api.CodeInUse, Message: fmt.Sprintf("volume %s is in use", full(v)), Holders: held,
		Remedy: "unmount or stop what is named above",
	}
}

// imageFor finds the volume of a backup to restore onto a volume. The target is
// the caller's choice, so the only image that there is will do.
func imageFor(b backup.Backup, v api.Volume, from string) (backup.BackupVolume, error) {
	if from == "" {
		return pick(b, full(v), hasUUID(v), hasName(v), func(backup.BackupVolume) bool { return len(b.Volumes) == 1 })
	}
	return pick(b, from, func(i backup.BackupVolume) bool {
		return from == i.UUID || from == i.Name || from == i.Pool+"/"+i.Name
	})
}

// imageOf finds the image of a volume in a backup. The name is enough when the
// volume was made anew. Any other image is another volume's data: a recovery would
// swap it in.
func imageOf(b backup.Backup, v api.Volume) (backup.BackupVolume, error) {
	i, err := pick(b, full(v), hasUUID(v), hasName(v))
	var e *api.Error
	if errors.As(err, &e) {
		e.Remedy += fmt.Sprintf("; find a backup of this volume with: swapback backup list --volume %s\n"+
			"  to bring another volume's data onto a volume use: swapback backup restore", full(v))
	}
	return i, err
}

func hasUUID(v api.Volume) func(backup.BackupVolume) bool {
	return func(i backup.BackupVolume) bool { return i.UUID != "" && i.UUID == v.UUID }
}

func hasName(v api.Volume) func(backup.BackupVolume) bool {
	return func(i backup.BackupVolume) bool { return i.Pool == v.Pool && i.Name == v.Name }
}

// pick returns the one volume of a backup that the first rule to match any
// matches. want is what the error says was looked for.
func pick(b backup.Backup, want string, rules ...func(backup.BackupVolume) bool) (backup.BackupVolume, error) {
	var hits []backup.BackupVolume
	for _, match := range rules {
		for _, i := range b.Volumes {
			if match(i) {
				hits = append(hits, i)
			}
		}
		if len(hits) > 0 {
			break
		}
	}
	if len(hits) == 1 {
		return hits[0], nil
	}
	var names []string
	for _, i := range b.Volumes {
		names = append(names, i.Pool+"/"+i.Name)
	}
	what := "has no volume"
	if len(hits) > 1 {
		what = "has more than one volume"
	}
	return backup.BackupVolume{}, &api.Error{
		Code:    api.CodeNotFound,
		Message: fmt.Sprintf("backup %s %s %s", b.ID, what, want),
		Remedy:  "it holds " + strings.Join(names, ", "),
	}
}

// imageName is how the repository finds exactly this volume of the backup.
func imageName(b backup.Backup, i backup.BackupVolume) string {
	switch {
	case i.UUID != "":
		return i.UUID
	case i.Pool != "":
		return i.Pool + "/" + i.Name
	}
	return i.Name
}
