package table

import (
	"errors"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
)

// FuzzWalk walks tables whose nodes are whatever the input says: the visitor is
// told every byte of the volume once, in order, and no other.
func FuzzWalk(f *testing.F) {
	chunk := format.Ref{Offset: 80, Stored: 10, Length: format.MinChunk, Kind: format.KindChunk, Codec: format.Zstd}
	node := format.Ref{Offset: 80, Stored: 10, Length: format.EntrySize, Kind: format.KindNode, Codec: format.Zstd}
	f.Add(int64(2*format.MinChunk), uint32(2*format.EntrySize), format.AppendEntry(format.AppendEntry(nil, chunk), format.Ref{}))
	f.Add(int64(format.Fanout*format.MinChunk+1), uint32(2*format.EntrySize), format.AppendEntry(format.AppendEntry(nil, format.Ref{}), node))
	f.Add(int64(format.MaxVolume), uint32(128*format.EntrySize), []byte{})
	damaged, enough := errors.New("damaged"), errors.New("enough")
	f.Fuzz(func(t *testing.T, size int64, rootLength uint32, nodes []byte) {
		shape, err := format.ShapeOf(size, format.MinChunk)
		if err != nil {
			return
		}
		next, calls, reads := int64(0), 0, 0
		at := func(what string, off, n int64) error {
			if off != next || n <= 0 || n > size-off {
				t.Fatalf("%s of %d bytes at %d, want it at %d of %d", what, n, off, next, size)
			}
			next += n
			if calls++; calls > 10000 {
				return enough
			}
			return nil
		}
		// Every node is the next part of the input; when that is used up it can't
		// be read.
		read := func(r format.Ref, dst []byte) error {
			if len(dst) > format.MaxNode {
				t.Fatalf("a node of %d bytes", len(dst))
			}
			if reads++; len(nodes) == 0 {
				return damaged
			}
			clear(dst[copy(dst, nodes):])
			nodes = nodes[min(len(nodes), len(dst)):]
			return nil
		}
		root := format.Ref{Offset: 80, Stored: 1, Length: rootLength, Kind: format.KindNode, Codec: format.Zstd}
		err = Walk(shape, root, read, func(error) bool { return true }, Visitor{
			Chunk: func(off, n int64, r format.Ref) error {
				if int64(r.Length) != n {
					t.Errorf("chunk %+v for %d bytes at %d", r, n, off)
				}
				return at("chunk", off, n)
			},
			Zero: func(off, n int64) error { return at("zeroes", off, n) },
			Bad:  func(off, n int64, _ format.Ref, _ error) error { return at("damage", off, n) },
		})
		if err == nil && next != size || err != nil && !errors.Is(err, enough) {
			t.Errorf("the walk ended at %d of %d: %v", next, size, err)
		}
	})
}

// FuzzBuildOver builds tables over bases whose nodes are whatever the input says: what
// comes out is a table of the new size, or an error.
func FuzzBuildOver(f *testing.F) {
	chunk := format.Ref{Offset: 80, Stored: 10, Length: format.MinChunk, Kind: format.KindChunk, Codec: format.Zstd}
	node := format.Ref{Offset: 80, Stored: 10, Length: format.EntrySize, Kind: format.KindNode, Codec: format.Zstd}
	f.Add(int64(2*format.MinChunk), int64(0), uint32(2*format.EntrySize), format.AppendEntry(format.AppendEntry(nil, chunk), format.Ref{}), []byte{1})
	f.Add(int64(format.Fanout*format.MinChunk+1), int64(100), uint32(2*format.EntrySize), format.AppendEntry(format.AppendEntry(nil, format.Ref{}), node), []byte{0, 1})
	f.Add(int64(format.MaxVolume), int64(0), uint32(128*format.EntrySize), []byte{}, []byte{0, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, size, more int64, rootLength uint32, nodes, changed []byte) {
		base, err := format.ShapeOf(size, format.MinChunk)
		if err != nil || more < 0 || more > 2000*format.MinChunk || len(changed) > 50 {
			return
		}
		shape, err := format.ShapeOf(size+more, format.MinChunk)
		if err != nil {
			return
		}
		reads := 0
		read := func(r format.Ref, dst []byte) error {
			if len(dst) > format.MaxNode {
				t.Fatalf("a node of %d bytes", len(dst))
			}
			if reads++; len(nodes) == 0 {
				return format.ErrCorrupt
			}
			clear(dst[copy(dst, nodes):])
			nodes = nodes[min(len(nodes), len(dst)):]
			return nil
		}
		root := format.Ref{Offset: 80, Stored: 1, Length: rootLength, Kind: format.KindNode, Codec: format.Zstd}
		if base.CheckEntry(root, base.Levels+1, 0) != nil {
			return // no manifest that is read has such a root
		}
		stored := 0
		b := NewBuilder(shape, NewCursor(Tree{base, root, read}), func(node []byte, was format.Ref) (format.Ref, error) {
			stored++
			return format.Ref{Offset: 80, Stored: uint32(len(node)), Length: uint32(len(node)), Kind: format.KindNode}, nil
		})
		// Each byte is a step to the next chunk that changed; from the end of the
		// base on all have.
		old := size / format.MinChunk
		for i, last := int64(0), int64(-1); i < int64(len(changed))+more/format.MinChunk+2; i++ {
			next := max(old, last+1)
			if i < int64(len(changed)) {
				next = min(last+1+int64(changed[i])*int64(changed[i]), next)
			}
			if next*format.MinChunk >= shape.Size {
				break
			}
			if err := b.CopyTo(next * format.MinChunk); err != nil {
				return
			}
			if err := b.Append(format.Ref{Offset: 80, Stored: 10, Length: uint32(shape.Covers(1, next*format.MinChunk)), Kind: format.KindChunk, Codec: format.Zstd}); err != nil {
				t.Fatal(err)
			}
			last = next
		}
		if err := b.CopyTo(shape.Size); err != nil {
			return
		}
		got, err := b.Finish()
		if err != nil {
			return
		}
		if !got.IsZero() {
			if err := shape.CheckEntry(got, shape.Levels+1, 0); err != nil {
				t.Errorf("the root: %v", err)
			}
		}
		steps := len(changed) + int(more/format.MinChunk) + 3
		if reads > steps*shape.Levels*2 || stored > steps*shape.Levels {
			t.Errorf("%d nodes read and %d stored for %d changes", reads, stored, steps)
		}
	})
}
