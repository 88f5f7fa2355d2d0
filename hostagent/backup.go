package hostagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/failpoint"
)

// BackupOptions says what to back up.
type BackupOptions struct {
	Service api.Service
	Repo    *backup.Repository
	// Volumes of one pool, by NAME, POOL/NAME or UUID. They become one backup
	// of one instant.
	Volumes []string
	// COWSize bounds, in bytes per volume, how much may be overwritten while
	// the backup is read. 0 leaves it to the daemon.
	COWSize int64
	Comment string
	Tags    []string
	Job     string
	Step    string
	// Full and VerifyUnchanged are those of [backup.CreateOptions].
	Full            bool
	VerifyUnchanged bool
	// Limit and FullSpeed are those of [backup.CreateOptions].
	Limit     int64
	FullSpeed bool
	// Progress may be nil, see [backup.CreateOptions].
	Progress func(backup.Progress)
	Logger   *slog.Logger
}

// Backup writes back what the volumes' filesystems keep in memory, takes one
// instant of all volumes, reads it into the repository, and records the backup
// with each position. When it returns an error there is no backup, unless it is a
// [backup.MissedError]. The volumes may be used meanwhile; they can be swapped again
// when Backup has returned.
func Backup(ctx context.Context, o BackupOptions) (b backup.Backup, err error) {
	log := logger(o.Logger)
	volumes, err := lookup(ctx, o.Service, o.Volumes)
	if err != nil {
		return b, fmt.Errorf("back up: %w", err)
	}
	for _, v := range volumes {
		if v.Device == "" {
			continue
		}
		if err := flush(ctx, v.Device); err != nil {
			return b, fmt.Errorf("back up volume %s: %w", full(v), err)
		}
	}
	var snap api.Snapshot
	var end func(context.Context) error
	err = retryBusy(ctx, func() (err error) { // another backup, perhaps
		snap, end, err = o.Service.OpenSnapshot(ctx, api.SnapshotRequest{Volumes: ids(volumes), COWSize: o.COWSize})
		return err
	})
	if err != nil {
		return b, fmt.Errorf("back up %s: %w", list(volumes), err)
	}
	failpoint.Hit("backup: snapshot open")
	if err := readable(snap); err != nil {
		return b, errors.Join(fmt.Errorf("back up %s: %w", list(volumes), err), end(context.WithoutCancel(ctx)))
	}
	b, err = o.Repo.Create(ctx, sources(snap), backup.CreateOptions{
		At: snap.Time, Comment: o.Comment, Tags: o.Tags, Job: o.Job, Step: o.Step,
		Full: o.Full, VerifyUnchanged: o.VerifyUnchanged,
		Limit: o.Limit, FullSpeed: o.FullSpeed, Progress: o.Progress, Logger: o.Logger,
	})
	// The snapshot goes in any case, also when ctx is over.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	if errors.Is(err, backup.ErrSource) {
		if why := ranFull(after, o, snap); why != nil {
			log.Info("snapshot can't be read", "volumes", list(volumes), "err", err)
			err = why
		}
	}
	if ferr := endSnapshot(after, o.Service, volumes, end); ferr != nil {
		// The backup is whole all the same, and what is left over ends with
		// the connection or the daemon.
		log.Warn("snapshot of a backup is not gone yet", "volumes", list(volumes), "err", ferr)
	}
	failpoint.Hit("backup: snapshot ended")
	var missed *backup.MissedError // of a backup that is there
	if err != nil && !errors.As(err, &missed) {
		return backup.Backup{}, fmt.Errorf("back up %s: %w", list(volumes), err)
	}
	for _, s := range snap.Volumes {
		// With its cut: from now on the daemon counts what changes from this backup.
		err := retryBusy(after, func() error {
			_, err := o.Service.SetDescendsFrom(after, s.Volume.UUID, api.DescendsRequest{
				Backup: b.ID, Generation: s.Volume.Position.Generation, Cut: s.Changes.Cut,
			})
			return err
		})
		switch {
		case err == nil:
		case api.CodeOf(err) == api.CodeGeneration:
			log.Info("volume was swapped while it was backed up; its new content does not descend from the backup", "volume", full(s.Volume), "backup", b.ID)
		default:
			log.Warn("backup not recorded with its volume", "volume", full(s.Volume), "backup", b.ID, "err", err)
		}
	}
	failpoint.Hit("backup: recorded")
	return b, err
}

