package runner

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent/step"
)

func died(phase Phase) *State {
	return &State{
		Version: stateVersion, Job: "j", Repository: "/r", Agent: step.Process{PID: 1 << 30, Start: 1}, Boot: bootID(),
		Started: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Phase: phase, Step: "two", StepNumber: 2, Steps: 3, Attempt: 2,
		Backup: "B1", BackupStep: "two", Volumes: []VolumeState{{Name: "tank/db", Mount: "/srv/db"}},
	}
}

func TestExplain(t *testing.T) {
	code := 1
	for _, c := range []struct {
		name   string
		change func(*State)
		phase  Phase
		want   []string
	}{
		{"ended", func(s *State) { s.ExitCode, s.Outcome = &code, "step two failed" }, Ended, []string{"ended with exit code 1", "step two failed"}},
		{"running", func(s *State) { s.Agent = step.Self() }, Stepping, []string{"running since", "step 2/3 two, attempt 2"}},
		{"starting", nil, Starting, []string{"DIED", "no step has run"}},
		{"save point", nil, SavePoint, []string{"taking the save point before step 2/3 two", "was not finished"}},
		{"step", nil, Stepping, []string{"whatever the step had done", "/srv/db", "swapback recover tank/db --from B1 --repo /r"}},
		{"step of another boot", func(s *State) { s.Agent, s.Boot = step.Self(), "other" }, Stepping, []string{"DIED"}},
		{"step runs on", func(s *State) { p := step.Self(); s.Process = &p }, Stepping, []string{"still running, as process"}},
		{"no save point", func(s *State) { s.Backup = "" }, Stepping, []string{"no save point was taken"}},
		{"ending", nil, Ending, []string{"all steps were done"}},
		{"recovery at its beginning", nil, Recovering, []string{"tank/db shows the failed data", "swapback recover tank/db --from B1"}},
		{"recovery without spares yet", func(s *State) { s.Recovery = &RecoveryState{Phase: "choose"} }, Recovering,
			[]string{"recovery, choose after step 2/3 two", "tank/db shows the failed data"}},
		{"recovery without a daemon", func(s *State) {
			s.Recovery = &RecoveryState{Phase: "swap", Pairs: []RecoveryPair{{Volume: "tank/db", Spare: "tank/db-spare", FailedPosition: "P9"}}}
		}, Recovering, []string{"recovery, swap after step 2/3 two", "either all", "P9 is the failed data", "no daemon to ask"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := died(c.phase)
			if c.change != nil {
				c.change(s)
			}
			says(t, strings.Join(Explain(t.Context(), nil, s), "\n"), c.want...)
		})
	}
}

// TestExplainARecovery: the daemon is asked which content each volume shows.
func TestExplainARecovery(t *testing.T) {
	w := newWorld(t, 10, "db", "db-spare")
	v, err := w.svc.Volume(t.Context(), "db")
	if err != nil {
		t.Fatal(err)
	}
	s := died(Recovering)
	s.Recovery = &RecoveryState{Phase: "swap", Pairs: []RecoveryPair{{Volume: "tank/db", Spare: "tank/db-spare", FailedPosition: v.Position.ID}}}
	explain := func() string { return strings.Join(Explain(t.Context(), w.svc, s), "\n") }
	says(t, explain(), "tank/db shows the failed data: the swap has not happened")
	if _, err := w.svc.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "db", B: "db-spare"}}}); err != nil {
		t.Fatal(err)
	}
	says(t, explain(), "tank/db shows the save point: the swap has happened", "not in quarantine yet: swapback volume quarantine tank/db-spare")
	if _, err := w.svc.Quarantine(t.Context(), "db-spare", api.QuarantineRequest{}); err != nil {
		t.Fatal(err)
	}
	says(t, explain(), "the failed data is tank/db-spare, in quarantine")
}

