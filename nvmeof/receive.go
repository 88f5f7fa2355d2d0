package nvmeof

import (
	"fmt"
	"runtime/debug"

	"github.com/swapback/swapback/nvmeof/wire"
)

func stack() string { return string(debug.Stack()) }

// consume takes PDU after PDU off the input. It stops when the rest of one has not
// come yet, or when there is no room for more answers, and then sets full. An error
// that is a *wire.Fault has been answered with a TermReq.
func (q *queue) consume() error {
	q.full = false
	for {
		if q.out.room() < (len(q.commands)+2)*headerRoom || q.bytesWaiting() || q.ringPlan == ringWanted {
			q.full = true
			return nil
		}
		var ok bool
		var err error
		if q.taking.command >= 0 {
			ok, err = q.takeData()
		} else {
			ok, err = q.takePDU()
		}
		if err != nil || !ok {
			return err
		}
	}
}

// bytesWaiting: large answers take no room in out, but should be sent some time.
func (q *queue) bytesWaiting() bool { return q.out.bytes >= 4*ioOutput }

// takePDU takes a header, and carries the PDU out unless its data has still to be
// taken.
func (q *queue) takePDU() (ok bool, err error) {
	b := q.in.bytes()
	if len(b) < wire.HeaderSize {
		return false, nil
	}
	h := wire.ParseHeader(b)
	if err := q.check(h); err != nil {
		return false, q.terminate(err, b)
	}
	end := h.HeaderEnd(q.digests)
	if len(b) < end {
		return false, nil
	}
	if q.digests.Header && h.Type > wire.TypeC2HTermReq {
		got := wire.ParseDigest(b[h.HLen:])
		if got != wire.Digest(b[:h.HLen]) {
			return false, q.terminate(&wire.Fault{Status: wire.FESHeaderDigest, Info: got, Detail: h.Type.String()}, b)
		}
	}
	switch h.Type {
	case wire.TypeICReq:
		err = q.initialise(b)
	case wire.TypeH2CTermReq:
		return false, fmt.Errorf("the host ends the connection: %w", wire.ParseTermReq(b[:wire.TermSize]))
	case wire.TypeCapsuleCmd:
		err = q.arrived(b, h.DataLen(q.digests))
	case wire.TypeH2CData:
		err = q.dataArrived(wire.ParseData(b), h)
	}
	if err != nil {
		return false, q.terminate(err, b)
	}
	q.in.advance(end)
	q.partial = false
	if q.taking.command < 0 && h.Type == wire.TypeCapsuleCmd {
		return true, q.execute()
	}
	return true, nil
}

// check holds a header to the rules and to the state of the connection.
func (q *queue) check(h wire.Header) error {
	most := uint32(maxAdminCapsule)
	switch {
	case h.Type == wire.TypeH2CData:
		most = uint32(q.target.opt.MaxData)
	case q.state == stateIO:
		// Not below what hosts send along with a Fabrics command or a DSM's ranges.
		most = uint32(min(max(q.target.opt.InCapsule, maxAdminCapsule), q.target.opt.MaxData))
	}
	if err := h.Check(q.digests, most); err != nil {
		return err
	}
	switch h.Type {
	case wire.TypeICReq:
		if q.state == stateInit {
			return nil
		}
	case wire.TypeCapsuleCmd, wire.TypeH2CData:
		if q.state != stateInit {
			return nil
		}
	case wire.TypeH2CTermReq:
		return nil
	default:
		return &wire.Fault{Status: wire.FESInvalidHeader, Detail: fmt.Sprintf("a host may not send %v", h.Type)}
	}
	return &wire.Fault{Status: wire.FESSequence, Detail: fmt.Sprintf("%v at this point", h.Type)}
}

// terminate answers a fault with a TermReq, as the last thing that is sent.
func (q *queue) terminate(err error, offender []byte) error {
	fault, ok := err.(*wire.Fault)
	if !ok {
		return err
	}
	if len(offender) >= wire.HeaderSize {
		offender = offender[:min(len(offender), int(wire.ParseHeader(offender).HLen))]
	}
	pdu := wire.AppendTermReq(nil, wire.TypeC2HTermReq, fault, offender)
	copy(q.out.reserve(len(pdu)), pdu)
	return fault
}

// initialise answers ICReq.
func (q *queue) initialise(b []byte) error {
	req, err := wire.ParseICReq(b)
	if err != nil {
		return err
	}
	q.digests, q.hpda = req.Digests, req.HPDA
	wire.ICResp{Digests: req.Digests, MaxH2CData: uint32(q.target.opt.MaxData)}.Put(q.out.reserve(wire.ICSize))
	q.state = stateConnect
	return nil
}

