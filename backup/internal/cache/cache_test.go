package cache

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fill has a key's block hold the key.
func fill(b *Block[int], key int) {
	binary.LittleEndian.PutUint64(b.Data(), uint64(key))
	b.Done(nil)
}

func get(t *testing.T, c *Cache[int], key int) (b *Block[int], fresh bool) {
	t.Helper()
	b, fresh, err := c.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return b, fresh
}

// put gets a key's block, fills it when it is fresh, and releases it.
func put(t *testing.T, c *Cache[int], key int) (fresh bool) {
	t.Helper()
	b, fresh := get(t, c, key)
	if fresh {
		fill(b, key)
	}
	if got := binary.LittleEndian.Uint64(b.Data()); got != uint64(key) {
		t.Errorf("block %d holds %d", key, got)
	}
	b.Release()
	return fresh
}

func TestLeastRecentlyUsedGoes(t *testing.T) {
	c := New[int](3, 8)
	for _, key := range []int{1, 2, 3} {
		if !put(t, c, key) {
			t.Errorf("%d was there", key)
		}
	}
	put(t, c, 1)
	put(t, c, 4) // 2 is the oldest now
	for key, fresh := range map[int]bool{1: false, 3: false, 4: false} {
		if put(t, c, key) != fresh {
			t.Errorf("%d: fresh is not %v", key, fresh)
		}
	}
	if b := c.Peek(2); b != nil {
		t.Error("2 is there still")
	}
	if c.made != 3 {
		t.Errorf("%d buffers", c.made)
	}
}

// A block in use, or being filled, keeps its buffer; who needs one waits.
func TestGetWaitsForRoom(t *testing.T) {
	c := New[int](2, 8)
	one, _ := get(t, c, 1)
	fill(one, 1)
	two, _ := get(t, c, 2) // not filled
	if c.Reserve(3) != nil {
		t.Error("a third buffer")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := c.Get(ctx, 3); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without room: %v", err)
	}
	got := make(chan *Block[int])
	for _, key := range []int{3, 4} {
		go func() {
			b, fresh, err := c.Get(t.Context(), key)
			if err != nil || !fresh {
				t.Errorf("%d: %v, %v", key, fresh, err)
			}
			fill(b, key)
			got <- b
		}()
	}
	one.Release()
	(<-got).Release()
	(<-got).Release()
	if two.Ready() || c.made != 2 {
		t.Errorf("ready %v, %d buffers", two.Ready(), c.made)
	}
	fill(two, 2)
	two.Release()
}

// All who want a block that is being filled get it, or its error, and after an
// error it is tried again.
func TestFilledOnceForAll(t *testing.T) {
	c := New[int](2, 8)
	first, fresh := get(t, c, 7)
	if !fresh || c.Peek(7) != nil {
		t.Errorf("fresh %v", fresh)
	}
	broken := errors.New("broken")
	var waiting sync.WaitGroup
	for range 5 {
		b, fresh := get(t, c, 7)
		if fresh {
			t.Error("fresh again")
		}
		waiting.Go(func() {
			if err := b.Wait(context.Background()); err != broken {
				t.Error(err)
			}
			b.Release()
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := first.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	first.Done(broken)
	waiting.Wait()
	first.Release()
	if !put(t, c, 7) || put(t, c, 7) {
		t.Error("not tried again, or twice")
	}
	if len(c.free)+c.order.Len() != c.made {
		t.Errorf("%d buffers, of which %d are free and %d in use", c.made, len(c.free), c.order.Len())
	}
}

func TestReserve(t *testing.T) {
	c := New[int](2, 8)
	fill(c.Reserve(1), 1)
	if c.Reserve(1) != nil {
		t.Error("reserved twice")
	}
	if put(t, c, 1) {
		t.Error("what was reserved is not there")
	}
	fill(c.Reserve(2), 2)
	put(t, c, 3) // 1 goes, which was read
	if n := c.Wasted(); n != 0 {
		t.Errorf("%d wasted", n)
	}
	put(t, c, 4) // 2 goes
	if n := c.Wasted(); n != 1 {
		t.Errorf("%d wasted", n)
	}
	c.Reserve(5).Done(errors.New("broken"))
	if !put(t, c, 5) {
		t.Error("a block that could not be filled is there")
	}
}

// Many readers of many keys, some of whose blocks can't be filled: everybody gets
// what the key stands for, and the buffers are as many as was said.
func TestManyReaders(t *testing.T) {
	const blocks, keys = 4, 12
	c := New[int](blocks, 8)
	var readers sync.WaitGroup
	var filled atomic.Int64
	broken := errors.New("broken")
	for i := range 8 {
		readers.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for range 2000 {
				key := rnd.IntN(keys)
				if rnd.IntN(4) == 0 {
					if b := c.Reserve(key); b != nil {
						fill(b, key)
					}
					continue
				}
				b, fresh, err := c.Get(context.Background(), key)
				if err != nil {
					t.Error(err)
					return
				}
				if fresh && rnd.IntN(10) == 0 {
					b.Done(broken)
				} else if fresh {
					filled.Add(1)
					go fill(b, key)
				}
				err = b.Wait(context.Background())
				if err != nil && err != broken {
					t.Error(err)
				}
				if got := binary.LittleEndian.Uint64(b.Data()); err == nil && got != uint64(key) {
					t.Errorf("block %d holds %d", key, got)
				}
				b.Release()
			}
		})
	}
	readers.Wait()
	if c.made != blocks || len(c.free)+c.order.Len() != blocks || len(c.blocks) != c.order.Len() {
		t.Errorf("%d buffers, %d free, %d blocks, %d in order", c.made, len(c.free), len(c.blocks), c.order.Len())
	}
	if filled.Load() == 0 {
		t.Error("nothing was filled")
	}
}
