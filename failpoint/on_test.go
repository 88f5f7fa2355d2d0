//go:build failpoint

package failpoint

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]order{
		"swap: staged":        {"swap: staged", 1, syscall.SIGKILL},
		"swap: staged:2":      {"swap: staged", 2, syscall.SIGKILL},
		"swap: staged=stop":   {"swap: staged", 1, syscall.SIGSTOP},
		"swap: staged:3=kill": {"swap: staged", 3, syscall.SIGKILL},
		"":                    {"", 1, syscall.SIGKILL},
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
