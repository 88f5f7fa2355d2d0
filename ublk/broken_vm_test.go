//go:build vm

package ublk

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// breaker is a backend that breaks the queue of one request, on its own thread.
type breaker struct {
	Handler
	d     *Device
	how   func(q *queue)
	armed atomic.Bool
}

func (b *breaker) Handle(r *Request) unix.Errno {
	if b.armed.CompareAndSwap(true, false) {
		b.how(b.d.queues[r.Queue])
	}
	return b.Handler.Handle(r)
}

// A queue that can't go on takes the others with it: its clients would wait for
// ever for a successor that nobody knows to be wanted.
func TestBrokenQueueEndsTheDevice(t *testing.T) {
	for name, how := range map[string]func(q *queue){
		"ring": func(q *queue) {
			if err := loseRing(q); err != nil {
				t.Error(err)
			}
		},
		"answer": func(q *queue) {
			q.id = MaxQueues - 1 // which the driver does not have: it refuses all results
		},
	} {
		t.Run(name, func(t *testing.T) {
			checkClean(t)
			m, err := NewMemory(64 << 20)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { m.Close() })
			h := &breaker{Handler: m, how: how}
			b, err := NewHandlerBackend("memory", h, Limits{Size: 64 << 20})
			if err != nil {
				t.Fatal(err)
			}
			d := startDevice(t, b, Options{Queues: 4})
			h.d = d
			f := startFio(t, d.Path(), append(verifyArgs(8), "--rate=4m")...)
			eventually(t, "load", func() bool { return d.Stats().Write.Ops > 50 })
			h.armed.Store(true)
			select {
			case <-d.Done():
				t.Logf("it ended: %v", d.Err())
			case <-time.After(20 * time.Second):
				t.Errorf("the other queues go on: %+v", d.Stats())
			}
			if err := d.Abandon(t.Context()); err != nil {
				t.Fatal(err)
			}
			if d.Err() == nil {
				t.Error("it ended without an error")
			}
			adoptDevice(t, b, d.ID())
			f.wait()
		})
	}
}
