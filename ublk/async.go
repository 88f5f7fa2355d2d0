package ublk

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// AsyncHandler serves requests in this process without keeping the queue waiting:
// what it can't answer at once, as when it has to fetch from far away, it answers
// later and from any goroutine, in any order.
type AsyncHandler interface {
	// Begin starts a request, on the queue's thread, and must not wait. Either it
	// answers at once and returns false with 0 or an errno, as [Handler] does; or
	// it returns true, keeps r, and calls [AsyncRequest.Answer] exactly once,
	// perhaps before it has returned. Requests that are never answered hang their
	// clients and the device's Stop. A panic is answered with EIO.
	Begin(r *AsyncRequest) (later bool, e unix.Errno)
}

// AsyncRequest is a request as an [AsyncHandler] sees it. It and its Data are
// valid until it is answered.
type AsyncRequest struct {
	Request
	tag  uint16
	to   *answers
	open atomic.Bool // Answer counts

	// Of the queue's thread:
	begun bool // Begin was called, and nothing answered yet
	waits bool // Begin has returned, and Answer is to come
}

// Answer ends a request with 0 when all of it is done, else with an errno. It may
// be called from any goroutine.
func (r *AsyncRequest) Answer(e unix.Errno) {
	if r.open.CompareAndSwap(true, false) {
		r.to.add(answer{r, e})
	}
}

// NewAsyncBackend is [NewHandlerBackend] for an AsyncHandler. Its devices take the
// copy path.
func NewAsyncBackend(name string, h AsyncHandler, limits Limits) (*Backend, error) {
	if h == nil {
		return nil, errors.New("ublk: backend without a handler")
	}
	limits = limits.withDefaults()
	if err := limits.validate(); err != nil {
		return nil, fmt.Errorf("ublk: backend %s: %w", name, err)
	}
	return &Backend{path: name, async: h, limits: limits}, nil
}

// answers are on their way from an AsyncHandler's goroutines to a queue. It is the
// one place where a queue meets a lock; other backends have none of it.
type answers struct {
	reqs []*AsyncRequest // by tag; the queue's thread's

	mu     sync.Mutex
	come   []answer
	wakeFD int  // the queue's; open until ended
	ended  bool // nobody takes answers any more

	taken []answer // off come, by the queue's thread
	next  int      // the first of them that was not looked at yet
}

type answer struct {
	r *AsyncRequest
	e unix.Errno
}

func newAnswers(depth, wakeFD int) *answers {
	a := &answers{
		reqs: make([]*AsyncRequest, depth), wakeFD: wakeFD,
		come: make([]answer, 0, depth), taken: make([]answer, 0, depth),
	}
	for tag := range a.reqs {
		a.renew(uint16(tag))
	}
	return a
}

func (a *answers) renew(tag uint16) *AsyncRequest {
	a.reqs[tag] = &AsyncRequest{tag: tag, to: a}
	return a.reqs[tag]
}

// add hands an answer to the queue. One wake is enough for all that come until
// the queue takes them.
func (a *answers) add(n answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return
	}
	a.come = append(a.come, n)
	if len(a.come) == 1 {
		_, _ = unix.Write(a.wakeFD, wakeOne[:]) // as in queue.wake
	}
}

// end has answers forgotten: the queue is gone.
func (a *answers) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
}

// take exchanges the queue's own list, which is done with, for what has come.
func (a *answers) take() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.taken)
	a.taken, a.come, a.next = a.come, a.taken[:0], 0
}

// begin gives a request to the AsyncHandler.
func (q *queue) begin(tag uint16) {
	r := q.answers.reqs[tag]
	if r.begun {
		// A panic has interrupted Begin, and its client has got EIO. Whoever keeps
		// that request must not answer this one.
		r = q.answers.renew(tag)
	}
	r.Request = q.request(tag)
	r.begun = true
	r.open.Store(true)
	later, e := q.backend.async.Begin(r)
	if later {
		r.waits = true
		q.flight++
		q.current = -1
		return
	}
	r.begun = false
	r.open.Store(false)
	q.handled(tag, e)
}

// takeAnswers commits what AsyncHandlers have answered. Each answer is left behind
// before it is worked on, as in takeArrived.
func (q *queue) takeAnswers() {
	a := q.answers
	for {
		if a.next == len(a.taken) {
			if a.take(); len(a.taken) == 0 {
				return
			}
		}
		n := a.taken[a.next]
		a.next++
		if !n.r.waits {
			continue // of a Begin that has panicked
		}
		n.r.waits, n.r.begun = false, false
		q.flight--
		q.current = int(n.r.tag)
		q.handled(n.r.tag, n.e)
	}
}
