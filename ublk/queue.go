package ublk

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"sync/atomic"
	"unsafe"

	"github.com/swapback/swapback/ublk/uring"
	"golang.org/x/sys/unix"
)

// Registered files of a queue's ring.
const (
	fileChar    = 0 // /dev/ublkcN
	fileBackend = 1
	fileWake    = 2 // eventfd
)

// What a completion belongs to: the high half of its user data; the low half is
// the tag.
const (
	kindFetch   = 1 << 32
	kindBackend = 2 << 32
	kindWake    = 3 << 32
	kindMask    = 0xffffffff << 32
)

// maxTries bounds how often one backend operation that answers EAGAIN is issued
// again before its client sees EIO.
const maxTries = 1000

// queueConfig is what a queue needs to know; the device owns the descriptors.
type queueConfig struct {
	id, depth int
	ioBytes   int
	charFD    int
	backend   *Backend
	gate      *gate
	log       *slog.Logger
	// changed is told, without waiting, when a queue of a closed gate has
	// acknowledged it or has nothing left in flight.
	changed chan struct{}
}

// queue serves one hardware queue. All fields but the published ones belong to
// its thread, which serves nothing else: the driver accepts commits only from
// the task that fetched.
type queue struct {
	queueConfig

	ring       *uring.Ring
	descs      []ioDesc // shared with the driver, read-only
	descMem    []byte
	mem        []byte // one I/O buffer per tag
	registered bool   // the buffers are registered with the ring
	wakeFD     int

	slots   []slot
	held    []uint16 // tags kept by the gate, oldest first; capacity depth
	word    uint64   // the gate's word of this turn
	live    int      // tags that the driver has not aborted
	flight  int      // tags at the backend
	current int      // tag being worked on, for a panic; else -1
	err     error    // first command that failed other than by ABORT
	req     Request  // handed to a Handler, used again and again

	// Published at the end of each turn; see gate. The count is
	// stats.inFlight.
	acked atomic.Uint64
	stats counters
}

// slot is a tag's request while the server has it.
type slot struct {
	off, n, done uint64 // bytes
	op           Op
	flags        uint32
	tries        uint16
	mode         uint8 // which fallocate mode is being tried
}

// ackEnded is the acknowledgement of a queue that has ended; no gate word ever
// has this value.
const ackEnded = math.MaxUint64

func newQueue(c queueConfig) (*queue, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("ublk: queue %d: eventfd: %w", c.id, err)
	}
	return &queue{
		queueConfig: c,
		wakeFD:      fd,
		slots:       make([]slot, c.depth),
		held:        make([]uint16, 0, c.depth),
		word:        c.gate.word.Load(),
		current:     -1,
	}, nil
}

// wake makes the queue look at the gate. The device serialises it with
// closeWake.
func (q *queue) wake() {
	if q.wakeFD < 0 {
		return
	}
	// It cannot fail before the counter holds 2^64 wakes.
	_, _ = unix.Write(q.wakeFD, wakeOne[:])
}

func (q *queue) closeWake() {
	_ = unix.Close(q.wakeFD)
	q.wakeFD = -1
}

// wakeSink is where the kernel puts the eventfd counts, which nobody reads. It
// is one static variable because such a read may still be pending when its
// queue has ended: memory that could be freed would not do.
var wakeSink [8]byte

// wakeOne is what a wake adds to the eventfd. Never written to.
var wakeOne = [8]byte{0: 1}

// setup builds the ring on the queue's own thread and puts one FETCH per tag
// into it.
func (q *queue) setup() error {
	// Refused without CAP_SYS_RESOURCE, and only a help then.
	_ = SetIOFlusher()
	page := os.Getpagesize()
	var err error
	q.descMem, err = unix.Mmap(q.charFD, descOffset(q.id, page), descLength(q.depth, page),
		unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("mapping the I/O descriptors: %w", err)
	}
	q.descs = unsafe.Slice((*ioDesc)(unsafe.Pointer(&q.descMem[0])), q.depth)
	return q.setupRing()
}

// setupRing makes the buffers and the ring.
func (q *queue) setupRing() error {
	var err error
	// Not heap: the garbage collector must not own memory that the kernel
	// writes to, and touching it must not depend on the runtime.
	q.mem, err = unix.Mmap(-1, 0, q.depth*q.ioBytes,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("reserving %d I/O buffers of %d bytes: %w", q.depth, q.ioBytes, err)
	}
	_ = unix.Madvise(q.mem, unix.MADV_HUGEPAGE)
	// Best effort, and without touching the pages: swapping these out could go
	// to the very device that they serve.
	_, _, _ = unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(&q.mem[0])), uintptr(len(q.mem)), unix.MLOCK_ONFAULT)

	// Each tag has at most one entry in the ring, plus the wake.
	q.ring, err = uring.NewQueue(uint32(q.depth) + 2)
	if err != nil {
		return err
	}
	files := []int32{fileChar: int32(q.charFD), fileBackend: -1, fileWake: int32(q.wakeFD)}
	if q.backend.file != nil {
		files[fileBackend] = int32(q.backend.file.Fd())
		q.registerBuffers()
	}
	if err := q.ring.RegisterFiles(files); err != nil {
		return err
	}
	q.armWake()
	for tag := range q.depth {
		q.command(uint16(tag), ioFetchReq, 0)
	}
	q.live = q.depth
	if err := q.ring.Enter(0); err != nil {
		return err
	}
	if n := q.ring.Entries() - q.ring.Space(); n != 0 {
		return fmt.Errorf("the ring did not take %d of %d commands", n, q.depth)
	}
	return nil
}

