package nvmeof

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// ErrGateOpen: Drain was called while commands are being let through.
var ErrGateOpen = errors.New("gate is open")

// gateState is what a queue does with a command that arrives.
type gateState uint64

const (
	gateServe  gateState = iota // carry it out
	gateHold                    // keep it, unanswered, for as long as HoldFor
	gateRefuse                  // answer that it is to be tried again
	gateGone                    // the namespace is no more; final

	gateStateMask = 3
	gateReadOnly  = 1 << 2
	gateNoAccess  = 1 << 3 // its ANA group cannot be used now
	gateEpochUnit = 1 << 4

	gateClosed = gateStateMask | gateNoAccess // any of these: not simply through
)

func stateOf(word uint64) gateState { return gateState(word & gateStateMask) }

// gate decides over every command of a namespace, by one word that all queues
// load.
//
// A queue that lets a command through first counts it in its attachment, and then
// loads the word; if it is closed, the queue takes the count back. Whoever closes
// the gate first stores the word and then reads the counts. So either the queue
// sees the closed gate or the drain sees the count. (Go's atomics are sequentially
// consistent, which this needs.) The counts lie apart, one for each queue, so that
// queues on different processors do not fight for them.
type gate struct {
	_    [64]byte // the word is read by all queues: nothing else on its line
	word atomic.Uint64
	_    [56]byte

	mu       sync.Mutex
	attached map[*attachment]struct{} // of queues that live
	changed  chan struct{}            // holds a token when a count of a closed gate has become 0
	draining sync.Mutex               // one Drain at a time listens to changed
}

// attachment is one queue's use of one namespace. Its counters have one writer,
// the queue; others read them.
type attachment struct {
	ns    *Namespace
	queue *queue

	_        [64]byte
	inFlight atomic.Int64
	counters counters
	_        [64]byte
}

// enter counts a command and tells whether it may go on; word is the gate's.
func (a *attachment) enter() (word uint64, ok bool) {
	a.inFlight.Store(a.inFlight.Load() + 1)
	word = a.ns.gate.word.Load()
	if word&gateClosed == 0 {
		return word, true
	}
	a.leave()
	return word, false
}

// leave ends what enter began.
func (a *attachment) leave() {
	n := a.inFlight.Load() - 1
	a.inFlight.Store(n)
	if n == 0 && a.ns.gate.word.Load()&gateClosed != 0 {
		tell(a.ns.gate.changed)
	}
}

// tell puts a token into a channel of one, unless one is there already.
func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// set changes the word and wakes the queues if it is another one then.
func (g *gate) set(change func(word uint64) uint64) {
	g.mu.Lock()
	old := g.word.Load()
	word := change(old)
	if word == old || stateOf(old) == gateGone {
		g.mu.Unlock()
		return
	}
	g.word.Store(word + gateEpochUnit)
	queues := make([]*queue, 0, len(g.attached))
	for a := range g.attached {
		queues = append(queues, a.queue)
	}
	g.mu.Unlock()
	for _, q := range queues {
		q.wake()
	}
	tell(g.changed)
}

func (g *gate) setState(s gateState) {
	g.set(func(w uint64) uint64 { return w&^gateStateMask | uint64(s) })
}

func (g *gate) setBit(bit uint64, on bool) {
	g.set(func(w uint64) uint64 {
		if on {
			return w | bit
		}
		return w &^ bit
	})
}

func (g *gate) attach(a *attachment) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.attached[a] = struct{}{}
}

// detach takes a queue's attachment away, when it has nothing in flight, and hands
// what it counted to the namespace.
func (g *gate) detach(a *attachment, total *counters) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.attached, a)
	total.add(&a.counters)
	tell(g.changed)
}

// inFlight is how many commands are at the backend, as far as can be told.
func (g *gate) inFlight() (n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for a := range g.attached {
		n += a.inFlight.Load()
	}
	return n
}

// drain waits, with the gate closed, until nothing is in flight.
func (g *gate) drain(ctx context.Context, name string) error {
	g.draining.Lock()
	defer g.draining.Unlock()
	for {
		word := g.word.Load()
		if word&gateStateMask == uint64(gateServe) {
			return fmt.Errorf("nvmeof: draining %s: %w", name, ErrGateOpen)
		}
		if g.inFlight() == 0 && g.word.Load() == word {
			return nil
		}
		select {
		case <-g.changed:
		case <-ctx.Done():
			return fmt.Errorf("nvmeof: draining %s, %d commands still in flight: %w", name, g.inFlight(), ctx.Err())
		}
	}
}
