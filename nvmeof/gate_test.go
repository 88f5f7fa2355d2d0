package nvmeof

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// eachLoop runs a test with the ring's loop and with the poller's.
func eachLoop(t *testing.T, f func(t *testing.T, opt Options)) {
	for _, noRing := range []bool{false, true} {
		t.Run(fmt.Sprintf("ring %v", !noRing), func(t *testing.T) { f(t, Options{NoRing: noRing, ringAlways: !noRing}) })
	}
}

func TestHoldKeepsOrderAndAdminGoesOn(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		c := r.connect()
		q := c.IO[0]
		r.ns.Hold()
		if err := r.ns.Drain(ctxFor(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		// Writes to one block: the last one has to win.
		var sent []*nvmetest.Sent
		for i := range 50 {
			cmd := nvmetest.IOCommand(wire.OpWrite, 1, 0, 1)
			s, err := q.Send(&cmd, slices.Repeat([]byte{byte(i)}, 512), nil)
			if err != nil {
				t.Fatal(err)
			}
			sent = append(sent, s)
		}
		eventually(t, "all are held", func() bool { return r.ns.Stats().Held == 50 })
		for _, cns := range []uint8{wire.CNSController, wire.CNSNamespace, wire.CNSDescriptors, wire.CNSActiveList} {
			if _, err := c.Identify(cns, 1); err != nil {
				t.Errorf("CNS %02xh during a hold: %v", cns, err)
			}
		}
		if _, err := c.Admin.Do(&wire.SQE{Opcode: wire.OpKeepAlive}, nil, nil); err != nil {
			t.Errorf("Keep Alive during a hold: %v", err)
		}
		if n := r.ns.Stats().InFlight; n != 0 {
			t.Errorf("%d in flight behind a closed gate", n)
		}
		r.ns.Release()
		for i, s := range sent {
			if _, err := s.Wait(); err != nil {
				t.Errorf("write %d: %v", i, err)
			}
		}
		if r.memory.mem[0] != 49 {
			t.Errorf("the block has write %d", r.memory.mem[0])
		}
		if s := r.ns.Stats(); s.Held != 50 || s.Writes != 50 || s.Refused != 0 {
			t.Errorf("statistics: %+v", s)
		}
		if err := r.ns.Drain(t.Context()); !errors.Is(err, ErrGateOpen) {
			t.Errorf("draining an open gate: %v", err)
		}
	})
}

// TestHoldExpires: held for long enough, a command may be tried again, and is never
// told not to.
func TestHoldExpires(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		opt.HoldFor = 50 * time.Millisecond
		r := newRig(t, opt)
		q := r.connect().IO[0]
		r.ns.Hold()
		for range 2 {
			wantStatus(t, "held for too long", q.Read(1, 0, make([]byte, 512)), wire.NamespaceNotReady.WithDelay(1))
		}
		r.ns.Release()
		if err := q.Read(1, 0, make([]byte, 512)); err != nil {
			t.Error(err)
		}
	})
}

func TestRefuse(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		q := r.connect().IO[0]
		other := r.addNamespace(2, r.memoryBackend(r.memory))
		r.ns.Hold()
		cmd := wire.SQE{Opcode: wire.OpFlush, NSID: 1}
		held, err := q.Send(&cmd, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is held", func() bool { return r.ns.Stats().Held == 1 })
		if err := q.Read(2, 0, make([]byte, 512)); err != nil {
			t.Errorf("reading another namespace meanwhile: %v", err)
		}
		r.ns.Refuse()
		_, err = held.Wait()
		wantStatus(t, "what was held", err, wire.NamespaceNotReady.WithDelay(1))
		wantStatus(t, "what comes then", q.Write(1, 0, make([]byte, 512)), wire.NamespaceNotReady.WithDelay(1))
		if err := r.ns.Drain(ctxFor(t, 5*time.Second)); err != nil {
			t.Error(err)
		}
		r.ns.Release()
		if err := q.Read(1, 0, make([]byte, 512)); err != nil {
			t.Error(err)
		}
		if s := r.ns.Stats(); s.Refused != 2 || s.Errors != 0 {
			t.Errorf("statistics: %+v", s)
		}
		if s := other.Stats(); s.Reads != 1 || s.Held != 0 {
			t.Errorf("statistics of the other: %+v", s)
		}
	})
}

