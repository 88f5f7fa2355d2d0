//go:build vm && failpoint

package crash

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// host is a machine with a daemon, a repository, and programs of the host that
// can be told where to die.
type host struct {
	*bench
	dir string
}

func newHost(t *testing.T) *host {
	h := &host{bench: newBench(t), dir: t.TempDir()}
	h.PoolWith(api.CreatePoolRequest{Name: "tank", ExtentSize: rig.MiB})
	h.ok(t, "swapback", "repo", "init", h.repo())
	return h
}

func (h *host) repo() string { return filepath.Join(h.dir, "repo") }

// command is a program of the host with an order for it ("" for none).
func (h *host) command(t *testing.T, order, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(program(t, name), args...)
	cmd.Env = append(os.Environ(), "SWAPBACK_FAILPOINT="+order, "SWAPBACK_FAILPOINT_TRACE="+h.trace(),
		api.SocketEnv+"="+h.Socket(), "SWAPBACK_REPO="+h.repo(), "SWAPBACK_RUN_DIR="+h.RunDir())
	return cmd
}

// run runs a program and returns its exit code, -1 when it was killed.
func (h *host) run(t *testing.T, order, name string, args ...string) (string, int) {
	t.Helper()
	out, err := h.command(t, order, name, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit == nil {
		return string(out), 0
	}
	return string(out), exit.ExitCode()
}

// ok runs a program that has to succeed.
func (h *host) ok(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, code := h.run(t, "", name, args...)
	if code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s", name, strings.Join(args, " "), code, out)
	}
	return out
}

// killed runs a program that has to die at a point.
func (h *host) killed(t *testing.T, point, name string, args ...string) {
	t.Helper()
	if out, code := h.run(t, point, name, args...); code != -1 {
		t.Fatalf("%s was to die at %q; exit code %d\n%s", name, point, code, out)
	}
}

// hostScenario is a command that is killed at each of its points.
type hostScenario struct {
	name    string
	program string
	args    []string
	// prepare brings the volumes to where the command can begin.
	prepare func(t *testing.T)
	// operations are those whose points are crashed at here.
	operations []string
	// after looks at what the dead command left, finishes it and looks again.
	after func(t *testing.T)
	// whole looks at what the command did when nobody killed it.
	whole func(t *testing.T)
}

