package backup

import (
	"context"
	"sync"
)

// order lets tasks, numbered from 0, go to the target in the order of the volume
// while they are prepared side by side: a disk with a head, and a device behind a
// network, take a run of writes in order best, and a file gets long extents.
//
// A task that has the lowest number of those that have not left never waits, so
// tasks that are begun in order can't lock each other out.
type order struct {
	mu      sync.Mutex
	next    int64                   // all below have left
	left    map[int64]bool          // of those above
	waiting map[int64]chan struct{} // closed when next moves on
}

func newOrder() *order {
	return &order{left: make(map[int64]bool), waiting: make(map[int64]chan struct{})}
}

// enter waits until the task is one of the ahead that follow each other from the
// oldest that has not left.
func (o *order) enter(ctx context.Context, seq, ahead int64) error {
	for {
		o.mu.Lock()
		if seq < o.next+ahead {
			o.mu.Unlock()
			return nil
		}
		// To be woken by whoever makes next large enough, which is a leaving task.
		c := o.waiting[seq]
		if c == nil {
			c = make(chan struct{})
			o.waiting[seq] = c
		}
		o.mu.Unlock()
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leave says that a task is done with the target.
func (o *order) leave(seq int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.left[seq] = true
	if seq != o.next {
		return
	}
	for o.left[o.next] {
		delete(o.left, o.next)
		o.next++
	}
	for s, c := range o.waiting {
		close(c)
		delete(o.waiting, s)
	}
}
