package ublk

import (
	"fmt"
	"math/bits"
	"sync/atomic"
)

// ChangeMap records which blocks of a device were written, discarded or zeroed:
// one bit per block. It lives in memory. A queue marks a block before it issues
// the request; a block that is marked already costs one load and one test. All
// methods may be called from any goroutine, and one map may serve several
// devices one after the other.
type ChangeMap struct {
	shift  uint
	blocks uint64
	words  []atomic.Uint64
}

// NewChangeMap makes a map for size bytes in blocks of block bytes, a power of
// two of at least 512.
func NewChangeMap(size, block uint64) (*ChangeMap, error) {
	if block < sectorSize || block&(block-1) != 0 {
		return nil, fmt.Errorf("ublk: change map of %d-byte blocks: want a power of two from 512", block)
	}
	blocks := (size + block - 1) / block
	return &ChangeMap{
		shift: uint(bits.TrailingZeros64(block)), blocks: blocks,
		words: make([]atomic.Uint64, (blocks+63)/64),
	}, nil
}

// Mark records n bytes at off. What lies behind the end is not recorded.
func (m *ChangeMap) Mark(off, n uint64) {
	first := off >> m.shift
	last := (off + n - 1) >> m.shift
	if n != 0 && first == last && first < m.blocks {
		bit := uint64(1) << (first & 63)
		if m.words[first>>6].Load()&bit != 0 {
			return
		}
	}
	m.markRange(first, last, n)
}

// markRange is split off so that Mark can be inlined.
func (m *ChangeMap) markRange(first, last, n uint64) {
	if n == 0 || first >= m.blocks {
		return
	}
	last = min(last, m.blocks-1)
	for first <= last {
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

// Grow returns a map of size bytes that has all of m's marks. Nothing may be
// marked meanwhile. The size must not be smaller.
func (m *ChangeMap) Grow(size uint64) *ChangeMap {
	blocks := (size + m.BlockSize() - 1) >> m.shift
	g := &ChangeMap{shift: m.shift, blocks: blocks, words: make([]atomic.Uint64, (blocks+63)/64)}
	for i := range m.words {
		g.words[i].Store(m.words[i].Load())
	}
	return g
}