// registerBuffers pins the buffers for reads and writes through the ring. Where
// that is not permitted (RLIMIT_MEMLOCK without CAP_IPC_LOCK) plain reads and
// writes do the same more slowly.
func (q *queue) registerBuffers() {
	bufs := make([][]byte, q.depth)
	for tag := range bufs {
		bufs[tag] = q.buffer(uint16(tag))
	}
	if err := q.ring.RegisterBuffers(bufs); err != nil {
		q.log.Warn("ublk I/O buffers are not registered; requests will be slower", "queue", q.id, "error", err)
		return
	}
	q.registered = true
}

func (q *queue) buffer(tag uint16) []byte {
	start := int(tag) * q.ioBytes
	return q.mem[start : start+q.ioBytes : start+q.ioBytes]
}

func (q *queue) bufferAddr(tag uint16) uintptr {
	return uintptr(unsafe.Pointer(&q.mem[int(tag)*q.ioBytes]))
}

// run serves until every tag was aborted (the device stops), or the gate says
// leave and nothing is in flight, or the ring breaks.
func (q *queue) run() error {
	for q.live > 0 {
		wait := uint32(1)
		if len(q.held) > 0 && (stateOf(q.word) == gateServe || stateOf(q.word) == gateRefuse) {
			wait = 0 // a panic kept the last turn from getting through the list
		}
		if err := q.ring.Enter(wait); err != nil {
			return err
		}
		q.turn()
		q.publish()
		if stateOf(q.word) == gateLeave && q.flight == 0 {
			// Submit the last commits. What they fetch stays uncommitted, like
			// what is held: the driver gives it to the successor.
			return q.ring.Enter(0)
		}
	}
	return q.err
}

// turn handles every completion that is there. Nothing in it allocates, locks
// or waits, unless a Handler does.
func (q *queue) turn() {
	defer q.recovered()
	q.observeGate()
	for c := q.ring.Peek(); c != nil; c = q.ring.Peek() {
		data, res := c.UserData, c.Res
		q.ring.Advance()
		tag := uint16(data)
		switch data & kindMask {
		case kindFetch:
			q.fetched(tag, res)
		case kindBackend:
			q.completed(tag, res)
		case kindWake:
			q.armWake()
		}
	}
}

// recovered answers the request that a panic interrupted; the others are in
// the completion ring still, or at the backend, and the loop goes on.
func (q *queue) recovered() {
	p := recover()
	if p == nil {
		return
	}
	q.stats.panics.Add(1)
	q.log.Error("ublk queue panicked; the request gets EIO", "queue", q.id, "panic", p, "stack", string(debug.Stack()))
	if q.current >= 0 {
		q.answer(uint16(q.current), -int32(unix.EIO))
	}
}

func (q *queue) observeGate() {
	word := q.gate.word.Load()
	if word == q.word && len(q.held) == 0 {
		return
	}
	q.word = word
	switch stateOf(word) {
	case gateServe:
		// Taken off the list one by one, so that a panic loses none: the next
		// turn goes on with the rest.
		for len(q.held) > 0 {
			tag := q.takeHeld()
			q.issue(tag)
		}
	case gateRefuse:
		for len(q.held) > 0 {
			tag := q.takeHeld()
			q.refuse(tag)
		}
	}
}

// takeHeld moves the list up in place: it must keep its capacity, or a later
// append would allocate. A gate that opens may cost this.
func (q *queue) takeHeld() uint16 {
	tag := q.held[0]
	copy(q.held, q.held[1:])
	q.held = q.held[:len(q.held)-1]
	return tag
}

// publish must come after turn; the order of the two stores matters (see gate).
func (q *queue) publish() {
	q.stats.heldNow.Store(uint64(len(q.held)))
	q.stats.inFlight.Store(uint64(q.flight))
	if stateOf(q.word) == gateServe {
		return
	}
	if q.acked.Swap(q.word) != q.word || q.flight == 0 {
		tell(q.changed)
	}
}

// tell puts a token into a channel of one, unless one is there already.
func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// serve is the queue's life, on a thread of its own. ready hears once whether
// the FETCHes are in.
func (q *queue) serve(ready chan<- error) error {
	if err := q.setup(); err != nil {
		err = fmt.Errorf("ublk: queue %d: %w", q.id, err)
		ready <- err
		return err
	}
	ready <- nil
	if err := q.run(); err != nil {
		return fmt.Errorf("ublk: queue %d: %w", q.id, err)
	}
	return nil
}

// end gives everything back, once the queue's thread is gone (see onOwnThread),
// so that the driver delivers nothing into the buffers any more. Those with
// backend I/O in flight, which is so only after the ring broke, stay mapped.
func (q *queue) end() {
	if q.ring != nil {
		q.ring.Close()
	}
	if q.mem != nil && q.flight == 0 {
		_ = unix.Munmap(q.mem)
	}
	if q.descMem != nil {
		_ = unix.Munmap(q.descMem)
	}
	q.stats.inFlight.Store(uint64(q.flight))
	q.stats.heldNow.Store(0)
	q.acked.Store(ackEnded)
	tell(q.changed)
}
