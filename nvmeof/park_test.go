package nvmeof

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// parkRig is a rig whose changes say "not yet".
func parkRig(t *testing.T, opt Options) (*rig, *marks, *nvmetest.Queue) {
	r := newRig(t, opt)
	m := &marks{later: true}
	r.ns.SetChanges(m)
	return r, m, r.connect().IO[0]
}

// sendWrite sends a write of one block.
func sendWrite(t *testing.T, q *nvmetest.Queue, lba uint64, fill byte) *nvmetest.Sent {
	t.Helper()
	cmd := nvmetest.IOCommand(wire.OpWrite, 1, lba, 1)
	s, err := q.Send(&cmd, slices.Repeat([]byte{fill}, 512), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestChangesThatMustBeDurableFirst: a command waits until the change map lets it pass;
// others go on, and the gate can be drained meanwhile.
func TestChangesThatMustBeDurableFirst(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r, m, q := parkRig(t, opt)
		first, second := sendWrite(t, q, 0, 1), sendWrite(t, q, 0, 2)
		eventually(t, "both have asked", func() bool { return m.waits() == 2 })
		ranges := make([]byte, 32)
		wire.Range{Blocks: 1, LBA: 7}.Put(ranges)
		wire.Range{Blocks: 3, LBA: 100}.Put(ranges[16:])
		dsm := wire.SQE{Opcode: wire.OpDSM, NSID: 1, CDW10: 1, CDW11: wire.DSMDeallocate}
		discard, err := q.Send(&dsm, ranges, nil)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the discard has asked", func() bool { return m.waits() == 3 })
		if err := q.Read(1, 0, make([]byte, 512)); err != nil {
			t.Errorf("a read meanwhile: %v", err)
		}
		if n := r.ns.Stats().InFlight; n != 0 || r.memory.mem[0] != 0 {
			t.Errorf("%d in flight, the block has %d", n, r.memory.mem[0])
		}
		r.ns.Hold()
		if err := r.ns.Drain(ctxFor(t, 5*time.Second)); err != nil {
			t.Error(err)
		}
		m.say(false, 0)
		eventually(t, "the gate holds what may go on", func() bool { return r.ns.Stats().Held == 3 })
		if len(m.told()) != 0 {
			t.Errorf("behind a closed gate %v was told", m.told())
		}
		// As in a swap: it is the next map's to know.
		next := &marks{}
		r.ns.SetChanges(next)
		r.ns.Release()
		for _, s := range []*nvmetest.Sent{first, second, discard} {
			if _, err := s.Wait(); err != nil {
				t.Error(err)
			}
		}
		if r.memory.mem[0] != 2 {
			t.Errorf("the block has write %d, not the last one", r.memory.mem[0])
		}
		want := [][2]uint64{{0, 512}, {0, 512}, {7 * 512, 512}, {100 * 512, 3 * 512}}
		if got := next.told(); !slices.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
	})
}

// TestChangesThatCannotBe: a command whose change can't be recorded fails, and has
// changed nothing.
func TestChangesThatCannotBe(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r, m, q := parkRig(t, opt)
		s := sendWrite(t, q, 0, 1)
		eventually(t, "it has asked", func() bool { return m.waits() == 1 })
		m.say(false, unix.EIO)
		_, err := s.Wait()
		wantStatus(t, "no", err, wire.WriteFault)
		if r.memory.mem[0] != 0 {
			t.Error("it was carried out")
		}
		if s := r.ns.Stats(); s.Errors != 1 || s.InFlight != 0 || s.Writes != 0 {
			t.Errorf("statistics: %+v", s)
		}
	})
}

// TestParkedIsDropped: what waits when its connection ends is never carried out, and a
// host that connects anew, while we still have its old connection, is only let in when
// that has ended.
func TestParkedIsDropped(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r, m, q := parkRig(t, opt)
		sendWrite(t, q, 0, 1)
		eventually(t, "it has asked", func() bool { return m.waits() == 1 })
		next := r.connect() // after fencePatience
		select {
		case <-q.Done():
		default:
			t.Error("the old queue lives")
		}
		m.say(false, 0)
		if err := next.IO[0].Write(1, 0, slices.Repeat([]byte{2}, 512)); err != nil {
			t.Fatal(err)
		}
		if r.memory.mem[0] != 2 || len(m.told()) != 1 {
			t.Errorf("the block has %d, told %v", r.memory.mem[0], m.told())
		}
	})
}

// TestHeldDelaysTheNextController: the same for what a gate holds.
func TestHeldDelaysTheNextController(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		q := r.connect().IO[0]
		r.ns.Hold()
		s := sendWrite(t, q, 0, 1)
		eventually(t, "it is held", func() bool { return r.ns.Stats().Held == 1 })
		connected := make(chan *nvmetest.Controller)
		go func() { connected <- r.connect() }()
		select {
		case <-connected:
			t.Error("the next controller is there while a write of before is held")
		case <-time.After(100 * time.Millisecond):
		}
		r.ns.Release()
		if _, err := s.Wait(); err != nil {
			t.Error(err)
		}
		next := <-connected
		if err := next.IO[0].Read(1, 0, make([]byte, 512)); err != nil {
			t.Error(err)
		}
		if r.memory.mem[0] != 1 {
			t.Error("the write was lost")
		}
	})
}
