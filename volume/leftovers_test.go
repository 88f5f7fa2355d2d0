package volume

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A mark that its owner has locked is not left over.
func TestLockedMarks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ublkb1")
	if locked(path) {
		t.Error("one that is not there is locked")
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if locked(path) {
		t.Error("nobody has locked it")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if !locked(path) {
		t.Error("it is locked")
	}
	f.Close()
	if locked(path) {
		t.Error("its owner has gone")
	}
}