// settleTime bounds what is done after the work proper, such as cleaning up,
// when the caller's context may be over already.
const settleTime = 30 * time.Second

// ranFull returns the error of a backup that can't read its snapshots because they
// ran full, or nil when they did not. It is known only while they are open.
func ranFull(ctx context.Context, o BackupOptions, snap api.Snapshot) error {
	var what []string
	for _, s := range snap.Volumes {
		now, err := o.Service.Volume(ctx, s.Volume.UUID)
		if err == nil && now.SnapshotFull {
			what = append(what, fmt.Sprintf("the snapshot of volume %s ran full: there was room for %s of old data, and more was overwritten meanwhile",
				full(s.Volume), room(s.COWSize)))
		}
	}
	if what == nil {
		return nil
	}
	remedy := "give it more room with a larger --cow-size; the volume's size always suffices"
	if o.COWSize == 0 {
		remedy = fmt.Sprintf("free space in pool %s, of which old data gets half, or give it more room with --cow-size (swapback backup create)", snap.Volumes[0].Volume.Pool)
	}
	return &api.Error{
		Code: api.CodeNoSpace, Message: strings.Join(what, "; "),
		// The kernel does not say which of the two it was.
		Remedy: remedy + ", unless the kernel log tells of a disk's error; the volume goes on in any case",
	}
}

// room writes how much old data a snapshot keeps, which is whole extents.
func room(n int64) string {
	if n%(1<<20) != 0 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// endSnapshot ends a snapshot and waits until the daemon has removed it: a
// volume with a snapshot can't be swapped. Over a socket the snapshot goes with
// its connection, some time after the call that ends it.
func endSnapshot(ctx context.Context, svc api.Service, volumes []api.Volume, end func(context.Context) error) error {
	if err := end(ctx); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		for _, v := range volumes {
			now, err := svc.Volume(ctx, v.UUID)
			if err != nil || now.Snapshot {
				return false, err
			}
		}
		return true, nil
	})
}

// readable refuses a snapshot that this machine has no device of.
func readable(snap api.Snapshot) error {
	for _, s := range snap.Volumes {
		if s.Device == "" {
			return &api.Error{
				Code:    api.CodeUnsupported,
				Message: fmt.Sprintf("the snapshot of volume %s can be read on the storage machine only", full(s.Volume)),
				Remedy:  "take the backup there: swapback backup create " + full(s.Volume),
			}
		}
	}
	return nil
}

func sources(snap api.Snapshot) []backup.Source {
	list := make([]backup.Source, len(snap.Volumes))
	for i, s := range snap.Volumes {
		list[i] = backup.Source{Path: s.Device, Changes: changesOf(s), Volume: backup.VolumeRef{
			Pool: s.Volume.Pool, Name: s.Volume.Name, UUID: s.Volume.UUID, Size: s.Volume.Size,
			Generation: s.Volume.Position.Generation, PositionID: s.Volume.Position.ID,
		}}
	}
	return list
}

// changesOf says what of a volume may differ from an earlier backup; nil when the
// daemon keeps no change maps.
func changesOf(s api.SnapshotVolume) *backup.Changes {
	if s.Changes.Cut == "" {
		return nil
	}
	if s.Changes.Base == "" {
		return &backup.Changes{Why: s.Changes.Why}
	}
	ranges, err := s.Changes.Ranges(s.Volume.Size)
	if err != nil {
		return &backup.Changes{Why: fmt.Sprintf("what the daemon says of its changes can't be used: %v", err)}
	}
	c := &backup.Changes{Base: s.Changes.Base}
	for _, r := range ranges {
		c.Ranges = append(c.Ranges, backup.Range(r))
	}
	return c
}
