package codec

import (
	"encoding/binary"
	"math/bits"
)

const (
	// sector is the distance at which what repeats in files, file systems and
	// archives of files begins.
	sector = 512
	// trial is how much of a stretch of noise is searched for repetitions at any
	// distance.
	trial = 32 << 10
)

// samples is a table of the words at which sectors begin, for repeats.
type samples [4096]uint64

// repeats tells by the first word of each sector whether p has sectors that come
// more than once: more than one in thirty of them. Runs of one byte are not meant.
func (t *samples) repeats(p []byte) bool {
	clear(t[:])
	again := 0
	for at := 0; at+8 <= len(p); at += sector {
		w := binary.LittleEndian.Uint64(p[at:])
		if w == bits.RotateLeft64(w, 8) {
			continue
		}
		// The golden ratio spreads words that differ in a few bits only.
		slot := &t[w*0x9e3779b97f4a7c15>>52]
		if *slot == w {
			again++
		}
		*slot = w
	}
	return again > len(p)/sector/30
}
