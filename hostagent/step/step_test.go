package step

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sh runs a script and returns what it wrote.
func sh(t *testing.T, script string, change func(*Command)) (Result, string) {
	t.Helper()
	var out bytes.Buffer
	c := Command{Args: []string{"/bin/sh", "-e", "-c", script}, Output: &out, Grace: 5 * time.Second}
	if change != nil {
		change(&c)
	}
	res, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	expectNoChildren(t)
	return res, out.String()
}

// expectNoChildren fails when this process has a child left, a zombie even.
func expectNoChildren(t *testing.T) {
	t.Helper()
	tr := &tree{self: os.Getpid()}
	if left := tr.below(); len(left) > 0 {
		t.Errorf("processes are left: %+v", left)
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		name, script string
		code         int
		signal, text string
	}{
		{"success", "true", 0, "", "exit code 0"},
		{"failure", "exit 7", 7, "", "exit code 7"},
		{"first failure ends the script", "false; exit 0", 1, "", "exit code 1"},
		{"signal", "kill -SEGV $$", 139, "SIGSEGV", "was ended by SIGSEGV"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, _ := sh(t, c.script, nil)
			if res.ExitCode != c.code || res.Signal != c.signal || res.String() != c.text || res.OK() != (c.code == 0) {
				t.Errorf("got %+v (%s)", res, res)
			}
		})
	}
}

func TestOutputIsWhole(t *testing.T) {
	_, out := sh(t, "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done", nil)
	if n := strings.Count(out, "\n"); n != 4000 || !strings.HasSuffix(out, "out 1999\nerr 1999\n") {
		t.Errorf("%d lines, the end is %q", n, out[max(0, len(out)-40):])
	}
}

// brokenWriter fails as a full disk does.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestBrokenLogDoesNotStopTheCommand(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "done")
	res, _ := sh(t, "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo > "+marker, func(c *Command) { c.Output = brokenWriter{} })
	if _, err := os.Stat(marker); err != nil || !res.OK() {
		t.Errorf("%+v %v", res, err)
	}
}

