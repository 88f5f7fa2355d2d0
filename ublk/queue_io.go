package ublk

import (
	"fmt"
	"unsafe"

	"github.com/swapback/swapback/ublk/uring"
	"golang.org/x/sys/unix"
)

// fetched: the driver has put a request into the tag's descriptor, or gives the
// tag up.
func (q *queue) fetched(tag uint16, res int32) {
	if res != ioResOK {
		q.live--
		// UBLK_IO_RES_ABORT. A cancelled command ends the tag in the same way.
		if e := unix.Errno(-res); e != unix.ENODEV && e != unix.ECANCELED && q.err == nil {
			q.err = fmt.Errorf("tag %d: the driver refused to fetch: %w", tag, e)
		}
		return
	}
	q.current = int(tag)
	// One copy: the memory is shared, and must not be read twice.
	op, flags, off, n, ok := decodeDesc(q.descs[tag])
	s := &q.slots[tag]
	*s = slot{op: op, flags: flags, off: off, n: n}
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
		q.stats.held.Add(1)
		q.current = -1
	}
}

func (q *queue) refuse(tag uint16) {
	q.stats.refused.Add(1)
	q.commit(tag, -int32(unix.EBUSY))
}

// issue sends a request on to the backend.
func (q *queue) issue(tag uint16) {
	q.current = int(tag)
	s := &q.slots[tag]
	if q.word&gateReadOnly != 0 && s.op != OpRead && s.op != OpFlush {
		q.answer(tag, -int32(unix.EROFS))
		return
	}
	if (s.op == OpRead || s.op == OpWrite) && (s.n == 0 || s.n > uint64(q.ioBytes)) {
		q.answer(tag, -int32(unix.EIO))
		return
	}
	if q.backend.handler != nil {
		q.handle(tag)
		return
	}
	q.flight++
	q.submit(tag, 0)
}

// handle serves a request in this process.
func (q *queue) handle(tag uint16) {
	s := &q.slots[tag]
	q.req = Request{
		Op: s.op, Offset: s.off, Length: s.n, Queue: q.id,
		FUA:     s.flags&ioFlagFUA != 0,
		NoUnmap: s.flags&ioFlagNoUnmap != 0,
	}
	if s.op == OpRead || s.op == OpWrite {
		q.req.Data = q.buffer(tag)[:s.n:s.n]
	}
	if e := q.backend.handler.Handle(&q.req); e != 0 {
		q.answer(tag, -int32(e))
		return
	}
	q.answer(tag, int32(s.n)&resultMask(s.op))
}

// submit puts the rest of the tag's request into the ring.
func (q *queue) submit(tag uint16, sqeFlags uint8) {
	s := &q.slots[tag]
	e := q.entry()
	off, n := s.off+s.done, s.n-s.done
	switch s.op {
	case OpRead:
		if q.registered {
			e.PrepReadFixed(fileBackend, q.bufferAddr(tag)+uintptr(s.done), uint32(n), off, tag)
		} else {
			e.PrepRead(fileBackend, q.bufferAddr(tag)+uintptr(s.done), uint32(n), off)
		}
	case OpWrite:
		var rw uint32
		if s.flags&ioFlagFUA != 0 {
			rw = unix.RWF_DSYNC
		}
		if q.registered {
			e.PrepWriteFixed(fileBackend, q.bufferAddr(tag)+uintptr(s.done), uint32(n), off, tag, rw)
		} else {
			e.PrepWrite(fileBackend, q.bufferAddr(tag)+uintptr(s.done), uint32(n), off, rw)
		}
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
			q.stats.retries.Add(1)
			q.submit(tag, flags)
			return
		}
		q.flight--
		q.answer(tag, res)
		return
	}
	if s.op == OpRead || s.op == OpWrite {
		s.done += uint64(res)
		if s.done < s.n {
			// Never commit a short result: kernel 7.3 takes a short write as
			// whole. No progress means the backend has become shorter.
			if res > 0 {
				q.stats.retries.Add(1)
				q.submit(tag, 0)
				return
			}
			q.flight--
			q.answer(tag, -int32(unix.EIO))
			return
		}
	}
	q.flight--
	q.answer(tag, int32(s.n)&resultMask(s.op))
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
		q.stats.ops[op].Add(1)
		if res < 0 {
			q.stats.errors[op].Add(1)
		} else {
			q.stats.bytes[op].Add(s.n)
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

// commit answers the tag's request and fetches its next one.
func (q *queue) commit(tag uint16, res int32) {
	q.command(tag, ioCommitAndFetchReq, res)
	q.current = -1
}

func (q *queue) command(tag uint16, op uint32, res int32) {
	e := q.entry()
	e.PrepCmd(fileChar, op)
	e.Flags |= uring.SQEFixedFile
	e.UserData = kindFetch | uint64(tag)
	*(*ioCmd)(unsafe.Pointer(&e.Cmd[0])) = ioCmd{
		QID: uint16(q.id), Tag: tag, Result: res, Addr: uint64(q.bufferAddr(tag)),
	}
}

func (q *queue) armWake() {
	e := q.entry()
	e.PrepRead(fileWake, uintptr(unsafe.Pointer(&wakeSink)), 8, ^uint64(0))
	e.Flags |= uring.SQEFixedFile
	e.UserData = kindWake
}

// entry gives a free submission entry. The ring has one for every tag and for
// the wake, and none of them is ever in it twice, so that there always is one;
// should that be wrong, the ring is emptied rather than a tag dropped.
func (q *queue) entry() *uring.SQE {
	for {
		if e := q.ring.NextSQE(); e != nil {
			return e
		}
		if err := q.ring.Enter(0); err != nil {
			panic(err)
		}
	}
}
