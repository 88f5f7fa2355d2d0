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

// Recover brings volumes back to a backup. See the package documentation for
// its order; an error is a [*RecoverError].
func Recover(ctx context.Context, o RecoverOptions) (RecoverResult, error) {
	if o.AnswerWait == 0 {
		o.AnswerWait = defaultAnswerWait
	}
	r := &recovery{o: o, log: logger(o.Logger)}
	r.result.Started = time.Now()
	err := r.run(ctx)
	for _, f := range r.unlock {
		f()
	}
	r.result.Seconds = time.Since(r.result.Started).Seconds()
	return r.result, err
}

// Outcome says what a failed recovery means for the volumes.
type Outcome string

const (
	// Untouched: the volumes show what they showed before.
	Untouched Outcome = "untouched"
	// Unknown: the swap was asked for and nobody could say whether it
	// happened. The volumes show the failed data or the backup, all the same.
	Unknown Outcome = "unknown"
)

// RecoverError says how far a recovery came before it failed. It wraps the
// cause.
type RecoverError struct {
	Volumes []string // POOL/NAME, or as the caller named them
	Phase   RecoverPhase
	Outcome Outcome
	// State are sentences on what has become of the volumes and the spares.
	State []string
	Err   error
}

// Error joins the cause and the state, a sentence to a line.
func (e *RecoverError) Error() string {
	s := fmt.Sprintf("recover %s: %s failed: %v", strings.Join(e.Volumes, ", "), e.Phase, e.Err)
	for _, line := range e.State {
		s += "\n  " + line
	}
	return s
}

// Unwrap returns the cause.
func (e *RecoverError) Unwrap() error { return e.Err }

// recovery is a recovery on its way.
type recovery struct {
	o       RecoverOptions
	log     *slog.Logger
	phase   RecoverPhase
	begun   time.Time
	volumes []api.Volume // as they were seen first
	backup  backup.Backup
	images  []backup.BackupVolume
	spares  []Spare // like volumes
	created []api.Volume
	unlock  []func()
	result  RecoverResult
}

func (r *recovery) run(ctx context.Context) error {
	for _, p := range []struct {
		name RecoverPhase
		run  func(context.Context) error
	}{
		{PhaseChoose, r.choose},
		{PhaseRestore, r.restore},
		{PhaseSwap, r.swap},
		{PhaseQuarantine, r.quarantine},
	} {
		r.enter(p.name)
		err := p.run(ctx)
		r.leave()
		if err != nil {
			return r.failed(ctx, err)
		}
	}
	return nil
}

func (r *recovery) enter(p RecoverPhase) {
	r.phase, r.begun = p, time.Now()
	if r.o.Phase != nil {
		r.o.Phase(p, r.result)
	}
}

func (r *recovery) leave() {
	took := time.Since(r.begun)
	r.result.Phases = append(r.result.Phases, PhaseTime{r.phase, took.Seconds()})
	r.log.Debug("recovery phase ended", "phase", r.phase, "took", took)
}

// choose looks everything up and refuses what can't be done.
func (r *recovery) choose(ctx context.Context) error {
	volumes, err := lookup(ctx, r.o.Service, r.o.Volumes)
	if err != nil {
		return err
	}
	if err := r.lock(volumes...); err != nil {
		return err
	}
	// Seen again: whoever had the locks before may have swapped them.
	if r.volumes, err = lookup(ctx, r.o.Service, ids(volumes)); err != nil {
		return err
	}
	for _, v := range r.volumes {
		if err := r.checkVolume(ctx, v); err != nil {
			return err
		}
	}
	if err := r.chooseBackup(ctx); err != nil {
		return err
	}
	r.spares, err = FindSpares(ctx, r.o.Service, r.volumes, r.o.Onto)
	if err != nil {
		return err
	}
	for i, s := range r.spares {
		r.result.Volumes = append(r.result.Volumes, RecoveredVolume{
			Volume: full(r.volumes[i]), Spare: full(s.Volume), FailedPosition: r.volumes[i].Position.ID,
		})
	}
	for _, s := range r.spares {
		if s.Create {
			continue
		}
		if err := r.lock(s.Volume); err != nil {
			return err
		}
	}
	return nil
}

