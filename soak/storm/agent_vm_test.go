//go:build vm

package storm

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// Exit codes of swapback-agent, as its help states them.
const (
	agentDone        = 0
	agentRefused     = 2
	agentNotRestored = 3
)

// agentJob has a step that spoils what the step before it made, fails, and does
// it right the second time.
const agentJob = `name: storm
repository: $DIR/repo
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: 'echo good > $DIR/db/data; head -c 2000000 /dev/urandom > $DIR/db/more; sha256sum < $DIR/db/more > $DIR/sum'}
  - name: change
    save_point: true
    retries: 1
    run: |
      test "$(cat $DIR/db/data)" = good
      sha256sum < $DIR/db/more | cmp - $DIR/sum
      echo "change $SWAPBACK_ATTEMPT" > $DIR/db/data
      rm $DIR/db/more
      test $SWAPBACK_ATTEMPT = 2
`

// agentStatus is the part of "swapback-agent status --json" that is looked at.
type agentStatus struct {
	Phase   string   `json:"phase"`
	Backup  string   `json:"backup"`
	Running bool     `json:"running"`
	Died    bool     `json:"died"`
	Text    []string `json:"text"`
	Outcome string   `json:"outcome"`
	Process *struct {
		PID int `json:"pid"`
	} `json:"process"`
}

// agents runs the agent, and kills it.
type agents struct {
	t    *testing.T
	d    *rig.Daemon
	rand *rand.Rand
	file string

	phases  map[string]int // where the agent was found dead
	whole   time.Duration  // what a run takes that nobody kills
	refused int            // recoveries by hand, beside a job
}

// TestAgentStorm kills the agent at any moment of a job that has to recover, and
// the daemon with it every other time. Afterwards the agent says where the job
// stands, which is compared with what the volume shows; what it says to do brings
// the save point back, and the job can be run again. Of two agents that are
// started at once one is refused, and so is a recovery by hand beside one.
func TestAgentStorm(t *testing.T) {
	a := newAgents(t)
	began := time.Now()
	a.expect(agentDone, []string{"after 1 recovery"}, "run", a.file)
	a.whole = time.Since(began)
	a.shows("change 2")
	for kill := range rig.Count(t, "SOAK_AGENT_KILLS", 4) {
		a.tidy()
		a.strike(kill%2 == 1)
	}
	a.tidy()
	r := a.start()
	rig.WaitUntil(t, "the agent to begin", func() bool { return a.status().Running })
	a.beside(r)
	if err := <-r.end; exitCode(err) != agentDone || !strings.Contains(r.out.String(), "after 1 recovery") || a.refused == 0 {
		t.Errorf("the last run, with %d recoveries tried beside it and others: %v\n%s", a.refused, err, r.out.String())
	}
	a.shows("change 2")
	t.Attr("found-dead", fmt.Sprintf("%v; a whole run takes %v; %d recoveries refused", a.phases, a.whole.Round(time.Millisecond), a.refused))
}

