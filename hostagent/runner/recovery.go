package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/hostagent/job"
	"github.com/swapback/swapback/hostagent/story"
)

// afterFailure decides what comes after a failed step, and does it: again means
// that the volumes are back and the run goes on from the save point.
func (r *run) afterFailure(ctx context.Context, i int, end stepEnd) (again bool, code int, outcome string) {
	s := r.job.Steps[i]
	r.failures[i]++
	failed := fmt.Sprintf("step %s failed (%s)", s.Name, end.why)
	last := end.stopped || r.failures[i] > s.Retries
	switch {
	case end.stuck != nil:
		r.leaveAsIs = true
		return false, ExitNotRestored, failed + "; what is left of it may still write, so nothing was put back"
	case r.saved < 0:
		r.leaveAsIs = true
		return false, ExitNotRestored, failed + "; no save point was taken before it, so everything is left as it is"
	case last && r.job.OnFailure == job.Leave:
		r.leaveAsIs = true
		return false, ExitFailed, fmt.Sprintf("%s; everything is left as it is, as the job asks (save point: backup %s)", failed, r.res.Backup)
	}
	if err := r.recover(ctx, i, end); err != nil {
		r.leaveAsIs = true
		r.story.Tell(story.Event{Event: story.RecoveryFailed, Step: s.Name, Backup: r.res.Backup, Text: "recovery FAILED: " + err.Error()})
		return false, ExitNotRestored, fmt.Sprintf("%s, and the volumes could not be put back to backup %s: %v%s", failed, r.res.Backup, err, r.mountText())
	}
	if last {
		return false, ExitFailed, fmt.Sprintf("%s; %s at the save point before step %s (backup %s)", failed, strings.Join(s.Recover, ", "), r.job.Steps[r.saved].Name, r.res.Backup)
	}
	return true, 0, ""
}

// mountText says which volumes are mounted when a run ends in the middle.
func (r *run) mountText() string {
	var b strings.Builder
	for _, v := range r.vols {
		switch {
		case v.want.Mount == "":
		case v.mounted:
			fmt.Fprintf(&b, "\n%s is mounted on %s", v.full(), v.want.Mount)
		default:
			fmt.Fprintf(&b, "\n%s is not mounted on %s", v.full(), v.want.Mount)
		}
	}
	return b.String()
}

// recover puts the volumes that step i names back to the last save point.
func (r *run) recover(ctx context.Context, i int, end stepEnd) error {
	s := r.job.Steps[i]
	start := time.Now()
	vols := r.toRecover(s.Recover)
	r.state.s.Recovery = &RecoveryState{Phase: "unmount"}
	r.phase(Recovering, i)
	r.story.Tell(story.Event{
		Event: story.RecoveryStarted, Step: s.Name, Backup: r.res.Backup,
		Text: fmt.Sprintf("putting %s back to the save point before step %s", strings.Join(s.Recover, ", "), r.job.Steps[r.saved].Name),
	})
	failpoint.Hit("job: recovery begun")
	rec := Recovery{Step: s.Name}
	// Without the daemon even an unmount would wait for ever: its devices hold
	// their I/O until it is back.
	if err := r.awaitDaemon(ctx); err != nil {
		return err
	}
	var mounted []*volume
	var uuids []string
	for _, v := range vols {
		uuids = append(uuids, v.v.UUID)
		if v.mounted {
			mounted = append(mounted, v)
		}
	}
	// The last first: one may be mounted below another.
	for _, v := range slices.Backward(mounted) {
		if err := r.unmount(ctx, v); err != nil {
			return err
		}
	}
	failpoint.Hit("job: unmounted")
	rec.UnmountSeconds = time.Since(start).Seconds()
	var err error
	rec.RecoverResult, err = hostagent.Recover(ctx, hostagent.RecoverOptions{
		Service: r.o.Service, Repo: r.repo, Locks: r.locks, Volumes: uuids, From: r.res.Backup, Onto: r.spares(ctx, vols),
		Reason: fmt.Sprintf("step %s of job %s: %s", s.Name, r.job.Name, end.why),
		Job:    r.job.Name, Step: s.Name, ExitCode: end.code,
		Phase: r.recoveryPhase, Logger: r.o.Logger,
	})
	if err != nil {
		return err
	}
	failpoint.Hit("job: recovered")
	for _, w := range rec.Warnings {
		r.warn("%s", w)
	}
	r.tellRecovered(rec)
	if !rec.Swap.Coherent {
		return errors.New("the volumes are swapped, but it is not proven that the page cache shows the restored data\n  they stay unmounted; compare, or detach and attach them, before they are used")
	}
	at := time.Now()
	for _, v := range mounted {
		if err := r.mount(v); err != nil {
			return fmt.Errorf("the volumes are back at the save point, but: %w", err)
		}
	}
	failpoint.Hit("job: mounted again")
	rec.MountSeconds = time.Since(at).Seconds()
	rec.WholeSeconds = time.Since(start).Seconds()
	r.res.Recoveries = append(r.res.Recoveries, rec)
	r.fresh = true
	// The pairs stay until the next phase: without them a recovery counts as one
	// that has changed nothing yet.
	r.state.s.Recoveries++
	r.saveState()
	failpoint.Hit("job: recovery recorded")
	r.story.Tell(story.Event{
		Event: story.Recovered, Step: s.Name, Backup: r.res.Backup, Seconds: rec.WholeSeconds, Data: rec,
		Text: fmt.Sprintf("recovered in %s; I/O was paused for %s", seconds(rec.WholeSeconds), seconds(rec.Swap.Pause)),
	})
	return nil
}