// lock keeps others from volumes until the recovery has ended.
func (r *recovery) lock(volumes ...api.Volume) error {
	unlock, err := r.o.Locks.volumes(volumes)
	if err == nil {
		r.unlock = append(r.unlock, unlock)
	}
	return err
}

// checkVolume refuses a volume that could not be swapped in the end: a restore
// may take an hour, and its end is no time to hear of it.
func (r *recovery) checkVolume(ctx context.Context, v api.Volume) error {
	if first := r.volumes[0]; v.Pool != first.Pool {
		return &api.Error{
			Code:    api.CodeInvalid,
			Message: fmt.Sprintf("volumes %s and %s are in different pools", full(first), full(v)),
			Remedy:  "recover them one after the other: one swap happens within one pool",
		}
	}
	if q := v.Position.Quarantine; q != nil {
		return &api.Error{
			Code:    api.CodeQuarantined,
			Message: fmt.Sprintf("volume %s shows data in quarantine: %s", full(v), q.Reason),
			Remedy:  "release it first (swapback volume release)",
		}
	}
	if r.o.AllowHolders {
		return nil
	}
	return refuseHolders(ctx, r.o.Service, v)
}

func (r *recovery) chooseBackup(ctx context.Context) error {
	var err error
	if r.o.From == "" || r.o.From == Latest {
		r.backup, err = latestOfAll(ctx, r.o.Repo, r.volumes)
	} else {
		r.backup, err = r.o.Repo.Get(ctx, r.o.From)
	}
	if err != nil {
		return err
	}
	r.result.Backup, r.result.Created = r.backup.ID, r.backup.Created
	for _, v := range r.volumes {
		from, err := imageOf(r.backup, v)
		if err != nil {
			return err
		}
		switch {
		case from.Size > v.Size:
			return &api.Error{
				Code:    api.CodeInvalid,
				Message: fmt.Sprintf("volume %s has %d bytes, in backup %s it has %d", full(v), v.Size, r.backup.ID, from.Size),
				Remedy:  "choose a backup of this volume (swapback backup list)",
			}
		case from.Size < v.Size:
			r.warn("volume %s has grown since backup %s: what is behind the first %d bytes reads as zeroes", full(v), r.backup.ID, from.Size)
		}
		r.images = append(r.images, from)
	}
	return nil
}

// latestOfAll returns the newest backup that holds all the volumes. Only UUIDs
// count: a volume that is called the same may be another one.
func latestOfAll(ctx context.Context, repo *backup.Repository, volumes []api.Volume) (backup.Backup, error) {
	b, err := repo.Latest(ctx, ids(volumes)...)
	if !errors.Is(err, backup.ErrNotFound) {
		return b, err
	}
	e := &backup.Error{
		Kind: backup.ErrNotFound, Op: "look in " + repo.Location(), Object: list(volumes),
		Detail: "no backup holds this volume",
		Remedy: "see which there are with: swapback backup list; if the volume was made anew, name one with --from",
	}
	if len(volumes) > 1 {
		e.Detail = "no one backup holds all of these volumes"
		e.Remedy = "name one with --from, or recover the volumes one after the other"
	}
	return backup.Backup{}, e
}

