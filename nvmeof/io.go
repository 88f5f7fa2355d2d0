package nvmeof

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/wire"
)

// attach finds the namespace that a command names; nil when there is none.
func (q *queue) attach(nsid uint32) *attachment {
	if nsid < uint32(len(q.attached)) {
		if a := q.attached[nsid]; a != nil && stateOf(a.ns.gate.word.Load()) != gateGone {
			return a
		}
	}
	return q.attachNew(nsid)
}

// attachNew meets a namespace for the first time.
func (q *queue) attachNew(nsid uint32) *attachment {
	if nsid == 0 || nsid > maxNamespaces {
		return nil
	}
	n := q.ctrl.subsys.Namespace(nsid)
	if n == nil {
		return nil
	}
	for uint32(len(q.attached)) <= nsid {
		q.attached = append(q.attached, nil)
	}
	a := &attachment{ns: n, queue: q}
	if gone := q.attached[nsid]; gone != nil {
		if gone.inFlight.Load() == 0 {
			gone.ns.gate.detach(gone, &gone.ns.total)
		} else {
			q.detached = append(q.detached, gone) // with the queue
		}
	}
	q.attached[nsid] = a
	n.gate.attach(a)
	if n.backend.file != nil && q.ringPlan == ringUnneeded && !q.target.opt.NoRing {
		q.ringPlan = ringWanted // this command still goes without
	}
	return a
}

// ioCommand begins a command of an I/O queue. c.data is what came in the capsule.
func (q *queue) ioCommand(c *command) {
	a := q.attach(c.sqe.NSID)
	if a == nil {
		q.fail(c, wire.InvalidNamespace|wire.DNR)
		return
	}
	c.att = a
	n, status := q.expected(c)
	if status != wire.Success {
		q.failIO(c, status)
		return
	}
	switch {
	case c.sqe.Transfer() == wire.TransferToCtrl && c.data == nil:
		q.askForData(c, n)
	case isReservation(c.sqe.Opcode):
		q.reservation(c)
	default:
		q.pass(c)
	}
}

// expected fills in what a command is about, and returns how many bytes it
// transfers, one way or the other.
func (q *queue) expected(c *command) (n uint32, status wire.Status) {
	shift := c.att.ns.shift
	c.off, c.n = c.sqe.LBA()<<shift, uint64(c.sqe.Blocks())<<shift
	if c.sqe.LBA() > ^uint64(0)>>shift {
		return 0, wire.LBAOutOfRange | wire.DNR
	}
	switch c.sqe.Opcode {
	case wire.OpFlush:
		c.op, c.off, c.n = OpFlush, 0, 0
		return 0, wire.Success
	case wire.OpWriteZeroes:
		c.op = OpWriteZeroes
		return 0, wire.Success
	case wire.OpDSM:
		c.op = OpDiscard
		if c.data != nil && uint32(len(c.data)) < (c.sqe.CDW10&0xff+1)*wire.RangeSize {
			return 0, wire.InvalidSGLLength | wire.DNR
		}
		// Linux sends a page whatever the number of ranges.
		n := c.sqe.SGL.Length
		if n < (c.sqe.CDW10&0xff+1)*wire.RangeSize || n > wire.MaxRanges*wire.RangeSize {
			return 0, wire.InvalidSGLLength | wire.DNR
		}
		return n, q.transport(c)
	case wire.OpResvRegister, wire.OpResvAcquire, wire.OpResvRelease, wire.OpResvReport:
		return q.expectReservation(c)
	case wire.OpRead:
		c.op = OpRead
	case wire.OpWrite, wire.OpCompare:
		c.op = OpWrite
	default:
		return 0, wire.InvalidOpcode | wire.DNR
	}
	if c.n > uint64(q.target.opt.MaxData) {
		return 0, wire.InvalidField | wire.DNR
	}
	if uint64(c.sqe.SGL.Length) != c.n {
		return 0, wire.InvalidSGLLength | wire.DNR
	}
	return uint32(c.n), q.transport(c)
}

