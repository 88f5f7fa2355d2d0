package ublk

import (
	"github.com/swapback/swapback/ublk/uring"
	"golang.org/x/sys/unix"
)

// fetched: the driver has put a request into the tag's descriptor.
func (q *queue) fetched(tag uint16) {
	q.current = int(tag)
	// One copy: the memory is shared, and must not be read twice.
	op, flags, off, n, ok := decodeDesc(q.descs[tag])
	s := &q.slots[tag]
	*s = slot{op: op, flags: flags, off: off, n: n, manual: flags&ioFlagNeedRegBuf != 0}
	if !ok {
		q.answer(tag, -int32(unix.EOPNOTSUPP))
		return
	}
	switch stateOf(q.word) {
	case gateServe:
		q.issue(tag)
	case gateRefuse:
		q.refuse(tag)
	default:
		q.held = append(q.held, tag)
		q.tally.held++
		q.tally.publishRare(&q.stats)
		q.current = -1
	}
}

func (q *queue) refuse(tag uint16) {
	q.tally.refused++
	q.tally.publishRare(&q.stats)
	q.commit(tag, -int32(unix.EBUSY))
}

// issue sends a request on to the backend.
func (q *queue) issue(tag uint16) {
	q.current = int(tag)
	s := &q.slots[tag]
	if q.word&gateForbids != 0 {
		if e := forbidden(q.word, s.op); e != 0 {
			q.answer(tag, -int32(e))
			return
		}
	}
	if s.op != OpRead && s.op != OpFlush {
		if m := q.changes; m != nil && !m.isMarked(s.off, s.n) && !q.touch(tag) {
			return
		}
	}
	if (s.op == OpRead || s.op == OpWrite) && (s.n == 0 || s.n > uint64(q.ioBytes)) {
		q.answer(tag, -int32(unix.EIO))
		return
	}
	if q.backend.file == nil {
		q.handle(tag)
		return
	}
	q.flight++
	if s.manual {
		q.registerPages(tag)
		return
	}
	q.forward(tag)
}

// touch has a first write to a block recorded. When that can't be durable at
// once the request waits, or is answered with an error.
func (q *queue) touch(tag uint16) bool {
	s := &q.slots[tag]
	yes, no := q.changes.touch(s.off, s.n, q)
	switch {
	case yes:
		return true
	case no != 0:
		q.answer(tag, -int32(no))
	default:
		q.parked = append(q.parked, tag)
		if !s.waited {
			s.waited = true
			q.tally.parked++
			q.tally.publishRare(&q.stats)
		}
		q.current = -1
	}
	return false
}

// Wake implements [Waker]: what waits for the change map may go on.
func (q *queue) Wake() {
	q.unpark.Store(true)
	q.rouse(q)
}

// takeParked issues what waited for the change map, or has it wait on. Each tag is
// off the list before it is worked on, so that a panic loses none of the others:
// the next turn goes on with them.
func (q *queue) takeParked() {
	if q.unpark.Swap(false) {
		q.unparking = len(q.parked)
	}
	for q.unparking > 0 {
		q.unparking--
		tag := q.parked[0]
		copy(q.parked, q.parked[1:])
		q.parked = q.parked[:len(q.parked)-1]
		if stateOf(q.word) == gateRefuse {
			q.refuse(tag)
			continue
		}
		q.issue(tag)
	}
}

// handle serves a request in this process.
func (q *queue) handle(tag uint16) {
	if q.answers != nil {
		q.begin(tag)
		return
	}
	q.req = q.request(tag)
	q.handled(tag, q.backend.handler.Handle(&q.req))
}

// request is what a handler gets to see of a tag's request.
func (q *queue) request(tag uint16) Request {
	s := &q.slots[tag]
	r := Request{
		Op: s.op, Offset: s.off, Length: s.n, Queue: q.id,
		FUA:     s.flags&ioFlagFUA != 0,
		NoUnmap: s.flags&ioFlagNoUnmap != 0,
	}
	if q.mem != nil && (s.op == OpRead || s.op == OpWrite) {
		r.Data = q.buffer(tag)[:s.n:s.n]
	}
	return r
}

