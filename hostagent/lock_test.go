package hostagent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLockNamesItsOwner: also one who has taken the lock and not said yet who he is.
func TestLockNamesItsOwner(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "locks"), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "locks/job-j.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(30 * time.Millisecond)
		_, _ = f.WriteString("job j (process 7)\n")
	}()
	if err := NewLocks(dir, "job j").Job("j"); err == nil || !strings.Contains(err.Error(), "worked on by job j (process 7)") {
		t.Errorf("refused with %v", err)
	}
}
