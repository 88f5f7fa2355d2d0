package api

import (
	"bytes"
	"math/rand"
	"reflect"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestChangesTravel: what was packed is unpacked again, for sizes that end within
// a block, a byte and a word.
func TestChangesTravel(t *testing.T) {
	const block = 64 << 10
	for _, size := range []int64{4096, block, 7*block + 4096, 64 * block, 64*block + 512, 1000 * block} {
		n := int((size + block - 1) / block)
		for seed := range int64(4) {
			rng := rand.New(rand.NewSource(seed))
			words := make([]uint64, (n+63)/64)
			var want []Range
			for b := range n {
				if seed == 0 || rng.Intn(3) == 0 {
					words[b/64] |= 1 << (b % 64)
					r := Range{int64(b) * block, min(block, size-int64(b)*block)}
					if k := len(want) - 1; k >= 0 && want[k].Offset+want[k].Length == r.Offset {
						want[k].Length += r.Length
					} else {
						want = append(want, r)
					}
				}
			}
			c, err := NewChanges(size, block, words)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Ranges(size)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%d bytes, seed %d: %v, %v, want %v", size, seed, got, err, want)
			}
		}
	}
	if c, err := NewChanges(1<<20, block, nil); err != nil || c.Bitmap != nil || c.BlockSize != 0 {
		t.Errorf("of an unknown base: %+v, %v", c, err)
	}
	if _, err := NewChanges(1<<20, block, make([]uint64, 2)); err == nil {
		t.Error("a map of another size was packed")
	}
}

// TestLargeVolumesHaveLargerBlocks: the answer stays bounded, and no change is
// lost.
func TestLargeVolumesHaveLargerBlocks(t *testing.T) {
	const block, size = 64 << 10, 5<<40 + 4096
	words := make([]uint64, (size/block+1+63)/64)
	changed := []int64{0, 1, 63, 64, 12345678, size / block}
	for _, b := range changed {
		words[b/64] |= 1 << (b % 64)
	}
	c, err := NewChanges(size, block, words)
	if err != nil {
		t.Fatal(err)
	}
	if c.BlockSize != 8*block || len(c.Bitmap) > 4096 {
		t.Errorf("blocks of %d bytes, %d bytes of map", c.BlockSize, len(c.Bitmap))
	}
	list, err := c.Ranges(size)
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, r := range list {
		total += r.Length
	}
	for _, b := range changed {
		found := false
		for _, r := range list {
			found = found || r.Offset <= b*block && b*block < r.Offset+r.Length
		}
		if !found {
			t.Errorf("block %d is lost", b)
		}
	}
	if want := int64(4*8*block + 4096); total != want {
		t.Errorf("%d bytes are named, want %d: %v", total, want, list)
	}
}

// TestChangesThatLie: an answer that is none of such a volume is refused, and takes
// no more memory than the volume's own map.
func TestChangesThatLie(t *testing.T) {
	good, err := NewChanges(100<<16, 1<<16, []uint64{1, 0})
	if err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Changes{
		"no block size":   {Bitmap: good.Bitmap},
		"odd block size":  {BlockSize: 1000, Bitmap: good.Bitmap},
		"small blocks":    {BlockSize: 256, Bitmap: good.Bitmap},
		"other blocks":    {BlockSize: 1 << 15, Bitmap: good.Bitmap},
		"nothing":         {BlockSize: 1 << 16},
		"no zstd":         {BlockSize: 1 << 16, Bitmap: []byte("swapback")},
		"too long":        {BlockSize: 1 << 16, Bitmap: enc.EncodeAll(make([]byte, 14), nil)},
		"far too long":    {BlockSize: 1 << 16, Bitmap: enc.EncodeAll(make([]byte, 1<<30), nil)},
		"behind the end":  {BlockSize: 1 << 16, Bitmap: enc.EncodeAll(append(make([]byte, 12), 0x10), nil)},
		"cut off":         {BlockSize: 1 << 16, Bitmap: good.Bitmap[:len(good.Bitmap)-1]},
		"many tiny parts": {BlockSize: 1 << 16, Bitmap: bytes.Repeat(good.Bitmap, 1000)},
	} {
		if list, err := c.Ranges(100 << 16); err == nil {
			t.Errorf("%s: %v", name, list)
		}
	}
	if _, err := good.Ranges(-1); err == nil {
		t.Error("a volume of a negative size")
	}
	if _, err := (&Changes{BlockSize: 512}).Ranges(1 << 60); err == nil {
		t.Error("a map without bounds")
	}
}

func FuzzChanges(f *testing.F) {
	good, err := NewChanges(100<<16, 1<<16, []uint64{5, 1 << 35})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(int64(100<<16), int64(1<<16), good.Bitmap)
	f.Fuzz(func(t *testing.T, size, block int64, bitmap []byte) {
		c := Changes{BlockSize: block, Bitmap: bitmap}
		list, err := c.Ranges(size)
		if err != nil {
			return
		}
		end := int64(-1)
		for _, r := range list {
			if r.Offset <= end || r.Length < 1 || r.Offset%block != 0 || r.Offset+r.Length > size {
				t.Fatalf("%+v of %d bytes after %d", r, size, end)
			}
			end = r.Offset + r.Length
		}
	})
}
