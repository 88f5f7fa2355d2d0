package nvmeof

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// wantFault wants a connection to end with a TermReq.
func wantFault(t *testing.T, what string, q *nvmetest.Queue, want wire.FES, info uint32) {
	t.Helper()
	select {
	case <-q.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: the connection goes on", what)
	}
	var f *wire.Fault
	if !errors.As(q.Err(), &f) || f.Status != want || f.Info != info {
		t.Errorf("%s: ended with %v, want %v, information %d", what, q.Err(), want, info)
	}
}

// TestFaults: what breaks the rules of the transport ends the connection, with the
// reason, and ends nothing else.
func TestFaults(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		good := r.connect()
		connected := func(change ...func(*nvmetest.Config)) *nvmetest.Queue { return r.connect(change...).IO[0] }
		digests := func(c *nvmetest.Config) { c.Options.Digests = wire.Digests{Header: true, Data: true} }
		raw := func(q *nvmetest.Queue, b []byte) {
			if _, err := q.Conn.Write(b); err != nil {
				t.Error(err)
			}
		}
		pdu := func(h wire.Header) []byte {
			b := make([]byte, max(int(h.HLen), wire.HeaderSize))
			h.Put(b)
			return b
		}

		q := connected()
		raw(q, pdu(wire.Header{Type: 0x42, HLen: 24, PLen: 24}))
		wantFault(t, "no such PDU", q, wire.FESInvalidHeader, 0)

		q = connected()
		raw(q, pdu(wire.Header{Type: wire.TypeCapsuleResp, HLen: 24, PLen: 24}))
		wantFault(t, "a PDU of controllers", q, wire.FESInvalidHeader, 0)

		q = connected()
		raw(q, pdu(wire.Header{Type: wire.TypeICReq, HLen: 128, PLen: 128}))
		wantFault(t, "a second ICReq", q, wire.FESSequence, 0)

		q = connected()
		raw(q, pdu(wire.Header{Type: wire.TypeCapsuleCmd, HLen: 71, PLen: 72}))
		wantFault(t, "a command with a short header", q, wire.FESInvalidHeader, 2)

		q = connected()
		raw(q, pdu(wire.Header{Type: wire.TypeCapsuleCmd, HLen: 72, PDO: 72, PLen: 1 << 31}))
		wantFault(t, "2 GiB in a capsule", q, wire.FESLimitExceeded, 0)

		q = connected(digests)
		q.CorruptHeader = true
		if _, err := q.Send(&wire.SQE{Opcode: wire.OpFlush, NSID: 1}, nil, nil); err != nil {
			t.Error(err)
		}
		<-q.Done()
		var f *wire.Fault
		if !errors.As(q.Err(), &f) || f.Status != wire.FESHeaderDigest {
			t.Errorf("a wrong header digest: ended with %v", q.Err())
		}

		// A wrong data digest only fails the command, in the capsule and by H2CData.
		q = connected(digests)
		for _, n := range []int{4096, 64 << 10} {
			q.CorruptData = true
			wantStatus(t, "a wrong data digest", q.Write(1, 0, make([]byte, n)), wire.TransientTransport)
			if err := q.Write(1, 0, make([]byte, n)); err != nil {
				t.Errorf("after a wrong data digest: %v", err)
			}
		}

		if err := good.IO[0].Read(1, 0, make([]byte, 4096)); err != nil {
			t.Errorf("a host that does nothing wrong: %v", err)
		}
	})
}

