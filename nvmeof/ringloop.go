package nvmeof

import (
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/wire"
	"github.com/swapback/swapback/ublk/uring"
)

// ringLoop serves an I/O queue that has met a file, by a ring of its own on a thread of
// its own: one system call submits what the disk is to do and what the host is to get, and waits
// for whichever comes first, from the one or the other.
type ringLoop struct {
	q    *queue
	ring *uring.Ring
	fd   int // of the socket, and the queue's own

	receiving bool // a receive is under way
	asked     int  // for so many bytes
	sends     bool // a send is
	sending   output
	drained   bool // the last receive has taken all there was
	unsent    [][]byte
	iov       []unix.Iovec
	msg       unix.Msghdr
	sentAt    time.Time // since when the host has taken nothing
	waking    bool      // the read of the eventfd is under way
	keeps     bool      // one of the reserved processors of Go's scheduler
	pinned    int       // so many commands have the beginning of their buffer registered
	home      home
	ending    bool  // what completes is not answered any more
	err       error // of the connection

	fence, passed uint64
}

// What a completion belongs to; the low half is a command's index.
const (
	kindBackend = 1 << 32
	kindReceive = 2 << 32
	kindSend    = 3 << 32
	kindWake    = 4 << 32
	kindMask    = 0xffffffff << 32
)

// wakeSink is where the kernel puts the eventfd counts, which nobody reads.
var wakeSink [8]byte

// maxParts is how many pieces one send takes (UIO_MAXIOV).
const maxParts = 1024

// maxTries bounds how often one backend operation that answers EAGAIN is issued
// again before the command fails.
const maxTries = 1000

// ringLoop is the rest of the queue's life, unless there can be no ring.
func (q *queue) ringLoop() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	q.ringPlan = ringSettled
	n := len(q.commands)
	r := &ringLoop{q: q, iov: make([]unix.Iovec, 0, min(2*n+2, maxParts))}
	r.sending = output{buf: q.second, parts: make([][]byte, 0, 2*n+2), freed: make([]uint16, 0, n)}
	if err := r.open(); err != nil {
		q.log.Warn("nvmeof: no io_uring; files are served by system calls that wait", "queue", q.id, "err", err)
		return q.pollLoop()
	}
	q.ring = r
	r.home.begin()
	r.err = r.run()
	r.end()
	r.home.leave()
	return r.err
}

func (r *ringLoop) open() error {
	q := r.q
	raw, err := q.conn.SyscallConn()
	if err != nil {
		return err
	}
	var dupErr error
	if err := raw.Control(func(fd uintptr) {
		r.fd, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return err
	}
	if dupErr != nil {
		return fmt.Errorf("another descriptor of the socket: %w", dupErr)
	}
	wakeFD, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		_ = unix.Close(r.fd)
		return fmt.Errorf("eventfd: %w", err)
	}
	n := uint32(len(q.commands) + 4)
	if r.ring, err = uring.NewQueue(n, 2*n); err != nil {
		_ = unix.Close(wakeFD)
		_ = unix.Close(r.fd)
		return err
	}
	r.pin()
	q.waking.Lock()
	q.wakeFD, q.socket = wakeFD, r.fd
	q.waking.Unlock()
	// The poller must let go of the socket: it would wake a thread for every segment
	// that arrives.
	_ = q.conn.Close()
	q.woken.Store(true) // somebody may have called before
	return nil
}

// What is registered with the ring, 128 KiB of memory that each queue holds for its life:
// the commands that were used last are used first, so those of few at a time are among
// the first, and most of what is small fits a page.
const (
	pinCommands = 32
	pinSize     = 4 << 10
)

// pin registers the beginnings of the first commands' buffers. The kernel then need not
// find, pin and mark their pages for every transfer. Where there is a limit on locked
// memory it may refuse, and nothing is lost but that.
func (r *ringLoop) pin() {
	bufs := make([][]byte, 0, pinCommands)
	for i := range r.q.commands[:min(len(r.q.commands), pinCommands)] {
		b := r.q.commands[i].buffer
		bufs = append(bufs, b[:min(len(b), pinSize)])
	}
	if r.ring.RegisterBuffers(bufs) == nil {
		r.pinned = len(bufs)
	}
}

// isPinned tells whether the data of a command lies in what is registered.
func (r *ringLoop) isPinned(c *command) bool { return int(c.index) < r.pinned && c.n <= pinSize }

