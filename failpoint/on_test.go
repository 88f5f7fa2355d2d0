//go:build failpoint

package failpoint

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]order{
		"swap: staged":         {"swap: staged", 1, syscall.SIGKILL, 0},
		"swap: staged:2":       {"swap: staged", 2, syscall.SIGKILL, 0},
		"swap: staged=stop":    {"swap: staged", 1, syscall.SIGSTOP, 0},
		"swap: staged:3=kill":  {"swap: staged", 3, syscall.SIGKILL, 0},
		"swap: staged:2=1m30s": {"swap: staged", 2, syscall.SIGKILL, 90 * time.Second},
		"":                     {"", 1, syscall.SIGKILL, 0},
	} {
		if got := parse(text); got != want {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

// TestHit runs this test binary as the process that is to die.
func TestHit(t *testing.T) {
	if os.Getenv("HIT") != "" {
		for range 3 {
			Hit("a: one")
			Hit("a: two")
		}
		return
	}
	dir := t.TempDir()
	file, traced := filepath.Join(dir, "order"), filepath.Join(dir, "trace")
	for _, tt := range []struct{ order, inFile, trace string }{
		{"a: two", "", "a: one\na: two\n"},
		{"a: one:2", "", "a: one\na: two\na: one\n"},
		{"@" + file, "a: two:2\n", "a: one\na: two\na: one\na: two\n"},
		{"@" + file, "", "a: one\na: two\na: one\na: two\na: one\na: two\n"},
		{"b: other", "", "a: one\na: two\na: one\na: two\na: one\na: two\n"},
	} {
		_ = os.Remove(traced)
		if tt.inFile != "" {
			if err := os.WriteFile(file, []byte(tt.inFile), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestHit$")
		cmd.Env = append(os.Environ(), "HIT=1", orderVariable+"="+tt.order, traceVariable+"="+traced)
		_ = cmd.Run()
		trace, err := os.ReadFile(traced)
		if err != nil || string(trace) != tt.trace {
			t.Errorf("%q: reached %q, %v", tt.order, trace, err)
		}
		killed := cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if want := len(tt.trace) < 40; killed != want {
			t.Errorf("%q: killed is %v", tt.order, killed)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%q: the order is still there when it has been carried out", tt.order)
		}
	}
}

// TestWait: only who comes to the point waits there; others pass it, and other points.
func TestWait(t *testing.T) {
	const wait = time.Hour
	file := filepath.Join(t.TempDir(), "order")
	if err := os.WriteFile(file, fmt.Appendf(nil, "a: one=%v", wait), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv(orderVariable, "@"+file)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		waited := make(chan time.Duration)
		go func() {
			Hit("a: one")
			waited <- time.Since(began)
		}()
		synctest.Wait()
		if _, err := os.Stat(file); err == nil {
			t.Error("the order is still there when it is being carried out")
		}
		Hit("a: one")
		Hit("a: two")
		if d := time.Since(began); d != 0 {
			t.Errorf("another one waited for %v", d)
		}
		if d := <-waited; d != wait {
			t.Errorf("it waited for %v", d)
		}
	})
}

// TestStop: whoever sees that the process has stopped can rely on it that nothing
// comes behind the point. It takes some tries to see that something does.
func TestStop(t *testing.T) {
	const tries = 100
	if os.Getenv("HIT") != "" {
		ended := make(chan struct{})
		go func() { // not on the first thread, as most points
			defer close(ended)
			for range tries {
				Hit("a: one")
				Hit("a: two")
			}
		}()
		<-ended
		return
	}
	dir := t.TempDir()
	file, traced := filepath.Join(dir, "order"), filepath.Join(dir, "trace")
	order := func(try int) {
		// An order that is the same as the last has been carried out.
		if err := os.WriteFile(file, fmt.Appendf(nil, "a: one%s=stop", []string{"", ":1"}[try%2]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	order(0)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestStop$")
	cmd.Env = append(os.Environ(), "HIT=1", orderVariable+"=@"+file, traceVariable+"="+traced)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	want, patience := "", time.Now().Add(2*time.Minute)
	for try := range tries {
		for stopped := false; !stopped; time.Sleep(time.Millisecond) {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
			if err != nil || time.Now().After(patience) {
				t.Fatalf("try %d: the process does not stop: %q, %v", try, stat, err)
			}
			stopped = bytes.Contains(stat, []byte(") T "))
		}
		want += "a: one\n"
		trace, err := os.ReadFile(traced)
		if err != nil || string(trace) != want {
			t.Fatalf("try %d: stopped at the first point, it had reached %q, %v", try, trace[max(0, len(want)-7):], err)
		}
		want += "a: two\n"
		if try < tries-1 {
			order(try + 1)
		}
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
