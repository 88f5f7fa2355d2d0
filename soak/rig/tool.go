package rig

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
)

// patience bounds waits for what has to come true, however slow the machine is:
// it is there for a test that hangs.
const patience = 2 * time.Minute

// WaitUntil waits for a condition.
func WaitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("waited two minutes for %s", what)
}

// Tool runs a program of the machine and returns what it printed.
func Tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Count is how often a test does what it does: the number in the environment
// variable, by which a soak makes it long, or else short.
func Count(t *testing.T, variable string, short int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return short
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number from 1 on", variable, text)
	}
	return n
}

// CountOn is [Count] with a smaller number for the oldest kernel: what needs many
// tries is tried on the newest, and both fit into one run of "make test".
func CountOn(t *testing.T, variable string, newest, oldest int) int {
	t.Helper()
	if OldestKernel(t) {
		return Count(t, variable, oldest)
	}
	return Count(t, variable, newest)
}

// OldestKernel tells whether the test runs on a kernel before 7.
func OldestKernel(t *testing.T) bool {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	return strings.HasPrefix(unix.ByteSliceToString(uts.Release[:]), "6.")
}

// CLI runs the command line against the daemon and returns what it printed on
// both channels. It fails the test unless the exit code and the words are there.
func (d *Daemon) CLI(wantExit int, words []string, args ...string) string {
	d.t.Helper()
	cmd := exec.Command("swapback", args...)
	cmd.Env = append(os.Environ(), api.SocketEnv+"="+d.Socket(), "SWAPBACK_REPO="+filepath.Join(d.Dir, "repo"), "SWAPBACK_RUN_DIR="+d.RunDir())
	out, err := cmd.CombinedOutput()
	exit := 0
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		exit = ee.ExitCode()
	} else if err != nil {
		d.t.Fatal(err)
	}
	if exit != wantExit {
		d.t.Errorf("swapback %s: exit code %d, want %d\n%s", strings.Join(args, " "), exit, wantExit, out)
	}
	for _, w := range words {
		if !strings.Contains(string(out), w) {
			d.t.Errorf("swapback %s: no %q in\n%s", strings.Join(args, " "), w, out)
		}
	}
	return string(out)
}

// Tail returns the last lines of a text.
func Tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Buffer is a buffer that one goroutine writes and another reads.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
