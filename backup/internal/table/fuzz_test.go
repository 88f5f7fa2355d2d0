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
