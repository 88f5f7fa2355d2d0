package device

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestBufferIsAligned(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 1 << 20} {
		b := Buffer(n)
		if len(b) != n || cap(b) != n || uintptr(unsafe.Pointer(unsafe.SliceData(b)))%pageSize != 0 {
			t.Errorf("%d bytes: len %d cap %d at %p", n, len(b), cap(b), b)
		}
	}
}

func file(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFileTransfers(t *testing.T) {
	content := make([]byte, 3*pageSize+100)
	for i := range content {
		content[i] = byte(i % 251)
	}
	path := file(t, content)
	f, err := OpenTarget(path, TargetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Size() != int64(len(content)) {
		t.Errorf("size is %d", f.Size())
	}
	for _, tt := range []struct {
		off int64
		n   int
	}{{0, pageSize}, {pageSize, 2 * pageSize}, {2 * pageSize, pageSize + 100}, {7, 300}, {0, len(content)}} {
		p := Buffer(tt.n)
		if _, err := f.ReadAt(p, tt.off); err != nil || !bytes.Equal(p, content[tt.off:][:tt.n]) {
			t.Errorf("read %d at %d: %v", tt.n, tt.off, err)
		}
		clear(p)
		if _, err := f.WriteAt(p, tt.off); err != nil {
			t.Errorf("write %d at %d: %v", tt.n, tt.off, err)
		}
		if _, err := f.WriteAt(content[tt.off:][:tt.n], tt.off); err != nil {
			t.Errorf("write %d at %d: %v", tt.n, tt.off, err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, content) {
		t.Error("content is wrong in the end")
	}
	if _, err := f.ReadAt(make([]byte, 101), 3*pageSize); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read beyond the end: %v", err)
	}
	for _, off := range []int64{-1, 3*pageSize + 1, 1 << 62} {
		if _, err := f.WriteAt(make([]byte, 100), off); err == nil {
			t.Errorf("write at %d beyond the end succeeded", off)
		}
		if err := f.Zero(off, 100); err == nil {
			t.Errorf("zero at %d beyond the end succeeded", off)
		}
	}
	if st, _ := os.Stat(path); st.Size() != int64(len(content)) {
		t.Errorf("file has grown to %d", st.Size())
	}
}

func TestZeroLeavesTheRest(t *testing.T) {
	content := bytes.Repeat([]byte{0xaa}, 1<<20+100)
	for _, write := range []bool{false, true} {
		path := file(t, content)
		f, err := OpenTarget(path, TargetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range [][2]int64{{0, 10}, {pageSize, 5*pageSize + 3}, {1 << 19, 0}, {1<<20 - 5, 105}} {
			zero := f.Zero
			if write {
				zero = f.writeZeroes
			}
			if err := zero(r[0], r[1]); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
		want := bytes.Clone(content)
		clear(want[:10])
		clear(want[pageSize : 6*pageSize+3])
		clear(want[1<<20-5:])
		if got, _ := os.ReadFile(path); !bytes.Equal(got, want) {
			t.Errorf("write=%v: content is wrong", write)
		}
	}
}

func TestOpenTargetCreates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new")
	if _, err := OpenTarget(path, TargetOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without Create: %v", err)
	}
	f, err := OpenTarget(path, TargetOptions{Create: true, Size: 12345})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Size() != 12345 || !f.Created() {
		t.Errorf("size is %d, created is %v", f.Size(), f.Created())
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	if _, err := OpenTarget(path, TargetOptions{Create: true, Size: 1}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created over another: %v", err)
	}
	link := path + "-link"
	if err := os.Symlink(path+"-nowhere", link); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTarget(link, TargetOptions{Create: true, Size: 1}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created through a link: %v", err)
	}
	big := filepath.Join(t.TempDir(), "big")
	if _, err := OpenTarget(big, TargetOptions{Create: true, Size: 1 << 62}); err == nil {
		t.Error("a file of 4 EiB was made")
	}
	if _, err := os.Stat(big); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// Only what it made itself is removed, and only while it has its name.
func TestDiscard(t *testing.T) {
	old := file(t, []byte("old"))
	f, err := OpenTarget(old, TargetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Discard(); err != nil {
		t.Error(err)
	}
	made := filepath.Join(t.TempDir(), "new")
	g, err := OpenTarget(made, TargetOptions{Create: true, Size: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := os.Rename(old, made); err != nil {
		t.Fatal(err)
	}
	if err := g.Discard(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(made); string(got) != "old" {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Remove(made); err != nil {
		t.Fatal(err)
	}
	h, err := OpenTarget(made, TargetOptions{Create: true, Size: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Discard(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(made); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

func TestHole(t *testing.T) {
	f, err := OpenTarget(filepath.Join(t.TempDir(), "new"), TargetOptions{Create: true, Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("data"), 32<<20); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off, n int64
		want   bool
	}{{0, 16 << 20, true}, {0, 64 << 20, false}, {32 << 20, 1, false}, {48 << 20, 16 << 20, true}, {31 << 20, 2 << 20, false}} {
		if got := f.Hole(c.off, c.n); got != c.want {
			t.Errorf("hole of %d at %d is %v", c.n, c.off, got)
		}
	}
	if err := f.Zero(32<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	if !f.Hole(0, 64<<20) {
		t.Error("what was zeroed is no hole")
	}
}

func TestOpenRefusesOtherKinds(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{t.TempDir(), "/dev/null", fifo} {
		if _, err := OpenSource(path); !errors.Is(err, ErrKind) {
			t.Errorf("source %s: %v", path, err)
		}
		if _, err := OpenTarget(path, TargetOptions{}); !errors.Is(err, ErrKind) {
			t.Errorf("target %s: %v", path, err)
		}
	}
}

// What the page cache has of a source comes from there, and nothing else gets there.
func TestCachedSource(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	content := make([]byte, 1<<20+100)
	rand.NewChaCha8([32]byte{3}).Read(content)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OpenSource(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Cachestat(uint(f.buffered.Fd()), &unix.CachestatRange{}, new(unix.Cachestat_t), 0); err == unix.ENOSYS {
		t.Skip("a kernel before 6.5")
	}
	p := Buffer(1 << 20)
	read := func(what string) {
		t.Helper()
		if _, err := f.ReadAt(p, 0); err != nil || !bytes.Equal(p, content[:len(p)]) {
			t.Errorf("%s: read wrong, %v", what, err)
		}
	}
	if !f.cached(0, 1<<20) || !f.cached(1<<20, 100) {
		t.Error("what was just written is not in the cache")
	}
	read("cached")
	if !f.Direct() {
		return // this file system has no O_DIRECT: all is read through the cache
	}
	if err := f.buffered.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.buffered.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if f.cached(0, 1<<20) {
		t.Fatal("what was dropped is in the cache")
	}
	read("not cached")
	if f.cached(0, 1<<20) {
		t.Error("a read past the cache has filled it")
	}
}
