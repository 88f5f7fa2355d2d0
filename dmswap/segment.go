package dmswap

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// String writes a segment as the metadata keeps it: EXTENTS@MEMBER:START, with
// +MEMBER:START for every further stripe. 256@0:12 is 256 extents of member 0
// from extent 12 on; 128@0:12+1:40 is 128 extents of each of two members, in
// stripes.
func (s Segment) String() string {
	var b strings.Builder
	b.WriteString(strconv.FormatInt(s.Extents, 10))
	sep := "@"
	for _, st := range s.Stripes {
		fmt.Fprintf(&b, "%s%d:%d", sep, st.Member, st.Start)
		sep = "+"
	}
	return b.String()
}

// MarshalText implements encoding.TextMarshaler.
func (s Segment) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Segment) UnmarshalText(text []byte) error {
	count, places, ok := strings.Cut(string(text), "@")
	if !ok {
		return fmt.Errorf("segment %q: want EXTENTS@MEMBER:START", text)
	}
	var err error
	if s.Extents, err = parseCount(count); err != nil || s.Extents == 0 {
		return fmt.Errorf("segment %q: bad number of extents", text)
	}
	s.Stripes = nil
	for place := range strings.SplitSeq(places, "+") {
		if len(s.Stripes) == maxMembers {
			return fmt.Errorf("segment %.40q…: more than %d stripes", text, maxMembers)
		}
		member, start, ok := strings.Cut(place, ":")
		m, err1 := parseCount(member)
		at, err2 := parseCount(start)
		if !ok || err1 != nil || err2 != nil || m >= maxMembers {
			return fmt.Errorf("segment %q: bad place %q", text, place)
		}
		s.Stripes = append(s.Stripes, SegmentStripe{Member: int(m), Start: at})
	}
	return nil
}

// parseCount reads a number that leaves room to be multiplied by an extent
// size and a number of stripes. One spelling per number, so that text that
// was decoded and encoded again is the same.
func parseCount(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt32*1024 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("bad number %q", s)
	}
	return n, nil
}

// extents returns the extents that all segments have together.
func countExtents(segments []Segment) int64 {
	var n int64
	for _, s := range segments {
		n += s.Extents * int64(len(s.Stripes))
	}
	return n
}

// piece is a stretch of a position on one member, in bytes.
type piece struct {
	offset int64 // in the position
	member int
	at     int64 // on the disk
	length int64
}

// mapRange says where the bytes [offset, offset+length) of a position are, in
// order. It is the one place besides the device-mapper tables that knows how a
// position is laid out, and is tested against them.
func mapRange(members []memberRecord, extentSize int64, p *positionRecord, offset, length int64) []piece {
	var out []piece
	base := int64(0) // where the segment begins in the position
	for _, s := range p.Segments {
		n := int64(len(s.Stripes))
		size := s.Extents * n * extentSize
		for length > 0 && offset < base+size {
			in := offset - base
			step, stripe, at := size-in, int64(0), in
			if n > 1 {
				chunk := in / p.StripeSize
				within := in % p.StripeSize
				stripe = chunk % n
				at = chunk/n*p.StripeSize + within
				step = p.StripeSize - within
			}
			step = min(step, length)
			st := s.Stripes[stripe]
			out = append(out, piece{offset, st.Member, members[st.Member].DataOffset + st.Start*extentSize + at, step})
			offset += step
			length -= step
		}
		base += size
	}
	return out
}
