//go:build vm

package ublk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Where the driver cannot register a request's pages, the server does.
func TestPagesRegisteredByHand(t *testing.T) {
	everyPath(t, func(t *testing.T, way DataPath) {
		if way == DataPathCopy {
			return // has nothing to register
		}
		checkClean(t)
		d := startDevice(t, openBackend(t, nvmeDisk), Options{DataPath: way, Queues: 2, Depth: 16, unregistrable: true})
		startFio(t, d.Path(), verifyArgs(4)...).wait()
		s := d.Stats()
		if s.Fallbacks < s.Read.Ops+s.Write.Ops || s.Write.Ops == 0 || s.Read.Errors+s.Write.Errors != 0 {
			t.Errorf("counters: %+v", s)
		}
	})
}

// A request larger than the backend takes is cut here, and not sent round by a
// worker thread of io_uring.
func TestLargeRequests(t *testing.T) {
	everyPath(t, func(t *testing.T, way DataPath) {
		checkClean(t)
		b := openBackend(t, nvmeDisk)
		b.limits.MaxIOSize = 32 << 10
		d := startDevice(t, b, Options{DataPath: way, Queues: 1, MaxIOBytes: 256 << 10})
		startFio(t, d.Path(), "--rw=randwrite", "--bsrange=36k-256k", "--blockalign=4k", "--iodepth=8", "--size=32M",
			"--verify=crc32c", "--do_verify=1", "--verify_fatal=1").wait()
		if s := d.Stats(); s.Write.Errors+s.Read.Errors+s.Retries != 0 || s.Write.Bytes < 32<<20 {
			t.Errorf("counters: %+v", s)
		}
	})
}

func TestPathsThatTheKernelLacks(t *testing.T) {
	have := features(t)
	b := openBackend(t, nvmeDisk)
	for way, need := range map[DataPath]Features{DataPathZeroCopy: zeroCopyFlags, DataPathBatch: batchFlags} {
		if have.Has(need) {
			continue
		}
		if _, err := Start(t.Context(), b, testOptions(Options{DataPath: way})); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%v: %v, want ErrUnsupported", way, err)
		}
	}
	// Whatever is there, auto finds it.
	d := startDevice(t, b, Options{Queues: 1})
	if got := d.Info().Flags.DataPath(); got != have.DataPath() {
		t.Errorf("auto is %v, the driver can %v", got, have.DataPath())
	}
}

func TestNoSchedulerOnTheWay(t *testing.T) {
	checkClean(t)
	d := startDevice(t, openBackend(t, nvmeDisk), Options{Queues: 1})
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.Path()), "queue/scheduler"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "[none]") {
		t.Errorf("scheduler %s", text)
	}
}

// Each queue runs where its requests come from.
func TestQueuesRunOnTheirProcessors(t *testing.T) {
	checkClean(t)
	c := control(t)
	d := startDevice(t, openBackend(t, nvmeDisk), Options{Queues: 4})
	seen := 0
	for i := range d.Info().Queues {
		want, err := c.queueAffinity(t.Context(), d.ID(), i)
		if err != nil {
			t.Fatal(err)
		}
		if want.Count() == 0 {
			t.Errorf("queue %d has no processors", i)
		}
		if d.queues[i].cpus != want {
			t.Errorf("queue %d has processors %v, the driver says %v", i, d.queues[i].cpus, want)
		}
		seen += want.Count()
	}
	if seen < d.Info().Queues {
		t.Errorf("%d processors for %d queues", seen, d.Info().Queues)
	}
}
