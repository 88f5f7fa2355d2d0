package runner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent/job"
)

func TestAllGoesWell(t *testing.T) {
	w := newWorld(t, 10, "db")
	res := w.run(w.options("[{name: db}]", `
steps:
  - {name: one, run: put $SWAPBACK_DEVICE_DB first}
  - {name: two, run: 'put $SWAPBACK_DEVICE_DB "$SWAPBACK_JOB $SWAPBACK_STEP $SWAPBACK_ATTEMPT"; echo "from two, $X"', env: {X: y}, save_point: true}
`), ExitDone, "step 1/2 one done", "save point before step 2/2 two", "| from two, y", "2 steps done")
	w.shows("db", "j two 1")
	if b := w.backups(); len(b) != 1 || b[0].Job != "j" || b[0].Step != "two" || b[0].Tags[0] != savePointTag || res.Backup != b[0].ID {
		t.Errorf("%+v, %+v", b, res)
	}
	if w.svc.Swaps != nil {
		t.Errorf("swaps: %+v", w.svc.Swaps)
	}
}

// TestRetrySucceeds: the step damages the volume and fails, and does it right
// the second time. It finds what it wrote before the save point, not the damage.
func TestRetrySucceeds(t *testing.T) {
	w := newWorld(t, 10, "db")
	res := w.run(w.options("[{name: db}]", `
steps:
  - {name: one, run: put $SWAPBACK_DEVICE_DB good}
  - name: two
    save_point: true
    retries: 1
    run: |
      test "$(head -c 4 $SWAPBACK_DEVICE_DB)" = good
      put $SWAPBACK_DEVICE_DB "try $SWAPBACK_ATTEMPT"
      test $SWAPBACK_ATTEMPT = 2 || exit 42
`), ExitDone, "step 2/2 two FAILED", "exit code 42", "putting db back", "in quarantine", "page cache and disk agree", "step 2/2 two, attempt 2", "after 1 recovery", "recovery after two")
	w.shows("db", "try 2")
	w.shows("db-spare", "try 1")
	v, err := w.svc.Volume(t.Context(), "db-spare")
	if err != nil {
		t.Fatal(err)
	}
	if q := v.Position.Quarantine; q == nil || q.Job != "j" || q.Step != "two" || q.ExitCode != 42 || q.Backup != res.Backup || !strings.Contains(q.Reason, "exit code 42") {
		t.Errorf("label %+v", q)
	}
	if len(res.Steps) != 3 || res.Steps[1].OK || res.Steps[1].ExitCode != 42 || len(w.backups()) != 1 {
		t.Errorf("%+v", res)
	}
}

// TestFailsForGood: after the last attempt the volume is at the save point, and
// every failure is kept.
func TestFailsForGood(t *testing.T) {
	w := newWorld(t, 10, "db")
	w.run(w.options("[{name: db}]", `
steps:
  - {name: one, run: put $SWAPBACK_DEVICE_DB good}
  - {name: two, run: 'put $SWAPBACK_DEVICE_DB "bad $SWAPBACK_ATTEMPT"; exit 1', save_point: true, retries: 2}
  - {name: three, run: touch three}
`), ExitFailed, "step two failed (exit code 1)", "db at the save point before step two")
	w.shows("db", "good")
	for spare, word := range map[string]string{"db-spare": "bad 1", "db-spare-2": "bad 2", "db-spare-3": "bad 3"} {
		w.shows(spare, word)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "three")); err == nil {
		t.Error("the step after the failed one has run")
	}
}

