package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/hostagent/job"
	"github.com/swapback/swapback/hostagent/step"
	"github.com/swapback/swapback/hostagent/story"
)

// RefusedError: a job was not started, and nothing was done.
type RefusedError struct {
	Job     string
	Reasons []string
	Err     error // may be nil
}

func (e *RefusedError) Error() string {
	s := fmt.Sprintf("job %s is not started", e.Job)
	for _, r := range e.Reasons {
		s += "\n  " + strings.ReplaceAll(r, "\n", "\n  ")
	}
	return s
}

// Unwrap returns the cause, if there is one.
func (e *RefusedError) Unwrap() error { return e.Err }

// run is a run of a job on its way.
type run struct {
	o     Options
	job   *job.Job
	repo  *backup.Repository
	vols  []*volume
	locks *hostagent.Locks
	state stateFile
	story *story.Story
	res   Result
	// soft is over when the run is asked to stop; a recovery goes on then.
	soft context.Context
	stop <-chan struct{}

	saved      int  // index of the step that the last save point is before, -1 for none
	fresh      bool // the volumes have just been brought back to the save point
	failures   map[int]int
	attempts   map[int]int
	leaveAsIs  bool // the end must not touch volumes and mounts
	warnedSave bool
}

// Run runs a job. When stop is closed the run ends in good order: a step under
// way is stopped and counts as failed for good. ctx is for giving up: what is
// under way, a recovery too, is broken off, and the outcome says where.
//
// A [*RefusedError] means that the job was not started. Any other error is told
// in the result too.
func Run(ctx context.Context, stop <-chan struct{}, o Options) (Result, error) {
	o.setDefaults()
	r := &run{o: o, job: o.Job, stop: stop, saved: -1, failures: map[int]int{}, attempts: map[int]int{}}
	r.res = Result{Job: o.Job.Name, ExitCode: ExitRefused, SavePoints: []SavePointTime{}, Steps: []StepTime{}, Recoveries: []Recovery{}}
	soft, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-stop:
			cancel()
		case <-soft.Done():
		}
	}()
	r.soft = soft
	r.locks = hostagent.NewLocks(o.RunDir, "job "+o.Job.Name)
	defer r.locks.Release()
	if err := r.open(ctx); err != nil {
		r.res.Outcome = err.Error()
		return r.res, err
	}
	defer r.repo.Close()
	code, outcome := r.all(ctx)
	return r.end(ctx, code, outcome), nil
}

// open checks and locks. Nothing is changed but the state and the log.
func (r *run) open(ctx context.Context) error {
	refuse := func(err error, reasons ...string) error {
		if len(reasons) == 0 {
			reasons = []string{err.Error()}
		}
		return &RefusedError{r.job.Name, reasons, err}
	}
	if err := r.locks.Job(r.job.Name); err != nil {
		return refuse(err)
	}
	if err := r.lastRun(ctx); err != nil {
		return refuse(err)
	}
	// Locked before they are looked at: what another job does to them now
	// would be seen as a reason to refuse, and not named as that job's.
	locked := map[string]bool{}
	for _, want := range r.job.Volumes {
		v, err := r.o.Service.Volume(ctx, want.Name)
		if err != nil || locked[v.UUID] {
			continue // the check tells it
		}
		locked[v.UUID] = true
		if _, err := r.locks.Volume(v); err != nil {
			return refuse(err)
		}
	}
	failpoint.Hit("job: locked")
	p, err := prepare(ctx, r.o)
	if err != nil {
		return refuse(err)
	}
	r.vols, r.repo = p.volumes, p.repo
	if !p.report.OK {
		if r.repo != nil {
			r.repo.Close()
		}
		return refuse(nil, p.report.Problems...)
	}
	if err := r.begin(); err != nil {
		r.repo.Close()
		return refuse(err)
	}
	return nil
}

