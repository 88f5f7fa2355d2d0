package backup

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestChunkRuns(t *testing.T) {
	const chunk, size = 100, 1050
	for _, c := range []struct {
		name   string
		ranges []Range
		want   []Range
	}{
		{"nothing", nil, nil},
		{"no bytes", []Range{{0, 0}, {500, 0}}, nil},
		{"all", []Range{{0, size}}, []Range{{0, size}}},
		{"a byte", []Range{{199, 1}}, []Range{{100, 100}}},
		{"the first", []Range{{0, 1}}, []Range{{0, 100}}},
		{"over an edge", []Range{{199, 2}}, []Range{{100, 200}}},
		{"two in one", []Range{{110, 5}, {150, 5}}, []Range{{100, 100}}},
		{"neighbours", []Range{{110, 5}, {200, 100}}, []Range{{100, 200}}},
		{"apart", []Range{{110, 5}, {300, 1}}, []Range{{100, 100}, {300, 100}}},
		{"the short end", []Range{{1049, 1}}, []Range{{1000, 50}}},
		{"the end, with more", []Range{{950, 10}, {1000, 50}}, []Range{{900, 150}}},
	} {
		if got := slices.Collect(chunkRuns(c.ranges, size, chunk)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// The runs are the chunks that the ranges touch, and no others.
func TestChunkRunsOfRandomRanges(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		size, chunk := 1+rnd.Int64N(5000), int64(1)<<rnd.IntN(9)
		want := make([]bool, (size+chunk-1)/chunk)
		var ranges []Range
		for at := rnd.Int64N(50); at < size; at += rnd.Int64N(300) {
			r := Range{at, min(1+rnd.Int64N(100), size-at)}
			ranges = append(ranges, r)
			for i := r.Offset / chunk; i <= (r.Offset+r.Length-1)/chunk; i++ {
				want[i] = true
			}
			at += r.Length
		}
		got, last := make([]bool, len(want)), int64(-1)
		for r := range chunkRuns(ranges, size, chunk) {
			if r.Offset%chunk != 0 || r.Offset <= last || r.Length <= 0 || (r.Offset+r.Length)%chunk != 0 && r.Offset+r.Length != size {
				t.Fatalf("run %+v after %d of %d", r, last, size)
			}
			for off := r.Offset; off < r.Offset+r.Length; off += chunk {
				got[off/chunk] = true
			}
			last = r.Offset + r.Length // a neighbour would have been joined
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v of %d in chunks of %d: %v, want %v", ranges, size, chunk, got, want)
		}
	}
}