// TestGoesBackToAnEarlierStep: the save point is before the first of two steps,
// so both are run again. Each step has its own retries.
func TestGoesBackToAnEarlierStep(t *testing.T) {
	w := newWorld(t, 10, "db")
	w.run(w.options("[{name: db}]", `
steps:
  - {name: one, run: 'echo one >> trace; put $SWAPBACK_DEVICE_DB one', save_point: true}
  - {name: two, run: 'echo two >> trace; test $SWAPBACK_ATTEMPT -ge 2', retries: 1}
  - {name: three, run: 'echo three >> trace; test $SWAPBACK_ATTEMPT -ge 2', retries: 1}
`), ExitDone, "after 2 recoveries")
	trace, err := os.ReadFile(filepath.Join(w.dir, "trace"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(string(trace)), " "); got != "one two one two three one two three" {
		t.Errorf("ran %s", got)
	}
	if n := len(w.backups()); n != 1 {
		t.Errorf("%d save points", n)
	}
}

func TestNothingToGoBackTo(t *testing.T) {
	w := newWorld(t, 10, "db")
	w.run(w.options("[{name: db}]", `
steps:
  - {name: one, run: 'put $SWAPBACK_DEVICE_DB bad; exit 5'}
  - {name: two, run: 'true', save_point: true}
`), ExitNotRestored, "no save point was taken", "left as it is")
	w.shows("db", "bad")
	if len(w.quarantined()) > 0 || len(w.svc.Swaps) > 0 {
		t.Error("something was done")
	}
}

func TestLeave(t *testing.T) {
	w := newWorld(t, 10, "db")
	w.run(w.options("[{name: db}]", `
on_failure: leave
steps:
  - {name: one, run: 'put $SWAPBACK_DEVICE_DB "bad $SWAPBACK_ATTEMPT"; exit 5', retries: 1}
`), ExitFailed, "left as it is, as the job asks")
	w.shows("db", "bad 2")
	if got := w.quarantined(); !slices.Equal(got, []string{"db-spare"}) {
		t.Errorf("in quarantine: %q", got)
	}
}

// TestGroup: all volumes go back in one swap; a step may name fewer.
func TestGroup(t *testing.T) {
	for _, c := range []struct {
		recover string
		log     string
		pairs   int
	}{{"", "good", 2}, {"recover: [db],", "bad", 1}} {
		w := newWorld(t, 10, "db", "log")
		w.run(w.options("[{name: db}, {name: tank/log}]", `
steps:
  - {name: one, run: put $SWAPBACK_DEVICE_DB good; put $SWAPBACK_DEVICE_LOG good}
  - {name: two, `+c.recover+` run: 'put $SWAPBACK_DEVICE_DB bad; put $SWAPBACK_DEVICE_LOG bad; exit 1', save_point: true}
`), ExitFailed)
		w.shows("db", "good")
		w.shows("log", c.log)
		if len(w.svc.Swaps) != 1 || len(w.svc.Swaps[0].Pairs) != c.pairs {
			t.Errorf("swaps %+v", w.svc.Swaps)
		}
	}
}

func TestNamedSpare(t *testing.T) {
	w := newWorld(t, 10, "db", "mine")
	w.run(w.options("[{name: db, spare: mine}]", `
steps: [{name: one, run: 'put $SWAPBACK_DEVICE_DB "bad $SWAPBACK_ATTEMPT"; exit 1', retries: 1}]
`), ExitFailed, "spare mine holds failed data in quarantine")
	w.shows("mine", "bad 1")
	w.shows("db-spare", "bad 2")
}

func TestStepThatCannotStart(t *testing.T) {
	w := newWorld(t, 10, "db")
	res := w.run(w.options("[{name: db}]", `
steps: [{name: one, run: [no-such-program]}]
`), ExitFailed, `no program "no-such-program"`, "step one failed")
	if res.Steps[0].ExitCode != couldNotStart {
		t.Errorf("%+v", res.Steps)
	}
}

func TestTimeout(t *testing.T) {
	w := newWorld(t, 10, "db")
	w.run(w.options("[{name: db}]", `
steps: [{name: one, run: 'put $SWAPBACK_DEVICE_DB bad; sleep 1000', timeout: 300ms}]
`), ExitFailed, "timed out")
	w.shows("db", "")
	w.shows("db-spare", "bad")
}

// TestRecoveryFails: the exit code and the words say that the volume is not
// back, and the failed data is where it was.
func TestRecoveryFails(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(*world)
		want    string
		shows   string
	}{
		{"swap refused", func(w *world) {
			w.svc.Before = func(m, _ string) error {
				if m == "Swap" {
					return &api.Error{Code: api.CodeInUse, Message: "swap refused", Holders: []api.Holder{{Device: "/dev/x", Detail: "mounted on /y"}}}
				}
				return nil
			}
		}, "mounted on /y", "bad"},
		{"not proven coherent", func(w *world) { w.svc.Incoherent = true }, "not proven", ""},
		{"backup is gone", func(w *world) {
			w.svc.Before = func(m, _ string) error {
				if m == "CreateVolume" {
					return os.RemoveAll(filepath.Join(w.repo(), "backups"))
				}
				return nil
			}
		}, "could not be put back", "bad"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 10, "db")
			c.prepare(w)
			w.run(w.options("[{name: db}]", `
steps: [{name: one, run: 'put $SWAPBACK_DEVICE_DB bad; exit 1', retries: 3}]
`), ExitNotRestored, "could not be put back", c.want)
			w.shows("db", c.shows)
		})
	}
}