func TestReadStates(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadState(dir, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a job that never ran: %v", err)
	}
	if list, err := ReadStates(filepath.Join(dir, "none")); err != nil || len(list) > 0 {
		t.Errorf("no folder: %v %v", list, err)
	}
	for _, name := range []string{"b", "a"} {
		f := stateFile{path: statePath(dir, name), s: *died(Stepping)}
		f.s.Job = name
		if err := f.save(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "c.json"), []byte(`{"version": 1`), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := ReadStates(dir)
	if len(list) != 2 || list[0].Job != "a" || err == nil || !strings.Contains(err.Error(), "c.json") {
		t.Errorf("%v %v", list, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("files left behind: %v %v", entries, err)
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add([]byte(`{"version":1,"job":"j","phase":"step","agent":{"pid":3,"start":4},"volumes":[{"name":"tank/db"}]}`))
	f.Add([]byte(`{"version":2,"job":"j","phase":"step"}`))
	s := died(Recovering)
	s.Recovery = &RecoveryState{Phase: "swap", Pairs: []RecoveryPair{{Volume: "tank/db", Spare: "tank/db-spare", FailedPosition: "P9"}}}
	text, err := s.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := decodeState(text)
		if err != nil {
			return
		}
		// What explains a state is no longer than a few sentences for each thing
		// that is in it.
		said := strings.Join(Explain(t.Context(), nil, s), "\n")
		if len(said) > 1024+128*len(text) {
			t.Errorf("%d bytes explain %d", len(said), len(text))
		}
		out, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeState(out)
		if err != nil {
			t.Fatalf("%s\nis not read again: %v", out, err)
		}
		if second, err := again.encode(); err != nil || !bytes.Equal(out, second) {
			t.Errorf("%s\nbecame\n%s\n%v", out, second, err)
		}
	})
}

// TestDeathAfterARecovery: until the next phase is recorded the state tells of the
// recovery that has just been done, and where its contents are.
func TestDeathAfterARecovery(t *testing.T) {
	w := newWorld(t, 10, "db")
	if _, err := w.svc.Detach(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	o := w.options("[{name: db}]", "steps: [{name: one, run: 'put $SWAPBACK_DEVICE_DB bad; exit 1'}]")
	var text string
	w.svc.Before = func(m, _ string) error {
		if m != "Detach" { // the run puts the volume away
			return nil
		}
		s, err := ReadState(o.StateDir, "j")
		if err != nil {
			return err
		}
		s.Agent.Start = 1 // as if the agent were dead
		text = strings.Join(Explain(t.Context(), w.svc, s), "\n")
		return nil
	}
	w.run(o, ExitFailed)
	says(t, text, "DIED", "tank/db shows the save point: the swap has happened", "the failed data is tank/db-spare, in quarantine")
	if s, err := ReadState(o.StateDir, "j"); err != nil || s.Recovery != nil {
		t.Errorf("a run that ended tells of a recovery under way: %+v %v", s, err)
	}
}

// TestStateCannotBeWritten: no step runs while the file says that none has, since
// the next run would start over on what the step had done. Later the file holds a
// phase that is refused, and the run goes on.
func TestStateCannotBeWritten(t *testing.T) {
	const two = "[{name: one, run: touch one}, {name: two, run: touch two, save_point: true}]"
	const refused = "where the run stands can't be recorded, and no step has run"
	for _, c := range []struct {
		name, steps string
		when        string // the folder goes away
		code        int
		want        string
		last        Phase // in the folder
	}{
		{"before a save point", "[{name: one, run: touch one}]", "Attach", ExitRefused, refused, Starting},
		{"before a step", two, "Attach", ExitRefused, refused, Starting},
		{"between them", "[{name: one, run: touch one}]", "OpenSnapshot", ExitRefused, refused, SavePoint},
		{"later", two, "OpenSnapshot", ExitDone, "WARNING: where the run stands can't be recorded", SavePoint},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 10, "db")
			if _, err := w.svc.Detach(t.Context(), "db"); err != nil {
				t.Fatal(err)
			}
			o := w.options("[{name: db}]", "steps: "+c.steps)
			away := o.StateDir + "-away"
			w.svc.Before = func(m, _ string) error {
				if m != c.when {
					return nil
				}
				return os.Rename(o.StateDir, away)
			}
			res, err := Run(t.Context(), w.stop, o)
			if err != nil || res.ExitCode != c.code {
				t.Fatalf("exit code %d, %v: %s", res.ExitCode, err, res.Outcome)
			}
			says(t, w.out.String(), c.want)
			_, err = os.Stat(filepath.Join(w.dir, "one"))
			if ran := err == nil; ran != (c.code == ExitDone) {
				t.Errorf("the step has run: %v", ran)
			}
			if v, err := w.svc.Volume(t.Context(), "db"); err != nil || v.Device != "" {
				t.Errorf("the volume is not put away: %+v %v", v, err)
			}
			s, err := ReadState(away, "j")
			if err != nil || s.Phase != c.last {
				t.Errorf("the state that was written last: %+v %v", s, err)
			}
		})
	}
}