func TestReadOnly(t *testing.T) {
	r := newRig(t, Options{})
	c := r.connect()
	q := c.IO[0]
	r.ns.SetReadOnly(true)
	protected := wire.NamespaceProtected | wire.DNR
	wantStatus(t, "write", q.Write(1, 0, make([]byte, 512)), protected)
	cmd := nvmetest.IOCommand(wire.OpWriteZeroes, 1, 0, 1)
	_, err := q.Do(&cmd, nil, nil)
	wantStatus(t, "write zeroes", err, protected)
	dsm := wire.SQE{Opcode: wire.OpDSM, NSID: 1, CDW11: wire.DSMDeallocate}
	_, err = q.Do(&dsm, make([]byte, 16), nil)
	wantStatus(t, "DSM", err, protected)
	if err := q.Read(1, 0, make([]byte, 512)); err != nil {
		t.Error(err)
	}
	cmd = nvmetest.IOCommand(wire.OpCompare, 1, 0, 1)
	if _, err := q.Do(&cmd, make([]byte, 512), nil); err != nil {
		t.Errorf("compare: %v", err)
	}
	page, err := c.Identify(wire.CNSNamespace, 1)
	if n := wire.ParseIdentifyNamespace(page); err != nil || n.Attributes != wire.NSATTRReadOnly {
		t.Errorf("attributes %#x, %v", n.Attributes, err)
	}
	r.ns.SetReadOnly(false)
	if err := q.Write(1, 0, make([]byte, 512)); err != nil {
		t.Error(err)
	}
}

// TestANA: the log has changed before a status says so; hosts that do not heed it are
// held instead, also when somebody there has looked at the log.
func TestANA(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		heeds, plain := r.connect(func(c *nvmetest.Config) { c.ANA = true }), r.connect()
		readLog(t, plain, wire.LogANA, 4096)
		for _, s := range []struct {
			state wire.ANAState
			want  wire.Status
		}{{wire.ANAUnreachable, wire.ANAInaccessible}, {wire.ANAChanging, wire.ANATransition}, {wire.ANALost, wire.ANAPersistentLoss}} {
			if err := r.subsys.SetANA(1, s.state); err != nil {
				t.Fatal(err)
			}
			wantStatus(t, s.state.String(), heeds.IO[0].Read(1, 0, make([]byte, 512)), s.want)
			log, err := wire.ParseANALog(readLog(t, heeds, wire.LogANA, 4096))
			if err != nil || log.Groups[0].State != s.state || log.Groups[0].Changes != log.Changes {
				t.Errorf("the log says %+v, %v", log, err)
			}
		}
		cmd := wire.SQE{Opcode: wire.OpFlush, NSID: 1}
		held, err := plain.IO[0].Send(&cmd, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the other host's command is held", func() bool { return r.ns.Stats().Held == 1 })
		if err := r.subsys.SetANA(1, wire.ANAOptimized); err != nil {
			t.Fatal(err)
		}
		if _, err := held.Wait(); err != nil {
			t.Errorf("what was held: %v", err)
		}
		if err := heeds.IO[0].Read(1, 0, make([]byte, 512)); err != nil {
			t.Error(err)
		}
		if err := r.subsys.SetANA(9, wire.ANAOptimized); err == nil {
			t.Error("a group that is none changed its state")
		}
	})
}

// TestRemoveAnswersWhatIsHeld, also when a namespace of the same number is there
// again.
func TestRemoveAnswersWhatIsHeld(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		q := r.connect().IO[0]
		r.ns.Hold()
		cmd := wire.SQE{Opcode: wire.OpFlush, NSID: 1}
		held, err := q.Send(&cmd, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is held", func() bool { return r.ns.Stats().Held == 1 })
		if err := r.subsys.RemoveNamespace(ctxFor(t, 5*time.Second), 1); err != nil {
			t.Fatal(err)
		}
		_, err = held.Wait()
		wantStatus(t, "what was held", err, wire.InvalidNamespace|wire.DNR)
		again := r.addNamespace(1, r.memoryBackend(r.memory))
		if err := q.Read(1, 0, make([]byte, 512)); err != nil {
			t.Errorf("reading its successor: %v", err)
		}
		if s := again.Stats(); s.Reads != 1 {
			t.Errorf("statistics of the successor: %+v", s)
		}
	})
}

