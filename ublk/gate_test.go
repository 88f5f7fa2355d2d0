package ublk

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// idleDevice has queues without threads: the test plays their turns.
func idleDevice(t *testing.T, queues int) *Device {
	t.Helper()
	d := &Device{changed: make(chan struct{}, 1), done: make(chan struct{})}
	for i := range queues {
		q, err := newQueue(queueConfig{id: i, depth: 4, gate: &d.gate, changed: d.changed, rouse: d.rouse})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(q.closeWake)
		d.queues = append(d.queues, q)
	}
	return d
}

// see lets a queue take notice of the gate, as at the start of its turn.
func see(q *queue) { q.word = q.gate.word.Load() }

func TestGateWord(t *testing.T) {
	var g gate
	epoch := func() uint64 { return g.word.Load() / gateEpochUnit }
	steps := []struct {
		name     string
		do       func() bool
		changed  bool
		state    gateState
		readOnly bool
	}{
		{"release when open", func() bool { return g.set(gateServe) }, false, gateServe, false},
		{"hold", func() bool { return g.set(gateHold) }, true, gateHold, false},
		{"hold again", func() bool { return g.set(gateHold) }, false, gateHold, false},
		{"read-only", func() bool { return g.setReadOnly(true) }, true, gateHold, true},
		{"read-only again", func() bool { return g.setReadOnly(true) }, false, gateHold, true},
		{"refuse", func() bool { return g.set(gateRefuse) }, true, gateRefuse, true},
		{"release", func() bool { return g.set(gateServe) }, true, gateServe, true},
		{"writable", func() bool { return g.setReadOnly(false) }, true, gateServe, false},
		{"hold before stop", func() bool { return g.set(gateHold) }, true, gateHold, false},
		{"stop refuses what is held", func() bool { g.stop(); return true }, true, gateRefuse, false},
		{"release while stopping", func() bool { return g.set(gateServe) }, true, gateServe, false},
		{"hold while stopping", func() bool { return g.set(gateHold) }, true, gateRefuse, false},
		{"leave", func() bool { return g.set(gateLeave) }, true, gateLeave, false},
		{"leaving is final", func() bool { return g.set(gateServe) }, false, gateLeave, false},
	}
	for _, s := range steps {
		before := epoch()
		changed := s.do()
		word := g.word.Load()
		if changed != s.changed || (epoch() != before) != s.changed {
			t.Errorf("%s: changed %v, epoch %d to %d; want changed %v", s.name, changed, before, epoch(), s.changed)
		}
		if stateOf(word) != s.state || (word&gateReadOnly != 0) != s.readOnly {
			t.Errorf("%s: state %d, read-only %v; want %d, %v", s.name, stateOf(word), word&gateReadOnly != 0, s.state, s.readOnly)
		}
	}
}

// What is reserved by somebody else is kept apart from what is read-only, and from the
// state.
func TestGateReserved(t *testing.T) {
	var g gate
	answers := func(want string) {
		t.Helper()
		got := ""
		for _, op := range []Op{OpRead, OpWrite, OpFlush, OpDiscard, OpWriteZeroes} {
			got += map[unix.Errno]string{0: "-", unix.EROFS: "r", unix.EBADE: "c"}[forbidden(g.word.Load(), op)]
		}
		if got != want {
			t.Errorf("answers are %q, want %q", got, want)
		}
	}
	answers("-----")
	if g.setReserved(Reserved{}) || !g.setReserved(Reserved{NoWrites: true}) || g.setReserved(Reserved{NoWrites: true}) {
		t.Error("it does not tell what is new")
	}
	answers("-cccc")
	g.set(gateHold)
	g.setReadOnly(true)
	answers("-cccc")
	g.setReserved(Reserved{NoReads: true, NoWrites: true})
	answers("ccccc")
	g.setReserved(Reserved{})
	answers("-r-rr")
	if stateOf(g.word.Load()) != gateHold {
		t.Error("the gate is open")
	}
	g.setReadOnly(false)
	answers("-----")
}

