package nvmeof

import (
	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/wire"
	"github.com/swapback/swapback/ublk/uring"
)

// issue gives a command to the disk. It is in phaseBackend already.
func (r *ringLoop) issue(c *command) {
	switch c.op {
	case OpRead:
		c.data = r.q.bufferOf(c, uint32(c.n))
	case OpDiscard:
		more, status := r.q.nextRange(c)
		if status != wire.Success || !more {
			r.q.done(c, status)
			return
		}
	}
	r.submit(c, 0)
}

// submit puts the rest of a command into the ring.
func (r *ringLoop) submit(c *command, flags uint8) {
	b := c.att.ns.backend
	fd := int32(b.file.Fd())
	e := r.entry()
	switch c.op {
	case OpRead:
		if r.isPinned(c) {
			e.PrepReadFixed(fd, addr(c.data[c.done:]), uint32(c.n-c.done), c.off+c.done, c.index)
			break
		}
		e.PrepRead(fd, addr(c.data[c.done:]), uint32(c.n-c.done), c.off+c.done)
	case OpWrite:
		var rw uint32
		if c.sqe.CDW12&wire.ControlFUA != 0 {
			rw = unix.RWF_DSYNC
		}
		if r.isPinned(c) {
			e.PrepWriteFixed(fd, addr(c.data[c.done:]), uint32(c.n-c.done), c.off+c.done, c.index, rw)
			break
		}
		e.PrepWrite(fd, addr(c.data[c.done:]), uint32(c.n-c.done), c.off+c.done, rw)
	case OpFlush:
		e.PrepFsync(fd, uring.FsyncDatasync)
	case OpDiscard:
		if b.block {
			e.PrepBlockDiscard(fd, c.off, c.n)
		} else {
			e.PrepFallocate(fd, punchHole, c.off, c.n)
		}
	case OpWriteZeroes:
		mode, _ := zeroMode(b.block, c.noUnmap(), c.mode)
		e.PrepFallocate(fd, mode, c.off, c.n)
	}
	e.Flags |= flags
	e.UserData = kindBackend | uint64(c.index)
}

func (c *command) noUnmap() bool { return c.sqe.CDW12&wire.ControlDeallocate == 0 }

// completed: the disk has answered.
func (r *ringLoop) completed(c *command, res int32) {
	q := r.q
	if r.ending {
		q.flight--
		c.att.leave()
		return
	}
	q.current = int(c.index)
	r.proceed(c, res)
	q.current = -1
}

func (r *ringLoop) proceed(c *command, res int32) {
	e := unix.Errno(-res)
	switch {
	case res >= 0:
	case (e == unix.EAGAIN || e == unix.EINTR) && c.tries < maxTries:
		// From a worker thread, which waits instead of giving up.
		c.tries++
		r.submit(c, uring.SQEAsync)
		return
	case e == unix.EOPNOTSUPP && c.op == OpWriteZeroes:
		if _, ok := zeroMode(c.att.ns.backend.block, c.noUnmap(), c.mode+1); ok {
			c.mode++
			r.submit(c, 0)
			return
		}
	case e == unix.EOPNOTSUPP && c.op == OpDiscard:
		e, res = 0, 0 // it was a hint
	}
	if res < 0 {
		r.q.finish(c, r.pastEnd(c, e))
		return
	}
	switch c.op {
	case OpRead, OpWrite:
		c.done += uint64(res)
		switch {
		case c.done == c.n && c.op == OpRead:
			r.q.readDone(c, 0)
		case c.done == c.n:
			r.q.done(c, wire.Success)
		case res > 0:
			r.submit(c, 0)
		default: // no progress: the disk has become shorter
			r.q.finish(c, unix.EIO)
		}
	case OpDiscard:
		r.issue(c)
	default:
		r.q.done(c, wire.Success)
	}
}

// pastEnd makes what a disk answers that has become shorter an I/O error: the
// errnos that the kernel has for it would tell the host something else.
func (r *ringLoop) pastEnd(c *command, e unix.Errno) unix.Errno {
	if c.op == OpFlush {
		return e
	}
	if size, err := c.att.ns.backend.Size(); err == nil && c.off+c.n > size {
		return unix.EIO
	}
	return e
}
