//go:build vm

package ublk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestBackendGetsShorter: a file loses its end under a device, and completes reads
// short that go across it. What reaches past the end is EIO and told to be short,
// the rest is good in both directions, and the device lives on.
func TestBackendGetsShorter(t *testing.T) { everyPath(t, backendGetsShorter) }

func backendGetsShorter(t *testing.T, way DataPath) {
	checkClean(t)
	const size, end = 1 << 20, 512 << 10
	file := filepath.Join(t.TempDir(), "disk")
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	b := openBackend(t, file)
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
			if short {
				continue // a file grows by a write
			}
			copy(c.buf, content[off:][:n])
			if e := c.write(off, n, 0); e != 0 {
				t.Errorf("a write of %d bytes at %d, before the end: %v", n, off, e)
			}
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
	if e := c.write(size-4096, 4096, 0); e != 0 {
		t.Errorf("a write to the end of a backend that has its size back: %v", e)
	}
	if e := c.read(size-4096, 4096); e != 0 {
		t.Errorf("a read of it: %v", e)
	}
}
