package ublk

import (
	"fmt"
	"math/bits"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ChangeMap records which blocks of a device were written, discarded or zeroed:
// one bit per block. A queue marks a block before it issues the request; a block
// that is marked already costs one load and one test. All methods may be called
// from any goroutine, and one map may serve several devices one after the other.
//
// A map with a [Guard] says of no block that it is marked before the guard has
// let its granule be written to. A request that the guard does not let pass yet
// waits in its queue, and is neither in flight nor held by the gate.
type ChangeMap struct {
	shift  uint
	blocks uint64
	words  []atomic.Uint64

	guard   Guard
	granule uint64          // blocks
	granted []atomic.Uint64 // one bit per granule
}

// Guard is asked before a granule of a map is written to for the first time: it
// makes durable that it may have changed.
type Guard interface {
	// Touch asks for the granules first to last. It says yes, or no with an errno
	// that the request is answered with, or, with 0, not yet: then w is woken when
	// it is worth asking again. It must not wait for I/O. What it has said yes to it
	// has given with [ChangeMap.Grant], too, so that it is not asked each time.
	Touch(first, last uint64, w Waker) (yes bool, no unix.Errno)
}

// Waker has a queue look at what waits.
type Waker interface{ Wake() }

// NewChangeMap makes a map for size bytes in blocks of block bytes, a power of
// two of at least 512.
func NewChangeMap(size, block uint64) (*ChangeMap, error) {
	return NewChangeMapIn(make([]atomic.Uint64, ChangeMapWords(size, block)), size, block)
}

// ChangeMapWords is how many words a map needs.
func ChangeMapWords(size, block uint64) int {
	if block == 0 {
		return 0
	}
	return int(((size+block-1)/block + 63) / 64)
}

// NewChangeMapIn makes a map in memory of the caller's, such as that of a file.
// What is set there is marked.
func NewChangeMapIn(words []atomic.Uint64, size, block uint64) (*ChangeMap, error) {
	if block < sectorSize || block&(block-1) != 0 {
		return nil, fmt.Errorf("ublk: change map of %d-byte blocks: want a power of two from 512", block)
	}
	if n := ChangeMapWords(size, block); n != len(words) {
		return nil, fmt.Errorf("ublk: change map of %d words, %d bytes need %d", len(words), size, n)
	}
	return &ChangeMap{shift: uint(bits.TrailingZeros64(block)), blocks: (size + block - 1) / block, words: words}, nil
}

// SetGuard gives the map a guard, before it is used. The granule is in bytes, a
// multiple of the block size; count is how many of them cover the map.
func (m *ChangeMap) SetGuard(g Guard, granule, count uint64) error {
	if granule < m.BlockSize() || granule%m.BlockSize() != 0 || count*(granule>>m.shift) < m.blocks {
		return fmt.Errorf("ublk: change map: %d granules of %d bytes for %d blocks of %d bytes", count, granule, m.blocks, m.BlockSize())
	}
	m.guard, m.granule, m.granted = g, granule>>m.shift, make([]atomic.Uint64, (count+63)/64)
	return nil
}

// Grant lets a granule be written to until ResetGrants.
func (m *ChangeMap) Grant(granule uint64) { m.granted[granule>>6].Or(1 << (granule & 63)) }

// Granted tells whether a granule may be written to.
func (m *ChangeMap) Granted(granule uint64) bool {
	return m.granted[granule>>6].Load()&(1<<(granule&63)) != 0
}

// ResetGrants has the guard asked again for every granule. Nothing may be
// marked when it is called, nor anything in flight that will be.
func (m *ChangeMap) ResetGrants() {
	for i := range m.granted {
		m.granted[i].Store(0)
	}
}

// Mark records n bytes at off, without asking the guard. What lies behind the end
// is not recorded.
func (m *ChangeMap) Mark(off, n uint64) {
	if n != 0 && !m.isMarked(off, n) {
		m.markRange(off>>m.shift, (off+n-1)>>m.shift)
	}
}

// Touch records n bytes at off for somebody else than a device, who also writes to what
// lies below. When it does not say yes the request must not be carried out: it fails with
// no, or, when that is 0, w is woken when it is worth asking again.
func (m *ChangeMap) Touch(off, n uint64, w Waker) (yes bool, no unix.Errno) {
	if n == 0 || m.isMarked(off, n) {
		return true, 0
	}
	return m.touch(off, n, w)
}

// isMarked is the way of nearly all requests: they lie in one block, and it is
// marked. It may say no although all is.
func (m *ChangeMap) isMarked(off, n uint64) bool {
	first := off >> m.shift
	return first == (off+n-1)>>m.shift && first < m.blocks && m.words[first>>6].Load()&(1<<(first&63)) != 0
}

// touch marks what isMarked does not find. When it does not say yes the request
// must not be issued: it fails with no, or, when that is 0, waits for w.
func (m *ChangeMap) touch(off, n uint64, w Waker) (yes bool, no unix.Errno) {
	if n == 0 || off>>m.shift >= m.blocks {
		return true, 0
	}
	first, last := off>>m.shift, min((off+n-1)>>m.shift, m.blocks-1)
	if m.guard != nil {
		for g := first / m.granule; g <= last/m.granule; g++ {
			if m.Granted(g) {
				continue
			}
			if yes, no := m.guard.Touch(g, last/m.granule, w); !yes {
				return false, no
			}
			break
		}
	}
	m.markRange(first, last)
	return true, 0
}

func (m *ChangeMap) markRange(first, last uint64) {
	for last = min(last, m.blocks-1); first <= last && first < m.blocks; {
		word, bit := first>>6, first&63
		count := min(64-bit, last-first+1)
		mask := ^uint64(0) >> (64 - count) << bit
		if w := &m.words[word]; w.Load()&mask != mask {
			w.Or(mask)
		}
		first += count
	}
}

// Changed tells whether any of n bytes at off was recorded.
func (m *ChangeMap) Changed(off, n uint64) bool {
	if n == 0 || m.blocks == 0 {
		return false
	}
	for b := off >> m.shift; b <= min((off+n-1)>>m.shift, m.blocks-1); b++ {
		if m.words[b>>6].Load()&(1<<(b&63)) != 0 {
			return true
		}
	}
	return false
}

// Bytes is how much is recorded, in whole blocks.
func (m *ChangeMap) Bytes() uint64 {
	var n int
	for i := range m.words {
		n += bits.OnesCount64(m.words[i].Load())
	}
	return uint64(n) << m.shift
}

// BlockSize in bytes.
func (m *ChangeMap) BlockSize() uint64 { return 1 << m.shift }
