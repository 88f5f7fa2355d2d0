package nvmeof

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/wire"
)

// queueState is how far a connection has come.
type queueState uint8

const (
	stateInit    queueState = iota // ICReq has to come
	stateConnect                   // a Connect command has to come
	stateAdmin                     // an admin queue
	stateIO                        // an I/O queue
)

// queue is one connection, which is one queue of a controller. All fields but those
// under "others" belong to its goroutine, which does everything: it takes what has
// arrived, carries out command after command, and sends all answers at once when
// there is nothing left to take. Nothing in that allocates, locks or waits, on an
// I/O queue whose commands succeed, unless a Handler does.
type queue struct {
	target *Target
	port   *port
	conn   *net.TCPConn
	log    *slog.Logger

	state   queueState
	id      uint16
	ctrl    *controller // from Connect on
	digests wire.Digests
	hpda    uint8
	noFlow  bool // the host does not look at SQHD, and takes the SUCCESS flag
	size    int  // entries of the submission queue
	sqHead  int

	in       input
	out      output
	memory   []byte // mapped: the buffers of an I/O queue; see openMemory
	reserved int64  // bytes that count against Options.MaxMemory
	commands []command
	free     []uint16 // commands, the last used first
	held     []uint16 // commands kept by a gate, oldest first
	parked   []uint16 // commands that wait for a change map, oldest first
	flight   int      // commands at a backend
	auth     authentication
	aers     []uint16      // CIDs of Asynchronous Event Requests
	attached []*attachment // by NSID
	detached []*attachment // of namespaces that are gone
	scratch  []byte        // of Compare
	req      Request       // handed to a Handler, used again and again
	second   []byte        // buffer of another output, for the ring's loop
	ring     *ringLoop     // nil: the poller's loop runs
	ringPlan ringPlan

	taking  payload
	direct  bool // what is received goes to taking.left
	unsent  int  // bytes at the end of out that a Handler is filling
	current int  // command being worked on, for a panic; else -1
	full    bool // consume has stopped for want of room for answers

	began    time.Time
	heard    time.Time // of an admin queue: when a command came last
	partial  bool      // a PDU has come in part
	sincePDU time.Time // since when it has

	// others
	woken   atomic.Bool
	closing atomic.Pointer[string] // why it was hung up
	ended   chan struct{}
	fence   fence

	waking     sync.Mutex // guards the rest
	socket     int        // the ring's loop's own descriptor; -1: it does not run
	wakeFD     int        // its eventfd
	mail       []mail
	mailClosed bool
}

// ringPlan is whether a queue goes on with a ring.
type ringPlan uint8

const (
	ringUnneeded ringPlan = iota // there was no command for a file
	ringWanted                   // the poller's loop is to end, and the ring's to begin
	ringSettled                  // it has, or there is to be none
)

// payload is the data of a PDU that is being received.
type payload struct {
	command int // index; -1: none
	left    []byte
	all     []byte
	last    bool // it is the last of its R2T, or in a capsule
}

// phase is where a command is.
type phase uint8

const (
	phaseFree     phase = iota
	phaseCapsule        // its data is coming with it
	phaseTransfer       // an R2T is out
	phaseHeld
	phaseParked
	phaseBackend
	phaseOthers  // it waits for other queues, or goroutines; see mail
	phaseSending // its data waits to be sent
)

// command is one that the host has sent and that was not answered. Its index in the
// queue is the tag of its R2T.
type command struct {
	index  uint16
	sqe    wire.SQE
	phase  phase
	refuse wire.Status // decided before its data came: to be answered when it has
	data   []byte      // what came, or what is to be sent; from buffer
	got    uint32      // bytes of it that came
	buffer []byte      // MaxData bytes of the queue's memory
	att    *attachment
	heldAt time.Time

	// At the backend, in bytes; see the ring's loop.
	op           Op
	off, n, done uint64
	tries        uint16
	mode         uint8
	at           uint16 // range of a DSM command
}

// headerRoom is more than the headers of what one command is answered with: R2T,
// C2HData with padding and digests, CapsuleResp.
const headerRoom = 192

// Sizes of buffers that are not mapped, in which every connection begins.
const (
	smallInput  = 16 << 10
	smallOutput = adminDepth * headerRoom * 2
)