// handled answers a request with what a handler has said.
func (q *queue) handled(tag uint16, e unix.Errno) {
	if e != 0 {
		q.answer(tag, -int32(e))
		return
	}
	s := &q.slots[tag]
	q.answer(tag, int32(s.n)&resultMask(s.op))
}

// forward sends a request to the backend, cut into pieces if it is too large for
// it: the block layer would refuse to cut it without waiting, and io_uring then
// go round by a worker thread.
func (q *queue) forward(tag uint16) {
	s := &q.slots[tag]
	if q.maxPiece == 0 || s.n <= q.maxPiece || s.op != OpRead && s.op != OpWrite {
		q.submit(tag, 0)
		return
	}
	s.piece = pieceSize(s.n, q.maxPiece)
	s.pieces = uint16((s.n + s.piece - 1) / s.piece)
	for i := range s.pieces {
		done := uint64(i) * s.piece
		e := q.entry()
		q.prepRW(e, tag, done, min(s.piece, s.n-done))
		e.UserData = kindPiece | uint64(i)<<16 | uint64(tag)
	}
	q.current = -1
}

// pieceSize cuts n bytes into pieces of equal size, but for the last, that are
// no larger than most and begin at whole pages.
func pieceSize(n, most uint64) uint64 {
	const page = 4096
	count := (n + most - 1) / most
	return min(((n+count-1)/count+page-1)&^(page-1), most)
}

// pieceCompleted waits for the last piece. When one was not done in full, the
// whole request is done once more, uncut and by the slow but sure way: a request
// may be repeated (the driver does so, too, when a server dies).
func (q *queue) pieceCompleted(tag, i uint16, res int32) {
	q.current = int(tag)
	s := &q.slots[tag]
	s.pieces--
	if res != int32(min(s.piece, s.n-uint64(i)*s.piece)) {
		s.redoing = true
	}
	switch {
	case s.pieces > 0:
		q.current = -1
	case s.redoing:
		q.retry(tag, uring.SQEAsync)
	default:
		q.flight--
		q.answer(tag, int32(s.n))
	}
}

// prepRW fills in a read or write of n bytes, done bytes into the tag's request.
func (q *queue) prepRW(e *uring.SQE, tag uint16, done, n uint64) {
	s := &q.slots[tag]
	addr, off := q.bufferAddr(tag)+uintptr(done), s.off+done
	var rw uint32
	if s.flags&ioFlagFUA != 0 {
		rw = unix.RWF_DSYNC
	}
	switch {
	case s.op == OpRead && q.registered:
		e.PrepReadFixed(fileBackend, addr, uint32(n), off, tag)
	case s.op == OpRead:
		e.PrepRead(fileBackend, addr, uint32(n), off)
	case q.registered:
		e.PrepWriteFixed(fileBackend, addr, uint32(n), off, tag, rw)
	default:
		e.PrepWrite(fileBackend, addr, uint32(n), off, rw)
	}
	e.Flags |= uring.SQEFixedFile
}

