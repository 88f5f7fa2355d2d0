// Package nvmetest is an NVMe/TCP host for tests: queues, controllers, and a loop
// that reads as fast as it can. It is no product; it trusts what it is sent as far
// as a test may.
package nvmetest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/wire"
)

// Queue is one connection. Do may be called from several goroutines.
type Queue struct {
	Conn    net.Conn
	Digests wire.Digests
	IC      wire.ICResp // what the controller has said

	// CorruptHeader and CorruptData spoil the next digest.
	CorruptHeader, CorruptData bool
	// InCapsule is how many bytes of a write go along with its command.
	InCapsule int

	in      *bufio.Reader
	writing sync.Mutex

	mu      sync.Mutex
	next    uint16
	pending map[uint16]*pending
	err     error
	done    chan struct{}
}

type pending struct {
	in   []byte // where a read's data goes
	got  int
	out  []byte // a write's data
	done chan wire.CQE
}

// Options of a connection.
type Options struct {
	Digests wire.Digests
	HPDA    uint8
}

// Dial connects, and agrees on how to talk.
func Dial(addr string, opt Options) (*Queue, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	q := &Queue{
		Conn: conn, Digests: opt.Digests, InCapsule: 8192, in: bufio.NewReaderSize(conn, 256<<10),
		pending: map[uint16]*pending{}, done: make(chan struct{}),
	}
	req := make([]byte, wire.ICSize)
	wire.ICReq{HPDA: opt.HPDA, Digests: opt.Digests}.Put(req)
	if _, err := conn.Write(req); err != nil {
		conn.Close()
		return nil, err
	}
	resp := make([]byte, wire.ICSize)
	if _, err := io.ReadFull(q.in, resp); err != nil {
		conn.Close()
		return nil, fmt.Errorf("reading ICResp: %w", err)
	}
	h := wire.ParseHeader(resp)
	if err := h.Check(wire.Digests{}, 0); err != nil || h.Type != wire.TypeICResp {
		conn.Close()
		return nil, fmt.Errorf("got %v instead of ICResp: %w", h.Type, err)
	}
	if q.IC, err = wire.ParseICResp(resp); err != nil || q.IC.Digests != opt.Digests {
		conn.Close()
		return nil, fmt.Errorf("ICResp with digests %+v: %w", q.IC.Digests, err)
	}
	return q, nil
}

// Start begins to take answers. Connect does it.
func (q *Queue) Start() {
	go func() {
		err := q.receive()
		q.mu.Lock()
		q.err = err
		close(q.done)
		q.mu.Unlock()
	}()
}

// Close ends the connection and waits for the receiver.
func (q *Queue) Close() error {
	err := q.Conn.Close()
	<-q.done
	return err
}

// Done is closed when the connection has ended; Err then says why.
func (q *Queue) Done() <-chan struct{} { return q.done }

// Err is why the connection has ended.
func (q *Queue) Err() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

// Connect makes the connection queue id of a controller. The result is the CQE's.
func (q *Queue) Connect(c wire.Connect, data wire.ConnectData) (uint64, error) {
	q.Start()
	cmd := wire.SQE{}
	cmd.SetConnect(c)
	cqe, err := q.Do(&cmd, data.Append(nil), nil)
	return cqe.Result, err
}

// Authenticate proves to the controller who the host is, as far as it wants to know.
func (q *Queue) Authenticate(h *auth.Host) error {
	var failed error
	for message := h.Start(); message != nil; {
		cmd := wire.SQE{}
		cmd.SetAuthentication(wire.FCAuthSend, uint32(len(message)))
		if _, err := q.Do(&cmd, message, nil); err != nil {
			return errors.Join(failed, err)
		}
		if failed != nil || h.Done() {
			return failed
		}
		answer := make([]byte, wire.MaxAuthentication)
		cmd = wire.SQE{}
		cmd.SetAuthentication(wire.FCAuthReceive, uint32(len(answer)))
		if _, err := q.Do(&cmd, nil, answer); err != nil {
			return err
		}
		message, failed = h.Answer(answer)
	}
	return failed
}