func TestSavePointFails(t *testing.T) {
	w := newWorld(t, 10, "db")
	w.svc.Before = func(m, _ string) error {
		if m == "OpenSnapshot" {
			return &api.Error{Code: api.CodeNoSpace, Message: "no room for a snapshot"}
		}
		return nil
	}
	w.run(w.options("[{name: db}]", `
steps:
  - {name: one, run: put $SWAPBACK_DEVICE_DB one}
  - {name: two, run: touch two, save_point: true}
`), ExitNotRestored, "no save point could be taken before step 2/2 two", "no room for a snapshot")
	w.shows("db", "one")
	if _, err := os.Stat(filepath.Join(w.dir, "two")); err == nil {
		t.Error("the step has run without its save point")
	}
}

// TestStop: a run that is asked to stop stops its step and brings the volume
// back; one that is told to give up leaves things and says so.
func TestStop(t *testing.T) {
	for _, c := range []struct {
		name   string
		giveUp bool
		code   int
		shows  string
	}{{"stop", false, ExitFailed, ""}, {"give up", true, ExitNotRestored, "bad"}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 10, "db")
			o := w.options("[{name: db}]", `
steps: [{name: one, run: 'put $SWAPBACK_DEVICE_DB bad; touch up; sleep 1000', retries: 5}]
`)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				if waitFor(ctx, filepath.Join(w.dir, "up")) != nil {
					return
				}
				close(w.stop)
				if c.giveUp {
					cancel()
				}
			}()
			res, err := Run(ctx, w.stop, o)
			if err != nil || res.ExitCode != c.code || len(res.Steps) != 1 {
				t.Fatalf("%+v %v", res, err)
			}
			w.shows("db", c.shows)
		})
	}
}

func TestStopBetweenSteps(t *testing.T) {
	w := newWorld(t, 10, "db")
	close(w.stop)
	w.run(w.options("[{name: db}]", `
steps: [{name: one, run: touch one}]
`), ExitNotRestored, "stopped before step 1/1 one")
}

func TestKeepBackups(t *testing.T) {
	w := newWorld(t, 10, "db")
	o := w.options("[{name: db}]", `
keep_backups: 2
steps:
  - {name: one, run: put $SWAPBACK_DEVICE_DB one, save_point: true}
  - {name: two, run: put $SWAPBACK_DEVICE_DB two, save_point: true}
`)
	w.run(o, ExitDone)
	res := w.run(o, ExitDone, "deleted 2 old save points, kept the last 2")
	if b := w.backups(); len(b) != 2 || b[1].ID != res.Backup {
		t.Errorf("%d backups are left", len(b))
	}
}

