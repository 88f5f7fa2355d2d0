package codec

import "github.com/klauspost/compress/zstd"

// takeFrame takes the first Zstandard frame of p: it is how many bytes that is and,
// when all blocks of it are raw or runs, dst with what they stand for. The library
// takes a third of a microsecond for each block, which is too long for the frames
// of appendRuns. Other frames, and whatever is wrong in any way, are left to it: then
// plain is false and dst as it was, though there may be something behind it, up to its capacity.
func takeFrame(dst, p []byte) (out []byte, n int, plain bool) {
	var h zstd.Header
	if h.Decode(p) != nil || h.Skippable {
		return dst, len(p), false
	}
	out = dst
	plain = h.SingleSegment && h.HasFCS && !h.HasCheckSum && h.DictionaryID == 0
	for at := h.HeaderSize; at+3 <= len(p); {
		b := int(p[at]) | int(p[at+1])<<8 | int(p[at+2])<<16
		last, kind, size := b&1 != 0, b>>1&3, b>>3
		at += 3
		stored := size
		if kind == rleBlock {
			stored = 1
		}
		if stored > len(p)-at {
			break
		}
		// A block stands for no more than the window, which is the whole frame here.
		plain = plain && kind <= rleBlock && size <= min(maxBlock, max(int(h.FrameContentSize), zstd.MinWindowSize)) && size <= cap(out)-len(out)
		if plain {
			room := out[len(out) : len(out)+size]
			if out = out[:len(out)+size]; kind == rawBlock {
				copy(room, p[at:])
			} else {
				fill(room, p[at])
			}
		}
		at += stored
		if !last {
			continue
		}
		if plain = plain && uint64(len(out)-len(dst)) == h.FrameContentSize; plain {
			return out, at, true
		}
		if h.HasCheckSum {
			at += 4
		}
		return dst, min(at, len(p)), false
	}
	return dst, len(p), false
}

func fill(p []byte, b byte) {
	if b == 0 {
		clear(p)
		return
	}
	for i := range p {
		p[i] = b
	}
}