func newQueue(t *Target, conn *net.TCPConn, p *port) (*queue, error) {
	q := &queue{
		target: t, port: p, conn: conn, log: t.log.With("peer", conn.RemoteAddr().String()),
		in: input{buf: make([]byte, smallInput)}, out: output{buf: make([]byte, 0, smallOutput)},
		size: 1, taking: payload{command: -1}, current: -1,
		began: time.Now(), wakeFD: -1, socket: -1, ended: make(chan struct{}),
	}
	q.fence.changed = make(chan struct{})
	q.openCommands(1) // for the Connect
	if err := conn.SetNoDelay(true); err != nil {
		return nil, fmt.Errorf("nvmeof: connection from %v: %w", conn.RemoteAddr(), err)
	}
	return q, nil
}

// openCommands makes room for n commands.
func (q *queue) openCommands(n int) {
	q.commands = make([]command, n)
	q.free = make([]uint16, 0, n)
	for i := n - 1; i >= 0; i-- {
		q.commands[i].index = uint16(i)
		q.free = append(q.free, uint16(i))
	}
	q.held, q.parked = make([]uint16, 0, n), make([]uint16, 0, n)
	q.out.freed = make([]uint16, 0, n)
	q.out.parts = make([][]byte, 0, 2*n+2)
}

// Bytes of an I/O queue's buffers, beside its commands'.
const (
	ioInput  = 64 << 10
	ioOutput = 64 << 10 // and headerRoom for each command
)

func outputSize(commands int) int { return ioOutput + (commands*headerRoom+4095)&^4095 }

// queueMemory is the bytes that openMemory maps for a queue of n commands.
func (t *Target) queueMemory(n int) int { return ioInput + 2*outputSize(n) + n*t.opt.MaxData }

// openMemory gives an I/O queue its buffers, all in one mapping: what comes in, what
// goes out (twice: the one fills while the other is sent), and MaxData for each
// command. What was never touched takes no memory.
func (q *queue) openMemory() error {
	n, most := len(q.commands), q.target.opt.MaxData
	out := outputSize(n)
	mem, err := mapMemory(q.target.queueMemory(n))
	if err != nil {
		return err
	}
	q.memory = mem
	take := func(n int) []byte {
		b := mem[:n:n]
		mem = mem[n:]
		return b
	}
	in := take(ioInput)
	q.in = input{buf: in, w: copy(in, q.in.bytes())}
	old := q.out.buf
	q.out.buf = append(take(out)[:0], old...)
	q.second = take(out)[:0]
	for i := range q.commands {
		q.commands[i].buffer = take(most)
	}
	return nil
}

// serve is the connection's life.
func (q *queue) serve() {
	err := q.pollLoop()
	if err == nil && q.ringPlan == ringWanted {
		err = q.ringLoop()
	}
	if why := q.closing.Load(); why != nil {
		err = errors.New(*why)
	}
	var fault *wire.Fault
	if errors.As(err, &fault) && q.ring == nil {
		q.sayFarewell()
	}
	q.close(err)
}

// errPeerGone is the ordinary end.
var errPeerGone = errors.New("the host has closed the connection")

// close gives everything back. Nothing is at a backend.
func (q *queue) close(err error) {
	why := errPeerGone.Error()
	if err != nil && !isGone(err) {
		why = err.Error()
	}
	q.conn.Close()
	for _, a := range append(q.attached, q.detached...) {
		// In flight only if the ring has broken: then nobody knows when it lands, and the
		// namespace can never again be said to be drained.
		if a != nil && a.inFlight.Load() == 0 {
			a.ns.gate.detach(a, &a.ns.total)
		}
	}
	if q.memory != nil {
		q.in, q.out = input{}, output{}
		q.commands = nil
		_ = unix.Munmap(q.memory)
	}
	if q.scratch != nil {
		_ = unix.Munmap(q.scratch)
	}
	q.target.memory.Add(-q.reserved)
	level := slog.LevelWarn
	if isGone(err) || q.closing.Load() != nil {
		level = slog.LevelDebug
	}
	q.log.Log(context.Background(), level, "nvmeof: connection ended", "queue", q.id, "why", why)
	close(q.ended)
	q.closeMail()
	if q.ctrl != nil {
		q.ctrl.queueEnded(q, why)
	}
}