func TestDetachedVolumeIsPutAway(t *testing.T) {
	w := newWorld(t, 10, "db")
	if _, err := w.svc.Detach(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	w.run(w.options("[{name: db}]", `
steps: [{name: one, run: put $SWAPBACK_DEVICE_DB one}]
`), ExitDone)
	if v, err := w.svc.Volume(t.Context(), "db"); err != nil || v.Device != "" {
		t.Errorf("%+v %v", v, err)
	}
}

// TestRefusals: the job is not started, everything that is wrong is said, and
// nothing is changed.
func TestRefusals(t *testing.T) {
	const steps = "\nsteps: [{name: one, run: touch ran}]\n"
	for _, c := range []struct {
		name    string
		extents int64
		volumes string
		prepare func(*world, *job.Job)
		want    []string
	}{
		{"no room for a spare", 2, "[{name: db}]", nil, []string{"could not be recovered now", "no room to create one"}},
		{"unknown things", 10, "[{name: x}, {name: y}]", func(w *world, j *job.Job) {
			j.Repository = w.dir + "/none"
			j.Steps[0].User = "no-such-user"
			j.Steps[0].Workdir = "/no/such"
		}, []string{`no volume "x"`, `no volume "y"`, "repository", "no-such-user", "/no/such"}},
		{"in quarantine", 10, "[{name: db}]", func(w *world, _ *job.Job) {
			w.svc.Change("db", func(v *api.Volume) { v.Position.Quarantine = &api.Quarantine{Reason: "bad day"} })
		}, []string{"quarantine: bad day", "swapback volume release tank/db"}},
		{"in use", 10, "[{name: db}]", func(w *world, _ *job.Job) {
			w.svc.Held["db"] = []api.Holder{{Device: "/dev/x", Detail: "open in postgres"}}
		}, []string{"in use", "open in postgres"}},
		{"spare in use", 10, "[{name: db, spare: log}]", func(w *world, _ *job.Job) {
			w.svc.Held["log"] = []api.Holder{{Device: "/dev/x", Detail: "open in postgres"}}
		}, []string{"spare of volume tank/db", "open in postgres"}},
		{"the same volume twice", 10, "[{name: db}, {name: tank/db}]", nil, []string{"named twice"}},
		{"different pools", 10, "[{name: db}, {name: log}]", func(w *world, _ *job.Job) {
			w.svc.Change("log", func(v *api.Volume) { v.Pool = "lake" })
		}, []string{"different pools"}},
		{"pool is full", 2, "[{name: db, spare: log}]", nil, []string{"pool tank is full"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.extents, "db", "log")
			o := w.options(c.volumes, steps)
			if c.prepare != nil {
				c.prepare(w, o.Job)
			}
			report, err := Check(t.Context(), o)
			if err != nil || report.OK {
				t.Fatalf("check: %+v %v", report, err)
			}
			says(t, strings.Join(report.Problems, "\n"), c.want...)
			res, err := Run(t.Context(), w.stop, o)
			var re *RefusedError
			if !errors.As(err, &re) || res.ExitCode != ExitRefused || len(re.Reasons) != len(report.Problems) {
				t.Fatalf("run: %+v %v", res, err)
			}
			says(t, err.Error(), c.want...)
			for _, path := range []string{"ran", "state", "log"} {
				if _, err := os.Stat(filepath.Join(w.dir, path)); err == nil {
					t.Errorf("%s was made", path)
				}
			}
		})
	}
}

func TestCheckTellsThePlan(t *testing.T) {
	w := newWorld(t, 10, "db", "log", "log-spare")
	report, err := Check(t.Context(), w.options("[{name: db}, {name: log}]", "steps: [{name: one, run: 'true'}]"))
	if err != nil || !report.OK {
		t.Fatalf("%+v %v", report, err)
	}
	says(t, strings.Join(report.Notes, "\n"), "tank/db would be recovered onto db-spare, which would be created", "tank/log would be recovered onto log-spare, which is free")
}