// Do sends a command and waits for its completion. What of out is not more than
// InCapsule (or 8 KiB, of Fabrics commands) goes along with it. in is filled. A
// status other than Success is the error, a wire.Status.
func (q *Queue) Do(cmd *wire.SQE, out, in []byte) (wire.CQE, error) {
	p, err := q.Send(cmd, out, in)
	if err != nil {
		return wire.CQE{}, err
	}
	return p.Wait()
}

// Sent is a command under way.
type Sent struct {
	q *Queue
	p *pending
	// CID is what it was sent with.
	CID uint16
}

// Done receives the completion, unless the connection ends.
func (s *Sent) Done() <-chan wire.CQE { return s.p.done }

// Wait waits for the completion.
func (s *Sent) Wait() (wire.CQE, error) {
	select {
	case cqe := <-s.p.done:
		if cqe.Status != wire.Success {
			return cqe, cqe.Status
		}
		return cqe, nil
	case <-s.q.done:
		select {
		case cqe := <-s.p.done:
			if cqe.Status != wire.Success {
				return cqe, cqe.Status
			}
			return cqe, nil
		default:
			return wire.CQE{}, s.q.Err()
		}
	}
}

// Send is Do that does not wait.
func (q *Queue) Send(cmd *wire.SQE, out, in []byte) (*Sent, error) {
	s := q.register(out, in)
	cmd.CID, cmd.Flags = s.CID, cmd.Flags|wire.FlagSGL
	var capsule []byte
	switch {
	case len(out) > 0 && (len(out) <= q.InCapsule || cmd.Opcode == wire.OpFabrics):
		capsule = out
		cmd.SGL = wire.SGL{Length: uint32(len(out)), Type: wire.SGLInCapsule}
	case len(out)+len(in) > 0:
		cmd.SGL = wire.SGL{Length: uint32(len(out) + len(in)), Type: wire.SGLTransport}
	}
	return s, q.SendCommand(cmd, capsule)
}

// DoRaw sends a command as it is, but for its CID, with data in its capsule, and
// waits for its completion. It expects no data.
func (q *Queue) DoRaw(cmd wire.SQE, capsule []byte) error {
	s := q.register(nil, nil)
	cmd.CID = s.CID
	if err := q.SendCommand(&cmd, capsule); err != nil {
		return err
	}
	_, err := s.Wait()
	return err
}

// register gives a command its identifier.
func (q *Queue) register(out, in []byte) *Sent {
	p := &pending{in: in, out: out, done: make(chan wire.CQE, 1)}
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		q.next++
		if q.pending[q.next] == nil {
			break
		}
	}
	q.pending[q.next] = p
	return &Sent{q, p, q.next}
}

// SendCommand sends a command as it is, with data in its capsule, and registers
// nothing.
func (q *Queue) SendCommand(cmd *wire.SQE, capsule []byte) error {
	b := make([]byte, wire.CapsuleCmdSize)
	cmd.Put(b[wire.HeaderSize:])
	return q.sendPDU(wire.TypeCapsuleCmd, 0, b, capsule)
}

// sendPDU sends a header, whose first 8 bytes it fills in, and data.
func (q *Queue) sendPDU(t wire.PDUType, flags uint8, head, data []byte) error {
	q.writing.Lock()
	defer q.writing.Unlock()
	h := wire.Header{Type: t, Flags: flags, HLen: uint8(len(head)), PLen: uint32(len(head) + q.Digests.HeaderBytes())}
	if q.Digests.Header {
		h.Flags |= wire.FlagHeaderDigest
	}
	if len(data) > 0 {
		h.PDO = uint8(h.PLen)
		h.PLen += uint32(len(data) + q.Digests.DataBytes())
		if q.Digests.Data {
			h.Flags |= wire.FlagDataDigest
		}
	}
	h.Put(head)
	pdu := head
	if q.Digests.Header {
		pdu = appendDigest(pdu, head, &q.CorruptHeader)
	}
	pdu = append(pdu, data...)
	if q.Digests.Data && len(data) > 0 {
		pdu = appendDigest(pdu, data, &q.CorruptData)
	}
	_, err := q.Conn.Write(pdu)
	return err
}

