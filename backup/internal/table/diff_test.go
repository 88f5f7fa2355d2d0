package table

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
)

// volume is the content of chunks: 0 for zeroes, else what stands for a hash.
type volume struct {
	chunks []byte
	tail   int64 // bytes of the last chunk, 0 for a whole one
}

func (v volume) tree(t *testing.T, s *nodes) Tree {
	t.Helper()
	size := int64(len(v.chunks)) * chunk
	if v.tail > 0 {
		size -= chunk - v.tail
	}
	shape, err := format.ShapeOf(size, chunk)
	if err != nil {
		t.Fatal(err)
	}
	b := NewBuilder(shape, nil, s.putNamed)
	for i := range v.chunks {
		if err := b.Append(v.ref(shape, i)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return Tree{shape, root, s.read}
}

// ref is the entry of the i-th chunk.
func (v volume) ref(shape format.Shape, i int) (r format.Ref) {
	if c := v.chunks[i]; c != 0 {
		n := uint32(shape.Covers(1, int64(i)*chunk))
		r = format.Ref{Hash: format.Hash{c, byte(n), byte(n >> 8), 1}, Stored: n, Length: n, Kind: format.KindChunk}
	}
	return r
}

// putNamed is put with a hash by what is in the node.
func (s *nodes) putNamed(node []byte, before format.Ref) (format.Ref, error) {
	r, err := s.put(node, before)
	copy(r.Hash[:], fmt.Appendf(nil, "node %d", r.Offset))
	for i, n := range *s {
		if slices.Equal(n, node) {
			r.Hash = format.Hash{}
			copy(r.Hash[:], fmt.Appendf(nil, "node %d", i+1))
			break
		}
	}
	return r, err
}

// want is what Diff has to find, by comparing everything.
func (v volume) want(w volume) (runs [][2]int64) {
	size := func(v volume, i int) int64 {
		switch {
		case i >= len(v.chunks):
			return 0
		case i == len(v.chunks)-1 && v.tail > 0:
			return v.tail
		}
		return chunk
	}
	for i := range max(len(v.chunks), len(w.chunks)) {
		a, b := size(v, i), size(w, i)
		from, to := int64(i)*chunk, int64(i)*chunk+max(a, b)
		switch {
		case a == b && v.chunks[i] == w.chunks[i]:
			continue
		case a > 0 && b > 0 && v.chunks[i] == 0 && w.chunks[i] == 0:
			from += min(a, b) // zeroes, and more of them
		}
		if n := len(runs); n > 0 && runs[n-1][1] == from {
			runs[n-1][1] = to
		} else {
			runs = append(runs, [2]int64{from, to})
		}
	}
	return runs
}

func diff(t *testing.T, a, b volume) (runs [][2]int64, read int) {
	t.Helper()
	var s nodes
	ta, tb := a.tree(t, &s), b.tree(t, &s)
	count := func(r format.Ref, dst []byte) error { read++; return s.read(r, dst) }
	ta.Read, tb.Read = count, count
	err := Diff(ta, tb, func(off, n int64) error {
		runs = append(runs, [2]int64{off, off + n})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return runs, read
}

func TestDiff(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	random := func(n int, tail int64) volume {
		v := volume{make([]byte, n), tail}
		for i := range v.chunks {
			v.chunks[i] = byte(rnd.IntN(3))
		}
		return v
	}
	change := func(v volume, n int) volume {
		v.chunks = slices.Clone(v.chunks)
		for range n {
			v.chunks[rnd.IntN(len(v.chunks))] = byte(rnd.IntN(3))
		}
		return v
	}
	zero := volume{chunks: make([]byte, 3000)}
	big := random(5000, 77)
	for name, p := range map[string][2]volume{
		"the same":                 {big, big},
		"a few":                    {big, change(big, 5)},
		"many":                     {big, change(big, 5000)},
		"all":                      {random(3000, 0), zero},
		"zeroes":                   {zero, zero},
		"more zeroes":              {zero, {chunks: make([]byte, 3001), tail: 5}},
		"one chunk":                {random(1, 9), random(1, 9)},
		"a longer tail":            {volume{[]byte{1, 1}, 5}, volume{[]byte{1, 1}, 9}},
		"a longer tail of zeroes":  {volume{[]byte{1, 0}, 5}, volume{[]byte{1, 0}, 9}},
		"a level more":             {volume{big.chunks[:1024], 0}, big},
		"a level less":             {big, volume{big.chunks[:7], 0}},
		"grown within a node":      {volume{big.chunks[:1100], 0}, volume{big.chunks[:1200], 3}},
		"a node of zeroes, filled": {zero, change(zero, 2)},
	} {
		got, _ := diff(t, p[0], p[1])
		if want := p[0].want(p[1]); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		back, _ := diff(t, p[1], p[0])
		if !slices.Equal(got, back) {
			t.Errorf("%s: %v, the other way %v", name, got, back)
		}
	}
	for range 300 {
		a := random(1+rnd.IntN(2100), int64(rnd.IntN(2)*100))
		b := change(volume{append(slices.Clone(a.chunks), make([]byte, rnd.IntN(3)*600)...), int64(rnd.IntN(2) * 100)}, rnd.IntN(20))
		got, _ := diff(t, a, b)
		if want := a.want(b); !slices.Equal(got, want) {
			t.Fatalf("%d and %d chunks: %v, want %v", len(a.chunks), len(b.chunks), got, want)
		}
	}
}

// What is the same is not read.
func TestDiffReadsWhatDiffers(t *testing.T) {
	v := volume{chunks: slices.Repeat([]byte{1, 2, 0}, 20*1024/3)}
	w := volume{chunks: slices.Clone(v.chunks)}
	w.chunks[5*1024+3] = 9
	if runs, read := diff(t, v, w); len(runs) != 1 || read != 4 { // two roots, two nodes
		t.Errorf("%v, %d nodes read", runs, read)
	}
	// Of the same content at other places the roots are read.
	if runs, read := diff(t, v, v); len(runs) != 0 || read != 2 {
		t.Errorf("%v, %d nodes read", runs, read)
	}
}

func TestDiffRefuses(t *testing.T) {
	var s nodes
	a := volume{chunks: []byte{1, 2}}.tree(t, &s)
	b := a
	b.Shape.ChunkSize *= 2
	if err := Diff(a, b, nil); err == nil {
		t.Error("chunks of two sizes are compared")
	}
	b = volume{chunks: []byte{1, 3}}.tree(t, &s)
	b.Read = func(format.Ref, []byte) error { return format.ErrCorrupt }
	if err := Diff(a, b, nil); !isDamage(err) {
		t.Errorf("a damaged node: %v", err)
	}
}