// restore brings the images onto the spares.
func (r *recovery) restore(ctx context.Context) error {
	failpoint.Hit("recover: chosen")
	for i := range r.spares {
		s := &r.spares[i]
		if s.Create {
			v, err := createSpare(ctx, r.o.Service, *s)
			if err != nil {
				return fmt.Errorf("create a spare of volume %s: %w", full(s.For), err)
			}
			s.Volume = v
			r.created = append(r.created, v)
			r.result.Volumes[i].SpareCreated = true
			failpoint.Hit("recover: spare created")
			if err := r.lock(v); err != nil {
				return err
			}
			r.log.Info("spare created", "volume", full(s.For), "spare", full(v))
		}
	}
	for i := range r.spares {
		s := &r.spares[i]
		res, err := restoreOnto(ctx, &s.Volume, r.backup, r.images[i], RestoreOptions{
			Service: r.o.Service, Repo: r.o.Repo,
			// A volume with holes in it is not swapped in.
			StopAtDamage: true, VerifyAfter: r.o.VerifyAfter, Progress: r.o.Progress, Logger: r.o.Logger,
		})
		r.result.Volumes[i].Restore = res
		r.result.Volumes[i].GoodPosition = s.Volume.Position.ID
		if err != nil {
			return err
		}
	}
	failpoint.Hit("recover: restored")
	return nil
}

func (r *recovery) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.log.Warn(text)
	r.result.Warnings = append(r.result.Warnings, text)
}

// failed cleans up after a recovery that did not get to its swap, and wraps the
// error. An [*unknownError] leaves everything for a person to look at.
func (r *recovery) failed(ctx context.Context, err error) error {
	e := &RecoverError{Phase: r.phase, Outcome: Untouched, Err: err}
	for _, v := range r.volumes {
		e.Volumes = append(e.Volumes, full(v))
	}
	if e.Volumes == nil {
		e.Volumes = r.o.Volumes
	}
	var unknown *unknownError
	if errors.As(err, &unknown) {
		e.Outcome = Unknown
		e.State = r.unknownState()
		return e
	}
	e.State = append(e.State, "nothing was swapped: "+strings.Join(e.Volumes, ", ")+" untouched")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	for i, s := range r.spares {
		switch {
		case s.Volume.UUID == "":
		case r.result.Volumes[i].SpareCreated:
			if now, lerr := r.o.Service.Volume(ctx, s.Volume.UUID); lerr == nil && sameContent(now, s.Volume.Position) != nil {
				e.State = append(e.State, fmt.Sprintf("spare %s was created, shows what somebody else has put there now, and is left as it is", full(s.Volume)))
				continue
			}
			if derr := r.o.Service.DeleteVolume(ctx, s.Volume.UUID, false); derr != nil {
				e.State = append(e.State, fmt.Sprintf("spare %s was created and could not be deleted again (swapback volume delete %s): %v", full(s.Volume), full(s.Volume), derr))
				continue
			}
			e.State = append(e.State, fmt.Sprintf("spare %s was created and deleted again", full(s.Volume)))
		case r.result.Volumes[i].Restore.Target == "":
			e.State = append(e.State, fmt.Sprintf("spare %s was not written to", full(s.Volume)))
		case r.phase == PhaseRestore && i == r.lastRestored():
			e.State = append(e.State, fmt.Sprintf("spare %s may hold an incomplete image; it can be used as a spare again", full(s.Volume)))
		default:
			e.State = append(e.State, fmt.Sprintf("spare %s holds backup %s", full(s.Volume), r.backup.ID))
		}
	}
	return e
}

// lastRestored is the index of the last spare that a restore began on.
func (r *recovery) lastRestored() int {
	last := -1
	for i, v := range r.result.Volumes {
		if v.Restore.Target != "" {
			last = i
		}
	}
	return last
}

func (r *recovery) unknownState() []string {
	var state []string
	for i, s := range r.spares {
		state = append(state, fmt.Sprintf("%s: position %s means the failed data, %s means backup %s; %s shows the other",
			full(s.For), s.For.Position.ID, r.result.Volumes[i].GoodPosition, r.backup.ID, full(s.Volume)))
	}
	return append(state, "when swapbackd answers again: swapback volume show tells which; swap them then, or quarantine the failed data")
}
