package table

import (
	"fmt"

	"github.com/swapback/swapback/backup/internal/format"
)

// Tree is a table that can be read.
type Tree struct {
	Shape format.Shape
	Root  format.Ref
	// Read fills dst, of r.Length bytes, with a node's plaintext.
	Read func(r format.Ref, dst []byte) error
}

// Diff calls changed for every run of bytes in which two tables name different
// content, in order and with neighbouring runs joined. What one volume has beyond
// the end of the other is changed. It reads the nodes in which the two differ, and
// memory is a few nodes per level. Any error ends it.
func Diff(a, b Tree, changed func(off, n int64) error) error {
	if a.Shape.ChunkSize != b.Shape.ChunkSize {
		return fmt.Errorf("chunks of %d bytes can't be compared with chunks of %d", a.Shape.ChunkSize, b.Shape.ChunkSize)
	}
	d := differ{a: &a, b: &b, wide: a.Shape, changed: changed}
	if b.Shape.Size > a.Shape.Size {
		d.wide = b.Shape
	}
	if err := d.entry(d.wide.Levels+1, 0, a.root(), b.root()); err != nil {
		return err
	}
	return d.flush()
}

// side is an entry of one of the two tables.
type side struct {
	there bool       // it is within the volume
	ref   format.Ref // zero for zeroes
}

func (t *Tree) root() side { return side{true, t.Root} }

type differ struct {
	a, b    *Tree
	wide    format.Shape // of the larger volume
	changed func(off, n int64) error
	off, n  int64 // a run that is not told yet
}

// entry compares two entries at off of nodes of the level.
func (d *differ) entry(level int, off int64, a, b side) error {
	switch {
	case !a.there && !b.there:
		return nil
	case a.there && b.there && a.ref.IsZero() == b.ref.IsZero() && a.ref.Hash == b.ref.Hash:
		// One may be longer: zeroes to the end of each, or a node or chunk of the
		// same name, which is the same to its end.
		from, to := d.a.end(level, off), d.b.end(level, off)
		return d.add(min(from, to), max(from, to))
	case level == 1:
		return d.add(off, max(d.a.end(1, off), d.b.end(1, off)))
	}
	as, err := d.a.children(level, off, a)
	if err != nil {
		return err
	}
	bs, err := d.b.children(level, off, b)
	if err != nil {
		return err
	}
	span := d.wide.Span(level - 2)
	for i := range d.wide.Entries(level-1, off) {
		if err := d.entry(level-1, off+int64(i)*span, as(i), bs(i)); err != nil {
			return err
		}
	}
	return nil
}

// end is where what an entry at off covers ends, at most the volume's end.
func (t *Tree) end(level int, off int64) int64 {
	end := off
	if off < t.Shape.Size {
		end = t.Shape.Size
		// A level above the root's covers all there is, and its span may overflow.
		if level <= t.Shape.Levels+1 {
			end = off + t.Shape.Covers(level, off)
		}
	}
	return end
}

// children returns the entries below one.
func (t *Tree) children(level int, off int64, e side) (func(i int) side, error) {
	switch {
	case !e.there:
		return func(int) side { return side{} }, nil
	case level > t.Shape.Levels+1: // the other table is higher
		return func(i int) side {
			if i > 0 {
				return side{}
			}
			return e
		}, nil
	}
	n := t.Shape.Entries(level-1, off)
	refs := make([]format.Ref, n)
	if !e.ref.IsZero() {
		node := make([]byte, e.ref.Length)
		if err := t.Read(e.ref, node); err != nil {
			return nil, err
		}
		i := 0
		err := t.Shape.DecodeNode(node, level-1, off, func(_ int64, r format.Ref) error {
			refs[i] = r
			i++
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return func(i int) side {
		if i >= n {
			return side{}
		}
		return side{true, refs[i]}
	}, nil
}

// add tells of a run, or makes the one before it longer.
func (d *differ) add(from, to int64) error {
	if from >= to {
		return nil
	}
	if d.n > 0 && d.off+d.n == from {
		d.n = to - d.off
		return nil
	}
	if err := d.flush(); err != nil {
		return err
	}
	d.off, d.n = from, to-from
	return nil
}

func (d *differ) flush() error {
	if d.n == 0 {
		return nil
	}
	off, n := d.off, d.n
	d.n = 0
	return d.changed(off, n)
}