// TestH2CDataFaults: data has to be what an R2T asked for.
func TestH2CDataFaults(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		opt.InCapsule = 16
		r := newRig(t, opt)
		for _, tt := range []struct {
			name string
			data wire.Data // CID and tag are added to those of the R2T
			n    int
			last bool
			fes  wire.FES
			info uint32
		}{
			{"another tag", wire.Data{Tag: 1, Length: 8192}, 8192, true, wire.FESInvalidHeader, 10},
			{"a tag beyond", wire.Data{Tag: 5000, Length: 8192}, 8192, true, wire.FESInvalidHeader, 10},
			{"another command", wire.Data{CID: 1, Length: 8192}, 8192, true, wire.FESInvalidHeader, 10},
			{"another length than it has", wire.Data{Length: 4096}, 8192, true, wire.FESInvalidHeader, 16},
			{"a gap", wire.Data{Offset: 4096, Length: 4096}, 4096, true, wire.FESOutOfRange, 12},
			{"too much", wire.Data{Length: 12288}, 12288, true, wire.FESOutOfRange, 12},
			{"not the last", wire.Data{Length: 8192}, 8192, false, wire.FESInvalidHeader, 1},
			{"the last too early", wire.Data{Length: 4096}, 4096, true, wire.FESInvalidHeader, 1},
		} {
			q, err := nvmetest.Dial(r.addr, nvmetest.Options{})
			if err != nil {
				t.Fatal(err)
			}
			c := r.connect(func(c *nvmetest.Config) { c.Queues = 0 })
			r2t := connectRaw(t, q, c)
			if err := q.SendData(wire.Data{CID: r2t.CID + tt.data.CID, Tag: r2t.Tag + tt.data.Tag, Offset: tt.data.Offset, Length: tt.data.Length}, make([]byte, tt.n), tt.last); err != nil {
				t.Fatal(err)
			}
			q.Start()
			wantFault(t, tt.name, q, tt.fes, tt.info)
			q.Close()
		}
	})
}

