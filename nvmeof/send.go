package nvmeof

import "github.com/swapback/swapback/nvmeof/wire"

// copyMost is the size up to which data is copied behind its header. What is
// larger is gathered from where it lies.
const copyMost = 8 << 10

// release makes room for another command.
func (q *queue) release(i uint16) {
	c := &q.commands[i]
	c.phase, c.data, c.att = phaseFree, nil, nil
	q.free = append(q.free, i)
}

// answer completes a command, and is done with it.
func (q *queue) answer(c *command, status wire.Status, result uint64) {
	q.putResponse(c.sqe.CID, status, result)
	q.release(c.index)
}

// fail answers with an error, and puts it into the error log.
func (q *queue) fail(c *command, status wire.Status) {
	q.failWith(c, status, 0)
}

func (q *queue) failWith(c *command, status wire.Status, result uint64) {
	if q.ctrl != nil {
		e := wire.ErrorEntry{
			QID: q.id, CID: c.sqe.CID, Status: status, Location: 0xffff, NSID: c.sqe.NSID,
			Trtype: wire.TransportTCP, Result: result,
		}
		if q.state == stateIO {
			e.LBA = c.sqe.LBA()
		}
		q.ctrl.logError(e)
	}
	q.answer(c, status, result)
}

func (q *queue) putResponse(cid uint16, status wire.Status, result uint64) {
	n := wire.CapsuleRespSize + q.digests.HeaderBytes()
	b := q.out.reserve(n)
	h := wire.Header{Type: wire.TypeCapsuleResp, HLen: wire.CapsuleRespSize, PLen: uint32(n)}
	q.putHeader(b, h)
	wire.CQE{Result: result, SQHead: uint16(q.sqHead), CID: cid, Status: status}.Put(b[wire.HeaderSize:])
	q.putHeaderDigest(b, wire.CapsuleRespSize)
}

func (q *queue) putHeader(b []byte, h wire.Header) {
	if q.digests.Header {
		h.Flags |= wire.FlagHeaderDigest
	}
	h.Put(b)
}

func (q *queue) putHeaderDigest(b []byte, hlen int) {
	if q.digests.Header {
		wire.PutDigest(b[hlen:], wire.Digest(b[:hlen]))
	}
}

// askForData sends an R2T for n bytes of a command's data, all that it has.
func (q *queue) askForData(c *command, n uint32) {
	c.phase, c.data, c.got = phaseTransfer, q.bufferOf(c, n), 0
	size := wire.DataSize + q.digests.HeaderBytes()
	b := q.out.reserve(size)
	q.putHeader(b, wire.Header{Type: wire.TypeR2T, HLen: wire.DataSize, PLen: uint32(size)})
	wire.Data{CID: c.sqe.CID, Tag: c.index, Length: n}.Put(b)
	q.putHeaderDigest(b, wire.DataSize)
}

// dataHeader is how many bytes come before the data of C2HData.
func (q *queue) dataHeader() int { return wire.DataPDO(wire.DataSize, q.digests, q.hpda) }

// putDataHeader fills them in, for all of a command's data.
func (q *queue) putDataHeader(b []byte, c *command, n int) {
	h := wire.Header{
		Type: wire.TypeC2HData, Flags: wire.FlagLast, HLen: wire.DataSize, PDO: uint8(len(b)),
		PLen: uint32(len(b) + n + q.digests.DataBytes()),
	}
	if q.noFlow {
		h.Flags |= wire.FlagSuccess
	}
	if q.digests.Data {
		h.Flags |= wire.FlagDataDigest
	}
	q.putHeader(b, h)
	wire.Data{CID: c.sqe.CID, Length: uint32(n)}.Put(b)
	q.putHeaderDigest(b, wire.DataSize)
	clear(b[wire.DataSize+q.digests.HeaderBytes():])
}

// putDataEnd is what follows the data: its digest, and the response unless the
// header has said that all is well.
func (q *queue) putDataEnd(c *command, data []byte) {
	if q.digests.Data {
		wire.PutDigest(q.out.reserve(wire.DigestSize), wire.Digest(data))
	}
	if !q.noFlow {
		q.putResponse(c.sqe.CID, wire.Success, 0)
	}
}

// roomToCopy tells whether n bytes of data may be put into out, so that there is
// still room for the headers of every other command.
func (q *queue) roomToCopy(n int) bool {
	return n <= copyMost && q.out.room() >= n+(len(q.commands)+1)*headerRoom
}

// answerData completes a command successfully, with data that lies in its buffer
// (or on the heap, of an admin queue).
func (q *queue) answerData(c *command, data []byte) {
	i := c.index
	head := q.dataHeader()
	if q.roomToCopy(len(data)) {
		b := q.out.reserve(head + len(data))
		q.putDataHeader(b[:head:head], c, len(data))
		copy(b[head:], data)
		q.putDataEnd(c, data)
		q.release(i)
		return
	}
	q.putDataHeader(q.out.reserve(head), c, len(data))
	q.out.refer(data)
	q.putDataEnd(c, data)
	c.phase = phaseSending
	q.out.freed = append(q.out.freed, i)
}

// sent forgets an output that was sent, and frees what it referred to.
func (q *queue) sent(o *output) {
	for _, i := range o.freed {
		q.release(i)
	}
	o.reset()
}