// lastRun refuses when the last run died half-way.
func (r *run) lastRun(ctx context.Context) error {
	s, err := ReadState(r.o.StateDir, r.job.Name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w\n  remove the file if nothing of the last run matters", err)
	}
	// We have the job's lock, so nobody runs it.
	if s.StepAlive() {
		return fmt.Errorf("the last run's agent died, and its step %s still runs (process %d)\n  wait for it, or stop it", s.Step, s.Process.PID)
	}
	if s.Phase == Ended || s.Phase == Starting || r.o.Anew {
		return nil
	}
	lines := append(Explain(ctx, r.o.Service, s), "start all over with: swapback-agent run --anew "+r.o.File)
	return fmt.Errorf("the last run died half-way\n  %s", strings.Join(lines, "\n  "))
}

// begin opens the log and the state.
func (r *run) begin() error {
	if err := os.MkdirAll(r.o.StateDir, 0o750); err != nil {
		return fmt.Errorf("folder for states: %w", err)
	}
	s, err := story.Open(story.Options{Dir: r.o.LogDir, Job: r.job.Name, Terminal: r.o.Terminal})
	if err != nil {
		return err
	}
	r.story = s
	r.res.Log, r.res.Events = s.LogPath(), s.EventsPath()
	r.state = stateFile{path: statePath(r.o.StateDir, r.job.Name), s: State{
		Version: stateVersion, Job: r.job.Name, File: r.o.File, Repository: r.job.Repository,
		Agent: step.Self(), Boot: bootID(), Started: s.Started().UTC(), Phase: Starting,
		Steps: len(r.job.Steps), Log: s.LogPath(),
	}}
	for _, v := range r.vols {
		r.state.s.Volumes = append(r.state.s.Volumes, VolumeState{Name: v.full(), UUID: v.v.UUID, Device: v.v.Device, Mount: v.want.Mount})
	}
	if err := r.state.save(); err != nil {
		return errors.Join(err, s.Close())
	}
	failpoint.Hit("job: begun")
	var names []string
	for _, v := range r.vols {
		names = append(names, v.full())
	}
	r.story.Tell(story.Event{Event: story.JobStarted, Text: fmt.Sprintf("job %s: %s on %s", r.job.Name, plural(len(r.job.Steps), "step"), strings.Join(names, ", "))})
	return nil
}

// all does the job. It returns the exit code and what to say about the end.
func (r *run) all(ctx context.Context) (int, string) {
	for _, v := range r.vols {
		if err := r.attach(ctx, v); err != nil {
			return ExitRefused, "the volumes could not be made ready and no step has run: " + err.Error()
		}
		if err := r.mount(v); err != nil {
			return ExitRefused, "the volumes could not be made ready and no step has run: " + err.Error()
		}
	}
	failpoint.Hit("job: volumes ready")
	for i := 0; i < len(r.job.Steps); {
		s := r.job.Steps[i]
		if r.stopping() {
			return ExitNotRestored, r.stoppedText(i)
		}
		if s.SavePoint && !(r.fresh && r.saved == i) {
			if err := r.phase(SavePoint, i); err != nil && !r.stepped() {
				return ExitRefused, r.notRecorded(err)
			}
			err := r.savePoint(i)
			if err != nil && r.stopping() {
				return ExitNotRestored, r.stoppedText(i)
			}
			if err != nil {
				return ExitNotRestored, fmt.Sprintf("no save point could be taken before step %s, so it was not started; the volumes hold the work of the steps before it: %v", r.title(i), err)
			}
		}
		r.fresh = false
		r.attempts[i]++
		if err := r.phase(Stepping, i); err != nil && !r.stepped() {
			return ExitRefused, r.notRecorded(err)
		}
		end := r.step(i)
		if end.ok {
			i++
			continue
		}
		again, code, outcome := r.afterFailure(ctx, i, end)
		if !again {
			return code, outcome
		}
		i = r.saved
	}
	return ExitDone, r.doneText()
}

// stopping tells whether the run was asked to stop. The channel counts beside
// the context: that follows it a moment later.
func (r *run) stopping() bool {
	select {
	case <-r.stop:
		return true
	default:
		return r.soft.Err() != nil
	}
}

func (r *run) stoppedText(i int) string {
	return fmt.Sprintf("stopped before step %s; the volumes hold the work of the steps before it", r.title(i))
}

