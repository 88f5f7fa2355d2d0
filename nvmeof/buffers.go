package nvmeof

// input is what was received and not yet looked at.
type input struct {
	buf  []byte
	r, w int
}

func (in *input) bytes() []byte { return in.buf[in.r:in.w] }

func (in *input) advance(n int) {
	in.r += n
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
}

// space is where more may be received. There is always some: a PDU that lies in it
// in part, and the header of one does, is shorter than half of it.
func (in *input) space() []byte {
	if in.r > 0 && len(in.buf)-in.w < len(in.buf)/2 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	return in.buf[in.w:]
}

// output is what is to be sent, in order: headers and small data lie one behind the
// other in buf, large data stays where it is.
type output struct {
	buf  []byte // its length is what is used; it never grows beyond its capacity
	mark int    // where in buf the piece begins that parts does not have yet
	// parts are pieces of buf and large data.
	parts [][]byte
	// freed are commands whose data is in parts, to be freed when it was sent.
	freed []uint16
	bytes int // in all
}

// reserve appends n bytes for the caller to fill. There must be room for them.
func (o *output) reserve(n int) []byte {
	at := len(o.buf)
	o.buf = o.buf[:at+n]
	o.bytes += n
	return o.buf[at : at+n : at+n]
}

// undo takes back the last n bytes reserved.
func (o *output) undo(n int) {
	o.buf = o.buf[:len(o.buf)-n]
	o.bytes -= n
}

func (o *output) room() int { return cap(o.buf) - len(o.buf) }

// refer appends data that stays where it is until it was sent.
func (o *output) refer(data []byte) {
	o.cut()
	o.parts = append(o.parts, data)
	o.bytes += len(data)
}

// cut makes the piece of buf that was filled last a part.
func (o *output) cut() {
	if len(o.buf) > o.mark {
		o.parts = append(o.parts, o.buf[o.mark:])
		o.mark = len(o.buf)
	}
}

func (o *output) empty() bool { return o.bytes == 0 }

// reset forgets all, when it was sent.
func (o *output) reset() {
	o.buf, o.mark, o.bytes = o.buf[:0], 0, 0
	clear(o.parts)
	o.parts, o.freed = o.parts[:0], o.freed[:0]
}