func appendDigest(b, of []byte, corrupt *bool) []byte {
	sum := wire.Digest(of)
	if *corrupt {
		sum++
		*corrupt = false
	}
	b = append(b, 0, 0, 0, 0)
	wire.PutDigest(b[len(b)-4:], sum)
	return b
}

// SendData sends H2CData for an R2T's tag.
func (q *Queue) SendData(d wire.Data, data []byte, last bool) error {
	b := make([]byte, wire.DataSize)
	d.Put(b)
	var flags uint8
	if last {
		flags = wire.FlagLast
	}
	return q.sendPDU(wire.TypeH2CData, flags, b, data)
}

var errDigest = errors.New("wrong digest")

// receive takes PDU after PDU.
func (q *Queue) receive() error {
	head := make([]byte, 256)
	for {
		if _, err := io.ReadFull(q.in, head[:wire.HeaderSize]); err != nil {
			return err
		}
		h := wire.ParseHeader(head)
		if err := h.Check(q.Digests, 16<<20); err != nil {
			return err
		}
		end := h.HeaderEnd(q.Digests)
		if _, err := io.ReadFull(q.in, head[wire.HeaderSize:end]); err != nil {
			return err
		}
		if q.Digests.Header && h.Type != wire.TypeC2HTermReq && wire.ParseDigest(head[h.HLen:]) != wire.Digest(head[:h.HLen]) {
			return fmt.Errorf("%v: header: %w", h.Type, errDigest)
		}
		var err error
		switch h.Type {
		case wire.TypeC2HTermReq:
			return wire.ParseTermReq(head[:wire.TermSize])
		case wire.TypeCapsuleResp:
			err = q.complete(wire.ParseCQE(head[wire.HeaderSize:]))
		case wire.TypeC2HData:
			err = q.takeData(h, wire.ParseData(head))
		case wire.TypeR2T:
			err = q.giveData(wire.ParseData(head))
		default:
			err = fmt.Errorf("%v from a controller", h.Type)
		}
		if err != nil {
			return err
		}
	}
}

func (q *Queue) complete(cqe wire.CQE) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.pending[cqe.CID]
	if p == nil {
		return fmt.Errorf("completion of command %d, which is none", cqe.CID)
	}
	if cqe.Status == wire.Success && p.got != len(p.in) {
		return fmt.Errorf("command %d succeeds with %d of %d bytes", cqe.CID, p.got, len(p.in))
	}
	delete(q.pending, cqe.CID)
	p.done <- cqe
	return nil
}

func (q *Queue) takeData(h wire.Header, d wire.Data) error {
	q.mu.Lock()
	p := q.pending[d.CID]
	q.mu.Unlock()
	n := int(h.DataLen(q.Digests))
	if p == nil || int(d.Offset) != p.got || int(d.Length) != n || n > len(p.in)-p.got {
		return fmt.Errorf("C2HData %+v with %d bytes for a command that it does not suit", d, n)
	}
	dst := p.in[p.got : p.got+n]
	if _, err := io.ReadFull(q.in, dst); err != nil {
		return err
	}
	p.got += n
	if q.Digests.Data {
		var sum [4]byte
		if _, err := io.ReadFull(q.in, sum[:]); err != nil {
			return err
		}
		if wire.ParseDigest(sum[:]) != wire.Digest(dst) {
			return fmt.Errorf("C2HData: %w", errDigest)
		}
	}
	if h.Flags&wire.FlagSuccess != 0 {
		return q.complete(wire.CQE{CID: d.CID})
	}
	return nil
}

// giveData answers an R2T, on a goroutine of its own: the controller may itself be
// waiting for its answers to be taken.
func (q *Queue) giveData(r wire.Data) error {
	q.mu.Lock()
	p := q.pending[r.CID]
	q.mu.Unlock()
	if p == nil || int64(r.Offset)+int64(r.Length) > int64(len(p.out)) {
		return fmt.Errorf("R2T %+v for a command that it does not suit", r)
	}
	go func() {
		for r.Length > 0 {
			n := min(r.Length, q.IC.MaxH2CData)
			part := r
			part.Length = n
			if q.SendData(part, p.out[r.Offset:r.Offset+n], n == r.Length) != nil {
				return // the receiver will notice
			}
			r.Offset += n
			r.Length -= n
		}
	}()
	return nil
}
