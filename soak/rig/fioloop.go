package rig

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// FioLoop runs a fio job that ends by itself again and again, so that every run
// has an exit code to be judged by.
type FioLoop struct {
	t    *testing.T
	args []string
	dir  string
	stop chan struct{}
	done chan struct{}

	mu  sync.Mutex // held while frozen
	cmd *exec.Cmd  // the run under way

	// Of the loop's goroutine; others read them when done is closed.
	runs    int
	slowest time.Duration
	failed  string
}

// LoopFio begins. The job is given without an output format.
func LoopFio(t *testing.T, args []string) *FioLoop {
	t.Helper()
	l := &FioLoop{
		t: t, args: slices.Concat(manners, args, []string{"--output-format=json"}), dir: t.TempDir(),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	go l.loop()
	t.Cleanup(func() {
		// For a test that failed: after Stop there is nothing left to do.
		l.end()
		l.mu.Lock()
		if l.cmd != nil {
			_ = syscall.Kill(-l.cmd.Process.Pid, syscall.SIGKILL)
		}
		l.mu.Unlock()
	})
	return l
}

func (l *FioLoop) loop() {
	defer close(l.done)
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		out, err := l.run()
		switch {
		case err == nil:
			l.runs++
			l.slowest = max(l.slowest, slowest(out))
		case strings.Contains(out, startupHung):
			// It has done nothing.
		default:
			l.failed = err.Error() + "\n" + Tail(out, 40)
			return
		}
	}
}

// run is one run. Its start and its end wait while the loop is frozen.
func (l *FioLoop) run() (string, error) {
	var out bytes.Buffer
	cmd := exec.Command("fio", l.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = l.dir, &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	l.mu.Lock()
	err := cmd.Start()
	if err == nil {
		l.cmd = cmd
	}
	l.mu.Unlock()
	if err != nil {
		return "", err
	}
	err = cmd.Wait()
	l.mu.Lock()
	l.cmd = nil
	l.mu.Unlock()
	return out.String(), err
}

// slowest is the longest latency in a report of fio, 0 when there is none.
func slowest(out string) time.Duration {
	var report struct{ Jobs []FioJob }
	if i := strings.IndexByte(out, '{'); i < 0 || json.NewDecoder(strings.NewReader(out[i:])).Decode(&report) != nil {
		return 0
	}
	longest := 0.0
	for _, j := range report.Jobs {
		longest = max(longest, j.Read.Lat.Max, j.Write.Lat.Max)
	}
	return time.Duration(longest)
}

// Freeze stops fio as it is, all threads of it; requests that it has made come to
// their end.
func (l *FioLoop) Freeze() {
	l.mu.Lock()
	if l.cmd != nil {
		_ = syscall.Kill(-l.cmd.Process.Pid, syscall.SIGSTOP)
	}
}

// Thaw lets it go on.
func (l *FioLoop) Thaw() {
	if l.cmd != nil {
		_ = syscall.Kill(-l.cmd.Process.Pid, syscall.SIGCONT)
	}
	l.mu.Unlock()
}

func (l *FioLoop) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
}

// Stop waits for the run under way to end and fails the test unless all went
// well. It returns the number of runs and the longest latency that fio saw.
func (l *FioLoop) Stop() (runs int, longest time.Duration) {
	l.t.Helper()
	l.end()
	<-l.done // the time limit of the test bounds it
	if err := l.Err(); err != nil {
		l.t.Error(err)
	}
	return l.runs, l.slowest
}

// Ended tells whether the loop has, after Stop or because a run failed.
func (l *FioLoop) Ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// Err tells how a run failed. The loop has ended then.
func (l *FioLoop) Err() error {
	if !l.Ended() || l.failed == "" {
		return nil
	}
	return errors.New("fio " + strings.Join(l.args, " ") + ": " + l.failed)
}