// transport wants a descriptor that says that data travels in PDUs of its own,
// unless it came along.
func (q *queue) transport(c *command) wire.Status {
	if c.data == nil && c.sqe.SGL.Type != wire.SGLTransport {
		return wire.InvalidSGLType | wire.DNR
	}
	return wire.Success
}

func (c *command) writes() bool {
	return c.op != OpRead && c.op != OpFlush && c.sqe.Opcode != wire.OpCompare
}

// pass takes a command to the gate, and through it.
func (q *queue) pass(c *command) {
	word, ok := c.att.enter()
	if !ok {
		q.stopped(c, word)
		return
	}
	c.phase = phaseBackend
	q.flight++
	status := q.permitted(c, word)
	if status != wire.Success {
		q.done(c, status)
		return
	}
	switch yes, no := q.touch(c); {
	case yes:
		q.issue(c)
	case no != 0:
		q.finish(c, no)
	default: // it goes to the gate again, for in the meantime that may have closed
		c.phase = phaseParked
		q.flight--
		c.att.leave()
		q.parked = append(q.parked, c.index)
	}
}

// permitted looks at what may have changed while the command was held.
func (q *queue) permitted(c *command, word uint64) wire.Status {
	if d := c.att.ns.config.Reservations; d != nil && !d.Access(q.ctrl.host.id, c.op != OpRead && c.sqe.Opcode != wire.OpCompare) {
		return wire.ReservationConflict | wire.DNR
	}
	switch size := c.att.ns.size.Load(); {
	case c.op != OpFlush && c.op != OpDiscard && (c.off >= size || c.n > size-c.off):
		return wire.LBAOutOfRange | wire.DNR
	case c.writes() && word&gateReadOnly != 0:
		return wire.NamespaceProtected | wire.DNR
	}
	return wire.Success
}

// touch tells who wants to know what a command is about to change.
func (q *queue) touch(c *command) (yes bool, no unix.Errno) {
	m := c.att.ns.changes.Load()
	if m == nil || !c.writes() {
		return true, 0
	}
	if c.op != OpDiscard {
		return (*m).Touch(c.off, c.n, q)
	}
	if !c.deallocates() {
		return true, 0
	}
	for i := range c.ranges() {
		r := wire.ParseRange(c.data[i*wire.RangeSize:])
		if r.LBA > ^uint64(0)>>c.att.ns.shift {
			continue // it will be refused
		}
		if yes, no := (*m).Touch(r.LBA<<c.att.ns.shift, uint64(r.Blocks)<<c.att.ns.shift, q); !yes {
			return false, no
		}
	}
	return true, 0
}

// Wake implements [Waker]: what waits for a change map may go on.
func (q *queue) Wake() { q.wake() }

// lookAtParked takes up again what waits for a change map, oldest first.
func (q *queue) lookAtParked() {
	for range len(q.parked) {
		c := &q.commands[q.parked[0]]
		copy(q.parked, q.parked[1:])
		q.parked = q.parked[:len(q.parked)-1]
		q.current = int(c.index)
		q.pass(c)
		q.current = -1
	}
}

// stopped: the gate is closed.
func (q *queue) stopped(c *command, word uint64) {
	switch {
	case stateOf(word) == gateGone:
		q.failIO(c, wire.InvalidNamespace|wire.DNR)
	case word&gateNoAccess != 0 && q.ctrl.heedsANA():
		q.refuseANA(c)
	case stateOf(word) == gateRefuse:
		q.refuseIO(c)
	default:
		c.phase = phaseHeld
		if c.heldAt.IsZero() { // else it was held before, and still is
			c.heldAt = time.Now()
			c.att.counters.held.add(1)
		}
		q.held = append(q.held, c.index)
	}
}

// refuseIO asks the host to try again later. It never says that it shall not.
func (q *queue) refuseIO(c *command) {
	c.att.counters.refused.add(1)
	q.answer(c, wire.NamespaceNotReady.WithDelay(1), 0)
}

