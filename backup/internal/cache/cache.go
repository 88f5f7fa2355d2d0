// Package cache keeps what was read from a repository in memory: blocks of one
// size, each read once for all who want it, the least recently used exchanged for
// new ones. It never has more buffers than it was made for.
package cache

import (
	"container/list"
	"context"
	"sync"
)

// Cache holds blocks by their keys. Its methods may be called concurrently.
type Cache[K comparable] struct {
	size, most int

	mu     sync.Mutex
	blocks map[K]*Block[K]
	order  *list.List // of *Block[K], the last used in front
	free   [][]byte
	made   int           // buffers, free ones among them
	room   chan struct{} // closed when a buffer may have become free; nil: nobody waits
	wasted int64
}

// Block is a block that is in a Cache, or on its way there.
type Block[K comparable] struct {
	c     *Cache[K]
	key   K
	data  []byte
	elem  *list.Element
	ready chan struct{} // closed by Done

	// Guarded by c.mu:
	pins   int // readers, who keep it in place
	done   bool
	unread bool // made by Reserve, and nobody has wanted it yet
	err    error
}

// New returns a Cache of at most so many blocks of size bytes. Buffers are made
// when they are needed and used again and again.
func New[K comparable](blocks, size int) *Cache[K] {
	return &Cache[K]{size: size, most: blocks, blocks: make(map[K]*Block[K]), order: list.New()}
}

// Get returns the block of a key for a reader, who releases it. When it is fresh
// somebody has to fill it, and to call Done whatever happens; readers Wait for
// that. While all buffers are taken by readers and by what is being filled, Get
// waits for one: nobody must hold a block while he asks for another.
func (c *Cache[K]) Get(ctx context.Context, key K) (b *Block[K], fresh bool, err error) {
	for {
		c.mu.Lock()
		if b := c.use(key); b != nil {
			c.mu.Unlock()
			return b, false, nil
		}
		if b := c.add(key); b != nil {
			b.pins = 1
			c.mu.Unlock()
			return b, true, nil
		}
		if c.room == nil {
			c.room = make(chan struct{})
		}
		room := c.room
		c.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

// Peek is Get for a block that is there and filled. It is nil otherwise.
func (c *Cache[K]) Peek(key K) *Block[K] {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.blocks[key]; b == nil || !b.done {
		return nil
	}
	return c.use(key)
}

// Reserve makes a block that nobody wants yet, to be filled as a fresh one. It is
// nil when the key has one already, or when there is no buffer for it right now.
func (c *Cache[K]) Reserve(key K) *Block[K] {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocks[key] != nil {
		return nil
	}
	b := c.add(key)
	if b != nil {
		b.unread = true
	}
	return b
}

// Wasted counts the blocks that were reserved, filled and exchanged for others
// before anybody wanted them.
func (c *Cache[K]) Wasted() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wasted
}

// use pins the block of a key for one more reader.
func (c *Cache[K]) use(key K) *Block[K] {
	b := c.blocks[key]
	if b != nil {
		b.pins++
		b.unread = false
		c.order.MoveToFront(b.elem)
	}
	return b
}

// add makes a block for a key that has none, or returns nil.
func (c *Cache[K]) add(key K) *Block[K] {
	data := c.buffer()
	if data == nil {
		return nil
	}
	b := &Block[K]{c: c, key: key, data: data, ready: make(chan struct{})}
	b.elem = c.order.PushFront(b)
	c.blocks[key] = b
	return b
}

// buffer finds a free buffer, makes one, or takes that of the least recently used
// block that is not in use.
func (c *Cache[K]) buffer() []byte {
	if n := len(c.free); n > 0 {
		data := c.free[n-1]
		c.free = c.free[:n-1]
		return data
	}
	if c.made < c.most {
		c.made++
		return make([]byte, c.size)
	}
	for e := c.order.Back(); e != nil; e = e.Prev() {
		if b := e.Value.(*Block[K]); b.done && b.pins == 0 {
			if b.unread {
				c.wasted++
			}
			c.remove(b)
			return b.data
		}
	}
	return nil
}

func (c *Cache[K]) remove(b *Block[K]) {
	c.order.Remove(b.elem)
	delete(c.blocks, b.key)
}

// left looks whether a block has become one that can make room.
func (c *Cache[K]) left(b *Block[K]) {
	if !b.done || b.pins > 0 {
		return
	}
	if b.err != nil {
		c.free = append(c.free, b.data)
	}
	if c.room != nil {
		close(c.room)
		c.room = nil
	}
}

// Data is the block's memory: to be written by whoever fills it, until Done, and
// to be read by readers from then on until Release.
func (b *Block[K]) Data() []byte { return b.data }

// Done ends the filling. With an error the block is forgotten, so that the next
// who wants it tries again; those who wait for it now get the error.
func (b *Block[K]) Done(err error) {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	b.done, b.err = true, err
	if err != nil {
		b.c.remove(b)
	}
	close(b.ready)
	b.c.left(b)
}

// Ready tells whether Wait would not wait.
func (b *Block[K]) Ready() bool {
	select {
	case <-b.ready:
		return true
	default:
		return false
	}
}

// Wait waits until the block is filled, and returns the error of that.
func (b *Block[K]) Wait(ctx context.Context) error {
	select {
	case <-b.ready:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Release ends the use by a reader, once for each Get and Peek.
func (b *Block[K]) Release() {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	b.pins--
	b.c.left(b)
}