// isGone tells whether an error only says that the peer is no longer there.
func isGone(err error) bool {
	return errors.Is(err, errPeerGone) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// sayFarewell gives a TermReq the time to arrive: a connection that is closed with
// input unread is reset, and what was sent last is lost.
func (q *queue) sayFarewell() {
	if q.conn.CloseWrite() != nil || q.conn.SetReadDeadline(time.Now().Add(farewell)) != nil {
		return
	}
	rest := make([]byte, 4096)
	for range 1024 {
		if _, err := q.conn.Read(rest); err != nil || q.closing.Load() != nil {
			return
		}
	}
}

const farewell = time.Second

// hangUp makes the queue end, soon and from any goroutine. What it has at a backend
// is waited for; what it has not carried out by then never will be.
func (q *queue) hangUp(why string) {
	if !q.closing.CompareAndSwap(nil, &why) {
		return
	}
	q.shutDown()
	q.wake()
}

// shutDown has whatever waits for the peer, to read or to write, wait no longer.
func (q *queue) shutDown() {
	q.waking.Lock()
	defer q.waking.Unlock()
	if q.socket >= 0 {
		_ = unix.Shutdown(q.socket, unix.SHUT_RDWR)
		return
	}
	_ = q.conn.CloseRead()
	_ = q.conn.CloseWrite()
}

// wake makes the queue look at its gates and events, from any goroutine.
func (q *queue) wake() {
	q.woken.Store(true)
	q.waking.Lock()
	defer q.waking.Unlock()
	if q.wakeFD >= 0 {
		_, _ = unix.Write(q.wakeFD, wakeOne[:])
		return
	}
	_ = q.conn.SetReadDeadline(longAgo)
}

var (
	longAgo = time.Unix(1, 0)
	wakeOne = [8]byte{0: 1}
)

// turn does what is to be done after something has arrived, or somebody has called
// wake.
func (q *queue) turn() (err error) {
	defer q.recovered(&err)
	if why := q.closing.Load(); why != nil {
		return errors.New(*why)
	}
	if q.auth.over != nil {
		return q.auth.over
	}
	if q.woken.Load() {
		q.woken.Store(false)
		q.tellEvents()
		q.readMail()
		q.lookAtGates()
		q.lookAtParked()
	}
	return q.consume()
}

// recovered answers the command that a panic interrupted; the connection goes on.
func (q *queue) recovered(err *error) {
	p := recover()
	if p == nil {
		return
	}
	q.log.Error("nvmeof: panic; the command gets Internal Error", "queue", q.id, "panic", p, "stack", stack())
	if q.current < 0 {
		*err = fmt.Errorf("panic: %v", p)
		return
	}
	q.out.undo(q.unsent)
	q.unsent = 0
	c := &q.commands[q.current]
	if c.phase == phaseBackend {
		q.flight--
		c.att.leave()
	}
	q.current = -1
	q.fail(c, wire.InternalError)
	// Whatever was being gone through has not been to its end.
	q.full = true
	q.woken.Store(true)
}

// deadline is when something is due without anything arriving; zero: never.
func (q *queue) deadline() (due time.Time) {
	earlier := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	switch {
	case q.state < stateAdmin:
		earlier(q.began.Add(q.target.opt.Handshake))
	case q.state == stateAdmin && q.ctrl.kato > 0:
		earlier(q.heard.Add(2 * q.ctrl.kato))
	}
	if late := q.authenticationDue(); !late.IsZero() {
		earlier(late)
	}
	if q.partial {
		earlier(q.sincePDU.Add(q.target.opt.Patience))
	}
	if len(q.held) > 0 {
		earlier(q.commands[q.held[0]].heldAt.Add(q.target.opt.HoldFor))
	}
	return due
}

// due does what is due. The error ends the connection.
func (q *queue) due() error {
	now := time.Now()
	opt := &q.target.opt
	switch {
	case q.state < stateAdmin && now.Sub(q.began) >= opt.Handshake:
		return fmt.Errorf("no queue was connected within %v", opt.Handshake)
	case q.state == stateAdmin && q.ctrl.kato > 0 && now.Sub(q.heard) >= 2*q.ctrl.kato:
		return fmt.Errorf("keep alive expired: nothing was heard of the host for %v", now.Sub(q.heard).Round(time.Millisecond))
	case !q.authenticationDue().IsZero() && !now.Before(q.authenticationDue()):
		return q.notAuthenticated()
	case q.partial && now.Sub(q.sincePDU) >= opt.Patience:
		return fmt.Errorf("the host has not sent the rest of a PDU for %v", opt.Patience)
	}
	q.expireHeld(now)
	return nil
}

// waitsInPDU notes whether the wait for input begins in the middle of a PDU.
func (q *queue) waitsInPDU() {
	if q.in.r == q.in.w && q.taking.command < 0 {
		q.partial = false
	} else if !q.partial {
		q.partial, q.sincePDU = true, time.Now()
	}
}

// timedOut tells a deadline that has passed from other errors.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