// refuseANA answers with the state of the group, which the log has shown since
// before.
func (q *queue) refuseANA(c *command) {
	c.att.counters.refused.add(1)
	n := c.att.ns
	switch n.subsys.anaState(n.config.ANAGroup) {
	case wire.ANALost:
		q.answer(c, wire.ANAPersistentLoss, 0)
	case wire.ANAChanging:
		q.answer(c, wire.ANATransition, 0)
	default:
		q.answer(c, wire.ANAInaccessible, 0)
	}
}

func (q *queue) failIO(c *command, status wire.Status) {
	c.att.counters.errors.add(1)
	q.fail(c, status)
}

// lookAtGates takes up again what is held, oldest first, as far as the gates let it.
func (q *queue) lookAtGates() {
	n := len(q.held)
	for range n {
		c := &q.commands[q.held[0]]
		word := c.att.ns.gate.word.Load()
		// Moved up in place: the list must keep its capacity, or a later append would
		// allocate. What stays held goes to the end, and so keeps its order.
		copy(q.held, q.held[1:])
		q.held = q.held[:len(q.held)-1]
		if stateOf(word) == gateHold && word&gateNoAccess == 0 {
			q.held = append(q.held, c.index)
			continue
		}
		q.current = int(c.index)
		q.pass(c)
		q.current = -1
	}
}

// expireHeld refuses what has been held for long enough.
func (q *queue) expireHeld(now time.Time) {
	for len(q.held) > 0 {
		c := &q.commands[q.held[0]]
		if now.Sub(c.heldAt) < q.target.opt.HoldFor {
			return
		}
		if q.ctrl.turnAway() {
			return // with all that is held
		}
		copy(q.held, q.held[1:])
		q.held = q.held[:len(q.held)-1]
		q.refuseIO(c)
	}
}

// issue carries a command out, or has the ring do it.
func (q *queue) issue(c *command) {
	b := c.att.ns.backend
	if q.ring != nil && b.file != nil && c.sqe.Opcode != wire.OpCompare {
		q.ring.issue(c)
		return
	}
	switch c.sqe.Opcode {
	case wire.OpRead:
		q.read(c)
	case wire.OpWrite:
		q.finish(c, q.handle(c, OpWrite, c.off, c.data))
	case wire.OpCompare:
		q.compare(c)
	case wire.OpDSM:
		q.discard(c)
	default:
		q.finish(c, q.handle(c, c.op, c.off, nil))
	}
}

// handle calls the backend's Handler.
func (q *queue) handle(c *command, op Op, off uint64, data []byte) unix.Errno {
	n := uint64(len(data))
	if data == nil {
		n = c.n
	}
	q.req = Request{
		Op: op, Offset: off, Length: n, Data: data,
		FUA:     c.sqe.CDW12&wire.ControlFUA != 0,
		NoUnmap: c.noUnmap(),
	}
	return c.att.ns.backend.handler.Handle(&q.req)
}

// finish ends a command whose backend has answered.
func (q *queue) finish(c *command, e unix.Errno) {
	q.finishAs(c, c.op, e)
}

// finishAs is finish for a command that has asked the backend for something else than
// it says.
func (q *queue) finishAs(c *command, op Op, e unix.Errno) {
	if f := c.att.ns.config.Failed; f != nil && e != 0 {
		f(Failure{Op: op, Offset: c.off, Length: c.n, Errno: e})
	}
	q.done(c, statusOf(op, e))
}

// done ends a command that was let through, with a status and no data.
func (q *queue) done(c *command, status wire.Status) {
	q.flight--
	c.att.leave()
	if status != wire.Success {
		q.failIO(c, status)
		return
	}
	q.count(c)
	q.answer(c, wire.Success, 0)
}

func (q *queue) count(c *command) {
	t := &c.att.counters
	switch c.sqe.Opcode {
	case wire.OpRead:
		t.reads.add(1)
		t.readBytes.add(c.n)
	case wire.OpWrite:
		t.writes.add(1)
		t.writeBytes.add(c.n)
	case wire.OpFlush:
		t.flushes.add(1)
	case wire.OpDSM:
		t.discards.add(1)
	case wire.OpWriteZeroes:
		t.writeZeroes.add(1)
	case wire.OpCompare:
		t.compares.add(1)
	}
}

