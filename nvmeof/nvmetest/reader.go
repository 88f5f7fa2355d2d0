package nvmetest

import (
	"fmt"
	"io"

	"github.com/swapback/swapback/nvmeof/wire"
)

// Reader reads as fast as one goroutine can, and looks at no data: it is there to
// load a controller, not to check it.
type Reader struct {
	q         *Queue
	depth     int
	out       []byte
	in        []byte
	r, w      int
	skip      int // bytes of data still to come that nobody looks at
	lba, span uint64
	blocks    int
}

// NewReader connects I/O queue id for reads of n bytes each, depth at a time, from
// the first span bytes of namespace 1, whose blocks have 512.
func (c *Controller) NewReader(id uint16, depth, n int, span uint64) (*Reader, error) {
	q, err := Dial(c.Addr, Options{})
	if err != nil {
		return nil, err
	}
	cmd := wire.SQE{Flags: wire.FlagSGL, SGL: wire.SGL{Length: wire.ConnectDataSize, Type: wire.SGLInCapsule}}
	cmd.SetConnect(wire.Connect{QID: id, SQSize: uint16(max(depth, 2) - 1), Attributes: wire.ConnectNoSQFlow})
	resp := make([]byte, wire.CapsuleRespSize)
	if err := q.SendCommand(&cmd, c.data(c.ID).Append(nil)); err != nil {
		q.Conn.Close()
		return nil, err
	}
	if _, err := io.ReadFull(q.in, resp); err != nil {
		q.Conn.Close()
		return nil, err
	}
	if s := wire.ParseCQE(resp[wire.HeaderSize:]).Status; s != wire.Success {
		q.Conn.Close()
		return nil, s
	}
	return &Reader{q: q, depth: depth, in: make([]byte, 1<<20), blocks: n / 512, span: span / 512}, nil
}

// Close ends the connection.
func (r *Reader) Close() error { return r.q.Conn.Close() }

// Read reads n times.
func (r *Reader) Read(n int) error {
	sent, done := 0, 0
	for ; sent < min(n, r.depth); sent++ {
		r.put(uint16(sent))
	}
	for {
		if len(r.out) > 0 {
			if _, err := r.q.Conn.Write(r.out); err != nil {
				return err
			}
			r.out = r.out[:0]
		}
		if done == n {
			return nil
		}
		if r.r > 0 {
			r.w = copy(r.in, r.in[r.r:r.w])
			r.r = 0
		}
		got, err := r.q.Conn.Read(r.in[r.w:])
		if err != nil {
			return err
		}
		r.w += got
		for {
			cid, ok, err := r.next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if done++; sent < n {
				r.put(cid)
				sent++
			}
		}
	}
}

// put adds a command to what is to be sent.
func (r *Reader) put(cid uint16) {
	at := len(r.out)
	r.out = append(r.out, make([]byte, wire.CapsuleCmdSize)...)
	wire.Header{Type: wire.TypeCapsuleCmd, HLen: wire.CapsuleCmdSize, PLen: wire.CapsuleCmdSize}.Put(r.out[at:])
	cmd := IOCommand(wire.OpRead, 1, r.lba, r.blocks)
	cmd.CID, cmd.Flags = cid, wire.FlagSGL
	cmd.SGL = wire.SGL{Length: uint32(r.blocks) * 512, Type: wire.SGLTransport}
	cmd.Put(r.out[at+wire.HeaderSize:])
	if r.lba += uint64(r.blocks) * 17; r.lba+uint64(r.blocks) > r.span {
		r.lba %= uint64(r.blocks)
	}
}

// next finds the next completion in what has come.
func (r *Reader) next() (cid uint16, ok bool, err error) {
	for {
		n := min(r.skip, r.w-r.r)
		r.r += n
		r.skip -= n
		b := r.in[r.r:r.w]
		if r.skip > 0 || len(b) < wire.DataSize {
			return 0, false, nil
		}
		h := wire.ParseHeader(b)
		r.r += wire.DataSize
		switch h.Type {
		case wire.TypeC2HData:
			r.skip = int(h.PLen) - wire.DataSize
			if h.Flags&wire.FlagSuccess != 0 {
				return wire.ParseData(b).CID, true, nil
			}
		case wire.TypeCapsuleResp:
			cqe := wire.ParseCQE(b[wire.HeaderSize:])
			if cqe.Status != wire.Success {
				return 0, false, cqe.Status
			}
			return cqe.CID, true, nil
		default:
			return 0, false, fmt.Errorf("%v in answer to a read", h.Type)
		}
	}
}
