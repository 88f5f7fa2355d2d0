package rig

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// WaitWrites waits until the device has answered n more writes, so that a kill
// comes in the middle of the load however slow the machine is.
func (d *Daemon) WaitWrites(name string, n uint64) {
	d.t.Helper()
	start := d.Show(name).IO.Writes
	WaitUntil(d.t, fmt.Sprintf("%d writes to volume %s", n, name), func() bool { return d.Show(name).IO.Writes >= start+n })
}

// RandomBytes are the same for the same seed.
func RandomBytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// FirstDifference is the first index at which a and b differ.
func FirstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// OpenDirect opens a device past the page cache.
func OpenDirect(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Aligned returns memory that O_DIRECT accepts; it is unmapped with the test.
func Aligned(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, (n+4095)&^4095, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b[:n]
}

// WriteDevice writes past the page cache, and syncs.
func WriteDevice(t *testing.T, path string, off int64, data []byte) {
	t.Helper()
	f := OpenDirect(t, path, os.O_WRONLY)
	defer f.Close()
	buf := Aligned(t, len(data))
	copy(buf, data)
	if _, err := f.WriteAt(buf, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// ReadDevice reads past the page cache.
func ReadDevice(t *testing.T, path string, off int64, n int) []byte {
	t.Helper()
	f := OpenDirect(t, path, os.O_RDONLY)
	defer f.Close()
	buf := Aligned(t, n)
	if _, err := io.ReadFull(io.NewSectionReader(f, off, int64(n)), buf); err != nil {
		t.Fatalf("reading %d bytes at %d of %s: %v", n, off, path, err)
	}
	return buf
}

// Mount mounts a device below /mnt and unmounts it when the test ends without
// having done so.
func Mount(t *testing.T, device, fstype string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/mnt", "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(device, dir, fstype, 0, ""); err != nil {
		t.Fatalf("mount %s (%s): %v", device, fstype, err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(dir, 0)
		_ = os.Remove(dir)
	})
	return dir
}

// Unmount unmounts.
func Unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatalf("unmount %s: %v", dir, err)
	}
}

// WriteFile writes a file, and syncs it.
func WriteFile(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// Loop makes a loop device on a sparse file of size bytes, in memory.
func Loop(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(Tool(t, "losetup", "--show", "-f", "--direct-io=off", path))
	t.Cleanup(func() { Tool(t, "losetup", "-d", dev) })
	return dev
}
