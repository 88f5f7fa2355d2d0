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

	Held     uint64 // requests that a closed gate kept, ever
	Refused  uint64 // requests answered EBUSY by a closed gate, ever
	Retries  uint64 // backend operations issued again (EAGAIN, short results)
	Panics   uint64 // panics turned into EIO
	HeldNow  uint64 // kept right now
	InFlight uint64 // at the backend right now
}

// counters of one queue. Only the queue's thread writes them; readers may see a
// request's counts one after the other. The padding keeps two queues from
// writing to one cache line.
type counters struct {
	_        [64]byte
	ops      [opCount]atomic.Uint64
	bytes    [opCount]atomic.Uint64
	errors   [opCount]atomic.Uint64
	held     atomic.Uint64
	refused  atomic.Uint64
	retries  atomic.Uint64
	panics   atomic.Uint64
	heldNow  atomic.Uint64
	inFlight atomic.Uint64
	_        [64]byte
}

func (c *counters) addTo(s *Stats) {
	c.addOp(OpRead, &s.Read)
	c.addOp(OpWrite, &s.Write)
	c.addOp(OpFlush, &s.Flush)
	c.addOp(OpDiscard, &s.Discard)
	c.addOp(OpWriteZeroes, &s.WriteZeroes)
	s.Held += c.held.Load()
	s.Refused += c.refused.Load()
	s.Retries += c.retries.Load()
	s.Panics += c.panics.Load()
	s.HeldNow += c.heldNow.Load()
	s.InFlight += c.inFlight.Load()
}

func (c *counters) addOp(op Op, o *OpStats) {
	o.Ops += c.ops[op].Load()
	o.Bytes += c.bytes[op].Load()
	o.Errors += c.errors[op].Load()
}
