package ublk

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"sync/atomic"

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
	kindFetch    = 1 << 32
	kindBackend  = 2 << 32
	kindWake     = 3 << 32
	kindCommit   = 4 << 32 // of a batch; the low half is its buffer
	kindRegister = 5 << 32
	kindIgnored  = 6 << 32
	kindPiece    = 7 << 32 // of a request; bits 16 to 31 are its number
	kindMask     = 0xffffffff << 32
)

// maxTries bounds how often one backend operation that answers EAGAIN is issued
// again before its client sees EIO.
const maxTries = 1000

// queueConfig is what a queue needs to know; the device owns the descriptors.
type queueConfig struct {
	id, depth int
	ioBytes   int
	charFD    int
	path      DataPath
	cpus      unix.CPUSet // that submit to the queue; none: not known
	backend   *Backend
	gate      *gate
	log       *slog.Logger
	// changed is told, without waiting, when a queue of a closed gate has
	// acknowledged it or has nothing left in flight.
	changed  chan struct{}
	rouse    func(*queue) // has the queue take a turn; from any goroutine
	failures *failures
	// broke is told, on the queue's thread, of the first error after which some
	// request would wait for ever.
	broke                  func(error)
	ungated, unregistrable bool // see Options
}

// queue serves one hardware queue. All fields but the published ones belong to
// its thread, which serves nothing else: the driver accepts commits only from
// the task that fetched.
type queue struct {
	queueConfig

	ring       *uring.Ring
	descs      []ioDesc // shared with the driver, read-only
	descMem    []byte
	mem        []byte // copy path: one I/O buffer per tag
	registered bool   // reads and writes name a registered buffer
	wakeFD     int
	maxPiece   uint64   // bytes that the backend takes at once; 0: any
	keeps      bool     // one of the reserved processors
	batch      *batch   // nil: one command per request
	answers    *answers // of an AsyncHandler; nil: the backend is none

	slots   []slot
	held    []uint16   // tags kept by the gate, oldest first; capacity depth
	parked  []uint16   // tags that wait for the change map, oldest first; capacity depth
	word    uint64     // the gate's word of this turn
	changes *ChangeMap // as of that word; nil: none
	live    int        // commands that fetch and that the driver has not aborted
	flight  int        // tags at the backend
	current int        // tag being worked on, for a panic; else -1
	err     error      // see fail
	req     Request    // handed to a Handler, used again and again
	tally   tally

	unparking int         // how many of those parked are to be looked at
	unpark    atomic.Bool // it is worth looking at them

	// Published at the end of each turn; see gate. The count is
	// stats.inFlight.
	acked           atomic.Uint64
	stats           counters
	pubHeld, pubFly int // what stats.heldNow and stats.inFlight say
}

// slot is a tag's request while the server has it.
type slot struct {
	off, n, done uint64 // bytes
	op           Op
	flags        uint32
	tries        uint16
	mode         uint8 // which fallocate mode is being tried
	manual       bool  // the server has to register the request's pages
	waited       bool  // for the change map

	piece   uint64 // bytes of one piece, when the request is cut
	pieces  uint16 // of them at the backend
	redoing bool   // one of them failed or came short: do the whole again
}

// ackEnded is the acknowledgement of a queue that has ended; no gate word ever
// has this value.
const ackEnded = math.MaxUint64

func newQueue(c queueConfig) (*queue, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("ublk: queue %d: eventfd: %w", c.id, err)
	}
	q := &queue{
		queueConfig: c,
		wakeFD:      fd,
		maxPiece:    maxPiece(c.backend),
		slots:       make([]slot, c.depth),
		held:        make([]uint16, 0, c.depth),
		parked:      make([]uint16, 0, c.depth),
		word:        c.gate.word.Load(),
		changes:     c.gate.changes.Load(),
		current:     -1,
	}
	if c.backend != nil && c.backend.async != nil {
		q.answers = newAnswers(c.depth, fd)
	}
	return q, nil
}