// awaitDaemon waits for a daemon that does not answer, as while it is restarted.
func (r *run) awaitDaemon(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, r.o.DaemonWait)
	defer cancel()
	for told := false; ; told = true {
		_, err := r.o.Service.Info(wait)
		if api.CodeOf(err) != api.CodeUnavailable {
			return nil // any other trouble is told by what comes next
		}
		if !told {
			r.story.Tell(story.Event{Event: story.Note, Text: "swapbackd does not answer; waiting for it"})
		}
		select {
		case <-wait.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (r *run) toRecover(names []string) []*volume {
	var list []*volume
	for _, v := range r.vols {
		if slices.Contains(names, v.want.Name) {
			list = append(list, v)
		}
	}
	return list
}

// spares returns the spares that the job names, as far as they are still
// unused: after a first recovery a spare holds the evidence.
func (r *run) spares(ctx context.Context, vols []*volume) map[string]string {
	onto := map[string]string{}
	for _, v := range vols {
		if v.want.Spare == "" {
			continue
		}
		s, err := r.o.Service.Volume(ctx, v.want.Spare)
		if err == nil && s.Position.Quarantine != nil {
			r.story.Tell(story.Event{Event: story.Note, Volume: v.full(), Spare: v.want.Spare, Text: fmt.Sprintf("spare %s holds failed data in quarantine; looking for another", v.want.Spare)})
			continue
		}
		onto[v.v.UUID] = v.want.Spare
	}
	return onto
}

// recoveryPhase records each phase before it begins, so that whoever finds the
// run dead knows where to look.
func (r *run) recoveryPhase(p hostagent.RecoverPhase, so hostagent.RecoverResult) {
	rs := &RecoveryState{Phase: string(p)}
	for _, v := range so.Volumes {
		rs.Pairs = append(rs.Pairs, RecoveryPair{Volume: v.Volume, Spare: v.Spare, FailedPosition: v.FailedPosition})
	}
	r.state.s.Recovery = rs
	r.saveState()
	var text string
	switch p {
	case hostagent.PhaseRestore:
		var onto []string
		for _, v := range so.Volumes {
			onto = append(onto, v.Spare)
		}
		text = fmt.Sprintf("restoring backup %s onto %s", so.Backup, strings.Join(onto, ", "))
	case hostagent.PhaseSwap:
		text = "swapping"
	default:
		return
	}
	r.story.Tell(story.Event{Event: story.RecoveryPhase, Backup: so.Backup, Text: text, Data: rs})
}

func (r *run) tellRecovered(rec Recovery) {
	for _, v := range rec.Volumes {
		text := fmt.Sprintf("%s shows backup %s; the failed data is %s", v.Volume, rec.Backup, v.Spare)
		if v.Quarantined {
			text += ", read-only and in quarantine"
		}
		if rec.Swap.Coherent {
			text += "\npage cache and disk agree"
		}
		r.story.Tell(story.Event{Event: story.RecoveryPhase, Volume: v.Volume, Spare: v.Spare, Backup: rec.Backup, Text: text})
	}
}
