package ublk

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Failure is a request that the backend has answered with an error. The client
// gets the errno for exactly this request.
type Failure struct {
	Op             Op
	Offset, Length uint64 // bytes on the device; a flush has none
	Errno          unix.Errno
	// Short is set when the backend has become shorter, and the request reaches past
	// its end. Errno is EIO then.
	Short bool
}

// failureRoom is how many failures may wait to be heard of.
const failureRoom = 64

// failures takes failures from the queues to whoever wants to hear of them, and
// never lets a queue wait. A nil *failures takes none.
type failures struct {
	c       chan Failure
	dropped atomic.Uint64
	ended   chan struct{}
}

// newFailures calls heard for one failure after the other, in a goroutine of its
// own, until close.
func newFailures(heard func(Failure, uint64)) *failures {
	if heard == nil {
		return nil
	}
	f := &failures{c: make(chan Failure, failureRoom), ended: make(chan struct{})}
	go func() {
		defer close(f.ended)
		for x := range f.c {
			heard(x, f.dropped.Swap(0))
		}
	}()
	return f
}

// add is called by the queues.
func (f *failures) add(x Failure) {
	if f == nil {
		return
	}
	select {
	case f.c <- x:
	default:
		f.dropped.Add(1)
	}
}

// close returns when everything has been heard. No queue runs any more.
func (f *failures) close() {
	if f == nil {
		return
	}
	close(f.c)
	<-f.ended
}

// failed notes that the backend has not done the tag's request.
func (q *queue) failed(tag uint16, e unix.Errno, short bool) {
	s := &q.slots[tag]
	q.failures.add(Failure{Op: s.op, Offset: s.off, Length: s.n, Errno: e, Short: short})
}