func TestDrainWantsAClosedGate(t *testing.T) {
	d := idleDevice(t, 1)
	if err := d.Drain(context.Background()); !errors.Is(err, ErrGateOpen) {
		t.Errorf("got %v, want ErrGateOpen", err)
	}
}

// The interleavings that Drain must not be fooled by, one step at a time.
func TestDrainWaitsForEveryQueue(t *testing.T) {
	d := idleDevice(t, 2)
	a, b := d.queues[0], d.queues[1]
	want := func(when string, drained bool) {
		t.Helper()
		got, err := d.drained()
		if err != nil || got != drained {
			t.Fatalf("%s: drained %v, %v; want %v", when, got, err, drained)
		}
	}
	d.Hold()
	want("nobody has noticed", false)
	see(a)
	a.publish()
	want("one queue has not noticed", false)
	// b let a request through before it noticed.
	b.flight = 1
	b.publish()
	want("a turn by the old word", false)
	see(b)
	b.publish()
	want("one request in flight", false)
	b.flight = 0
	b.publish()
	want("all quiet", true)

	// A change of the read-only bit is a new word: it must be seen as well.
	d.SetReadOnly(true)
	want("a new word", false)
	see(a)
	a.publish()
	see(b)
	b.publish()
	want("seen", true)

	// Open and close between two turns of the queues.
	d.Release()
	d.Hold()
	want("a new closing", false)
	see(a)
	a.publish()
	b.end()
	want("an ended queue has nothing in flight", true)
}

func TestDrainEndsWhenTheGateOpens(t *testing.T) {
	d := idleDevice(t, 1)
	d.Hold()
	result := make(chan error)
	go func() { result <- d.Drain(context.Background()) }()
	d.Release()
	if err := <-result; !errors.Is(err, ErrGateOpen) {
		t.Errorf("got %v, want ErrGateOpen", err)
	}
}

func TestDrainHearsTheLastCompletion(t *testing.T) {
	d := idleDevice(t, 1)
	q := d.queues[0]
	d.Hold()
	see(q)
	q.flight = 1
	q.publish()
	result := make(chan error)
	go func() { result <- d.Drain(context.Background()) }()
	q.flight = 0
	q.publish()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestDrainHeedsItsContext(t *testing.T) {
	d := idleDevice(t, 1)
	d.Hold()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
}

func TestWakeReachesTheQueues(t *testing.T) {
	d := idleDevice(t, 2)
	d.Refuse()
	for _, q := range d.queues {
		var buf [8]byte
		if n, err := unix.Read(q.wakeFD, buf[:]); n != 8 || err != nil || buf[0] != 1 {
			t.Errorf("queue %d: read %d, %v, count %d", q.id, n, err, buf[0])
		}
		q.closeWake()
	}
	d.Release() // must not write to a closed descriptor
}

func TestGatesChangeTogether(t *testing.T) {
	a, b := idleDevice(t, 1), idleDevice(t, 1)
	b.gate.stop() // a device that is being stopped never holds
	HoldAll(a, b)
	if stateOf(a.gate.word.Load()) != gateHold || stateOf(b.gate.word.Load()) != gateRefuse {
		t.Error("HoldAll did not close the gates")
	}
	RefuseAll(a, b)
	if stateOf(a.gate.word.Load()) != gateRefuse {
		t.Error("RefuseAll did not change a held gate")
	}
	ReleaseAll(a, b)
	for _, d := range []*Device{a, b} {
		if stateOf(d.gate.word.Load()) != gateServe {
			t.Error("ReleaseAll left a gate closed")
		}
		var buf [8]byte
		// Woken for each change; the counts add up.
		want := byte(3)
		if d == b {
			want = 2
		}
		if n, err := unix.Read(d.queues[0].wakeFD, buf[:]); n != 8 || err != nil || buf[0] != want {
			t.Errorf("read %d, %v, count %d, want %d", n, err, buf[0], want)
		}
	}
}