// maxPiece is whole blocks of at least a page.
func maxPiece(b *Backend) uint64 {
	if b == nil || b.limits.MaxIOSize == 0 {
		return 0
	}
	block := max(uint64(b.limits.LogicalBlockSize), 4096)
	return max(uint64(b.limits.MaxIOSize)&^(block-1), block)
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

// run serves until every tag was aborted (the device stops), or the gate says
// leave and nothing is in flight, or the ring breaks.
func (q *queue) run() error {
	defer q.rest()
	for q.live > 0 {
		wait := q.flush() + 1
		if q.interrupted() {
			wait = 0
		}
		if err := q.enter(wait); err != nil {
			return err
		}
		if q.turn() > int(wait)-1 {
			q.strive()
		} else {
			q.rest()
		}
		q.publish()
		if stateOf(q.word) == gateLeave && q.flight == 0 {
			// Submit the last commits. What they fetch stays uncommitted, like
			// what is held: the driver gives it to the successor.
			q.flush()
			if err := q.ring.Enter(0); err != nil || !q.unflushed() {
				return cmp.Or(q.err, err)
			}
		}
	}
	return q.err
}

// enter submits and waits, as briefly as is fair to the other goroutines.
func (q *queue) enter(wait uint32) error {
	if q.keeps && stateOf(q.word) == gateServe {
		return q.ring.EnterRaw(wait)
	}
	return q.ring.Enter(wait)
}

// strive: there are requests, and most likely more of them soon.
func (q *queue) strive() {
	if !q.keeps {
		q.keeps = uring.KeepProc()
	}
}

// rest: the wait was long.
func (q *queue) rest() {
	if q.keeps {
		q.keeps = false
		uring.ReturnProc()
	}
}

// turn handles every completion that is there, and says how many. Nothing in it
// allocates, locks or waits, unless a Handler does.
func (q *queue) turn() (n int) {
	defer q.recovered()
	q.observeGate()
	q.takeArrived()
	if q.answers != nil {
		q.takeAnswers()
	}
	for c := q.ring.Peek(); c != nil; c = q.ring.Peek() {
		data, res, flags := c.UserData, c.Res, c.Flags
		q.ring.Advance()
		n++
		tag := uint16(data)
		switch data & kindMask {
		case kindBackend:
			q.completed(tag, res)
		case kindPiece:
			q.pieceCompleted(tag, uint16(data>>16), res)
		case kindFetch:
			if q.batch != nil {
				q.fetchedBatch(res, flags)
			} else if q.fetchedOK(tag, res) {
				q.fetched(tag)
			}
		case kindCommit:
			q.committed(tag, res)
		case kindRegister:
			q.pagesRegistered(tag, res)
		case kindWake:
			q.armWake()
		}
	}
	return n
}

// interrupted says that a panic kept the last turn from getting through a list.
func (q *queue) interrupted() bool {
	if q.batch != nil && q.batch.next < len(q.batch.arrived) || q.answers != nil && q.answers.next < len(q.answers.taken) {
		return true
	}
	return (len(q.held) > 0 || q.unparking > 0) && (stateOf(q.word) == gateServe || stateOf(q.word) == gateRefuse)
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
	if !q.ungated {
		q.observeWord()
	}
	if len(q.parked) > 0 && (stateOf(q.word) == gateServe || stateOf(q.word) == gateRefuse) {
		q.takeParked()
	}
}

func (q *queue) observeWord() {
	word := q.gate.word.Load()
	if word == q.word && len(q.held) == 0 {
		return
	}
	if word != q.word {
		q.word, q.changes = word, q.gate.changes.Load()
		// There may be another map now, or none that wakes.
		q.unpark.Store(true)
	}
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

// publish must come after turn; the order of the count and the acknowledgement
// matters (see gate).
func (q *queue) publish() {
	q.tally.publish(&q.stats)
	if q.pubHeld != len(q.held) {
		q.pubHeld = len(q.held)
		q.stats.heldNow.Store(uint64(q.pubHeld))
	}
	if q.pubFly != q.flight {
		q.pubFly = q.flight
		q.stats.inFlight.Store(uint64(q.flight))
	}
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
	return q.work()
}

// work is run, whose error it tells at once: the other queues may go on for long.
func (q *queue) work() error {
	err := q.run()
	if err == nil {
		return nil
	}
	q.fail(err)
	return fmt.Errorf("ublk: queue %d: %w", q.id, err)
}

// fail keeps the first error and tells it.
func (q *queue) fail(err error) {
	if q.err != nil {
		return
	}
	q.err = err
	q.broke(fmt.Errorf("ublk: queue %d: %w", q.id, err))
}

// end gives everything back, once the queue's thread is gone (see onOwnThread),
// so that the driver delivers nothing into the buffers any more. Those with
// backend I/O in flight, which is so only after the ring broke, stay mapped.
func (q *queue) end() {
	if q.answers != nil {
		q.answers.end()
	}
	if q.ring != nil {
		q.ring.Close()
	}
	if q.mem != nil && q.flight == 0 {
		_ = unix.Munmap(q.mem)
	}
	if q.descMem != nil {
		_ = unix.Munmap(q.descMem)
	}
	if q.batch != nil {
		q.batch.close()
	}
	q.stats.inFlight.Store(uint64(q.flight))
	q.stats.heldNow.Store(0)
	q.acked.Store(ackEnded)
	tell(q.changed)
}
