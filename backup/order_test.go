package backup

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// Tasks that are taken up in order, by more workers than may be inside, come in
// only so far ahead of the oldest, and none of them is locked out.
func TestOrder(t *testing.T) {
	for _, ahead := range []int64{1, 2, 5} {
		const tasks, workers = 3000, 8
		o := newOrder()
		var taken, inside atomic.Int64
		left := make([]atomic.Bool, tasks)
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for {
					seq := taken.Add(1) - 1
					if seq >= tasks {
						return
					}
					for range rand.IntN(2000) { // they are ready in another order
						_ = seq
					}
					if seq%7 == 3 {
						// Has nothing to write.
						if err := o.enter(t.Context(), seq, 1000); err != nil {
							t.Error(err)
						}
						left[seq].Store(true)
						o.leave(seq)
						continue
					}
					if err := o.enter(t.Context(), seq, ahead); err != nil {
						t.Error(err)
					}
					if n := inside.Add(1); n > ahead {
						t.Errorf("%d are inside at once, %d may be", n, ahead)
					}
					for before := int64(0); before <= seq-ahead; before++ {
						if !left[before].Load() {
							t.Errorf("%d came before %d had left", seq, before)
						}
					}
					inside.Add(-1)
					left[seq].Store(true)
					o.leave(seq)
				}
			})
		}
		wg.Wait()
		if o.next != tasks || len(o.left) > 0 || len(o.waiting) > 0 {
			t.Errorf("left are %d, %d waiting, next is %d", len(o.left), len(o.waiting), o.next)
		}
	}
}

func TestOrderEndsWithItsContext(t *testing.T) {
	o := newOrder()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- o.enter(ctx, 1, 1) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