// submit puts the rest of the tag's request into the ring.
func (q *queue) submit(tag uint16, sqeFlags uint8) {
	s := &q.slots[tag]
	e := q.entry()
	off, n := s.off+s.done, s.n-s.done
	switch s.op {
	case OpRead, OpWrite:
		q.prepRW(e, tag, s.done, n)
	case OpFlush:
		e.PrepFsync(fileBackend, uring.FsyncDatasync)
	case OpDiscard:
		if q.backend.block {
			e.PrepBlockDiscard(fileBackend, off, n)
		} else {
			e.PrepFallocate(fileBackend, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		}
	case OpWriteZeroes:
		mode, _ := zeroMode(q.backend.block, s.flags&ioFlagNoUnmap != 0, s.mode)
		e.PrepFallocate(fileBackend, mode, off, n)
	}
	e.Flags |= uring.SQEFixedFile | sqeFlags
	e.UserData = kindBackend | uint64(tag)
	q.current = -1
}

// zeroMode gives the i-th way to write zeroes, best first. On a block device
// PUNCH_HOLE may unmap, and is refused where only writing zeroes would do;
// ZERO_RANGE keeps the space, and falls back to writing. On a file it depends
// on the filesystem which of them exist.
func zeroMode(block, noUnmap bool, i uint8) (mode uint32, ok bool) {
	const (
		punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		zero  = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	)
	switch {
	case i == 0 && noUnmap:
		return zero, true
	case i == 0:
		return punch, true
	case i == 1 && !noUnmap:
		return zero, true
	case i == 1 && !block:
		return punch, true
	}
	return 0, false
}

// completed: the backend has answered.
func (q *queue) completed(tag uint16, res int32) {
	q.current = int(tag)
	s := &q.slots[tag]
	if res < 0 {
		if flags, ok := s.again(q.backend.block, unix.Errno(-res)); ok {
			q.retry(tag, flags)
			return
		}
		if q.pastEnd(s) {
			// ENOSPC and EINVAL, which the kernel has for it, would mean something else.
			q.giveUp(tag, unix.EIO, true)
			return
		}
		q.giveUp(tag, unix.Errno(-res), false)
		return
	}
	if s.op == OpRead || s.op == OpWrite {
		s.done += uint64(res)
		if s.done < s.n {
			// Never commit a short result: kernel 7.3 takes a short write as
			// whole. No progress means the backend has become shorter.
			if res > 0 {
				q.retry(tag, 0)
				return
			}
			q.giveUp(tag, unix.EIO, true)
			return
		}
	}
	if s.op == OpWriteZeroes && q.pastEnd(s) {
		// The kernel zeroes what there is, and has no error (blkdev_fallocate).
		q.giveUp(tag, unix.EIO, true)
		return
	}
	q.flight--
	q.answer(tag, int32(s.n)&resultMask(s.op))
}

// giveUp answers a request that the backend has not done.
func (q *queue) giveUp(tag uint16, e unix.Errno, short bool) {
	q.failed(tag, e, short)
	q.flight--
	q.answer(tag, -int32(e))
}

// pastEnd tells whether a request reaches past the end that a block device below
// has now. It is a system call, for requests that are rare.
func (q *queue) pastEnd(s *slot) bool {
	if !q.backend.block || s.op == OpFlush {
		return false
	}
	size, err := q.backend.Size()
	return err == nil && s.off+s.n > size
}

func (q *queue) retry(tag uint16, sqeFlags uint8) {
	q.tally.retries++
	q.tally.publishRare(&q.stats)
	q.submit(tag, sqeFlags)
}

// again says whether an operation that failed with e is worth another try, and
// with which entry flags.
func (s *slot) again(block bool, e unix.Errno) (sqeFlags uint8, ok bool) {
	switch {
	case (e == unix.EAGAIN || e == unix.EINTR) && s.tries < maxTries:
		// From a worker thread, which waits instead of giving up.
		s.tries++
		return uring.SQEAsync, true
	case e == unix.EOPNOTSUPP && s.op == OpWriteZeroes:
		if _, ok := zeroMode(block, s.flags&ioFlagNoUnmap != 0, s.mode+1); ok {
			s.mode++
			return 0, true
		}
	}
	return 0, false
}

// resultMask: reads and writes are committed with their length, the others
// with 0.
func resultMask(op Op) int32 {
	if op == OpRead || op == OpWrite {
		return -1
	}
	return 0
}

// answer counts a request and commits its result.
func (q *queue) answer(tag uint16, res int32) {
	s := &q.slots[tag]
	if op := s.op; op < opCount {
		t := &q.tally
		t.touched |= 1 << op
		t.ops[op]++
		if res < 0 {
			t.errors[op]++
		} else {
			t.bytes[op] += s.n
		}
	}
	if res < 0 {
		res = -int32(clientErrno(s.op, unix.Errno(-res)))
	}
	q.commit(tag, res)
}

// clientErrno keeps two errnos away from reads and writes: on kernel 7.3 a
// client that uses io_uring never gets a completion for them.
func clientErrno(op Op, e unix.Errno) unix.Errno {
	if (op == OpRead || op == OpWrite) && (e == unix.EAGAIN || e == unix.EOPNOTSUPP) {
		return unix.EIO
	}
	return e
}
