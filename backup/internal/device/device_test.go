package device

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
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
	for _, size := range []int64{12345, 1} { // the second finds the first's file
		f, err := OpenTarget(path, TargetOptions{Create: true, Size: size})
		if err != nil {
			t.Fatal(err)
		}
		if f.Size() != 12345 {
			t.Errorf("size is %d", f.Size())
		}
		f.Close()
	}
	big := filepath.Join(t.TempDir(), "big")
	if _, err := OpenTarget(big, TargetOptions{Create: true, Size: 1 << 62}); err == nil {
		t.Error("a file of 4 EiB was made")
	}
	if _, err := os.Stat(big); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
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
