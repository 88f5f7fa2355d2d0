package table

import (
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
)

// BenchmarkBuildOver builds the table of a volume of a TiB without zeroes, in which
// one chunk below each of the 1024 nodes changed, over that of the volume before.
func BenchmarkBuildOver(b *testing.B) {
	shape, err := format.ShapeOf(1<<40, 1<<20)
	if err != nil {
		b.Fatal(err)
	}
	var s nodes
	chunk := func(i int64) format.Ref {
		return format.Ref{Hash: format.Hash{byte(i), byte(i >> 8), byte(i >> 16)}, Stored: 1 << 20, Length: 1 << 20, Kind: format.KindChunk}
	}
	base := NewBuilder(shape, nil, s.put)
	for i := range shape.Chunks() {
		if err := base.Append(chunk(i)); err != nil {
			b.Fatal(err)
		}
	}
	root, err := base.Finish()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		t := NewBuilder(shape, NewCursor(Tree{shape, root, s.read}), func(node []byte, before format.Ref) (format.Ref, error) {
			return before, nil
		})
		for i := int64(500); i < shape.Chunks(); i += format.Fanout {
			if err := t.CopyTo(i << 20); err != nil {
				b.Fatal(err)
			}
			if err := t.Append(chunk(-i)); err != nil {
				b.Fatal(err)
			}
		}
		if err := t.CopyTo(shape.Size); err != nil {
			b.Fatal(err)
		}
		if _, err := t.Finish(); err != nil {
			b.Fatal(err)
		}
	}
}
