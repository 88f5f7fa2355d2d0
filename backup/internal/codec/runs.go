package codec

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// minRun is how many equal bytes in a row become a block of their own. A block
// costs up to seven bytes: three of its own header, one of content, and three of the
// header of what stands behind it.
const minRun = 64

// maxBlock is the most that a block of a Zstandard frame stands for (RFC 8878,
// section 3.1.1.2.4).
const maxBlock = 128 << 10

// Block types (RFC 8878, section 3.1.1.2.2).
const (
	rawBlock = 0
	rleBlock = 1
)

// appendRuns appends a Zstandard frame of src in which runs of one byte are
// blocks of their own and what stands between them is as it was. It only looks
// for runs, and that at the speed of memory.
func appendRuns(dst, src []byte) []byte {
	// Single segment, no checksum, four bytes of content size (section 3.1.1.1).
	dst = append(dst, 0x28, 0xb5, 0x2f, 0xfd, 0xa0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(src)))
	done := 0
	// A run of minRun bytes has 8 of them at a place that is looked at.
	for at := 0; at+8 <= len(src); {
		w := binary.LittleEndian.Uint64(src[at:])
		if w != bits.RotateLeft64(w, 8) {
			at += minRun / 2
			continue
		}
		from, to := runBegin(src[done:at], w)+done, runEnd(src, at, w)
		at = to
		if to-from < minRun {
			continue
		}
		for p := src[done:from]; len(p) > 0; {
			n := min(len(p), maxBlock)
			dst = append(appendBlock(dst, rawBlock, n, false), p[:n]...)
			p = p[n:]
		}
		for n := to - from; n > 0; n -= maxBlock {
			dst = append(appendBlock(dst, rleBlock, min(n, maxBlock), false), byte(w))
		}
		done = to
	}
	// The last block may be empty.
	for p := src[done:]; ; {
		n := min(len(p), maxBlock)
		dst = append(appendBlock(dst, rawBlock, n, n == len(p)), p[:n]...)
		if p = p[n:]; len(p) == 0 {
			return dst
		}
	}
}

// appendBlock appends the header of a block that stands for n bytes.
func appendBlock(dst []byte, kind, n int, last bool) []byte {
	h := n<<3 | kind<<1
	if last {
		h |= 1
	}
	return append(dst, byte(h), byte(h>>8), byte(h>>16))
}

// runsBound is the most that appendRuns appends for n bytes.
func runsBound(n int) int { return n + 9 + 3*(n/maxBlock+2) }

// runBegin is where the run of w's bytes begins that p ends with.
func runBegin(p []byte, w uint64) int {
	at := len(p)
	for at >= 8 && binary.LittleEndian.Uint64(p[at-8:]) == w {
		at -= 8
	}
	for at > 0 && p[at-1] == byte(w) {
		at--
	}
	return at
}

// runEnd is where the run of w's bytes ends that begins at p[at] or before, and
// has 8 bytes there.
func runEnd(p []byte, at int, w uint64) int {
	begin := at
	for at+8 <= len(p) && binary.LittleEndian.Uint64(p[at:]) == w {
		at += 8
		// Comparing memory is what the runtime does with the widest registers.
		for at-begin >= minRun && at+minRun <= len(p) && bytes.Equal(p[at-minRun:at], p[at:at+minRun]) {
			at += minRun
		}
	}
	for at < len(p) && p[at] == byte(w) {
		at++
	}
	return at
}
