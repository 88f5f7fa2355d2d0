package ublk

import (
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// later is an AsyncHandler whose requests the test answers. It is used by the
// queue's goroutine, and by others where it says so.
type later struct {
	now    bool // answer within Begin, with e
	e      unix.Errno
	panics bool
	kept   []*AsyncRequest
}

func (h *later) Begin(r *AsyncRequest) (bool, unix.Errno) {
	if h.now {
		return false, h.e
	}
	h.kept = append(h.kept, r)
	if h.panics {
		panic("handler is broken")
	}
	return true, 0
}

// take gives away what was kept.
func (h *later) take() []*AsyncRequest {
	kept := h.kept
	h.kept = nil
	return kept
}

func driveAsync(t *testing.T, h AsyncHandler, depth int) *driven {
	t.Helper()
	b, err := NewAsyncBackend("test", h, Limits{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if size, err := b.Size(); err != nil || size != 1<<20 || b.zeroCopy() {
		t.Fatalf("size %d, %v, zero copy %v", size, err, b.zeroCopy())
	}
	d := drive(t, b, depth)
	for i := range d.descs {
		d.descs[i] = ioDesc{OpFlags: uint32(OpRead), NrSectors: 8, StartSector: uint64(i) * 8}
	}
	return d
}

func TestAsyncBackendNeedsAHandler(t *testing.T) {
	if _, err := NewAsyncBackend("x", nil, Limits{Size: 4096}); err == nil {
		t.Error("no handler: no error")
	}
	if _, err := NewAsyncBackend("x", &later{}, Limits{Size: 1}); err == nil {
		t.Error("a size of one byte: no error")
	}
}

// All tags of a queue are begun while none is answered; answers come in another
// order, from other goroutines, and each reaches the tag it is for.
func TestAsyncAnswersLater(t *testing.T) {
	const depth = 8
	h := &later{}
	d := driveAsync(t, h, depth)
	reads := uint64(0)
	for range 50 {
		d.until("all begun", func() bool { return len(h.kept) == depth })
		if s := d.counts(); s.InFlight != depth || s.Read.Ops != reads {
			t.Fatalf("before any answer: %+v", s)
		}
		reqs := h.take()
		seen := map[uint64]bool{}
		for _, r := range reqs {
			if r.Op != OpRead || r.Length != 4096 || len(r.Data) != 4096 || r.Offset != uint64(r.tag)*4096 || seen[r.Offset] {
				t.Fatalf("request %+v", r.Request)
			}
			seen[r.Offset] = true
		}
		rand.Shuffle(len(reqs), func(i, j int) { reqs[i], reqs[j] = reqs[j], reqs[i] })
		var answering sync.WaitGroup
		for _, r := range reqs {
			e := unix.Errno(0)
			if r.tag == 3 {
				e = unix.EIO
			}
			answering.Go(func() { r.Answer(e) })
		}
		// What the driver of these tests answers at once may be begun again meanwhile.
		reads += depth
		d.until("all answered", func() bool { return d.counts().Read.Ops == reads })
		answering.Wait()
	}
	if s := d.counts(); s.Read.Errors != reads/depth || s.Read.Bytes != (reads-reads/depth)*4096 {
		t.Errorf("counters: %+v", s)
	}
}

// Answers within Begin, by its result or by Answer, need no wake.
func TestAsyncAnswersAtOnce(t *testing.T) {
	h := &later{now: true}
	d := driveAsync(t, h, 4)
	d.until("good answers", func() bool { return d.counts().Read.Bytes > 10*4096 })
	h.e = unix.ENODATA
	d.until("errors", func() bool { return d.counts().Read.Errors > 10 })
	if d.flight != 0 || d.counts().Panics != 0 {
		t.Errorf("in flight: %d, %+v", d.flight, d.counts())
	}
}

type atOnce struct{}

func (atOnce) Begin(r *AsyncRequest) (bool, unix.Errno) {
	r.Answer(0)
	r.Answer(unix.EIO) // the first one counts
	return true, 0
}

func TestAsyncAnswersBeforeBeginReturns(t *testing.T) {
	d := driveAsync(t, atOnce{}, 4)
	d.until("answers", func() bool { return d.counts().Read.Ops > 100 })
	if s := d.counts(); s.Read.Errors != 0 {
		t.Errorf("counters: %+v", s)
	}
}

// A request whose Begin has panicked is answered with EIO, once: whoever kept it
// answers no other.
func TestAsyncPanic(t *testing.T) {
	h := &later{panics: true}
	d := driveAsync(t, h, 2)
	d.until("panics on both tags", func() bool { return len(h.kept) > 10 })
	kept := h.take()
	s := d.counts()
	if s.Panics != uint64(len(kept)) || s.Read.Errors != s.Panics || d.flight != 0 {
		t.Errorf("%d panics happened: %+v", len(kept), s)
	}
	h.panics = false
	d.until("both begun", func() bool { return len(h.kept) == 2 })
	begun := d.counts().Read.Ops
	for _, r := range kept {
		r.Answer(0)
	}
	d.wake() // else the turn could wait
	d.step()
	if got := d.counts().Read.Ops; got != begun || d.flight != 2 {
		t.Errorf("%d answers of requests that were over, %d in flight", got-begun, d.flight)
	}
	for _, r := range h.take() {
		r.Answer(0)
	}
	d.until("good answers", func() bool { return d.counts().Read.Bytes == 2*4096 })
}

// A gate that closes waits for what was begun: it counts as in flight.
func TestAsyncGate(t *testing.T) {
	h := &later{}
	d := driveAsync(t, h, 4)
	d.until("all begun", func() bool { return len(h.kept) == 4 })
	d.gate.set(gateHold)
	d.wake()
	d.step()
	if d.acked.Load() != d.gate.word.Load() || d.stats.inFlight.Load() != 4 {
		t.Errorf("acknowledged %v, %d in flight", d.acked.Load() == d.gate.word.Load(), d.stats.inFlight.Load())
	}
	for _, r := range h.take() {
		go r.Answer(0)
	}
	d.until("all held", func() bool { return len(d.held) == 4 && d.stats.inFlight.Load() == 0 })
	if len(h.kept) != 0 {
		t.Errorf("%d requests went through a closed gate", len(h.kept))
	}
}

// What is answered when the queue has gone is forgotten, and wakes nothing.
func TestAsyncAnswersAfterTheEnd(t *testing.T) {
	h := &later{}
	d := driveAsync(t, h, 4)
	d.until("all begun", func() bool { return len(h.kept) == 4 })
	d.answers.end()
	for _, r := range h.take() {
		r.Answer(0)
	}
	if n := len(d.answers.come); n != 0 {
		t.Errorf("%d answers are kept", n)
	}
}

func TestAsyncTurnsDoNotAllocate(t *testing.T) {
	h := &later{now: true}
	d := driveAsync(t, h, 8)
	d.until("reads", func() bool { return d.counts().Read.Ops > 100 })
	if n := testing.AllocsPerRun(200, d.step); n != 0 {
		t.Errorf("%v allocations per turn", n)
	}
}