func TestDaemonAway(t *testing.T) {
	w := newWorld(t, 10, "db")
	o := w.options("[{name: db}]", "steps: [{name: one, run: 'true'}]")
	w.svc.Before = func(string, string) error { return &api.Error{Code: api.CodeUnavailable, Message: "no swapbackd"} }
	if _, err := Check(t.Context(), o); err == nil || !strings.Contains(err.Error(), "no swapbackd") {
		t.Errorf("check: %v", err)
	}
	var re *RefusedError
	if _, err := Run(t.Context(), w.stop, o); !errors.As(err, &re) {
		t.Errorf("run: %v", err)
	}
}

// TestDaemonRestarts: a daemon that is away when a recovery is due is waited
// for.
func TestDaemonRestarts(t *testing.T) {
	for _, c := range []struct {
		name string
		away int
		code int
	}{{"for a while", 3, ExitFailed}, {"for good", 1 << 20, ExitNotRestored}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 10, "db")
			o := w.options("[{name: db}]", "steps: [{name: one, run: 'put $SWAPBACK_DEVICE_DB bad; touch failed; exit 1'}]")
			o.DaemonWait = time.Second
			left := c.away
			w.svc.Before = func(m, _ string) error {
				if _, err := os.Stat(filepath.Join(w.dir, "failed")); err != nil || left == 0 {
					return nil
				}
				if m == "Info" {
					left--
				}
				return &api.Error{Code: api.CodeUnavailable, Message: "no swapbackd"}
			}
			w.run(o, c.code, "swapbackd does not answer; waiting for it")
		})
	}
}

// TestOneJobPerVolume: while a job works on a volume another one is refused,
// and so is the same job, with the owner named.
func TestOneJobPerVolume(t *testing.T) {
	w := newWorld(t, 10, "db")
	o := w.options("[{name: db}]", "steps: [{name: one, run: 'touch up; while [ ! -e down ]; do sleep 0.02; done'}]")
	done := make(chan Result)
	go func() {
		res, _ := Run(t.Context(), w.stop, o)
		done <- res
	}()
	if err := waitFor(t.Context(), filepath.Join(w.dir, "up")); err != nil {
		t.Fatal(err)
	}
	other := w.options("[{name: db}]", "steps: [{name: one, run: 'true'}]")
	other.Job.Name, other.Terminal = "other", nil
	same := w.options("[{name: db}]", "steps: [{name: one, run: 'true'}]")
	same.Terminal = nil
	for _, c := range []struct {
		o    Options
		want string
	}{{other, "volume tank/db is being worked on by job j"}, {same, "job j is being worked on by job j"}} {
		if _, err := Run(t.Context(), w.stop, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	if err := os.WriteFile(filepath.Join(w.dir, "down"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if res := <-done; res.ExitCode != ExitDone {
		t.Errorf("%+v", res)
	}
}

// TestDiedRun: a run that died half-way is not started over by accident.
func TestDiedRun(t *testing.T) {
	w := newWorld(t, 10, "db")
	o := w.options("[{name: db}]", "steps: [{name: one, run: 'true'}]")
	w.run(o, ExitDone)
	s, err := ReadState(o.StateDir, "j")
	if err != nil {
		t.Fatal(err)
	}
	f := stateFile{path: statePath(o.StateDir, "j"), s: *s}
	f.s.Phase, f.s.ExitCode, f.s.Agent.Start = Stepping, nil, 1
	if err := f.save(); err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), w.stop, o)
	if err == nil {
		t.Fatal("it was started")
	}
	says(t, err.Error(), "died half-way", "during: step 1/1 one", "swapback recover tank/db --from "+s.Backup, "--anew")
	o.Anew = true
	w.run(o, ExitDone)

	f.s.Phase = Starting
	if err := f.save(); err != nil {
		t.Fatal(err)
	}
	o.Anew = false
	w.run(o, ExitDone)
}
