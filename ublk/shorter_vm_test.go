//go:build vm

package ublk

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestBackendGetsShorter: a backend loses its end, and completes requests short
// that go across it. What reaches past the end is EIO and told to be short, the
// rest is good in both directions, and the device lives on.
func TestBackendGetsShorter(t *testing.T) {
	for _, block := range []bool{false, true} {
		t.Run(map[bool]string{false: "file", true: "loop"}[block], func(t *testing.T) {
			everyPath(t, func(t *testing.T, way DataPath) { backendGetsShorter(t, way, block) })
		})
	}
}

func backendGetsShorter(t *testing.T, way DataPath, block bool) {
	checkClean(t)
	const size, end = 1 << 20, 512 << 10
	file := filepath.Join(t.TempDir(), "disk")
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	path := file
	if block {
		path = losetup(t, "--show", "-f", file)
		t.Cleanup(func() { losetup(t, "-d", path) })
	}
	b := openBackend(t, path)
	b.limits.MaxIOSize = 16 << 10 // larger requests go in pieces
	heard := make(chan Failure, 64)
	d := startDevice(t, b, Options{DataPath: way, Queues: 1, NoPartitionScan: true, Failed: func(f Failure, missed uint64) {
		if missed > 0 {
			t.Errorf("%d failures were missed", missed)
		}
		heard <- f
	}})
	c := openClient(t, d.Path(), unix.O_RDWR)
	if err := os.Truncate(file, end); err != nil {
		t.Fatal(err)
	}
	if block {
		losetup(t, "--set-capacity", path)
	}

	var want []Failure
	for _, n := range []int{4096, 8192, 64 << 10} {
		for off := int64(end - 2*n); off <= int64(end+n); off += int64(n / 2) {
			short := off+int64(n) > end
			e := c.read(off, n)
			switch {
			case short && e == unix.EIO:
				want = append(want, Failure{Op: OpRead, Offset: uint64(off), Length: uint64(n), Errno: unix.EIO, Short: true})
			case short:
				t.Errorf("a read of %d bytes at %d, past the end: %v, want EIO", n, off, e)
			case e != 0 || !bytes.Equal(c.buf[:n], content[off:][:n]):
				t.Errorf("a read of %d bytes at %d, before the end: %v", n, off, e)
			}
			if short && !block {
				continue // a file grows by it
			}
			copy(c.buf, content[off:][:n])
			switch e := c.write(off, n, 0); {
			case short && e == unix.EIO:
				want = append(want, Failure{Op: OpWrite, Offset: uint64(off), Length: uint64(n), Errno: unix.EIO, Short: true})
			case short:
				t.Errorf("a write of %d bytes at %d, past the end: %v, want EIO", n, off, e)
			case e != 0:
				t.Errorf("a write of %d bytes at %d, before the end: %v", n, off, e)
			}
		}
	}
	if block {
		// The kernel zeroes up to the end, and takes that as done.
		for _, off := range []uint64{end - 4096, end + 4096} {
			if e := c.rangeIoctl(blkZeroOut, off, 8192); e != unix.EIO {
				t.Errorf("zeroes at %d, past the end: %v, want EIO", off, e)
			}
			want = append(want, Failure{Op: OpWriteZeroes, Offset: off, Length: 8192, Errno: unix.EIO, Short: true})
		}
	}
	if err := unix.Fdatasync(c.fd); err != nil {
		t.Errorf("flush: %v", err)
	}
	eventually(t, "the failures to be heard of", func() bool { return len(heard) >= len(want) })
	for i, w := range want {
		if diff := cmp.Diff(w, <-heard); diff != "" {
			t.Errorf("failure %d of %d (-want +heard):\n%s", i, len(want), diff)
		}
	}
	s := d.Stats()
	if len(heard) != 0 || s.Read.Errors+s.Write.Errors+s.WriteZeroes.Errors != uint64(len(want)) || s.InFlight+s.Panics+s.Flush.Errors != 0 {
		t.Errorf("%d failures, %d more heard of, counters: %+v", len(want), len(heard), s)
	}

	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	if block {
		losetup(t, "--set-capacity", path)
	}
	if e := c.write(size-4096, 4096, 0); e != 0 {
		t.Errorf("a write to the end of a backend that has its size back: %v", e)
	}
	if e := c.read(size-4096, 4096); e != 0 {
		t.Errorf("a read of it: %v", e)
	}
}

func losetup(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("losetup", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}
