package api

import (
	"fmt"
	"math/bits"

	"github.com/klauspost/compress/zstd"
)

// A map in an answer has no more bits than this, times 64: a TiB in blocks of
// 64 KiB. Of a larger volume the blocks are larger.
const maxMapWords = 1 << 18

// Range is a run of bytes of a volume.
type Range struct {
	Offset, Length int64
}

// NewChanges packs the changed blocks of a volume of size bytes, one bit each,
// the lowest of the first word first; nil when it is not known what has changed.
// Those of a volume of more than a TiB are made larger, so that an answer about 64
// volumes stays within what a client takes.
func NewChanges(size, block int64, blocks []uint64) (Changes, error) {
	if blocks == nil {
		return Changes{}, nil
	}
	if n := (size + block - 1) / block; int64(len(blocks)) != (n+63)/64 {
		return Changes{}, fmt.Errorf("change map of %d words for %d blocks", len(blocks), n)
	}
	for len(blocks) > maxMapWords {
		blocks, block = halve(blocks), 2*block
	}
	raw := make([]byte, 0, 8*len(blocks))
	for _, w := range blocks {
		for i := range 8 {
			raw = append(raw, byte(w>>(8*i)))
		}
	}
	n := (size + block - 1) / block
	raw = raw[:(n+7)/8]
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return Changes{}, fmt.Errorf("change map: %w", err)
	}
	defer enc.Close()
	return Changes{BlockSize: block, Bitmap: enc.EncodeAll(raw, nil)}, nil
}

// halve makes one bit of two.
func halve(words []uint64) []uint64 {
	out := make([]uint64, (len(words)+1)/2)
	for i, w := range words {
		for ; w != 0; w &= w - 1 {
			bit := bits.TrailingZeros64(w)/2 + i%2*32
			out[i/2] |= 1 << bit
		}
	}
	return out
}

// Ranges unpacks the runs that have changed of a volume of size bytes, in order
// and with something between any two. It refuses a map that is not one of such a
// volume, and takes memory for the map of the volume only, whatever the answer
// says.
func (c *Changes) Ranges(size int64) ([]Range, error) {
	block := c.BlockSize
	if block < 512 || block&(block-1) != 0 || size < 0 {
		return nil, fmt.Errorf("change map: blocks of %d bytes of a volume of %d", block, size)
	}
	n := (size-1)/block + 1
	if size == 0 {
		n = 0
	}
	if n > 64*maxMapWords {
		return nil, fmt.Errorf("change map: %d blocks, want at most %d", n, 64*maxMapWords)
	}
	want := int((n + 7) / 8)
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(want)+1<<20))
	if err != nil {
		return nil, fmt.Errorf("change map: %w", err)
	}
	defer dec.Close()
	raw, err := dec.DecodeAll(c.Bitmap, make([]byte, 0, want))
	if err != nil {
		return nil, fmt.Errorf("change map: %w", err)
	}
	if len(raw) != want || n%8 != 0 && raw[want-1]>>(n%8) != 0 {
		return nil, fmt.Errorf("change map: %d bytes for %d blocks", len(raw), n)
	}
	var list []Range
	for b := int64(0); b < n; b++ {
		if raw[b/8] == 0 {
			b |= 7
			continue
		}
		if raw[b/8]>>(b%8)&1 == 0 {
			continue
		}
		at := b * block
		length := min(block, size-at)
		if k := len(list) - 1; k >= 0 && list[k].Offset+list[k].Length == at {
			list[k].Length += length
		} else {
			list = append(list, Range{at, length})
		}
	}
	return list, nil
}
