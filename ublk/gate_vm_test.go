//go:build vm

package ublk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inflightOf reads what the kernel has in flight on a disk.
func inflightOf(t *testing.T, device string) string {
	t.Helper()
	b, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/inflight")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

func TestHoldAndDrainUnderFio(t *testing.T) { everyPath(t, holdAndDrainUnderFio) }

func holdAndDrainUnderFio(t *testing.T, way DataPath) {
	checkClean(t)
	d := startDevice(t, openBackend(t, nvmeDisk), Options{DataPath: way, Queues: 4})
	f := startFio(t, d.Path(), append(verifyArgs(8), "--rate=4m")...)
	held := uint64(0)
	for range 50 {
		if !f.running() {
			break
		}
		before := d.Stats()
		eventually(t, "load", func() bool {
			return !f.running() || d.Stats().Write.Ops+d.Stats().Read.Ops > before.Write.Ops+before.Read.Ops
		})
		d.Hold()
		if err := d.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := d.Stats()
		if s.InFlight != 0 {
			t.Fatalf("drained with %d in flight", s.InFlight)
		}
		if got := inflightOf(t, nvmeDisk); got != "0 0" {
			t.Fatalf("drained, and the disk has in flight: %s", got)
		}
		// Nothing moves while it is closed, though fio goes on asking.
		if now := d.Stats(); now.Write != s.Write || now.Read != s.Read || now.InFlight != 0 {
			t.Fatalf("served behind a closed gate: %+v, then %+v", s, now)
		}
		d.Release()
		held = d.Stats().Held
	}
	f.wait()
	if held == 0 {
		t.Error("the gate never held anything: the test showed nothing")
	}
	if s := d.Stats(); s.Read.Errors+s.Write.Errors+s.Refused != 0 || s.HeldNow != 0 {
		t.Errorf("counters: %+v", s)
	}
}

func TestRefuseAnswersBusy(t *testing.T) { everyPath(t, refuseAnswersBusy) }

func refuseAnswersBusy(t *testing.T, way DataPath) {
	checkClean(t)
	d := startDevice(t, openBackend(t, nvmeDisk), Options{DataPath: way, Queues: 2})
	c := openClient(t, d.Path(), unix.O_RDWR)
	if e := c.write(0, 4096, 0); e != 0 {
		t.Fatal(e)
	}
	d.Refuse()
	if err := d.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]unix.Errno{
		"write":   c.write(0, 4096, 0),
		"read":    c.read(0, 4096),
		"discard": c.rangeIoctl(blkDiscard, 0, 4096),
		"flush":   errnoOf(unix.Fdatasync(c.fd)),
	} {
		if e != unix.EBUSY && !(name == "flush" && e == unix.EIO) {
			t.Errorf("%s: %v, want EBUSY", name, e)
		}
	}
	if d.Stats().Refused < 4 {
		t.Errorf("counters: %+v", d.Stats())
	}
	d.Release()
	if e := c.read(0, 4096); e != 0 {
		t.Errorf("after release: %v", e)
	}
}

func TestHeldRequests(t *testing.T) { everyPath(t, heldRequests) }

func heldRequests(t *testing.T, way DataPath) {
	checkClean(t)
	d := startDevice(t, openBackend(t, nvmeDisk), Options{DataPath: way, Queues: 2, NoPartitionScan: true})
	ask := map[string]func(c *client) unix.Errno{
		"write":   func(c *client) unix.Errno { return c.write(0, 4096, 0) },
		"read":    func(c *client) unix.Errno { return c.read(0, 4096) },
		"flush":   func(c *client) unix.Errno { return errnoOf(unix.Fdatasync(c.fd)) },
		"discard": func(c *client) unix.Errno { return c.rangeIoctl(blkDiscard, 1<<20, 4096) },
	}
	type answer struct {
		name string
		e    unix.Errno
	}
	for _, tc := range []struct {
		name string
		end  func()
		want unix.Errno
	}{
		{"released", d.Release, 0},
		{"refused", d.Refuse, unix.EBUSY},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d.Hold()
			answers := make(chan answer, len(ask))
			for name, do := range ask {
				c := openClient(t, d.Path(), unix.O_RDWR)
				go func() { answers <- answer{name, do(c)} }()
			}
			eventually(t, "all held", func() bool { return d.Stats().HeldNow == uint64(len(ask)) })
			if err := d.Drain(t.Context()); err != nil {
				t.Error(err)
			}
			if len(answers) != 0 {
				t.Errorf("%d requests were answered behind the gate", len(answers))
			}
			tc.end()
			for range ask {
				a := <-answers
				// The kernel turns the error of a flush into EIO.
				if a.e != tc.want && !(a.name == "flush" && tc.want != 0 && a.e == unix.EIO) {
					t.Errorf("%s: %v, want %v", a.name, a.e, tc.want)
				}
			}
			d.Release()
		})
	}
}
