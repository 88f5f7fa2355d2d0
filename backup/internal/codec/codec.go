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
type Compressor struct {
	enc *zstd.Encoder
	// plain is enc without entropy coding of what it finds no repetition of.
	plain   *zstd.Encoder
	runs    []byte // scratch
	sectors samples
}

// NewCompressor returns a compressor for chunks up to size bytes.
func NewCompressor(size int) (*Compressor, error) {
	window := zstd.MinWindowSize
	for window < size && window < 8<<20 {
		window *= 2
	}
	c := new(Compressor)
	c.runs = make([]byte, 0, runsBound(trial))
	for _, e := range []struct {
		to    **zstd.Encoder
		plain bool
	}{{&c.enc, false}, {&c.plain, true}} {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithWindowSize(window), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithNoEntropyCompression(e.plain))
		if err != nil {
			return nil, fmt.Errorf("make zstd encoder: %w", err)
		}
		*e.to = enc
	}
	return c, nil
}

// Close frees the compressor.
func (c *Compressor) Close() {
	c.enc.Close()
	c.plain.Close()
}

// Compress returns src's payload, in dst's memory when it fits there, or src
// itself: what would save less than a sixteenth stays raw, so that reading it
// back costs no decoding.
//
// What is compressed is one Zstandard frame, or several in a row: stretches of
// noise get frames of their own, for which only repetitions, or only runs of one
// byte, are looked for.
func (c *Compressor) Compress(dst, src []byte) ([]byte, format.Codec) {
	out := dst[:0]
	for rest := src; len(rest) > 0; {
		n, noise := stretch(rest)
		if noise {
			out = c.appendNoise(out, rest[:n])
		} else {
			out = c.enc.EncodeAll(rest[:n], out)
		}
		rest = rest[n:]
	}
	if len(out) < len(src)-len(src)/16 {
		return out, format.Zstd
	}
	return src, format.Raw
}

// stretch is how much at the beginning of p is noise, or is not.
func stretch(p []byte) (n int, noise bool) {
	for n < len(p) {
		s := p[n:min(n+maxBlock, len(p))]
		is := isNoise(s) || IsZero(s)
		if n > 0 && is != noise {
			break
		}
		n, noise = n+len(s), is
	}
	return n, noise
}

// appendNoise appends frames of bytes none of which can be coded in less than 8 bits.
//
// Looking for repetitions takes long where there are runs between the noise, as in
// pages that are not full. A frame for the beginning is made both ways; when that
// and samples of the rest tell of no repetitions but runs, none are looked for.
func (c *Compressor) appendNoise(out, p []byte) []byte {
	if c.sectors.repeats(p) {
		return c.plain.EncodeAll(p, out)
	}
	first := p[:min(trial, len(p))]
	begin := len(out)
	out = c.plain.EncodeAll(first, out)
	searched := len(out) - begin
	if c.runs = appendRuns(c.runs[:0], first); len(c.runs) <= searched+searched/32 {
		return appendRuns(out[:begin], p)
	}
	if len(first) < len(p) {
		out = c.plain.EncodeAll(p, out[:begin])
	}
	return out
}

// isNoise tells by a sample whether all bytes come about equally often in p, apart
// from runs of one byte: then no byte can be coded in less than 8 bits.
func isNoise(p []byte) bool {
	const (
		probes = 32
		width  = 64 // bytes of a probe
		least  = 512
	)
	if len(p) < 4*probes*width {
		return false // compressing it costs little more than asking
	}
	var count [256]int
	n := 0
	for i := range probes {
		at := i * ((len(p) - width - 1) / (probes - 1))
		last := p[at]
		for _, b := range p[at+1 : at+1+width] {
			if b != last {
				count[b]++
				n++
			}
			last = b
		}
	}
	if n < least {
		return false
	}
	// The sum of squares is n + n(n-1)/256 for noise, give or take one percent at
	// n = 2048 and three at 512, and 1.2 times that when a tenth of the bytes are text.
	sum := 0
	for _, c := range count {
		sum += c * c
	}
	noise := n + n*(n-1)/256
	return sum < noise+noise/12
}

// Bound is how much memory Compress wants in dst for n bytes.
func (c *Compressor) Bound(n int) int {
	frames := n/maxBlock + 1
	return n + frames*(runsBound(maxBlock)-maxBlock+c.enc.MaxEncodedSize(maxBlock)-maxBlock)
}

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
		out := dst[:0:len(dst)]
		for len(payload) > 0 {
			var n int
			var plain bool
			if out, n, plain = takeFrame(out, payload); !plain {
				var err error
				if out, err = d.dec.DecodeAll(payload[:n], out); err != nil {
					return fmt.Errorf("%w: decompress: %w", format.ErrCorrupt, err)
				}
			}
			payload = payload[n:]
		}
		if len(out) != len(dst) {
			return fmt.Errorf("%w: payload decompresses to %d bytes, not %d", format.ErrCorrupt, len(out), len(dst))
		}
		return nil
	}
	return fmt.Errorf("%w: %v is unknown", format.ErrCorrupt, c)
}