func TestEnvironmentIsClean(t *testing.T) {
	t.Setenv("SECRET_OF_THE_AGENT", "x")
	res, out := sh(t, "env | sort; pwd; cat; echo end", func(c *Command) { c.Env = map[string]string{"B": "2 3", "LANG": "de"} })
	if !res.OK() || strings.Contains(out, "SECRET") {
		t.Errorf("%+v\n%s", res, out)
	}
	for _, want := range []string{"B=2 3\n", "LANG=de\n", "PATH=" + defaultPath + "\n", "HOME=", "\n/\nend\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

func TestProgramIsFoundOnTheStepsPath(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tool"), []byte("#!/bin/sh\necho mine $1 in $(pwd)\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Command{
		{Args: []string{"tool", "a b"}, Env: map[string]string{"PATH": dir + ":/usr/bin:/bin"}, Dir: dir},
		{Args: []string{"./tool", "a b"}, Dir: dir},
	} {
		var out bytes.Buffer
		c.Output = &out
		if res, err := Run(t.Context(), c); err != nil || !res.OK() || out.String() != "mine a b in "+dir+"\n" {
			t.Errorf("%+v %v %q", res, err, out.String())
		}
	}
}

func TestStartErrors(t *testing.T) {
	for _, c := range []struct {
		name    string
		command Command
		want    string
	}{
		{"program", Command{Args: []string{"no-such-program"}}, `no program "no-such-program"`},
		{"path", Command{Args: []string{"/no/such"}}, "no such file"},
		{"no program but a file", Command{Args: []string{"/etc/passwd"}}, "permission denied"},
		{"folder", Command{Args: []string{"/bin/true"}, Dir: "/no/such"}, "working directory"},
		{"user", Command{Args: []string{"/bin/true"}, User: "no-such-user"}, "no user"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Run(t.Context(), c.command)
			var se *StartError
			if !errors.As(err, &se) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestTimeoutStopsEverything(t *testing.T) {
	res, out := sh(t, `trap 'echo told; exit 3' TERM; sleep 1000 & echo up; wait`, func(c *Command) { c.Timeout = 500 * time.Millisecond })
	if !res.TimedOut || res.OK() || res.String() != "timed out" || !strings.Contains(out, "up\n") || !strings.Contains(out, "told\n") {
		t.Errorf("%+v %q", res, out)
	}
}

func TestTimeoutKillsWhoDoesNotListen(t *testing.T) {
	res, _ := sh(t, `trap '' TERM; while :; do sleep 1000 || true; done`, func(c *Command) {
		c.Timeout, c.Grace = 300*time.Millisecond, 300*time.Millisecond
	})
	if !res.TimedOut || res.Signal != "SIGKILL" {
		t.Errorf("%+v", res)
	}
}

// TestStoppedProcessEnds: a process that is suspended can't act on TERM unless
// it is continued.
func TestStoppedProcessEnds(t *testing.T) {
	res, out := sh(t, `trap 'echo told; exit 0' TERM; kill -STOP $$; while :; do sleep 0.01; done`, func(c *Command) {
		c.Timeout, c.Grace = 300*time.Millisecond, 20*time.Second
	})
	if !res.TimedOut || out != "told\n" {
		t.Errorf("%+v %q", res, out)
	}
}

// TestStraysAreStopped: children that leave the session, as daemons do, are
// found and ended all the same, on success and on failure.
func TestStraysAreStopped(t *testing.T) {
	for _, code := range []int{0, 4} {
		pids := filepath.Join(t.TempDir(), "pids")
		res, _ := sh(t, `
			setsid sh -c 'echo $$ >> `+pids+`; exec sleep 1000' &
			( setsid sh -c '( trap "" TERM; echo $$ >> `+pids+`; while :; do sleep 1000 || true; done ) & exit 0' & )
			while [ "$(wc -l < `+pids+` 2>/dev/null || echo 0)" -lt 2 ]; do sleep 0.02; done
			exit `+strconv.Itoa(code), func(c *Command) { c.Grace = 500 * time.Millisecond })
		if res.ExitCode != code || len(res.Strays) < 2 {
			t.Errorf("%+v", res)
		}
		text, err := os.ReadFile(pids)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Fields(string(text)) {
			pid, _ := strconv.Atoi(line)
			if s, err := readStat(pid); err == nil && s.parent == os.Getpid() {
				t.Errorf("stray %d is still there: %+v", pid, s)
			}
		}
	}
}

// TestStrayWithOutputOpen: a stray that holds the output open must not make
// Run wait for ever.
func TestStrayWithOutputOpen(t *testing.T) {
	res, out := sh(t, `setsid sleep 1000 & echo before`, nil)
	if !res.OK() || out != "before\n" || len(res.Strays) == 0 {
		t.Errorf("%+v %q", res, out)
	}
}

func TestContextStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	res, err := Run(ctx, Command{
		Args: []string{"/bin/sh", "-c", "exec sleep 1000"}, Output: &out,
		Started: func(p Process) {
			if !p.Alive() || p.Start == 0 {
				t.Errorf("started, but not there: %+v", p)
			}
			cancel()
		},
	})
	if err != nil || !res.Stopped || res.OK() || res.Signal != "SIGTERM" {
		t.Errorf("%+v %v", res, err)
	}
	expectNoChildren(t)
}

func TestUser(t *testing.T) {
	if os.Geteuid() != 0 {
		if _, err := Run(t.Context(), Command{Args: []string{"/bin/true"}, User: "root"}); err == nil || !strings.Contains(err.Error(), "only root") {
			t.Errorf("another user without being root: %v", err)
		}
		return
	}
	u, err := LookupUser("nobody")
	if err != nil {
		t.Fatal(err)
	}
	byNumber, err := LookupUser(u.Uid)
	if err != nil || byNumber.Username != u.Username {
		t.Errorf("by number: %+v %v", byNumber, err)
	}
	res, out := sh(t, `id -u; id -g; echo $USER $HOME; cat /etc/shadow && exit 9; sleep 1000 &`, func(c *Command) {
		c.User = "nobody"
		c.Args = []string{"/bin/sh", "-c", c.Args[3]}
	})
	if !res.OK() || !strings.HasPrefix(out, u.Uid+"\n"+u.Gid+"\nnobody "+u.HomeDir+"\n") || len(res.Strays) == 0 {
		t.Errorf("%+v %q", res, out)
	}
}

func TestParseStat(t *testing.T) {
	line := "4242 (a) b (c)) S 17 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 20\n"
	s, err := parseStat(line)
	if err != nil || s != (stat{pid: 4242, parent: 17, command: "a) b (c)", state: 'S', start: 987654}) {
		t.Errorf("%+v %v", s, err)
	}
	// A name can be made to look like another line of the log.
	if s, err := parseStat("1 (a\n  job done) S 17 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 20\n"); err != nil || s.command != "a·  job done" {
		t.Errorf("%+v %v", s, err)
	}
	for _, bad := range []string{"", "1 2 3", "1 (x", "1 (x) S 1", "x (y) S 1 " + strings.Repeat("0 ", 20), "1 (y) S x " + strings.Repeat("0 ", 20)} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("4242 (a) b (c)) S 17 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 20\n")
	f.Fuzz(func(t *testing.T, line string) {
		s, err := parseStat(line)
		if err != nil {
			return
		}
		// What is taken says the same when it is written as the kernel does.
		again, err := parseStat(fmt.Sprintf("%d (%s) %c %d 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 %d", s.pid, s.command, s.state, s.parent, s.start))
		if err != nil || again != s {
			t.Errorf("%q is %+v, again %+v, %v", line, s, again, err)
		}
	})
}
