package wire

import "strings"

// layout is a structure in memory that fields are written to or read from: one
// list of offsets serves both directions, and reads as the table of the
// specification. Offsets are bytes.
type layout struct {
	b   []byte
	put bool
}

func (l layout) u8(off int, v *uint8) {
	if l.put {
		l.b[off] = *v
	} else {
		*v = l.b[off]
	}
}

func (l layout) u16(off int, v *uint16) {
	if l.put {
		le.PutUint16(l.b[off:], *v)
	} else {
		*v = le.Uint16(l.b[off:])
	}
}

func (l layout) u32(off int, v *uint32) {
	if l.put {
		le.PutUint32(l.b[off:], *v)
	} else {
		*v = le.Uint32(l.b[off:])
	}
}

func (l layout) u64(off int, v *uint64) {
	if l.put {
		le.PutUint64(l.b[off:], *v)
	} else {
		*v = le.Uint64(l.b[off:])
	}
}

func (l layout) bytes(off int, v []byte) {
	if l.put {
		copy(l.b[off:], v)
	} else {
		copy(v, l.b[off:])
	}
}

// text is n bytes, filled up with pad: spaces for ASCII strings of Identify, zero
// for names. Longer text is cut.
func (l layout) text(off, n int, pad byte, v *string) {
	b := l.b[off : off+n]
	if l.put {
		for i := copy(b, *v); i < n; i++ {
			b[i] = pad
		}
		return
	}
	s := string(b)
	if pad == 0 {
		s, _, _ = strings.Cut(s, "\x00")
	}
	*v = strings.TrimRight(s, string(rune(pad)))
}
