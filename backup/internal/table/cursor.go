package table

import (
	"fmt"
	"slices"

	"github.com/swapback/swapback/backup/internal/format"
)

// Cursor looks entries of a table up. It keeps one node per level, so that looking
// in the order of the volume reads every node at most once. It is for one goroutine.
type Cursor struct {
	tree  Tree
	nodes []cursorNode // of each level, from 1
	buf   []byte       // for a node being read
}

type cursorNode struct {
	off  int64        // where it begins; -1: none is kept
	refs []format.Ref // nil when the node stands for zeroes
	mem  []format.Ref
}

// NodeError is a node that can't be used, and why.
type NodeError struct {
	Offset, Length int64 // what it covers of the volume
	Err            error
}

func (e *NodeError) Error() string {
	return fmt.Sprintf("table node for %d bytes at %d: %v", e.Length, e.Offset, e.Err)
}

// Unwrap returns Err.
func (e *NodeError) Unwrap() error { return e.Err }

// NewCursor returns a Cursor that has read nothing yet.
func NewCursor(t Tree) *Cursor {
	c := &Cursor{tree: t, nodes: make([]cursorNode, t.Shape.Levels)}
	for i := range c.nodes {
		c.nodes[i].off = -1
	}
	return c
}

// Shape is the form of the table.
func (c *Cursor) Shape() format.Shape { return c.tree.Shape }

// Entry returns the entry of a node of the level for what begins at off of the
// volume, which must be a place where such an entry can begin. The root is the only
// entry of level Levels+1. An error of a node is a NodeError.
func (c *Cursor) Entry(level int, off int64) (format.Ref, error) {
	if level == c.tree.Shape.Levels+1 {
		return c.tree.Root, nil
	}
	refs, err := c.Node(level, off)
	if err != nil || refs == nil {
		return format.Ref{}, err
	}
	return refs[off%c.tree.Shape.Span(level)/c.tree.Shape.Span(level-1)], nil
}

// Node returns the entries of the node of the level that covers the byte at off,
// nil when it stands for zeroes. They are valid until the next call.
func (c *Cursor) Node(level int, off int64) ([]format.Ref, error) {
	n, s := &c.nodes[level-1], c.tree.Shape
	start := off - off%s.Span(level)
	if n.off == start {
		return n.refs, nil
	}
	ref, err := c.Entry(level+1, start)
	if err != nil {
		return nil, err
	}
	n.off, n.refs = -1, nil
	if !ref.IsZero() {
		if n.refs, err = c.read(ref, level, start, n.mem[:0]); err != nil {
			return nil, &NodeError{start, s.Covers(level+1, start), err}
		}
		n.mem = n.refs
	}
	n.off = start
	return n.refs, nil
}

// read reads and decodes the node of the level at off, in mem's memory.
func (c *Cursor) read(ref format.Ref, level int, off int64, mem []format.Ref) ([]format.Ref, error) {
	s := c.tree.Shape
	if err := s.CheckEntry(ref, level+1, off); err != nil { // the root's was not decoded here
		return nil, err
	}
	c.buf = slices.Grow(c.buf[:0], int(ref.Length))
	node := c.buf[:ref.Length]
	if err := c.tree.Read(ref, node); err != nil {
		return nil, err
	}
	err := s.DecodeNode(node, level, off, func(_ int64, r format.Ref) error {
		mem = append(mem, r)
		return nil
	})
	return mem, err
}

// Shares tells whether an entry for what begins at off, of a node of the level,
// covers the same bytes in volumes of the two shapes, so that one can stand in the
// other's table.
func Shares(a, b format.Shape, level int, off int64) bool {
	return a.ChunkSize == b.ChunkSize && level <= min(a.Levels, b.Levels)+1 && off < min(a.Size, b.Size) &&
		a.Covers(level, off) == b.Covers(level, off)
}