// counting is a Handler that knows how many requests it has in hand, and which
// content they may touch.
type counting struct {
	inside  atomic.Int64
	content atomic.Int64
	marks   atomic.Int64
	bad     atomic.Int64 // writes that came without a mark, or to old content
}

func (h *counting) Handle(r *Request) unix.Errno {
	h.inside.Add(1)
	defer h.inside.Add(-1)
	content := h.content.Load()
	if r.Op == OpWrite && h.marks.Load() == 0 {
		h.bad.Add(1)
	}
	time.Sleep(20 * time.Microsecond)
	if h.content.Load() != content {
		h.bad.Add(1)
	}
	return 0
}

func (h *counting) Touch(uint64, uint64, Waker) (bool, unix.Errno) {
	h.marks.Add(1)
	return true, 0
}

// TestDrainUnderLoad exchanges content again and again while several queues write:
// behind a drained gate there is never a request.
func TestDrainUnderLoad(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		h := &counting{}
		b, err := NewHandlerBackend("counting", h, Limits{Size: testSize})
		if err != nil {
			t.Fatal(err)
		}
		ns, err := r.subsys.AddNamespace(NamespaceConfig{ID: 2, Backend: b, UUID: [16]byte{9}, Changes: h})
		if err != nil {
			t.Fatal(err)
		}
		c := r.connect(func(c *nvmetest.Config) { c.Queues = 4 })
		stop, writers := make(chan struct{}), sync.WaitGroup{}
		for i, q := range slices.Repeat(c.IO, 4) {
			writers.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					if err := q.Write(2, uint64(i), make([]byte, 512)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range 200 {
			ns.Hold()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if err := ns.Drain(ctx); err != nil {
				t.Error(err)
			}
			cancel()
			if n := h.inside.Load(); n != 0 {
				t.Errorf("%d requests in hand behind a drained gate", n)
			}
			h.content.Add(1)
			time.Sleep(100 * time.Microsecond)
			if n := h.inside.Load(); n != 0 {
				t.Errorf("%d requests came through a closed gate", n)
			}
			ns.Release()
			time.Sleep(200 * time.Microsecond)
		}
		close(stop)
		writers.Wait()
		if n := h.bad.Load(); n != 0 {
			t.Errorf("%d requests saw the content change, or wrote unmarked", n)
		}
		s := ns.Stats()
		if s.Held == 0 || uint64(h.marks.Load()) != s.Writes || s.Errors != 0 || s.Refused != 0 {
			t.Errorf("%d marks, statistics %+v", h.marks.Load(), s)
		}
	})
}

// panicking is a Handler that has a bad day.
type panicking struct{ Memory }

func (p *panicking) Handle(r *Request) unix.Errno {
	if r.Offset == 512 {
		panic("block 1")
	}
	return p.Memory.Handle(r)
}

func TestPanicFailsOneCommand(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		b, err := NewHandlerBackend("panicking", &panicking{Memory{mem: r.memory.mem}}, Limits{Size: testSize})
		if err != nil {
			t.Fatal(err)
		}
		ns := r.addNamespace(2, b)
		q := r.connect().IO[0]
		var sent []*nvmetest.Sent
		for i := range 8 {
			cmd := nvmetest.IOCommand(wire.OpRead, 2, uint64(i%2), 1)
			s, err := q.Send(&cmd, nil, make([]byte, 512))
			if err != nil {
				t.Fatal(err)
			}
			sent = append(sent, s)
		}
		for i, s := range sent {
			_, err := s.Wait()
			if i%2 == 0 && err != nil {
				t.Errorf("read %d: %v", i, err)
			} else if i%2 == 1 {
				wantStatus(t, "a read that panics", err, wire.InternalError)
			}
		}
		wantStatus(t, "a write that panics", q.Write(2, 1, make([]byte, 512)), wire.InternalError)
		ns.Hold()
		if err := ns.Drain(ctxFor(t, 5*time.Second)); err != nil {
			t.Error(err)
		}
	})
}
