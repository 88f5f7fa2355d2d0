//go:build vm && failpoint

package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/hostagent/runner"
	"github.com/swapback/swapback/soak/rig"
)

// TestCrashJob kills the agent at every point of a run that recovers once. The state
// says where it stood, and what it says to do works. That the job can be run
// anew then is tried once for each place where a run can stand, as the state
// names it.
func TestCrashJob(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(h.dir, "db")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// With the file "calm" nothing fails.
	file := h.job(t, "nightly", `
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: 'echo good > $DIR/db/data'}
  - name: change
    save_point: true
    retries: 1
    run: |
      test "$(cat $DIR/db/data)" = good
      echo "change $SWAPBACK_ATTEMPT" > $DIR/db/data
      test -e $DIR/calm || test $SWAPBACK_ATTEMPT = 2
`)
	v := h.Volume("db", 4*rig.MiB)
	fresh := func(t *testing.T) {
		_ = unix.Unmount(dir, 0) // a run that died may have left it mounted
		h.forget(t, "db-spare")
		rig.Tool(t, "mkfs.ext4", "-q", "-F", v.Device)
		_ = os.RemoveAll(h.dir + "/state")
		_ = os.Remove(h.dir + "/calm")
	}
	done := map[string]bool{}
	s := &hostScenario{
		name: "job", program: "swapback-agent", args: h.agentArgs("run", file), operations: []string{"job", "state"},
		prepare: fresh,
		after:   func(t *testing.T) { h.finishJob(t, file, dir, done) },
		whole:   func(t *testing.T) { h.fileIs(t, "db", "change 2"); h.fileIs(t, "db-spare", "change 1") },
	}
	h.crashAll(t, s)
	// The daemon dies while the agent recovers: it waits for it.
	t.Run("daemon dies at job: unmounted", func(t *testing.T) {
		fresh(t)
		cmd, out := h.stopped(t, "job: unmounted", "swapback-agent", s.args...)
		h.Kill()
		h.Run()
		if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the run: %v\n%s", err, out)
		}
		s.whole(t)
	})
	if !t.Failed() && !strings.Contains(flagRun(), "/") {
		h.complain(of("job", "state"))
	}
}

var (
	goBack  = regexp.MustCompile(`(?m)unmount, then swapback (recover .*)$`)
	process = regexp.MustCompile(`still running, as process (\d+)`)
)

// finishJob does what the status of a dead run says. Then it runs the job anew,
// unless that was done for a run that stood there.
func (h *host) finishJob(t *testing.T, file, dir string, done map[string]bool) {
	out, code := h.run(t, "", "swapback-agent", h.agentArgs("status", "nightly")...)
	s := &runner.State{} // of one that died before its first
	if !strings.Contains(out, "has never run") {
		s = h.state(t)
	}
	switch {
	case strings.Contains(out, "has never run"):
	case strings.Contains(out, "ended with exit code 0"): // it died after its last state
		h.fileIs(t, "db", "change 2")
		return
	case code != 3 || !strings.Contains(out, "DIED"):
		t.Fatalf("the status of a dead run: exit code %d\n%s", code, out)
	}
	if m := process.FindStringSubmatch(out); m != nil {
		var pid int
		fmt.Sscan(m[1], &pid)
		_ = unix.Kill(-pid, syscall.SIGKILL)
		rig.WaitUntil(t, "the step to end", func() bool { return unix.Kill(-pid, 0) != nil })
	}
	if err := os.WriteFile(h.dir+"/calm", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Where nothing was done it just runs; else it has to be told to.
	want := 2
	if strings.Contains(out, "has never run") || strings.Contains(out, "no step has run") {
		want = 0
	}
	if text, code := h.run(t, "", "swapback-agent", h.agentArgs("run", file)...); code != want {
		t.Fatalf("a run after one that died: exit code %d, want %d\n%s\nits status was\n%s", code, want, text, out)
	} else if code == 0 {
		_ = unix.Unmount(dir, 0) // it found the volume mounted, perhaps, and left it so
		h.fileIs(t, "db", "change 1")
		return
	}
	if strings.Contains(out, "may still be mounted on "+dir) {
		_ = unix.Unmount(dir, 0) // "may"
	}
	if s.Phase == runner.Recovering {
		switch failed, saved := strings.Contains(out, "db shows the failed data"), strings.Contains(out, "db shows the save point"); {
		case failed == saved:
			t.Errorf("the status does not say what db shows:\n%s", out)
		case failed:
			h.fileIs(t, "db", "change 1")
		default:
			h.fileIs(t, "db", "good")
		}
	}
	switch m := goBack.FindStringSubmatch(out); {
	case m != nil:
		h.ok(t, "swapback", strings.Fields(m[1])...)
		h.fileIs(t, "db", "good")
	case s.Backup != "" && s.Phase != runner.Starting && s.Phase != runner.Ended:
		t.Errorf("there is save point %s, and the status does not say how to go back to it:\n%s", s.Backup, out)
	}
	if done[place(s)] && !everywhere {
		return
	}
	done[place(s)] = true
	h.ok(t, "swapback-agent", h.agentArgs("run", "--anew", file)...)
	h.fileIs(t, "db", "change 1")
}

func (h *host) state(t *testing.T) *runner.State {
	t.Helper()
	s, err := runner.ReadState(h.dir+"/state", "nightly")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// place is where a run stood.
func place(s *runner.State) string {
	where := string(s.Phase) + " " + s.Step
	if s.Recovery != nil {
		where += " " + s.Recovery.Phase
	}
	return where
}

// fileIs looks at the job's file on a volume.
func (h *host) fileIs(t *testing.T, volume, want string) {
	t.Helper()
	dir := filepath.Join(h.dir, "look")
	_ = os.Mkdir(dir, 0o755)
	if err := unix.Mount(h.Show(volume).Device, dir, "ext4", unix.MS_RDONLY, "noload"); err != nil {
		t.Fatalf("mount of %s: %v", volume, err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "data"))
	if uerr := unix.Unmount(dir, 0); uerr != nil {
		t.Fatal(uerr)
	}
	if strings.TrimSpace(string(got)) != want {
		t.Errorf("the file on %s is %q (%v), want %q", volume, got, err, want)
	}
}
