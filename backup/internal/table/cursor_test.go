package table

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
)

// over builds the table of v from a base's: it appends the chunks for which changed
// is true and takes the others over. It returns how many nodes were read and stored.
func (v volume) over(t *testing.T, s *nodes, base Tree, changed func(i int) bool) (tree Tree, read, stored int) {
	t.Helper()
	whole := v.tree(t, new(nodes)) // for its shape
	base.Read = func(r format.Ref, dst []byte) error { read++; return s.read(r, dst) }
	b := NewBuilder(whole.Shape, NewCursor(base), func(node []byte, before format.Ref) (format.Ref, error) {
		if !before.IsZero() && slices.Equal((*s)[before.Offset-1], node) {
			return before, nil
		}
		stored++
		return s.putNamed(node, before)
	})
	for i := range v.chunks {
		if !changed(i) {
			continue
		}
		if err := b.CopyTo(int64(i) * chunk); err != nil {
			t.Fatal(err)
		}
		if err := b.Append(v.ref(whole.Shape, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.CopyTo(whole.Shape.Size); err != nil {
		t.Fatal(err)
	}
	root, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return Tree{whole.Shape, root, s.read}, read, stored
}

// wantChunks checks that a table names just the chunks of v.
func wantChunks(t *testing.T, v volume, tree Tree) {
	t.Helper()
	next := int64(0)
	err := Walk(tree.Shape, tree.Root, tree.Read, isDamage, Visitor{
		Chunk: func(off, n int64, r format.Ref) error {
			if off != next || r != v.ref(tree.Shape, int(off/chunk)) {
				t.Fatalf("chunk at %d of %d is %+v", off, next, r)
			}
			next += n
			return nil
		},
		Zero: func(off, n int64) error {
			for i := off; i < off+n; i += chunk {
				if v.chunks[i/chunk] != 0 {
					t.Fatalf("chunk at %d is zero", i)
				}
			}
			next += n
			return nil
		},
	})
	if err != nil || next != tree.Shape.Size {
		t.Fatalf("walk ended at %d of %d: %v", next, tree.Shape.Size, err)
	}
}

func countNodes(t *testing.T, tree Tree) (n int) {
	t.Helper()
	err := Walk(tree.Shape, tree.Root, tree.Read, isDamage, Visitor{
		Chunk: func(off, n int64, r format.Ref) error { return nil },
		Zero:  func(off, n int64) error { return nil },
		Node:  func(int64, int64, format.Ref) (bool, error) { n++; return true, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A table that was built over a base is the one that would have been built anew,
// whatever changed and however the volume grew.
func TestBuildOverABase(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 1))
	sizes := []int{1, 2, 1000, 1023, 1024, 1025, 2047, 2048, 3000, 5 * 1024}
	for range 400 {
		from := sizes[rnd.IntN(len(sizes))]
		old := volume{make([]byte, from), int64(rnd.IntN(2) * 100)}
		for i := range old.chunks {
			old.chunks[i] = byte(rnd.IntN(3) * rnd.IntN(2))
		}
		if rnd.IntN(3) == 0 {
			clear(old.chunks[:rnd.IntN(from)])
		}
		now := volume{slices.Clone(old.chunks), old.tail}
		changed := make(map[int]bool)
		if to := sizes[rnd.IntN(len(sizes))]; rnd.IntN(2) == 0 && to > from {
			now = volume{append(now.chunks, make([]byte, to-from)...), int64(rnd.IntN(2) * 100)}
			if old.tail > 0 {
				changed[from-1] = true
			}
			for i := from; i < to; i++ {
				changed[i], now.chunks[i] = true, byte(rnd.IntN(3))
			}
		}
		for range rnd.IntN(8) {
			i := rnd.IntN(len(now.chunks))
			changed[i], now.chunks[i] = true, byte(rnd.IntN(3))
		}
		var s nodes
		base := old.tree(t, &s)
		anew := now.tree(t, &s)
		tree, _, _ := now.over(t, &s, base, func(i int) bool { return changed[i] })
		wantChunks(t, now, tree)
		if got, want := countNodes(t, tree), countNodes(t, anew); got != want {
			t.Fatalf("%d chunks of %d: %d nodes, built anew %d", len(now.chunks), from, got, want)
		}
	}
}

// Only the nodes above what changed are read, and only those that differ stored.
func TestBuildReadsWhatChanged(t *testing.T) {
	v := volume{chunks: slices.Repeat([]byte{1, 2, 0}, 20*1024/3)}
	var s nodes
	base := v.tree(t, &s)
	for _, c := range []struct {
		name         string
		change       map[int]byte
		read, stored int
	}{
		{"nothing", nil, 0, 0},
		{"one", map[int]byte{5*1024 + 3: 9}, 2, 2},
		{"two of a node", map[int]byte{5*1024 + 3: 9, 5*1024 + 900: 9}, 2, 2},
		{"two of two", map[int]byte{3: 9, 19 * 1024: 9}, 3, 3},
		{"one that is the same", map[int]byte{5*1024 + 3: v.chunks[5*1024+3]}, 2, 0},
	} {
		w := volume{chunks: slices.Clone(v.chunks)}
		for i, x := range c.change {
			w.chunks[i] = x
		}
		tree, read, stored := w.over(t, &s, base, func(i int) bool { _, there := c.change[i]; return there })
		if read != c.read || stored != c.stored {
			t.Errorf("%s: %d nodes read and %d stored, want %d and %d", c.name, read, stored, c.read, c.stored)
		}
		wantChunks(t, w, tree)
	}
	if tree, _, _ := v.over(t, &s, base, func(int) bool { return false }); tree.Root != base.Root {
		t.Errorf("the root of the same is %+v, was %+v", tree.Root, base.Root)
	}
	// Of a sparse volume of a TiB with one more chunk: the way down to it.
	big := volume{chunks: make([]byte, 1<<20)}
	big.chunks[777] = 1
	base = big.tree(t, &s)
	w := volume{chunks: slices.Clone(big.chunks)}
	w.chunks[1<<19] = 2
	if _, read, stored := w.over(t, &s, base, func(i int) bool { return i == 1<<19 }); read != 1 || stored != 2 {
		t.Errorf("sparse: %d nodes read and %d stored", read, stored)
	}
}

func TestBuilderRefusesWhatTheBaseLacks(t *testing.T) {
	var s nodes
	small, large := volume{chunks: []byte{1, 2}}, volume{chunks: []byte{1, 2, 3}}
	base, shape := small.tree(t, &s), large.tree(t, &s).Shape
	if err := NewBuilder(shape, nil, s.put).CopyTo(chunk); err == nil {
		t.Error("entries of no base were taken over")
	}
	b := NewBuilder(shape, NewCursor(base), s.put)
	if err := b.CopyTo(2 * chunk); err != nil {
		t.Error(err)
	}
	if err := b.CopyTo(3 * chunk); err == nil {
		t.Error("more was taken over than the base has")
	}
	short := volume{chunks: []byte{1, 2}, tail: 5}
	if err := NewBuilder(shape, NewCursor(short.tree(t, &s)), s.put).CopyTo(2 * chunk); err == nil {
		t.Error("a short chunk was taken over for a whole one")
	}
}

// A node that is damaged is an error that says which, and what it covers; so is one
// that is not what the shape demands.
func TestCursorErrors(t *testing.T) {
	var s nodes
	v := volume{chunks: slices.Repeat([]byte{1, 2, 3, 4}, 1024)}
	tree := v.tree(t, &s)
	for name, harm := range map[string]func(node []byte){
		"a kind of no entry":       func(node []byte) { node[64*7+60] = 9 },
		"a length of no chunk":     func(node []byte) { node[64*7+56]++ },
		"zeroes that are not zero": func(node []byte) { clear(node[64*7 : 64*8]); node[64*7] = 1 },
	} {
		bad := slices.Clone(s)
		bad[2] = slices.Clone(bad[2]) // the third of level 1
		harm(bad[2])
		harmed := tree
		harmed.Read = bad.read
		c := NewCursor(harmed)
		if _, err := c.Entry(1, 0); err != nil {
			t.Errorf("%s: a node beside it: %v", name, err)
		}
		var ne *NodeError
		if _, err := c.Entry(1, 2*1024*chunk); !errors.As(err, &ne) || !errors.Is(err, format.ErrCorrupt) || ne.Offset != 2*1024*chunk || ne.Length != 1024*chunk {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.Entry(1, 3*1024*chunk); err != nil {
			t.Errorf("%s: a node after it: %v", name, err)
		}
	}
	tree.Root.Length += format.EntrySize
	if _, err := NewCursor(tree).Entry(1, 0); !errors.Is(err, format.ErrCorrupt) {
		t.Errorf("a root of another length: %v", err)
	}
}
