package runner

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
	f, err := os.Create(filepath.Join(dir, "job-j.lock"))
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
	var l locks
	if err := l.take(dir, "job-j", "job j", "j"); err == nil || !strings.Contains(err.Error(), "worked on by job j (process 7)") {
		t.Errorf("refused with %v", err)
	}
}