// arrived takes a command. Its data, if it brings some, has still to be taken.
func (q *queue) arrived(b []byte, n uint32) error {
	if len(q.free) == 0 {
		return &wire.Fault{Status: wire.FESSequence, Detail: fmt.Sprintf("more commands than the %d entries of the queue", len(q.commands))}
	}
	i := int(q.free[len(q.free)-1])
	q.free = q.free[:len(q.free)-1]
	c := &q.commands[i]
	*c = command{index: c.index, buffer: c.buffer}
	c.sqe.Parse(b[wire.HeaderSize:])
	if q.sqHead++; q.sqHead == q.size {
		q.sqHead = 0
	}
	q.current = i
	if sgl := c.sqe.SGL; n > 0 {
		switch {
		case sgl.Type != wire.SGLInCapsule:
			c.refuse = wire.InvalidSGLType | wire.DNR
		case sgl.Address != 0:
			c.refuse = wire.InvalidSGLOffset | wire.DNR
		case sgl.Length != n:
			c.refuse = wire.InvalidSGLLength | wire.DNR
		}
		c.phase = phaseCapsule
		c.data = q.bufferOf(c, n)
		q.take(i, c.data, true)
	}
	return nil
}

// bufferOf is room for n bytes of a command's data. That of an I/O queue is there
// already, and n within MaxData.
func (q *queue) bufferOf(c *command, n uint32) []byte {
	if q.memory != nil {
		return c.buffer[:n:n]
	}
	return make([]byte, n)
}

// take begins to receive the data of a PDU.
func (q *queue) take(i int, dst []byte, last bool) {
	q.taking = payload{command: i, left: dst, all: dst, last: last}
}

// dataArrived takes the header of H2CData, which has to be what an R2T asked for.
func (q *queue) dataArrived(d wire.Data, h wire.Header) error {
	if int(d.Tag) >= len(q.commands) || q.commands[d.Tag].phase != phaseTransfer || q.commands[d.Tag].sqe.CID != d.CID {
		return &wire.Fault{Status: wire.FESInvalidHeader, Info: 10, Detail: fmt.Sprintf("H2CData for tag %d, command %d, which has asked for none", d.Tag, d.CID)}
	}
	c := &q.commands[d.Tag]
	if d.Length != h.DataLen(q.digests) {
		return &wire.Fault{Status: wire.FESInvalidHeader, Info: 16, Detail: fmt.Sprintf("H2CData says it brings %d bytes, and brings %d", d.Length, h.DataLen(q.digests))}
	}
	left := uint32(len(c.data)) - c.got
	if d.Offset != c.got || d.Length > left {
		return &wire.Fault{Status: wire.FESOutOfRange, Info: 12, Detail: fmt.Sprintf("H2CData with %d bytes at %d, where %d are to come at %d", d.Length, d.Offset, left, c.got)}
	}
	last := h.Flags&wire.FlagLast != 0
	if last != (d.Length == left) {
		return &wire.Fault{Status: wire.FESInvalidHeader, Info: 1, Detail: fmt.Sprintf("H2CData with %d of %d bytes says the wrong thing about being the last", d.Length, left)}
	}
	q.take(int(d.Tag), c.data[c.got:c.got+d.Length], last)
	c.got += d.Length
	return nil
}

// takeData moves what has come of a PDU's data to its command.
func (q *queue) takeData() (ok bool, err error) {
	p := &q.taking
	n := copy(p.left, q.in.bytes())
	p.left = p.left[n:]
	q.in.advance(n)
	if len(p.left) > 0 {
		return false, nil
	}
	q.current = p.command
	c := &q.commands[p.command]
	if q.digests.Data {
		b := q.in.bytes()
		if len(b) < wire.DigestSize {
			return false, nil
		}
		// Not fatal (TCP 3.3.1.1): the command fails, and may be tried again.
		if wire.ParseDigest(b) != wire.Digest(p.all) && c.refuse == wire.Success {
			c.refuse = wire.TransientTransport
		}
		q.in.advance(wire.DigestSize)
	}
	q.partial = false
	q.taking.command = -1
	if p.last {
		return true, q.execute()
	}
	q.current = -1
	return true, nil
}

// execute carries out the current command, of which all is there that comes by
// itself. The error ends the connection.
func (q *queue) execute() (err error) {
	c := &q.commands[q.current]
	switch {
	case c.refuse != wire.Success:
		q.fail(c, c.refuse)
	case c.sqe.Flags&wire.FlagFused != 0:
		q.fail(c, wire.InvalidField|wire.DNR)
	case q.state >= stateAdmin && isAuthentication(c):
		q.authenticate(c)
	case q.auth.pending():
		q.fail(c, wire.AuthRequired|wire.DNR)
	case q.state == stateIO:
		q.ioCommand(c)
	case q.state == stateAdmin:
		q.adminCommand(c)
	default:
		err = q.firstCommand(c)
	}
	q.current = -1
	return err
}

// inputSpace is where more is to be received: large data goes straight to its
// command.
func (q *queue) inputSpace() []byte {
	q.direct = q.taking.command >= 0 && q.in.r == q.in.w && len(q.taking.left) >= copyMost
	if q.direct {
		return q.taking.left
	}
	return q.in.space()
}

// received books n bytes that are in the last inputSpace.
func (q *queue) received(n int) {
	if q.direct {
		q.taking.left = q.taking.left[n:]
		return
	}
	q.in.w += n
}