// run serves until the connection ends.
func (r *ringLoop) run() error {
	q := r.q
	for {
		if q.woken.Load() {
			r.fence = q.fenceAsked()
		}
		if err := q.turn(); err != nil {
			return err
		}
		if err := r.send(); err != nil {
			return err
		}
		if q.full && !r.sends {
			continue // there is room now
		}
		r.receive()
		r.watch()
		if err := r.wait(); err != nil {
			return err
		}
		n, err := r.reap()
		if err != nil {
			return err
		}
		r.keep(n > 0)
		if r.fence != r.passed {
			r.tryFence()
		}
	}
}

// entry is a free one; a full ring is submitted first.
func (r *ringLoop) entry() *uring.SQE {
	for {
		if e := r.ring.NextSQE(); e != nil {
			return e
		}
		if err := r.ring.Enter(0); err != nil {
			panic(fmt.Sprintf("the ring takes nothing: %v", err)) // it is broken
		}
	}
}

func addr(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// receive asks for more input, unless there is no room for the answers to it.
func (r *ringLoop) receive() {
	if r.receiving || r.q.full {
		return
	}
	space := r.q.inputSpace()
	e := r.entry()
	e.PrepRecv(int32(r.fd), addr(space), uint32(len(space)), r.drained)
	e.UserData = kindReceive
	r.receiving, r.asked = true, len(space)
}

// watch keeps a read of the eventfd under way.
func (r *ringLoop) watch() {
	if r.waking {
		return
	}
	e := r.entry()
	e.PrepRead(int32(r.q.wakeFD), addr(wakeSink[:]), 8, ^uint64(0))
	e.UserData = kindWake
	r.waking = true
}

// send sends what there is. Nearly always the socket takes all of it at once, which is
// cheaper by a system call of its own than by the ring, whose word that it is done would
// have to be waited for. What it does not take the ring sends, while the next output
// fills.
func (r *ringLoop) send() error {
	q := r.q
	if r.sends || q.out.empty() {
		return nil
	}
	q.out.cut()
	r.unsent = q.out.parts
	for len(r.unsent) > 0 {
		r.gather()
		n, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(r.fd), uintptr(unsafe.Pointer(&r.msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch e {
		case 0:
			r.took(int(n))
		case unix.EINTR:
		case unix.EAGAIN:
			q.out, r.sending = r.sending, q.out
			r.sends, r.sentAt = true, time.Now()
			r.sendRest()
			return nil
		default:
			return fmt.Errorf("sending: %w", e)
		}
	}
	q.sent(&q.out)
	return nil
}

// gather makes the message of what is unsent.
func (r *ringLoop) gather() {
	r.iov = r.iov[:0]
	for _, part := range r.unsent[:min(len(r.unsent), maxParts)] {
		r.iov = append(r.iov, unix.Iovec{Base: unsafe.SliceData(part), Len: uint64(len(part))})
	}
	r.msg = unix.Msghdr{Iov: unsafe.SliceData(r.iov), Iovlen: uint64(len(r.iov))}
}

// took takes n bytes off what is unsent.
func (r *ringLoop) took(n int) {
	for len(r.unsent) > 0 && n >= len(r.unsent[0]) {
		n -= len(r.unsent[0])
		r.unsent = r.unsent[1:]
	}
	if n > 0 {
		r.unsent[0] = r.unsent[0][n:]
	}
}

// sendRest has the ring send.
func (r *ringLoop) sendRest() {
	r.gather()
	e := r.entry()
	e.PrepSendMsg(int32(r.fd), uintptr(unsafe.Pointer(&r.msg)), unix.MSG_WAITALL|unix.MSG_NOSIGNAL)
	e.UserData = kindSend
}

// fencePause is between two looks at whether a fence can be passed.
const fencePause = time.Millisecond

// wait submits, and waits for a completion or until something is due.
func (r *ringLoop) wait() error {
	q := r.q
	if r.receiving {
		q.waitsInPDU()
	}
	if r.fence != r.passed {
		// Look again soon: what it still waits for need not complete anything.
		if err := r.ring.EnterTimeout(1, fencePause); err != uring.ErrTimeout {
			return err
		}
		return nil
	}
	due := q.deadline()
	if r.sends {
		if late := r.sentAt.Add(q.target.opt.Patience); due.IsZero() || late.Before(due) {
			due = late
		}
	}
	if due.IsZero() {
		if r.keeps {
			return r.ring.EnterRaw(1)
		}
		return r.ring.Enter(1)
	}
	err := r.ring.EnterTimeout(1, max(time.Until(due), 0))
	if err != uring.ErrTimeout {
		return err
	}
	if r.sends && time.Since(r.sentAt) >= q.target.opt.Patience {
		return fmt.Errorf("the host has not taken what it was sent for %v", q.target.opt.Patience)
	}
	return q.due()
}

// keep takes one of the processors that are reserved for those who wait briefly, or
// gives it back; see uring.ReserveProcs.
func (r *ringLoop) keep(busy bool) {
	switch {
	case busy && !r.keeps:
		r.keeps = uring.KeepProc()
	case !busy && r.keeps:
		r.keeps = false
		uring.ReturnProc()
	}
}

// reap takes all completions that are there, and says how many. The error is the
// connection's.
func (r *ringLoop) reap() (n int, err error) {
	defer r.q.recovered(&err)
	for c := r.ring.Peek(); c != nil; c = r.ring.Peek() {
		data, res := c.UserData, c.Res
		r.ring.Advance()
		n++
		switch data & kindMask {
		case kindBackend:
			r.completed(&r.q.commands[uint16(data)], res)
		case kindReceive:
			r.receiving = false
			err = r.received(res, err)
		case kindSend:
			err = r.sendEnded(res, err)
		case kindWake:
			r.waking = false
		}
	}
	return n, err
}

func (r *ringLoop) received(res int32, err error) error {
	switch e := unix.Errno(-res); {
	case res == 0:
		return errPeerGone
	case res > 0:
		r.drained = int(res) < r.asked
		r.q.received(int(res))
		r.home.received(r.fd, len(r.q.commands)-len(r.q.free))
	case e != unix.EAGAIN && e != unix.EINTR:
		return fmt.Errorf("receiving: %w", e)
	}
	return err
}

func (r *ringLoop) sendEnded(res int32, err error) error {
	switch e := unix.Errno(-res); {
	case res >= 0 || e == unix.EAGAIN || e == unix.EINTR:
		if r.took(int(max(res, 0))); len(r.unsent) > 0 {
			r.sentAt = time.Now()
			r.sendRest()
			return err
		}
		r.sends = false
		r.q.sent(&r.sending)
	default:
		r.sends = false
		return fmt.Errorf("sending: %w", e)
	}
	return err
}

// tryFence tells those who wait that all is carried out that had arrived when they
// asked, if it is so.
func (r *ringLoop) tryFence() {
	q := r.q
	if q.flight > 0 || q.keepsAny() || q.full || !r.receiving {
		return
	}
	// Nothing in the socket, and then no receive that has taken something.
	if n, err := unix.IoctlGetInt(r.fd, unix.TIOCINQ); err != nil || n > 0 {
		return
	}
	if r.ring.Enter(0) == nil && r.ring.Peek() == nil {
		r.passed = r.fence
		q.passFence(r.fence)
	}
}

// end waits until nothing is under way in the ring, and gives it back.
func (r *ringLoop) end() {
	q := r.q
	r.keep(false)
	if _, ok := errors.AsType[*wire.Fault](r.err); ok {
		r.sayFarewell()
	}
	q.shutDown()
	q.wake()
	r.ending = true
	var err error
	for err == nil && (r.receiving || r.sends || r.waking || q.flight > 0) {
		if err = r.ring.Enter(1); err == nil {
			_, _ = r.reap()
		}
	}
	if err != nil {
		// Whatever is still under way may write to the buffers: they stay mapped.
		q.log.Error("nvmeof: the ring is broken", "queue", q.id, "err", err)
		q.memory = nil
	}
	q.waking.Lock()
	_ = unix.Close(q.wakeFD)
	_ = unix.Close(q.socket)
	q.wakeFD, q.socket = -1, -1
	q.waking.Unlock()
	_ = r.ring.Close()
}

// sayFarewell is queue.sayFarewell, by the ring. Whoever calls wake wants more than
// that this connection ends well.
func (r *ringLoop) sayFarewell() {
	q := r.q
	until := time.Now().Add(farewell)
	shut := false
	for q.closing.Load() == nil && !q.woken.Load() {
		if r.send() != nil {
			return
		}
		if !r.sends && !shut {
			shut = true
			_ = unix.Shutdown(r.fd, unix.SHUT_WR)
		}
		q.in.r, q.in.w, q.taking.command, q.full = 0, 0, -1, false
		r.receive()
		left := time.Until(until)
		if left <= 0 || r.ring.EnterTimeout(1, left) != nil {
			return
		}
		if _, err := r.reap(); err != nil {
			return
		}
	}
}
