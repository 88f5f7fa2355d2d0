package runner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
)

// locks are held from before a run looks at anything until it has ended. The
// kernel frees them when the process ends, however it does.
type locks struct{ files []*os.File }

func (l *locks) release() {
	for _, f := range l.files {
		f.Close()
	}
	l.files = nil
}

// take locks one thing for a job. Whoever has it is named.
func (l *locks) take(dir, name, what, job string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("locks: %w", err)
	}
	path := filepath.Join(dir, name+".lock")
	// Who can open the file, for reading even, can hold the lock.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", path, err)
		}
		return &api.Error{
			Code:    api.CodeBusy,
			Message: fmt.Sprintf("%s is being worked on by %s", what, lockOwner(f)),
			Remedy:  "try again when it has ended (swapback-agent status)",
		}
	}
	l.files = append(l.files, f)
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	if _, err := fmt.Fprintf(f, "job %s (process %d)\n", job, os.Getpid()); err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}

// lockOwner reads who has a lock. One who has just taken it writes that a moment
// later, which is waited for.
func lockOwner(f *os.File) string {
	owner := make([]byte, 256)
	for range 50 {
		n, _ := f.ReadAt(owner, 0) // what is there will do
		if text := strings.TrimSpace(string(owner[:n])); text != "" {
			return text
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "another process"
}