// connectRaw makes q an I/O queue of a controller, has it ask for 8 KiB of a write,
// and returns the R2T.
func connectRaw(t *testing.T, q *nvmetest.Queue, c *nvmetest.Controller) wire.Data {
	t.Helper()
	cmd := wire.SQE{Flags: wire.FlagSGL, CID: 7, SGL: wire.SGL{Length: wire.ConnectDataSize, Type: wire.SGLInCapsule}}
	cmd.SetConnect(wire.Connect{QID: 1, SQSize: 31})
	data := wire.ConnectData{HostID: c.HostID, CNTLID: c.ID, Subsys: testNQN, HostName: c.Host}
	if err := q.SendCommand(&cmd, data.Append(nil)); err != nil {
		t.Fatal(err)
	}
	resp := make([]byte, wire.CapsuleRespSize)
	if _, err := io.ReadFull(q.Conn, resp); err != nil {
		t.Fatal(err)
	}
	if cqe := wire.ParseCQE(resp[wire.HeaderSize:]); cqe.Status != wire.Success {
		t.Fatal(cqe.Status)
	}
	write := nvmetest.IOCommand(wire.OpWrite, 1, 0, 16)
	write.CID, write.SGL = 9, wire.SGL{Length: 8192, Type: wire.SGLTransport}
	if err := q.SendCommand(&write, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(q.Conn, resp); err != nil {
		t.Fatal(err)
	}
	if h := wire.ParseHeader(resp); h.Type != wire.TypeR2T {
		t.Fatalf("got %v instead of an R2T", h.Type)
	}
	return wire.ParseData(resp)
}

func inCapsule(off uint64, n uint32) wire.SGL {
	return wire.SGL{Address: off, Length: n, Type: wire.SGLInCapsule}
}

// TestBadCommands fail one by one, and the queue goes on.
func TestBadCommands(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		q := r.connect().IO[0]
		read := func(change func(*wire.SQE)) wire.SQE {
			cmd := nvmetest.IOCommand(wire.OpRead, 1, 0, 8)
			cmd.CID, cmd.Flags = 100, wire.FlagSGL
			cmd.SGL = wire.SGL{Length: 4096, Type: wire.SGLTransport}
			change(&cmd)
			return cmd
		}
		for _, tt := range []struct {
			name    string
			cmd     wire.SQE
			capsule []byte
			want    wire.Status
		}{
			{"no such command", read(func(c *wire.SQE) { c.Opcode = 0x99 }), nil, wire.InvalidOpcode},
			{"no namespace", read(func(c *wire.SQE) { c.NSID = 0 }), nil, wire.InvalidNamespace},
			{"another namespace", read(func(c *wire.SQE) { c.NSID = 2 }), nil, wire.InvalidNamespace},
			{"all namespaces", read(func(c *wire.SQE) { c.NSID = allNamespaces }), nil, wire.InvalidNamespace},
			{"the last block and one more", read(func(c *wire.SQE) { c.CDW10 = testSize/512 - 7 }), nil, wire.LBAOutOfRange},
			{"a block far away", read(func(c *wire.SQE) { c.CDW11 = 1 << 31 }), nil, wire.LBAOutOfRange},
			{"the last block that there can be", read(func(c *wire.SQE) { c.CDW10, c.CDW11 = 1<<32-1, 1<<23-1 }), nil, wire.LBAOutOfRange},
			{"more than MDTS", read(func(c *wire.SQE) { c.CDW12, c.SGL.Length = 0xffff, 32<<20 }), nil, wire.InvalidField},
			{"another length than its blocks", read(func(c *wire.SQE) { c.SGL.Length = 8192 }), nil, wire.InvalidSGLLength},
			{"data in memory", read(func(c *wire.SQE) { c.SGL.Type = wire.SGLInMemory }), nil, wire.InvalidSGLType},
			{"fused", read(func(c *wire.SQE) { c.Flags |= 1 }), nil, wire.InvalidField},
			{"an offset in the capsule", read(func(c *wire.SQE) { c.Opcode, c.SGL = wire.OpWrite, inCapsule(512, 4096) }), make([]byte, 4096), wire.InvalidSGLOffset},
			{"half the data in the capsule", read(func(c *wire.SQE) { c.Opcode, c.SGL = wire.OpWrite, inCapsule(0, 4096) }), make([]byte, 2048), wire.InvalidSGLLength},
			{"data in the capsule that is to be asked for", read(func(c *wire.SQE) { c.Opcode = wire.OpWrite }), make([]byte, 4096), wire.InvalidSGLType},
			{"ranges that are not there", read(func(c *wire.SQE) { c.Opcode, c.CDW10, c.SGL = wire.OpDSM, 255, inCapsule(0, 16) }), make([]byte, 16), wire.InvalidSGLLength},
			{"a range behind the end", read(func(c *wire.SQE) { c.Opcode, c.CDW10, c.SGL = wire.OpDSM, 0, inCapsule(0, 16) }), bytes.Repeat([]byte{0xff}, 16), wire.LBAOutOfRange},
			{"zeroes behind the end", read(func(c *wire.SQE) { c.Opcode, c.CDW12, c.SGL = wire.OpWriteZeroes, 0xffff, wire.SGL{} }), nil, wire.LBAOutOfRange},
		} {
			s, err := q.Send(&wire.SQE{Opcode: wire.OpFlush, NSID: 1}, nil, nil) // for its place in the list
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Wait(); err != nil {
				t.Fatal(err)
			}
			wantStatus(t, tt.name, q.DoRaw(tt.cmd, tt.capsule), tt.want|wire.DNR)
		}
		if err := q.Read(1, testSize/512-8, make([]byte, 4096)); err != nil {
			t.Errorf("the last block: %v", err)
		}
		ns := r.ns.Stats()
		if ns.InFlight != 0 {
			t.Errorf("%d commands are in flight", ns.InFlight)
		}
	})
}

