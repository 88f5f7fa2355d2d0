package table

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
)

const chunk = format.MinChunk

// nodes is a store of nodes in memory. A node's offset is its number.
type nodes [][]byte

func (s *nodes) put(node []byte, _ format.Ref) (format.Ref, error) {
	*s = append(*s, append([]byte(nil), node...))
	n := uint32(len(node))
	return format.Ref{Offset: uint32(len(*s)), Stored: n, Length: n, Kind: format.KindNode}, nil
}

func (s *nodes) read(r format.Ref, dst []byte) error {
	if r.Offset == 0 || int(r.Offset) > len(*s) || copy(dst, (*s)[r.Offset-1]) != len(dst) {
		return format.ErrCorrupt
	}
	return nil
}

func isDamage(err error) bool { return errors.Is(err, format.ErrCorrupt) }

// build makes a table of n chunks and a tail; every chunk for which zero is true
// is zero, the others carry their number as offset.
func build(t *testing.T, s *nodes, chunks, tail int64, zero func(i int64) bool) (format.Shape, format.Ref) {
	t.Helper()
	shape, err := format.ShapeOf(chunks*chunk+tail, chunk)
	if err != nil {
		t.Fatal(err)
	}
	b := NewBuilder(shape, nil, s.put)
	for i := range shape.Chunks() {
		var r format.Ref
		if !zero(i) {
			n := uint32(shape.Covers(1, i*chunk))
			r = format.Ref{Offset: uint32(i) + 1, Stored: n, Length: n, Kind: format.KindChunk}
		}
		if err := b.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return shape, root
}

func TestBuildAndWalk(t *testing.T) {
	for _, tt := range []struct {
		name         string
		chunks, tail int64
		zero         func(i int64) bool
		nodes        int
	}{
		{"one short chunk", 0, 100, func(i int64) bool { return false }, 1},
		{"one zero chunk", 1, 0, func(i int64) bool { return true }, 0},
		{"a full node", 1024, 0, func(i int64) bool { return i%3 == 0 }, 1},
		{"a full node and a byte", 1024, 1, func(i int64) bool { return i%3 == 0 }, 3},
		{"a node of zeroes between", 3 * 1024, 5, func(i int64) bool { return i >= 1024 && i < 2048 }, 4},
		{"all zeroes", 5000, 0, func(i int64) bool { return true }, 0},
		{"a zero tail", 1025, 1, func(i int64) bool { return i > 1023 }, 2},
		{"three levels", 1024*1024 + 1, 7, func(i int64) bool { return i != 0 && i != 1024*1024 }, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s nodes
			shape, root := build(t, &s, tt.chunks, tt.tail, tt.zero)
			if len(s) != tt.nodes {
				t.Errorf("%d nodes, want %d", len(s), tt.nodes)
			}
			next := int64(0)
			err := Walk(shape, root, s.read, isDamage, Visitor{
				Chunk: func(off, n int64, r format.Ref) error {
					if off != next || r.Offset != uint32(off/chunk)+1 || tt.zero(off/chunk) || n != int64(r.Length) {
						return fmt.Errorf("chunk at %d is %+v, %d bytes", off, r, n)
					}
					next += n
					return nil
				},
				Zero: func(off, n int64) error {
					if off != next {
						return fmt.Errorf("zeroes at %d, want %d", off, next)
					}
					for i := off / chunk; i*chunk < off+n; i++ {
						if !tt.zero(i) {
							return fmt.Errorf("chunk %d is zero", i)
						}
					}
					next += n
					return nil
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			if next != shape.Size {
				t.Errorf("walk ended at %d of %d", next, shape.Size)
			}
		})
	}
}

func TestBuilderCounts(t *testing.T) {
	shape, err := format.ShapeOf(2*chunk, chunk)
	if err != nil {
		t.Fatal(err)
	}
	var s nodes
	b := NewBuilder(shape, nil, s.put)
	for i := range 2 {
		if _, err := b.Finish(); err == nil {
			t.Errorf("finish after %d of 2 chunks succeeded", i)
		}
		if err := b.Append(format.Ref{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Append(format.Ref{}); err == nil {
		t.Error("a third chunk was taken")
	}
}

// A bad node costs what lies below it and nothing else.
func TestWalkAroundDamage(t *testing.T) {
	var s nodes
	shape, root := build(t, &s, 3*1024, 0, func(int64) bool { return false })
	s[1][5] ^= 1               // an entry's hash: for read to tell, not for us
	s[1][60] = 9               // an entry's kind
	s[2] = s[2][:len(s[2])-64] // a node of the wrong length
	var log strings.Builder
	chunks := 0
	err := Walk(shape, root, s.read, isDamage, Visitor{
		Chunk: func(off, n int64, r format.Ref) error { chunks++; return nil },
		Zero:  func(off, n int64) error { t.Error("zeroes"); return nil },
		Bad: func(off, n int64, r format.Ref, err error) error {
			fmt.Fprintf(&log, "%d+%d node %d\n", off/chunk, n/chunk, r.Offset)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "1024+1024 node 2\n2048+1024 node 3\n"; log.String() != want || chunks != 1024 {
		t.Errorf("%d chunks, bad are\n%swant\n%s", chunks, log.String(), want)
	}
	// Without Bad, and with an error that is no damage, the walk ends.
	if err := Walk(shape, root, s.read, isDamage, Visitor{
		Chunk: func(off, n int64, r format.Ref) error { return nil },
	}); !isDamage(err) {
		t.Errorf("error is %v", err)
	}
	down := errors.New("cable pulled")
	err = Walk(shape, root, func(format.Ref, []byte) error { return down }, isDamage, Visitor{
		Bad: func(off, n int64, r format.Ref, err error) error { t.Error("bad"); return nil },
	})
	if !errors.Is(err, down) {
		t.Errorf("error is %v", err)
	}
}

// A root that does not fit the size is found before it is read.
func TestWalkRefusesAnImpossibleRoot(t *testing.T) {
	shape, err := format.ShapeOf(10*chunk, chunk)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []format.Ref{
		{Kind: format.KindChunk, Length: 640, Stored: 640},
		{Kind: format.KindNode, Length: 641, Stored: 641},
		{Kind: format.KindNode, Length: 640, Stored: 639},
		{Kind: format.KindNode, Length: 1 << 31, Stored: 1 << 31},
		{Kind: 7, Length: 640, Stored: 640},
	} {
		err := Walk(shape, r, func(format.Ref, []byte) error { t.Error("was read"); return nil }, isDamage, Visitor{})
		if !isDamage(err) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestWalkPassesOverNodes(t *testing.T) {
	var s nodes
	shape, root := build(t, &s, 3*1024, 0, func(int64) bool { return false })
	var got []int64
	err := Walk(shape, root, s.read, isDamage, Visitor{
		Chunk: func(off, n int64, r format.Ref) error {
			if off%(1024*chunk) == 0 {
				got = append(got, off/chunk)
			}
			return nil
		},
		Node: func(off, n int64, r format.Ref) (bool, error) { return off != 1024*chunk, nil },
	})
	if err != nil || fmt.Sprint(got) != "[0 2048]" {
		t.Errorf("came across %v, %v", got, err)
	}
}
