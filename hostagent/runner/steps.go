package runner

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/hostagent/step"
	"github.com/swapback/swapback/hostagent/story"
)

// savePointTag marks the backups that jobs take.
const savePointTag = "save-point"

// savePoint takes one backup of all volumes before step i.
func (r *run) savePoint(i int) error {
	start := time.Now()
	s := r.job.Steps[i]
	var names []string
	for _, v := range r.vols {
		names = append(names, v.v.UUID)
	}
	if err := r.awaitDaemon(r.soft); err != nil {
		return err
	}
	b, err := hostagent.Backup(r.soft, hostagent.BackupOptions{
		Service: r.o.Service, Repo: r.repo, Volumes: names,
		Comment: "save point before step " + s.Name, Tags: []string{savePointTag},
		Job: r.job.Name, Step: s.Name, Logger: r.o.Logger,
	})
	took := time.Since(start).Seconds()
	if err != nil {
		r.story.Tell(story.Event{Event: story.SavePointFailed, Step: s.Name, Seconds: took, Text: fmt.Sprintf("save point before step %s failed: %v", r.title(i), err)})
		return err
	}
	failpoint.Hit("job: save point taken")
	r.saved = i
	r.res.Backup = b.ID
	t := SavePointTime{Step: s.Name, Backup: b.ID, Bytes: b.Size(), Seconds: took}
	for _, v := range b.Volumes {
		t.Data += v.DataBytes
	}
	r.res.SavePoints = append(r.res.SavePoints, t)
	r.state.s.Backup, r.state.s.BackupStep = b.ID, s.Name
	r.saveState()
	failpoint.Hit("job: save point recorded")
	r.story.Tell(story.Event{
		Event: story.SavePoint, Step: s.Name, Backup: b.ID, Seconds: took, Data: b,
		Text: fmt.Sprintf("save point before step %s: backup %s, %s of data in %s", r.title(i), b.ID, bytesText(t.Data), seconds(took)),
	})
	return nil
}

// stepEnd is how an attempt of a step ended.
type stepEnd struct {
	ok   bool
	code int    // exit code; 127 when the step could not be started
	why  string // "exit code 3"
	// stuck: something of the step is still there, so nothing may be swapped.
	stuck error
	// stopped: by whoever asked the run to stop.
	stopped bool
}

// couldNotStart is the exit code of a step that did not run, as shells have it.
const couldNotStart = 127

// step runs step i once.
func (r *run) step(i int) stepEnd {
	s := r.job.Steps[i]
	text := "step " + r.title(i)
	if n := r.attempts[i]; n > 1 {
		text += fmt.Sprintf(", attempt %d", n)
	}
	r.story.Tell(story.Event{Event: story.StepStarted, Step: s.Name, Attempt: r.attempts[i], Text: text})
	out := r.story.Output()
	res, err := step.Run(r.soft, step.Command{
		Args: s.Run.Argv, Script: s.Run.Shell, User: s.User, Env: r.stepEnv(i), Dir: s.Workdir, Timeout: s.Timeout, Output: out,
		Started: func(p step.Process) {
			r.state.s.Process = &p
			r.saveState()
			failpoint.Hit("job: step started")
		},
	})
	out.Close()
	failpoint.Hit("job: step ended")
	r.state.s.Process = nil
	end := stepEnd{ok: err == nil && res.OK(), code: res.ExitCode, why: res.String(), stopped: res.Stopped}
	var notStarted *step.StartError
	switch {
	case errors.As(err, &notStarted):
		end.code, end.why = couldNotStart, err.Error()
	case err != nil:
		end.why, end.stuck = err.Error(), err
	}
	if !end.ok && end.code == 0 {
		end.code = 1 // a step that was stopped or timed out has not succeeded
	}
	r.res.Steps = append(r.res.Steps, StepTime{Step: s.Name, Attempt: r.attempts[i], OK: end.ok, ExitCode: end.code, Seconds: res.Duration.Seconds()})
	if len(res.Strays) > 0 {
		var names []string
		for _, p := range res.Strays {
			names = append(names, p.Command)
		}
		r.story.Tell(story.Event{Event: story.StraysStopped, Step: s.Name, Data: res.Strays, Text: fmt.Sprintf("stopped what step %s had left running: %s", s.Name, strings.Join(names, ", "))})
	}
	e := story.Event{Step: s.Name, Attempt: r.attempts[i], ExitCode: &end.code, Seconds: res.Duration.Seconds()}
	if end.ok {
		e.Event, e.Text = story.StepEnded, fmt.Sprintf("step %s done in %s", r.title(i), seconds(e.Seconds))
	} else {
		e.Event, e.Text = story.StepFailed, fmt.Sprintf("step %s FAILED after %s: %s", r.title(i), seconds(e.Seconds), end.why)
		e.Data = map[string]any{"last_output": out.Tail()}
	}
	r.story.Tell(e)
	return end
}

// stepEnv is what the step can know of its run.
func (r *run) stepEnv(i int) map[string]string {
	s := r.job.Steps[i]
	env := map[string]string{
		"SWAPBACK_JOB": r.job.Name, "SWAPBACK_STEP": s.Name,
		"SWAPBACK_ATTEMPT": strconv.Itoa(r.attempts[i]), "SWAPBACK_SAVE_POINT": r.res.Backup,
	}
	for _, v := range r.vols {
		env["SWAPBACK_DEVICE_"+envName(v.v.Name)] = v.v.Device
		if v.want.Mount != "" {
			env["SWAPBACK_MOUNT_"+envName(v.v.Name)] = v.want.Mount
		}
	}
	maps.Copy(env, s.Env)
	return env
}

// envName makes a volume's name a part of a variable's: "db-1" is DB_1.
func envName(name string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			return c
		}
		return '_'
	}, strings.ToUpper(name))
}
