package nvmeof

import (
	"context"
	"sync"
)

// fence lets others wait until a queue has carried out all that had arrived when
// they asked; see controller.fenceOthers.
type fence struct {
	mu      sync.Mutex
	asked   uint64
	passed  uint64
	changed chan struct{} // closed, and another one made, when passed grows
}

// awaitFences waits until all queues have carried out what has arrived by now. One
// that has not when the context ends hangs up, and is waited for.
func awaitFences(ctx context.Context, queues []*queue, why string) {
	wants := make([]uint64, len(queues))
	for i, q := range queues {
		wants[i] = q.askFence()
	}
	for i, q := range queues {
		if !q.awaitFence(ctx, wants[i]) {
			q.hangUp(why)
			<-q.ended
		}
	}
}

// askFence asks and returns what awaitFence is to wait for.
func (q *queue) askFence() uint64 {
	q.fence.mu.Lock()
	q.fence.asked++
	n := q.fence.asked
	q.fence.mu.Unlock()
	q.wake()
	return n
}

// awaitFence waits until the queue has passed or has ended, or the context has, and
// tells whether it was the context.
func (q *queue) awaitFence(ctx context.Context, n uint64) bool {
	for {
		q.fence.mu.Lock()
		passed, changed := q.fence.passed >= n, q.fence.changed
		q.fence.mu.Unlock()
		if passed {
			return true
		}
		select {
		case <-changed:
		case <-q.ended:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// keepsAny tells whether the queue has commands that it will carry out later. A
// connection that its host has lost, and that we have not, would carry them out after the
// host's retry.
func (q *queue) keepsAny() bool { return len(q.held)+len(q.parked) > 0 }

// fenceAsked is what passFence may be called with, once all that has arrived by now
// was carried out.
func (q *queue) fenceAsked() uint64 {
	q.fence.mu.Lock()
	defer q.fence.mu.Unlock()
	return q.fence.asked
}

func (q *queue) passFence(n uint64) {
	q.fence.mu.Lock()
	defer q.fence.mu.Unlock()
	if n <= q.fence.passed {
		return
	}
	q.fence.passed = n
	close(q.fence.changed)
	q.fence.changed = make(chan struct{})
}
