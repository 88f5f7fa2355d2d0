package ublk

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// gateState is what a queue does with a request that arrives.
type gateState uint64

const (
	gateServe  gateState = iota // issue it
	gateHold                    // keep it, unanswered
	gateRefuse                  // answer EBUSY
	gateLeave                   // keep it; end when nothing is in flight

	gateStateMask = 3
	gateReadOnly  = 1 << 2
	gateNoReads   = 1 << 3 // somebody else has reserved the disk
	gateNoWrites  = 1 << 4
	gateEpochUnit = 1 << 5

	gateForbids = gateReadOnly | gateNoReads | gateNoWrites // any of these: some requests are answered with an error
)

// Reserved says what may not be done because somebody who reaches the same disk by
// another way has reserved it. Flushes count as writes (NVM Express Base 8.19.1).
type Reserved struct{ NoReads, NoWrites bool }

func (r Reserved) bits() (bits uint64) {
	if r.NoReads {
		bits |= gateNoReads
	}
	if r.NoWrites {
		bits |= gateNoWrites
	}
	return bits
}

// forbidden is the errno with which an operation is answered by a word, 0 for none.
func forbidden(word uint64, op Op) unix.Errno {
	switch {
	case op == OpRead && word&gateNoReads != 0, op != OpRead && word&gateNoWrites != 0:
		return unix.EBADE // BLK_STS_RESV_CONFLICT
	case op != OpRead && op != OpFlush && word&gateReadOnly != 0:
		return unix.EROFS
	}
	return 0
}

// gate is the one word that decides over every request of a device: state,
// read-only bit, and an epoch that grows with each change.
//
// A queue loads the word once at the start of a turn, handles every completion
// of that turn by it, and at the end of the turn stores how much is in flight
// at the backend, then the word as its acknowledgement. Once a queue has
// acknowledged a closed word, everything it let through earlier is in its
// in-flight count, and it lets nothing more through until the word changes.
// Drain relies on this: it reads the acknowledgement first and the count after
// it, so that it cannot miss a request that slipped in while the gate closed.
type gate struct {
	_    [64]byte // the word is read by all queues: nothing else on its line
	word atomic.Uint64
	_    [56]byte

	// changes is looked at when the word has changed, never else.
	changes atomic.Pointer[ChangeMap]

	mu       sync.Mutex
	stopping bool // a hold would keep STOP_DEV waiting for ever: refuse instead
}

func stateOf(word uint64) gateState { return gateState(word & gateStateMask) }

// set changes the state and tells whether it was another one. Leaving is final.
func (g *gate) set(s gateState) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.setLocked(s)
}

func (g *gate) setLocked(s gateState) bool {
	old := g.word.Load()
	if g.stopping && s == gateHold {
		s = gateRefuse
	}
	if stateOf(old) == s || stateOf(old) == gateLeave {
		return false
	}
	g.word.Store((old+gateEpochUnit)&^gateStateMask | uint64(s))
	return true
}

// stop makes sure that no request is held, now or later.
func (g *gate) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopping = true
	if stateOf(g.word.Load()) == gateHold {
		g.setLocked(gateRefuse)
	}
}

func (g *gate) setReadOnly(on bool) bool {
	bits := uint64(0)
	if on {
		bits = gateReadOnly
	}
	return g.setBits(gateReadOnly, bits)
}

func (g *gate) setReserved(r Reserved) bool {
	return g.setBits(gateNoReads|gateNoWrites, r.bits())
}

// setBits sets those of a mask, and tells whether they were others.
func (g *gate) setBits(mask, bits uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.word.Load()
	word := old&^mask | bits
	if word == old {
		return false
	}
	g.word.Store(word + gateEpochUnit)
	return true
}

func (g *gate) setChanges(m *ChangeMap) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.changes.Store(m)
	g.word.Add(gateEpochUnit)
}