// TestConnectErrors: each names the field that is wrong.
func TestConnectErrors(t *testing.T) {
	var incomplete atomic.Bool
	r := newRig(t, Options{MaxControllers: 2, Incomplete: incomplete.Load})
	if _, err := r.target.AddSubsystem(SubsystemConfig{NQN: "nqn.2026-01.org.example:closed", Hosts: []string{"nqn.2026-01.org.example:friend"}}); err != nil {
		t.Fatal(err)
	}
	c := r.connect()
	base := wire.ConnectData{HostID: c.HostID, CNTLID: wire.DynamicController, Subsys: testNQN, HostName: c.Host}
	for _, tt := range []struct {
		name   string
		change func(*wire.Connect, *wire.ConnectData)
		want   wire.Status
		result uint64
	}{
		{"format", func(p *wire.Connect, d *wire.ConnectData) { p.Format = 1 }, wire.ConnectFormat | wire.DNR, 0},
		{"size 0", func(p *wire.Connect, d *wire.ConnectData) { p.SQSize = 0 }, wire.ConnectInvalid | wire.DNR, 44},
		{"size", func(p *wire.Connect, d *wire.ConnectData) { p.SQSize = 1000 }, wire.ConnectInvalid | wire.DNR, 44},
		{"no such subsystem", func(p *wire.Connect, d *wire.ConnectData) { d.Subsys += "x" }, wire.ConnectInvalid | wire.DNR, 1<<16 | 256},
		{"no name", func(p *wire.Connect, d *wire.ConnectData) { d.Subsys = "" }, wire.ConnectInvalid | wire.DNR, 1<<16 | 256},
		{"no host", func(p *wire.Connect, d *wire.ConnectData) { d.HostName = "x" }, wire.ConnectInvalid | wire.DNR, 1<<16 | 512},
		{"no identifier", func(p *wire.Connect, d *wire.ConnectData) { d.HostID = [16]byte{} }, wire.ConnectInvalid | wire.DNR, 1 << 16},
		{"a host that may not", func(p *wire.Connect, d *wire.ConnectData) { d.Subsys = "nqn.2026-01.org.example:closed" }, wire.ConnectInvalidHost | wire.DNR, 0},
		{"a controller of its choice", func(p *wire.Connect, d *wire.ConnectData) { d.CNTLID = 1 }, wire.ConnectInvalid | wire.DNR, 1<<16 | 16},
		{"I/O queue of no controller", func(p *wire.Connect, d *wire.ConnectData) { p.QID, d.CNTLID = 1, 999 }, wire.ConnectInvalid | wire.DNR, 1<<16 | 16},
		{"queue that is there", func(p *wire.Connect, d *wire.ConnectData) { p.QID, d.CNTLID = 1, c.ID }, wire.ConnectInvalid | wire.DNR, 42},
		{"queue too many", func(p *wire.Connect, d *wire.ConnectData) { p.QID, d.CNTLID = 2, c.ID }, wire.ConnectInvalid | wire.DNR, 42},
		{"another's controller", func(p *wire.Connect, d *wire.ConnectData) {
			p.QID, d.CNTLID, d.HostName = 2, c.ID, "nqn.2026-01.org.example:thief"
		}, wire.ConnectInvalid | wire.DNR, 1<<16 | 512},
		{"another's identifier", func(p *wire.Connect, d *wire.ConnectData) { p.QID, d.CNTLID, d.HostID[0] = 2, c.ID, 77 }, wire.ConnectInvalid | wire.DNR, 1 << 16},
	} {
		q, err := nvmetest.Dial(r.addr, nvmetest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		p, d := wire.Connect{SQSize: 31}, base
		tt.change(&p, &d)
		result, err := q.Connect(p, d)
		wantStatus(t, tt.name, err, tt.want)
		if result != tt.result {
			t.Errorf("%s: result %#x, want %#x", tt.name, result, tt.result)
		}
		q.Close()
	}
	// What may pass never says "do not retry".
	incomplete.Store(true)
	absent := base
	absent.Subsys += "x"
	early, err := nvmetest.Dial(r.addr, nvmetest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	_, err = early.Connect(wire.Connect{SQSize: 31}, absent)
	wantStatus(t, "a subsystem that may come", err, wire.ConnectInvalid)
	r.connect()
	q, err := nvmetest.Dial(r.addr, nvmetest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	_, err = q.Connect(wire.Connect{SQSize: 31}, base)
	wantStatus(t, "a controller too many", err, wire.ConnectBusy)
	_, err = q.Do(&wire.SQE{Opcode: wire.OpIdentify}, nil, nil)
	wantStatus(t, "a command before Connect", err, wire.SequenceError|wire.DNR)
}

// ended tells whether the other side of a connection has closed it.
func ended(t *testing.T, conn net.Conn) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := io.Copy(io.Discard, conn)
	var timeout net.Error
	return !errors.As(err, &timeout) || !timeout.Timeout()
}

// TestSlowPeers: who does not finish what he has begun is given up.
func TestSlowPeers(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		opt.Handshake, opt.Patience = 100*time.Millisecond, 300*time.Millisecond
		r := newRig(t, opt)
		c := r.connect()
		conn, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if !ended(t, conn) {
			t.Error("a connection that says nothing stays")
		}
		q, err := nvmetest.Dial(r.addr, nvmetest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer q.Conn.Close()
		if !ended(t, q.Conn) {
			t.Error("a connection without Connect stays")
		}
		half := r.connect().IO[0]
		b := make([]byte, 40)
		wire.Header{Type: wire.TypeCapsuleCmd, HLen: 72, PLen: 72}.Put(b)
		if _, err := half.Conn.Write(b); err != nil {
			t.Fatal(err)
		}
		<-half.Done()
		if err := c.IO[0].Read(1, 0, make([]byte, 512)); err != nil {
			t.Errorf("a host that is only idle: %v", err)
		}
	})
}

// TestPeerThatTakesNothing costs bounded memory, holds up no drain, and is given up.
func TestPeerThatTakesNothing(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		opt.Patience = 500 * time.Millisecond
		r := newRig(t, opt)
		c := r.connect(func(c *nvmetest.Config) { c.Queues = 0 })
		q, err := nvmetest.Dial(r.addr, nvmetest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer q.Conn.Close()
		r2t := connectRaw(t, q, c)
		if err := q.SendData(wire.Data{CID: r2t.CID, Tag: r2t.Tag, Length: 8192}, make([]byte, 8192), true); err != nil {
			t.Fatal(err)
		}
		read := nvmetest.IOCommand(wire.OpRead, 1, 0, 256)
		read.SGL = wire.SGL{Length: 128 << 10, Type: wire.SGLTransport}
		var failed error
		for i := 0; failed == nil && i < 1<<20; i++ {
			read.CID = uint16(i)
			failed = q.SendCommand(&read, nil)
			if i == 20 {
				r.ns.Hold()
				if err := r.ns.Drain(ctxFor(t, 5*time.Second)); err != nil {
					t.Error(err)
				}
				r.ns.Release()
			}
		}
		if failed == nil {
			t.Error("it may send commands for ever")
		}
		eventually(t, "the connection is gone", func() bool { return r.target.Connections() == 1 })
	})
}

// TestMoreCommandsThanEntries is a violation of the queue's size.
func TestMoreCommandsThanEntries(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		q := r.connect(func(c *nvmetest.Config) { c.Depth = 4 }).IO[0]
		r.ns.Hold()
		for range 5 {
			if _, err := q.Send(&wire.SQE{Opcode: wire.OpFlush, NSID: 1}, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		wantFault(t, "five commands on four entries", q, wire.FESSequence, 0)
	})
}

// TestPatienceIsForEachAnswer: the time that one answer had does not end the next.
func TestPatienceIsForEachAnswer(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		opt.Patience = 500 * time.Millisecond
		r := newRig(t, opt)
		q := r.connect().IO[0]
		for _, n := range []int{128 << 10, 512, 128 << 10} {
			if err := q.Read(1, 0, make([]byte, n)); err != nil {
				t.Errorf("reading %d bytes: %v", n, err)
			}
			time.Sleep(opt.Patience + opt.Patience/4)
		}
	})
}
