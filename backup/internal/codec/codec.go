// Package codec makes payloads of chunks: it tells zeroes, compresses what can
// be compressed, and takes payloads apart again within a bound.
package codec

import (
	"bytes"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/swapback/swapback/backup/internal/format"
)

// IsZero tells whether all bytes of p are zero.
func IsZero(p []byte) bool {
	const head = 16
	for _, b := range p[:min(head, len(p))] {
		if b != 0 {
			return false
		}
	}
	// When the head is zero and every byte equals the one `head` before it, all
	// are zero; and comparing memory is what the runtime does with the widest
	// registers there are.
	return len(p) <= head || bytes.Equal(p[head:], p[:len(p)-head])
}

// Compressor compresses with state of its own; it is for one goroutine. Close it.
type Compressor struct{ enc *zstd.Encoder }

// NewCompressor returns a compressor for chunks up to size bytes.
func NewCompressor(size int) (*Compressor, error) {
	window := zstd.MinWindowSize
	for window < size && window < 8<<20 {
		window *= 2
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithWindowSize(window), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	if err != nil {
		return nil, fmt.Errorf("make zstd encoder: %w", err)
	}
	return &Compressor{enc: enc}, nil
}

// Close frees the compressor.
func (c *Compressor) Close() { c.enc.Close() }

// Compress returns src's payload, in dst's memory when it fits there, or src
// itself: what would save less than a sixteenth stays raw, so that reading it
// back costs no decoding.
//
// There is no test for incompressible data before the encoder's own, which
// passes over random bytes at several GB/s (BenchmarkCompress) and, unlike a
// test of byte frequencies, still finds the repetitions in a run of archives.
func (c *Compressor) Compress(dst, src []byte) ([]byte, format.Codec) {
	out := c.enc.EncodeAll(src, dst[:0])
	if len(out) < len(src)-len(src)/16 {
		return out, format.Zstd
	}
	return src, format.Raw
}

// Bound is how much memory Compress wants in dst for n bytes.
func (c *Compressor) Bound(n int) int { return c.enc.MaxEncodedSize(n) }

// Decompressor takes payloads apart; it is for one goroutine. Close it.
type Decompressor struct{ dec *zstd.Decoder }

// NewDecompressor returns a decompressor for plaintexts up to size bytes.
func NewDecompressor(size int) (*Decompressor, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(uint64(max(size, 1<<20))), zstd.WithDecoderMaxWindow(32<<20))
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	return &Decompressor{dec: dec}, nil
}

// Close frees the decompressor.
func (d *Decompressor) Close() { d.dec.Close() }

// Decompress fills dst from the payload, exactly. It never writes beyond dst,
// whatever the payload says.
func (d *Decompressor) Decompress(dst, payload []byte, c format.Codec) error {
	switch c {
	case format.Raw:
		if len(payload) != len(dst) {
			return fmt.Errorf("%w: raw payload has %d bytes, not %d", format.ErrCorrupt, len(payload), len(dst))
		}
		copy(dst, payload)
		return nil
	case format.Zstd:
		out, err := d.dec.DecodeAll(payload, dst[:0:len(dst)])
		if err != nil {
			return fmt.Errorf("%w: decompress: %w", format.ErrCorrupt, err)
		}
		if len(out) != len(dst) {
			return fmt.Errorf("%w: payload decompresses to %d bytes, not %d", format.ErrCorrupt, len(out), len(dst))
		}
		return nil
	}
	return fmt.Errorf("%w: %v is unknown", format.ErrCorrupt, c)
}