func newAgents(t *testing.T) *agents {
	a := &agents{t: t, rand: newRand(t), phases: map[string]int{}}
	a.d = rig.Start(t)
	a.d.Pool()
	v := a.d.Volume("db", 32*rig.MiB)
	rig.Tool(t, "mkfs.ext4", "-q", "-F", v.Device)
	if err := os.Mkdir(a.path("db"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(a.path("db"), unix.MNT_DETACH) })
	a.d.CLI(0, nil, "repo", "init")
	a.file = a.path("job.yaml")
	if err := os.WriteFile(a.file, []byte(strings.ReplaceAll(agentJob, "$DIR", a.d.Dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *agents) path(name string) string { return filepath.Join(a.d.Dir, name) }

func (a *agents) command(args ...string) *exec.Cmd {
	args = append([]string{"--socket", a.d.Socket(), "--state-dir", a.path("state"), "--log-dir", a.path("logs"), "--run-dir", a.d.RunDir()}, args...)
	return exec.Command("swapback-agent", args...)
}

// expect runs the agent to its end, which must have an exit code and say some words.
func (a *agents) expect(code int, words []string, args ...string) string {
	a.t.Helper()
	out, err := a.command(args...).CombinedOutput()
	if got := exitCode(err); got != code {
		a.t.Fatalf("swapback-agent %q: exit code %d, want %d\n%s", args, got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(string(out), w) {
			a.t.Errorf("swapback-agent %q does not say %q:\n%s", args, w, out)
		}
	}
	return string(out)
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// run is an agent that works on the job.
type run struct {
	cmd *exec.Cmd
	out rig.Buffer
	end chan error
}

func (a *agents) start() *run {
	a.t.Helper()
	r := &run{cmd: a.command("run", "--anew", a.file), end: make(chan error, 1)}
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := r.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	go func() { r.end <- r.cmd.Wait() }()
	return r
}

// strike starts two agents, of which one is refused, and kills the other.
func (a *agents) strike(daemonToo bool) {
	a.t.Helper()
	works, refused := a.start(), a.start()
	var err error
	select {
	case err = <-refused.end:
	case err = <-works.end:
		works, refused = refused, works
	}
	if exitCode(err) != agentRefused || !strings.Contains(refused.out.String(), "is being worked on by job storm") {
		a.t.Errorf("of two agents the one that ended first says (%v):\n%s", err, refused.out.String())
	}
	wait := time.Duration(a.rand.Float64() * float64(a.whole))
	first := time.Duration(a.rand.Float64() * float64(wait))
	time.Sleep(first)
	a.beside(works)
	time.Sleep(wait - first)
	if err := works.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		a.t.Fatal(err)
	}
	if daemonToo {
		a.d.Kill()
		time.Sleep(restartDelay)
		a.d.Run()
	}
	// Its output stays open as long as a step of it runs on.
	a.judge(works)
}

// beside has the volume recovered by hand while the agent is at work, which is
// refused with who has it. The agent is stopped meanwhile, so that it does not end.
func (a *agents) beside(r *run) {
	a.t.Helper()
	pid := r.cmd.Process.Pid
	_ = r.cmd.Process.Signal(unix.SIGSTOP) // or it has ended
	rig.WaitUntil(a.t, "the agent to stop", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") T ") || strings.Contains(string(stat), ") Z ")
	})
	if a.status().Running {
		a.d.CLI(4, []string{fmt.Sprintf("volume tank/db is being worked on by job storm (process %d)", pid)}, "recover", "tank/db")
		a.refused++
	}
	_ = r.cmd.Process.Signal(unix.SIGCONT)
}

// judge compares what the agent says of the run with what is.
func (a *agents) judge(r *run) {
	a.t.Helper()
	st := a.status()
	if st.Phase == "ended" {
		if err := <-r.end; exitCode(err) != agentDone {
			a.t.Errorf("the run ended with %v:\n%s", err, r.out.String())
		}
		a.phases["ended before"]++
		a.shows("change 2")
		return
	}
	a.phases[st.Phase]++
	if !st.Died || len(st.Text) < 2 {
		a.t.Errorf("the agent was killed, but status says %+v", st)
	}
	// Steps that the dead agent had started come to their end by themselves.
	rig.WaitUntil(a.t, "a step of the dead agent to end", func() bool {
		return st.Process == nil || !errors.Is(unix.Kill(st.Process.PID, 0), nil)
	})
	<-r.end
	rig.WaitUntil(a.t, "the daemon to be done with the volume", func() bool { return a.d.Show("db").State == api.StateServing })
	if st.Phase != "starting" {
		a.expect(agentRefused, []string{"died half-way", "--anew"}, "run", a.file)
	}
	_ = unix.Unmount(a.path("db"), 0)
	text := strings.Join(a.status().Text, "\n")
	switch st.Phase {
	case "starting", "save point":
		// The volume is as it was: nothing to go back from.
	case "ending":
		a.shows("change 2")
	case "step", "recovery":
		switch {
		case strings.Contains(text, "shows the failed data"):
			a.shows("change 1")
		case strings.Contains(text, "shows the save point"):
			a.shows("good")
		case st.Phase == "recovery":
			a.t.Errorf("status does not say what the volume shows:\n%s", text)
		}
		if st.Backup == "" {
			return
		}
		if want := fmt.Sprintf("swapback recover tank/db --from %s --repo %s", st.Backup, a.path("repo")); !strings.Contains(text, want) {
			a.t.Errorf("status does not say %q:\n%s", want, text)
		}
		a.d.CLI(0, nil, "recover", "tank/db", "--from", st.Backup)
		a.shows("good")
	default:
		a.t.Errorf("unknown phase %q", st.Phase)
	}
}

func (a *agents) status() agentStatus {
	a.t.Helper()
	out, err := a.command("status", "--json").Output()
	if code := exitCode(err); code != agentDone && code != agentNotRestored {
		a.t.Fatalf("status: %v", err)
	}
	var list []agentStatus
	if err := json.Unmarshal(out, &list); err != nil || len(list) != 1 {
		a.t.Fatalf("status: %v\n%s", err, out)
	}
	return list[0]
}

// shows looks at the file on the volume without replaying the journal or
// writing anything.
func (a *agents) shows(want string) {
	a.t.Helper()
	device := a.d.Show("db").Device
	if want != "good" { // a save point is of a mounted filesystem, with its journal
		rig.Tool(a.t, "e2fsck", "-f", "-n", device)
	}
	if err := unix.Mount(device, a.path("db"), "ext4", unix.MS_RDONLY, "noload"); err != nil {
		a.t.Fatal(err)
	}
	defer rig.Unmount(a.t, a.path("db"))
	got, err := os.ReadFile(a.path("db/data"))
	if err != nil || strings.TrimSpace(string(got)) != want {
		a.t.Errorf("the volume shows %q (%v), want %q", got, err, want)
	}
	if want != "good" {
		return
	}
	rig.Tool(a.t, "sh", "-c", "sha256sum < "+a.path("db/more")+" | cmp - "+a.path("sum"))
}

// tidy removes what recoveries have kept.
func (a *agents) tidy() {
	a.t.Helper()
	a.d.Check()
	volumes, err := a.d.Client.Volumes(a.t.Context(), "")
	if err != nil {
		a.t.Fatal(err)
	}
	for _, v := range volumes {
		if v.Name == "db" {
			continue
		}
		if err := a.d.Client.DeleteVolume(a.t.Context(), v.Name, true); err != nil {
			a.t.Errorf("volume %s, which a recovery has left: %v", v.Name, err)
		}
	}
}