// read has a Handler put what it reads where it is sent from. A file gets the
// command's buffer, which lies as O_DIRECT wants it.
func (q *queue) read(c *command) {
	n, head := int(c.n), q.dataHeader()
	if c.att.ns.backend.file != nil || !q.roomToCopy(n) {
		c.data = q.bufferOf(c, uint32(n))
		q.readDone(c, q.handle(c, OpRead, c.off, c.data))
		return
	}
	b := q.out.reserve(head + n)
	q.unsent = head + n // a panic takes it back
	errno := q.handle(c, OpRead, c.off, b[head:])
	q.unsent = 0
	if errno != 0 {
		q.out.undo(head + n)
		q.finish(c, errno)
		return
	}
	q.flight--
	c.att.leave()
	q.count(c)
	q.putDataHeader(b[:head:head], c, n)
	q.putDataEnd(c, b[head:])
	q.release(c.index)
}

// readDone answers a read whose data lies in its buffer.
func (q *queue) readDone(c *command, e unix.Errno) {
	if e != 0 {
		q.finish(c, e)
		return
	}
	q.flight--
	c.att.leave()
	q.count(c)
	q.answerData(c, c.data)
}

// compare reads, and compares with what the host has sent. It is rare, and waits
// for the disk even where there is a ring.
func (q *queue) compare(c *command) {
	if q.scratch == nil {
		var err error
		if q.scratch, err = mapMemory(q.target.opt.MaxData); err != nil {
			q.finish(c, unix.ENOMEM)
			return
		}
	}
	have := q.scratch[:c.n]
	if e := q.handle(c, OpRead, c.off, have); e != 0 {
		q.finishAs(c, OpRead, e)
		return
	}
	if !bytes.Equal(have, c.data) {
		q.done(c, wire.CompareFailure|wire.DNR)
		return
	}
	q.done(c, wire.Success)
}

// discard carries out Dataset Management. What it asks for beside deallocation are
// hints.
func (q *queue) discard(c *command) {
	for {
		more, status := q.nextRange(c)
		if status != wire.Success || !more {
			q.done(c, status)
			return
		}
		if e := q.handle(c, OpDiscard, c.off, nil); e != 0 && e != unix.EOPNOTSUPP {
			q.finish(c, e)
			return
		}
	}
}

// ranges is how many a DSM command has.
func (c *command) ranges() int { return int(c.sqe.CDW10&0xff) + 1 }

// deallocates tells whether a DSM command is more than a hint.
func (c *command) deallocates() bool {
	return c.sqe.CDW11&wire.DSMDeallocate != 0 && c.att.ns.backend.limits.Discard
}

// nextRange sets off and n to the next range to discard. A range that is not in the
// namespace is an error; it is found before any is discarded, but for one that a
// resize makes so meanwhile.
func (q *queue) nextRange(c *command) (more bool, status wire.Status) {
	ns := c.att.ns
	count := uint16(c.ranges())
	blocks := ns.size.Load() >> ns.shift
	if c.at == 0 {
		for i := range int(count) {
			if r := wire.ParseRange(c.data[i*wire.RangeSize:]); r.LBA > blocks || uint64(r.Blocks) > blocks-r.LBA {
				return false, wire.LBAOutOfRange | wire.DNR
			}
		}
	}
	if !c.deallocates() {
		return false, wire.Success
	}
	for c.at < count {
		r := wire.ParseRange(c.data[int(c.at)*wire.RangeSize:])
		c.at++
		if r.Blocks == 0 || r.LBA > blocks || uint64(r.Blocks) > blocks-r.LBA {
			continue
		}
		c.off, c.n = r.LBA<<ns.shift, uint64(r.Blocks)<<ns.shift
		return true, wire.Success
	}
	return false, wire.Success
}
