// Package table builds and walks the tree that says where a volume's chunks lie.
// The shape of the tree and its encoding are package format's.
package table

import (
	"fmt"

	"github.com/swapback/swapback/backup/internal/format"
)

// Builder makes the table of one volume from its chunks in order, and, where it is
// told to, from the entries of another table. It holds one node per level in memory,
// and one of the other table's. It is for one goroutine.
type Builder struct {
	shape format.Shape
	put   Put
	base  *Cursor
	nodes [][]byte // of each level, from 1: the node being filled
	used  []bool   // whether it has an entry that is not zero
	done  int64    // bytes of the volume seen
	root  format.Ref
	whole bool // the root is the base's
}

// Put stores a node, which it does not keep. before is what the base has in the
// node's place; when that is the very same node it need not be stored again. It is
// zero where the base has nothing there.
type Put func(node []byte, before format.Ref) (format.Ref, error)

// NewBuilder returns a Builder that stores nodes with put. base, which may be nil,
// is the table that CopyTo takes entries from, and is used by nobody else.
func NewBuilder(shape format.Shape, base *Cursor, put Put) *Builder {
	return &Builder{shape: shape, put: put, base: base, nodes: make([][]byte, shape.Levels), used: make([]bool, shape.Levels)}
}

// Append adds the next chunk; the zero Ref stands for a chunk of zeroes.
func (b *Builder) Append(r format.Ref) error {
	if b.done >= b.shape.Size {
		return fmt.Errorf("table of %d bytes is full", b.shape.Size)
	}
	b.done += b.shape.Covers(1, b.done)
	return b.add(1, r)
}

// CopyTo takes the base's entries over for everything up to off, the beginning of a
// chunk or the end of the volume. It does not read the nodes below an entry that it
// can take over as it is.
func (b *Builder) CopyTo(off int64) error {
	for b.done < off {
		level := b.highest(off)
		if level == 0 {
			return fmt.Errorf("table of %d bytes: there is nothing to take over at %d", b.shape.Size, b.done)
		}
		r, err := b.base.Entry(level, b.done)
		if err != nil {
			return err
		}
		b.done += b.shape.Covers(level, b.done)
		if level > b.shape.Levels {
			b.root, b.whole = r, true
		} else if err := b.add(level, r); err != nil {
			return err
		}
	}
	return nil
}

// highest returns the highest level of which the base has an entry that begins
// where the table ends now, ends at off or before, and means the same in both; 0
// when there is none.
func (b *Builder) highest(off int64) (level int) {
	for l := 1; b.base != nil && l <= b.shape.Levels+1 && b.done%b.shape.Span(l-1) == 0; l++ {
		if !Shares(b.shape, b.base.Shape(), l, b.done) || b.done+b.shape.Covers(l, b.done) > off {
			break
		}
		level = l
	}
	return level
}

// add puts an entry into the level's node and stores the node when it is full.
func (b *Builder) add(level int, r format.Ref) error {
	i := level - 1
	b.nodes[i] = format.AppendEntry(b.nodes[i], r)
	b.used[i] = b.used[i] || !r.IsZero()
	if len(b.nodes[i]) == format.MaxNode && level < b.shape.Levels {
		return b.close(level)
	}
	return nil
}

// close stores the level's node and puts its entry into the level above.
func (b *Builder) close(level int) error {
	r, err := b.store(level)
	if err != nil {
		return err
	}
	return b.add(level+1, r)
}

func (b *Builder) store(level int) (r format.Ref, err error) {
	i := level - 1
	if b.used[i] {
		var before format.Ref
		start := b.done - 1 - (b.done-1)%b.shape.Span(level)
		if b.base != nil && Shares(b.shape, b.base.Shape(), level+1, start) {
			if before, err = b.base.Entry(level+1, start); err != nil {
				return r, err
			}
		}
		if r, err = b.put(b.nodes[i], before); err != nil {
			return r, err
		}
	}
	b.nodes[i], b.used[i] = b.nodes[i][:0], false
	return r, nil
}

// Finish stores what is left and returns the root, zero when all chunks were.
func (b *Builder) Finish() (root format.Ref, err error) {
	if b.done < b.shape.Size {
		return root, fmt.Errorf("table of %d bytes ends at %d", b.shape.Size, b.done)
	}
	if b.whole {
		return b.root, nil
	}
	for level := 1; level < b.shape.Levels; level++ {
		if len(b.nodes[level-1]) > 0 {
			if err := b.close(level); err != nil {
				return root, err
			}
		}
	}
	return b.store(b.shape.Levels)
}

// Visitor is told what a Walk comes across, in the order of the volume. An error
// that a function returns ends the walk.
type Visitor struct {
	// Chunk is a chunk that is stored, n bytes of the volume.
	Chunk func(off, n int64, r format.Ref) error
	// Zero is a run of zeroes. Neighbouring runs may come separately.
	Zero func(off, n int64) error
	// Node, when set, is asked before a node is read. False passes over the
	// node and all below it.
	Node func(off, n int64, r format.Ref) (bool, error)
	// Bad, when set, is told of a node that can't be used; the walk goes on
	// after it. When nil, the error ends the walk.
	Bad func(off, n int64, r format.Ref, err error) error
}

// Walk visits a table. read fills dst, of r.Length bytes, with a node's
// plaintext; only errors for which isDamage is true are told to Bad, others end
// the walk. Memory is one node per level.
func Walk(shape format.Shape, root format.Ref, read func(r format.Ref, dst []byte) error, isDamage func(error) bool, v Visitor) error {
	w := walker{shape: shape, read: read, isDamage: isDamage, v: v, nodes: make([][]byte, shape.Levels)}
	if !root.IsZero() {
		if err := shape.CheckEntry(root, shape.Levels+1, 0); err != nil {
			return w.bad(0, shape.Size, root, fmt.Errorf("root of the table: %w", err))
		}
	}
	return w.entry(shape.Levels+1, 0, root)
}

type walker struct {
	shape    format.Shape
	read     func(r format.Ref, dst []byte) error
	isDamage func(error) bool
	v        Visitor
	nodes    [][]byte
}

// entry visits the entry at off of a node of the level.
func (w *walker) entry(level int, off int64, r format.Ref) error {
	n := w.shape.Covers(level, off)
	switch {
	case r.IsZero():
		return w.v.Zero(off, n)
	case level == 1:
		return w.v.Chunk(off, n, r)
	}
	if w.v.Node != nil {
		if enter, err := w.v.Node(off, n, r); err != nil || !enter {
			return err
		}
	}
	return w.node(level-1, off, n, r)
}

// node visits the node of the level that r names and that covers n bytes at off.
func (w *walker) node(level int, off, n int64, r format.Ref) error {
	if w.nodes[level-1] == nil {
		w.nodes[level-1] = make([]byte, format.MaxNode)
	}
	node := w.nodes[level-1][:r.Length]
	err := w.read(r, node)
	if err == nil {
		// All entries are decoded before the first is visited, so that a bad
		// node is bad as a whole and no part of it was told to the visitor.
		err = w.shape.DecodeNode(node, level, off, func(int64, format.Ref) error { return nil })
	}
	if err != nil {
		return w.bad(off, n, r, err)
	}
	return w.shape.DecodeNode(node, level, off, func(off int64, r format.Ref) error {
		return w.entry(level, off, r)
	})
}

func (w *walker) bad(off, n int64, r format.Ref, err error) error {
	if w.v.Bad == nil || !w.isDamage(err) {
		return err
	}
	return w.v.Bad(off, n, r, err)
}
