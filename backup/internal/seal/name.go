package seal

import (
	"encoding/binary"
	"math/bits"
	"sync"

	"lukechampine.com/blake3/guts"

	"github.com/swapback/swapback/backup/internal/format"
)

// leaf is how much the library hashes side by side, one lane for each of 16 chunks.
// (BLAKE3's chunks, of 1 KiB.)
const leaf = guts.MaxSIMD * guts.ChunkSize

// Namer names chunks by their content. It is safe for concurrent use.
//
// It walks BLAKE3's tree (section 2.1 of its paper) itself, on the goroutine of its
// caller: the library's Hasher starts one for every leaf, which costs more
// than what they would do side by side here, where all processors have a chunk
// each.
type Namer struct {
	key  [8]uint32
	last sync.Pool // *[leaf]byte
}

// NewNamer returns the Namer of a key.
func NewNamer(k Key) *Namer {
	n := &Namer{last: sync.Pool{New: func() any { return new([leaf]byte) }}}
	for i := range n.key {
		n.key[i] = binary.LittleEndian.Uint32(k[4*i:])
	}
	return n
}

// Name is the BLAKE3 keyed hash of p.
func (n *Namer) Name(p []byte) (sum format.Hash) {
	root := n.node(p, 0)
	root.Flags |= guts.FlagRoot
	out := guts.WordsToBytes(guts.CompressNode(root))
	copy(sum[:], out[:])
	return sum
}

// node is the node of the tree that stands for p, which begins with this chunk.
func (n *Namer) node(p []byte, chunk uint64) guts.Node {
	switch {
	case len(p) == leaf:
		return guts.CompressBuffer((*[leaf]byte)(p), leaf, &n.key, chunk, guts.FlagKeyedHash)
	case len(p) < leaf:
		// The library reads a whole leaf.
		last := n.last.Get().(*[leaf]byte)
		defer n.last.Put(last)
		return guts.CompressBuffer(last, copy(last[:], p), &n.key, chunk, guts.FlagKeyedHash)
	}
	// The left half is the largest power of two that leaves something to the right.
	left := 1 << (bits.Len(uint(len(p)-1)) - 1)
	l := guts.ChainingValue(n.node(p[:left], chunk))
	r := guts.ChainingValue(n.node(p[left:], chunk+uint64(left/guts.ChunkSize)))
	return guts.ParentNode(l, r, &n.key, guts.FlagKeyedHash)
}
