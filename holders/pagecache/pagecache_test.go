package pagecache

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestCompareBlockSeesADifference(t *testing.T) {
	dir := t.TempDir()
	open := func(name string, fill byte) *os.File {
		path := filepath.Join(dir, name)
		b := make([]byte, 2*probeSize)
		for i := range b {
			b[i] = fill
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	a, same, other := open("a", 1), open("same", 1), open("other", 2)
	x, y := make([]byte, probeSize), alignedBlock(probeSize)
	if err := compareBlock(t.Context(), a, same, probeSize, x, y); err != nil {
		t.Errorf("equal blocks: %v", err)
	}
	if err := compareBlock(t.Context(), a, other, probeSize, x, y); err == nil || !strings.Contains(err.Error(), "differ") {
		t.Errorf("different blocks: %v", err)
	}
	if err := compareBlock(t.Context(), a, same, 2*probeSize, x, y); err == nil {
		t.Error("a read past the end was taken for equal")
	}
	// Page 0 is never mapped, and reading it is EIO, as from a dead disk.
	dead, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	if err := compareBlock(t.Context(), dead, dead, 0, x, y); err != nil {
		t.Errorf("a block that nobody can read: %v", err)
	}
	if err := compareBlock(t.Context(), a, dead, 0, x, y); !errors.Is(err, unix.EIO) {
		t.Errorf("a block that only the page cache has: %v", err)
	}
	if err := compareBlock(t.Context(), dead, a, 0, x, y); !errors.Is(err, unix.EIO) {
		t.Errorf("a block that only the disk has: %v", err)
	}
}

func TestAlignedBlock(t *testing.T) {
	for range 50 {
		b := alignedBlock(probeSize)
		if len(b) != probeSize || uintptr(unsafe.Pointer(&b[0]))%probeSize != 0 {
			t.Fatalf("%d bytes at %p", len(b), &b[0])
		}
	}
}