func (h *host) crashAll(t *testing.T, s *hostScenario) {
	s.prepare(t)
	h.clearTrace(t)
	if out, code := h.run(t, "", s.program, s.args...); code != 0 {
		t.Fatalf("without a crash: exit code %d\n%s", code, out)
	}
	points := h.traced(t)
	s.whole(t)
	n := 0
	for _, p := range points {
		operation, _, _ := strings.Cut(p, ": ")
		if !slices.Contains(s.operations, operation) || h.crashed[p] > 0 && !everywhere {
			continue
		}
		if leftOut(t, p) {
			continue
		}
		n++
		t.Run(p, func(t *testing.T) {
			s.prepare(t)
			h.killed(t, p, s.program, s.args...)
			h.crashed[p]++
			rig.WaitUntil(t, "the daemon to end what the dead one asked for", func() bool { return h.idle(t) })
			h.inOrder(t)
			if t.Failed() {
				t.FailNow() // what after does would mend it, perhaps
			}
			s.after(t)
			h.inOrder(t)
		})
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d points", n)
}

// inOrder looks at the pool and at what swapback has in the kernel.
func (h *host) inOrder(t *testing.T) {
	t.Helper()
	lookAround(t, h.Daemon, h.volumes(t))
	h.Check()
}

func (h *host) volumes(t *testing.T) []api.Volume {
	list, err := h.Client.Volumes(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// idle says that the daemon is at no request of a dead client any more.
func (h *host) idle(t *testing.T) bool {
	return !slices.ContainsFunc(h.volumes(t), func(v api.Volume) bool { return v.Snapshot || v.State == api.StateBusy })
}

func (h *host) sum(t *testing.T, name string) string { return sum(t, h.Show(name)) }

// shows fails unless a volume has the content of a seed.
func (h *host) shows(t *testing.T, name string, seed uint64) {
	t.Helper()
	if got := h.sum(t, name); got != shortSum(content(seed)) {
		t.Errorf("volume %s does not hold content %d", name, seed)
	}
}

// forget deletes every volume whose name begins so, evidence too.
func (h *host) forget(t *testing.T, prefix string) {
	t.Helper()
	for _, v := range h.volumes(t) {
		if strings.HasPrefix(v.Name, prefix) {
			if err := h.Client.DeleteVolume(t.Context(), v.Name, true); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// backups counts the backups in the repository, which has to be whole.
func (h *host) backups(t *testing.T) int {
	t.Helper()
	h.ok(t, "swapback", "backup", "verify", "--all")
	return strings.Count(h.ok(t, "swapback", "backup", "list", "--json"), `"created"`)
}

// TestCrashHost kills the programs of the host at every point of a backup, a
// restore and a recovery. Whatever they leave, the volumes show one of the
// two contents, the failed data stays, and the command that is given again
// brings it to its end.
func TestCrashHost(t *testing.T) {
	h := newHost(t)
	seed := uint64(10)
	h.fill(t, "db", seed)
	scenarios := []*hostScenario{h.backupScenario(&seed), h.restoreScenario(), h.recoverScenario()}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) { h.crashAll(t, s) })
		if t.Failed() {
			return
		}
	}
	t.Run("one at a time", func(t *testing.T) { h.oneRecovery(t) })
	if !t.Failed() && !strings.Contains(flagRun(), "/") {
		h.complain(of("backup", "restore", "recover"))
	}
}

func (h *host) backupScenario(seed *uint64) *hostScenario {
	before := 0
	return &hostScenario{
		name: "backup", program: "swapback", args: []string{"backup", "create", "db"}, operations: []string{"backup"},
		prepare: func(t *testing.T) {
			*seed++ // new content, so that there is something to store
			h.fill(t, "db", *seed)
			before = h.backups(t)
		},
		after: func(t *testing.T) {
			if n := h.backups(t); n != before && n != before+1 {
				t.Errorf("%d backups, there were %d", n, before)
			}
			h.shows(t, "db", *seed)
			h.ok(t, "swapback", "backup", "create", "db")
			h.ok(t, "swapback", "backup", "verify", "--all", "latest")
		},
		whole: func(t *testing.T) {
			if n := h.backups(t); n != before+1 {
				t.Errorf("%d backups, there were %d", n, before)
			}
		},
	}
}

func (h *host) restoreScenario() *hostScenario {
	var id string // of the backup
	again := func(t *testing.T) {
		h.ok(t, "swapback", "backup", "restore", "latest", "--onto", "look", "--yes", "--verify")
		h.showsHalf(t, "look")
	}
	return &hostScenario{
		name: "restore", program: "swapback", args: []string{"backup", "restore", "latest", "--onto", "look", "--yes", "--verify"},
		operations: []string{"restore"},
		prepare: func(t *testing.T) {
			h.forget(t, "look")
			rig.WriteDevice(t, h.Show("db").Device, 0, half())
			h.ok(t, "swapback", "backup", "create", "db")
			if id = h.Show("db").Position.DescendsFrom; id == "" {
				t.Fatal("db does not descend from the backup of it")
			}
			if _, err := h.Client.CreateVolume(t.Context(), api.CreateVolumeRequest{Name: "look", Size: size, Detached: true}); err != nil {
				t.Fatal(err)
			}
		},
		after: func(t *testing.T) {
			h.showsHalf(t, "db")
			switch from := h.Show("look").Position.DescendsFrom; from {
			case "":
			case id:
				h.showsHalf(t, "look")
			default:
				t.Errorf("look descends from %q, the backup is %q", from, id)
			}
			again(t)
			h.showsHalf(t, "db")
		},
		whole: func(t *testing.T) { h.showsHalf(t, "look") },
	}
}

// half is a content of which the second half is zero: a restore writes it, too.
func half() []byte {
	b := content(1)
	clear(b[len(b)/2:])
	return b
}

func (h *host) showsHalf(t *testing.T, name string) {
	t.Helper()
	if h.sum(t, name) != shortSum(half()) {
		t.Errorf("volume %s does not hold what was backed up", name)
	}
}

func (h *host) recoverScenario() *hostScenario {
	const good, bad = 2, 3
	return &hostScenario{
		name: "recover", program: "swapback", args: []string{"recover", "db"}, operations: []string{"recover"},
		prepare: func(t *testing.T) {
			h.forget(t, "db-spare")
			h.fill(t, "db", good)
			h.ok(t, "swapback", "backup", "create", "db")
			h.fill(t, "db", bad)
		},
		after: func(t *testing.T) {
			switch h.sum(t, "db") {
			case shortSum(content(good)):
				h.evidence(t, bad) // the label comes with the swap
			case shortSum(content(bad)):
			default:
				t.Fatal("db shows neither the failed data nor the backup")
			}
			h.ok(t, "swapback", "recover", "db")
			h.shows(t, "db", good)
			h.evidence(t, bad)
		},
		whole: func(t *testing.T) {
			h.shows(t, "db", good)
			h.evidence(t, bad)
		},
	}
}

// evidence fails unless the failed data is in quarantine under the name of a
// spare.
func (h *host) evidence(t *testing.T, seed uint64) {
	t.Helper()
	for _, v := range h.volumes(t) {
		if strings.HasPrefix(v.Name, "db-spare") && sum(t, v) == shortSum(content(seed)) {
			if v.Position.Quarantine == nil || !v.ReadOnly {
				t.Errorf("%s holds the failed data, and is not in quarantine", v.Name)
			}
			return
		}
	}
	t.Error("the failed data is gone")
}

// stopped starts a program and returns when it has stopped at a point.
func (h *host) stopped(t *testing.T, point, name string, args ...string) (*exec.Cmd, *rig.Buffer) {
	t.Helper()
	cmd, out := h.command(t, point+"=stop", name, args...), &rig.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	rig.WaitUntil(t, "the program to stop at "+point, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		return err == nil && bytes.Contains(stat, []byte(") T "))
	})
	return cmd, out
}

// oneRecovery: while a recovery runs, every other one is refused with who does
// it; when it is dead, it is in nobody's way. And a daemon that dies under it is
// waited for.
func (h *host) oneRecovery(t *testing.T) {
	s := h.recoverScenario()
	s.prepare(t)
	file := h.job(t, "j", "volumes: [{name: db}]\nsteps: [{name: one, run: 'true'}]\n")
	cmd, _ := h.stopped(t, "recover: restored", "swapback", "recover", "db")
	who := fmt.Sprintf("is being worked on by swapback recover (process %d)", cmd.Process.Pid)
	for _, other := range []struct {
		exit int
		args []string
	}{
		{4, []string{"swapback", "recover", "db"}},
		{4, []string{"swapback", "backup", "restore", "latest", "--onto", "db-spare", "--yes"}},
		{2, append([]string{"swapback-agent"}, h.agentArgs("run", file)...)},
	} {
		if out, code := h.run(t, "", other.args[0], other.args[1:]...); code != other.exit || !strings.Contains(out, who) {
			t.Errorf("%q beside a recovery: exit code %d, want %d and %q\n%s", other.args, code, other.exit, who, out)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	s.after(t)

	cmd, _ = h.stopped(t, "job: begun", "swapback-agent", h.agentArgs("run", file)...)
	who = fmt.Sprintf("is being worked on by job j (process %d)", cmd.Process.Pid)
	if out, code := h.run(t, "", "swapback", "recover", "db"); code != 4 || !strings.Contains(out, who) {
		t.Errorf("a recovery beside a job: exit code %d, want 4 and %q\n%s", code, who, out)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	for _, point := range []string{"recover: chosen", "restore: run written", "recover: restored", "recover: swap answered"} {
		t.Run("daemon dies at "+point, func(t *testing.T) {
			s.prepare(t)
			cmd, out := h.stopped(t, point, "swapback", "recover", "db")
			h.Kill()
			h.Run()
			if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("the recovery: %v\n%s", err, out)
			}
			s.whole(t)
		})
	}
	// A daemon that dies in the middle of the swap of a recovery is asked, when
	// it is back, what has become of it.
	for _, point := range []string{"swap: staged", "swap: committed"} {
		t.Run("daemon dies at "+point, func(t *testing.T) {
			s.prepare(t)
			h.arm(t, point)
			cmd, out := h.command(t, "", "swapback", "recover", "db"), &rig.Buffer{}
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			h.WaitEnd()
			h.Run()
			err := cmd.Wait()
			if swapped := point == "swap: committed"; swapped && err != nil {
				t.Errorf("the recovery: %v\n%s", err, out)
			} else if !swapped && (err == nil || !strings.Contains(out.String(), "nothing was swapped")) {
				t.Errorf("the recovery: %v\n%s", err, out)
			}
			s.after(t)
		})
	}
	// A backup reads a snapshot, which ends with the daemon.
	t.Run("daemon dies under a backup", func(t *testing.T) {
		h.fill(t, "db", 99)
		before := h.backups(t)
		cmd, out := h.stopped(t, "backup: snapshot open", "swapback", "backup", "create", "db")
		h.Kill()
		h.Run()
		if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || h.backups(t) != before {
			t.Errorf("a backup whose snapshot is gone: %v\n%s", err, out)
		}
		h.ok(t, "swapback", "backup", "create", "db")
	})
	h.forget(t, "db")
}

// of tells whether a point is one of some operations.
func of(operations ...string) func(point string) bool {
	return func(point string) bool {
		operation, _, _ := strings.Cut(point, ": ")
		return slices.Contains(operations, operation)
	}
}

// job writes a job file. $DIR in its text is the machine's folder.
func (h *host) job(t *testing.T, name, text string) string {
	path := filepath.Join(h.dir, name+".yaml")
	text = strings.ReplaceAll("name: "+name+"\nrepository: $DIR/repo\n"+text, "$DIR", h.dir)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (h *host) agentArgs(args ...string) []string {
	return append([]string{"--state-dir", h.dir + "/state", "--log-dir", h.dir + "/logs"}, args...)
}
