package nvmeof

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pollLoop serves a connection by Go's network poller: every connection until it is
// connected, admin queues, and I/O queues that have met no file, or where there is no
// ring. It ends without an error when the ring's loop is to go on.
func (q *queue) pollLoop() error {
	p := &poller{q: q}
	p.reader, p.writer = p.read, p.write
	var err error
	if p.raw, err = q.conn.SyscallConn(); err != nil {
		return fmt.Errorf("nvmeof: descriptor of a connection: %w", err)
	}
	for {
		if err := q.turn(); err != nil {
			// What was answered so far goes out, and the TermReq if there is one.
			_ = p.flush()
			return err
		}
		if q.full || p.drained {
			if err := p.flush(); err != nil {
				return err
			}
		}
		if q.ringPlan == ringWanted {
			return nil
		}
		if q.full {
			continue
		}
		if p.drained && p.fence != p.passed && !q.keepsAny() {
			p.passed = p.fence
			q.passFence(p.fence)
		}
		if err := p.await(); err != nil {
			return err
		}
	}
}

// poller is the loop's state.
type poller struct {
	q    *queue
	raw  syscall.RawConn
	send net.Buffers
	// read and write, made into closures once.
	reader, writer func(fd uintptr) bool

	// drained: all that has arrived was taken. fence is what had been asked for
	// before that was known.
	drained       bool
	fence, passed uint64
	deadline      time.Time // that the connection has

	n       int // what the last read returned
	err     error
	rest    []byte // what write has still to send
	werr    error
	limited bool // the connection has a deadline for writing
}

// await takes more input. When there is none it first lets go of what is to be
// sent, and only then waits.
func (p *poller) await() error {
	q := p.q
	if p.drained {
		q.waitsInPDU()
	}
	if p.drained || q.woken.Load() {
		// The deadline first, then the look at what wake has set before it changed it.
		if err := p.setDeadline(q.deadline()); err != nil {
			return err
		}
		if q.woken.Load() || q.closing.Load() != nil {
			return p.poll()
		}
	}
	err := p.raw.Read(p.reader)
	switch {
	case timedOut(err):
		p.deadline = longAgo
		if err := q.due(); err != nil {
			return err
		}
		return p.poll()
	case err != nil:
		return err
	}
	return p.took()
}

// read is called when there may be input, and returns whether to stop waiting.
func (p *poller) read(fd uintptr) bool {
	p.n, p.err = p.try(fd)
	if p.err != unix.EAGAIN {
		return true
	}
	wait := p.drained
	p.drained = true
	return !wait
}

// poll looks for input without waiting. It comes before everything that others ask
// for: a connection that its host has closed carries out nothing that it holds.
func (p *poller) poll() error {
	p.fence = p.q.fenceAsked()
	if err := p.raw.Control(func(fd uintptr) {
		p.n, p.err = p.try(fd)
		p.drained = p.err == unix.EAGAIN
	}); err != nil {
		return err
	}
	return p.took()
}

func (p *poller) try(fd uintptr) (n int, err error) {
	for {
		n, err = unix.Read(int(fd), p.q.inputSpace())
		if err != unix.EINTR {
			return n, err
		}
	}
}

// took books what a read has returned.
func (p *poller) took() error {
	switch {
	case p.err == unix.EAGAIN:
		return nil
	case p.err != nil:
		return fmt.Errorf("reading: %w", p.err)
	case p.n == 0:
		return errPeerGone
	}
	p.drained = p.n < len(p.q.inputSpace())
	p.q.received(p.n)
	return nil
}

// setDeadline sets when a wait for input ends.
func (p *poller) setDeadline(t time.Time) error {
	if t.Equal(p.deadline) {
		return nil
	}
	p.deadline = t
	return p.q.conn.SetReadDeadline(t)
}

// flush sends what there is to send, and waits for a peer that does not take it,
// but not for ever.
func (p *poller) flush() error {
	q := p.q
	if q.out.empty() {
		return nil
	}
	q.out.cut()
	var err error
	if len(q.out.parts) == 1 {
		p.rest = q.out.parts[0]
		if err = p.raw.Write(p.writer); err == nil {
			err = p.werr
		}
	} else if err = p.limit(); err == nil {
		p.send = q.out.parts
		_, err = p.send.WriteTo(q.conn)
	}
	if p.limited && err == nil {
		p.limited = false
		err = q.conn.SetWriteDeadline(time.Time{})
	}
	q.sent(&q.out)
	if timedOut(err) {
		return fmt.Errorf("the host has not taken what it was sent for %v", q.target.opt.Patience)
	}
	return err
}

// limit gives what is being sent a time limit.
func (p *poller) limit() error {
	p.limited = true
	return p.q.conn.SetWriteDeadline(time.Now().Add(p.q.target.opt.Patience))
}

// write sends without waiting, as it can most often, and returns whether to stop
// waiting. Only a wait has a deadline, which is not for nothing to set.
func (p *poller) write(fd uintptr) bool {
	for p.werr = nil; len(p.rest) > 0; {
		n, err := unix.Write(int(fd), p.rest)
		switch err {
		case nil:
			p.rest = p.rest[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			if !p.limited {
				p.werr = p.limit()
			}
			return p.werr != nil
		default:
			p.werr = err
			return true
		}
	}
	return true
}
