package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A helper is this program, which here is the test.
func init() {
	if len(os.Args) > 1 && os.Args[1] == helperArg {
		os.Exit(helperMain(os.Args[2:]))
	}
}

// startFor starts a helper for a file, which is no device: what it is asked for
// fails.
func startFor(t *testing.T) *helper {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := startHelper(t.Context(), []string{path})
	if err != nil {
		t.Fatal(err)
	}
	return h.(*helper)
}

func wantText(t *testing.T, what string, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: error is %v, want %q", what, err, text)
	}
}

func TestHelperAnswersAndEnds(t *testing.T) {
	h := startFor(t)
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", h.PID())); err != nil || string(comm) != "swapback-helper\n" {
		t.Errorf("it is called %q, %v", comm, err)
	}
	for range 2 {
		_, err := h.WriteBack(t.Context())
		wantText(t, "write back", err, "BLKFLSBUF")
		wantText(t, "check", h.CheckAllCoherent(t.Context()), "BLKFLSBUF")
	}
	h.Close()
	if s := h.cmd.ProcessState; s == nil || !s.Success() {
		t.Errorf("it ended with %v", s)
	}
}

func TestHelperThatCannotStart(t *testing.T) {
	_, err := startHelper(t.Context(), []string{"/dev/nowhere"})
	wantText(t, "no device", err, "open /dev/nowhere: no such file")
}

// A swap whose helper is gone hears of it, and is not kept.
func TestHelperThatIsKilled(t *testing.T) {
	h := startFor(t)
	if err := syscall.Kill(h.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-h.ended
	for range 2 {
		_, err := h.WriteBack(t.Context())
		wantText(t, "write back", err, "helper: ")
	}
	h.Close()

	h = startFor(t)
	if err := syscall.Kill(h.PID(), syscall.SIGSTOP); err != nil { // as one that waits for a device
		t.Fatal(err)
	}
	why := errors.New("the server has ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	if err := h.CheckAllCoherent(ctx); err != why {
		t.Errorf("one that does not answer: %v", err)
	}
	if _, err := h.WriteBack(t.Context()); err != why {
		t.Errorf("asked again: %v", err)
	}
	h.Close()
	<-h.ended
}