func (r *run) doneText() string {
	s := plural(len(r.job.Steps), "step") + " done"
	if n := len(r.res.Recoveries); n > 0 {
		s += ", after " + plural(n, "recovery")
	}
	return s
}

// title names a step as the log does: "2/3 interest".
func (r *run) title(i int) string {
	return fmt.Sprintf("%d/%d %s", i+1, len(r.job.Steps), r.job.Steps[i].Name)
}

// stepped tells whether a step has run. Before, a state that can't be written ends
// the run: the file says that no step has run, so after a death the next run would
// start over on what a step has done. From then on it says something that is
// refused, and the job goes on.
func (r *run) stepped() bool { return len(r.res.Steps) > 0 }

func (r *run) notRecorded(err error) string {
	return fmt.Sprintf("where the run stands can't be recorded, and no step has run: %v\nfree space in %s, or make it writable", err, r.o.StateDir)
}

// phase records where the run stands. A state that can't be written is told once.
func (r *run) phase(p Phase, i int) error {
	s := &r.state.s
	s.Phase = p
	if p != Recovering {
		s.Recovery = nil
	}
	if i >= 0 {
		s.Step, s.StepNumber, s.Attempt = r.job.Steps[i].Name, i+1, r.attempts[i]
	}
	return r.saveState()
}

func (r *run) saveState() error {
	err := r.state.save()
	if err != nil && !r.warnedSave {
		r.warnedSave = true
		r.warn("where the run stands can't be recorded: %v", err)
	}
	return err
}

func (r *run) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.res.Warnings = append(r.res.Warnings, text)
	r.story.Tell(story.Event{Event: story.Warning, Text: "WARNING: " + text})
}

// end puts the volumes away as they were found, tells how the run ended, and
// closes everything.
func (r *run) end(ctx context.Context, code int, outcome string) Result {
	if code == ExitDone {
		r.phase(Ending, -1)
		failpoint.Hit("job: steps done")
		r.forget(ctx)
	}
	if !r.leaveAsIs {
		for _, v := range slices.Backward(r.vols) {
			if err := r.putAway(context.WithoutCancel(ctx), v); err != nil {
				r.warn("%v", err)
			}
		}
	}
	failpoint.Hit("job: volumes put away")
	if len(r.res.Recoveries) > 0 {
		r.story.Tell(story.Event{Event: story.Durations, Text: r.durations()})
	}
	r.res.ExitCode, r.res.Outcome = code, outcome
	r.res.Seconds = time.Since(r.story.Started()).Seconds()
	word := "done"
	if code != ExitDone {
		word = "FAILED"
	}
	r.story.Tell(story.Event{
		Event: story.JobEnded, ExitCode: &code, Seconds: r.res.Seconds, Backup: r.res.Backup, Data: r.res,
		Text: fmt.Sprintf("job %s %s in %s: %s", r.job.Name, word, seconds(r.res.Seconds), outcome),
	})
	s := &r.state.s
	if !r.leaveAsIs {
		s.Recovery = nil // else it is the one that failed
	}
	s.Phase, s.ExitCode, s.Outcome, s.Process = Ended, &code, outcome, nil
	r.saveState()
	failpoint.Hit("job: ended")
	if err := r.story.Close(); err != nil {
		r.res.Warnings = append(r.res.Warnings, err.Error())
	}
	return r.res
}

// forget deletes old save points of this job, as far as it asks for that.
func (r *run) forget(ctx context.Context) {
	if r.job.KeepBackups == 0 {
		return
	}
	deleted, err := hostagent.Forget(ctx, r.repo, r.job.Name, savePointTag, r.job.KeepBackups)
	if err != nil {
		r.warn("old save points could not be deleted: %v", err)
	}
	if len(deleted) > 0 {
		r.story.Tell(story.Event{Event: story.BackupsDeleted, Data: deleted, Text: fmt.Sprintf("deleted %s, kept the last %d", plural(len(deleted), "old save point"), r.job.KeepBackups)})
	}
}
