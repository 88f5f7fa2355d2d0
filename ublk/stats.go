package ublk

import "sync/atomic"

// OpStats count one operation.
type OpStats struct {
	Ops    uint64 // requests answered by the backend, errors included
	Bytes  uint64 // of those that it answered well
	Errors uint64
}

// Stats are a device's counters since this process started or adopted it.
// Refused requests count nowhere but in Refused.
type Stats struct {
	Read, Write, Flush, Discard, WriteZeroes OpStats

	Held      uint64 // requests that a closed gate kept, ever
	Parked    uint64 // writes that waited for the change map's guard, ever
	Refused   uint64 // requests answered EBUSY by a closed gate, ever
	Retries   uint64 // backend operations issued again (EAGAIN, short results)
	Fallbacks uint64 // zero-copy requests whose pages the driver could not register by itself
	Panics    uint64 // panics turned into EIO
	HeldNow   uint64 // kept right now
	InFlight  uint64 // at the backend right now
}

// tally is what a queue's own thread counts with: plain numbers, which it
// publishes once per turn.
type tally struct {
	ops, bytes, errors [opCount]uint64
	held, refused      uint64
	parked             uint64
	retries, fallbacks uint64
	touched            uint8 // bit op is set when that operation's counts have changed
}

func (t *tally) publish(c *counters) {
	for op := 0; t.touched != 0; op++ {
		if t.touched&1 != 0 {
			c.ops[op].Store(t.ops[op])
			c.bytes[op].Store(t.bytes[op])
			c.errors[op].Store(t.errors[op])
		}
		t.touched >>= 1
	}
}

// publishRare is for the counts that only change when something is out of the
// ordinary.
func (t *tally) publishRare(c *counters) {
	c.held.Store(t.held)
	c.parked.Store(t.parked)
	c.refused.Store(t.refused)
	c.retries.Store(t.retries)
	c.fallbacks.Store(t.fallbacks)
}

// counters of one queue, for others to read. Only the queue's thread writes
// them, at the end of each turn. The padding keeps two queues from writing to
// one cache line.
type counters struct {
	_         [64]byte
	ops       [opCount]atomic.Uint64
	bytes     [opCount]atomic.Uint64
	errors    [opCount]atomic.Uint64
	held      atomic.Uint64
	parked    atomic.Uint64
	refused   atomic.Uint64
	retries   atomic.Uint64
	fallbacks atomic.Uint64
	panics    atomic.Uint64
	heldNow   atomic.Uint64
	inFlight  atomic.Uint64
	_         [64]byte
}

func (c *counters) addTo(s *Stats) {
	c.addOp(OpRead, &s.Read)
	c.addOp(OpWrite, &s.Write)
	c.addOp(OpFlush, &s.Flush)
	c.addOp(OpDiscard, &s.Discard)
	c.addOp(OpWriteZeroes, &s.WriteZeroes)
	s.Held += c.held.Load()
	s.Parked += c.parked.Load()
	s.Refused += c.refused.Load()
	s.Retries += c.retries.Load()
	s.Fallbacks += c.fallbacks.Load()
	s.Panics += c.panics.Load()
	s.HeldNow += c.heldNow.Load()
	s.InFlight += c.inFlight.Load()
}

func (c *counters) addOp(op Op, o *OpStats) {
	o.Ops += c.ops[op].Load()
	o.Bytes += c.bytes[op].Load()
	o.Errors += c.errors[op].Load()
}
