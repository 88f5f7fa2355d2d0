package ublk

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFailuresAreTold: a backend that has become shorter is an error of exactly
// the requests behind its new end, and it is told which they were.
func TestFailuresAreTold(t *testing.T) {
	b, path := newFileBackend(t, 1<<20)
	d := drive(t, b, 1)
	heard := make(chan Failure, 8)
	d.failures = newFailures(func(f Failure, missed uint64) {
		if missed != 0 {
			t.Errorf("%d failures were missed", missed)
		}
		heard <- f
	})
	if err := os.Truncate(path, 512<<10); err != nil {
		t.Fatal(err)
	}
	d.request(OpRead, 0, 256<<10, 4096)
	d.request(OpRead, 0, 768<<10, 8192)
	d.request(OpWrite, 0, 0, 4096)
	d.failures.close()
	close(heard)
	var got []Failure
	for f := range heard {
		got = append(got, f)
	}
	want := Failure{Op: OpRead, Offset: 768 << 10, Length: 8192, Errno: unix.EIO, Short: true}
	if len(got) == 0 {
		t.Fatal("nothing was told")
	}
	// The stand-in for the driver repeats a request until the test takes it away.
	for _, f := range got {
		if f != want {
			t.Errorf("heard %+v, want %+v", f, want)
		}
	}
	if s := d.counts(); s.Read.Errors != uint64(len(got)) || s.Write.Errors != 0 {
		t.Errorf("counted %+v, heard of %d", s, len(got))
	}
}

// TestFailuresNeverWait: more than can be heard are counted instead.
func TestFailuresNeverWait(t *testing.T) {
	first, free := make(chan struct{}), make(chan struct{})
	var heard, missed uint64
	f := newFailures(func(_ Failure, m uint64) {
		if heard == 0 {
			close(first)
			<-free
		}
		heard++
		missed += m
	})
	f.add(Failure{})
	<-first
	const more = 10 * failureRoom
	for range more {
		f.add(Failure{})
	}
	close(free)
	f.close()
	if missed += f.dropped.Load(); heard != 1+failureRoom || heard+missed != 1+more {
		t.Errorf("heard %d and missed %d of %d", heard, missed, 1+more)
	}
	var none *failures
	none.add(Failure{})
	none.close()
}
