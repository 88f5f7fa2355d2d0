package ublk

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// slowGuard lets granules pass when the test says so.
type slowGuard struct {
	m *ChangeMap

	mu     sync.Mutex
	asked  []uint64
	open   map[uint64]bool
	broken map[uint64]unix.Errno
	wakers []Waker
}

func (g *slowGuard) Touch(first, last uint64, w Waker) (bool, unix.Errno) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := first; i <= last; i++ {
		if e := g.broken[i]; e != 0 {
			return false, e
		}
		if !g.open[i] {
			g.asked = append(g.asked, i)
			g.wakers = append(g.wakers, w)
			return false, 0
		}
		g.m.Grant(i)
	}
	return true, 0
}

func (g *slowGuard) let(granules ...uint64) {
	g.mu.Lock()
	for _, i := range granules {
		g.open[i] = true
	}
	list := g.wakers
	g.wakers = nil
	g.mu.Unlock()
	for _, w := range list {
		w.Wake()
	}
}

const guardGranule = 256 << 10

func newGuarded(t *testing.T, size uint64) (*ChangeMap, *slowGuard) {
	t.Helper()
	m := newChangeMap(t, size, 64<<10)
	g := &slowGuard{m: m, open: map[uint64]bool{}, broken: map[uint64]unix.Errno{}}
	if err := m.SetGuard(g, guardGranule, size/guardGranule); err != nil {
		t.Fatal(err)
	}
	return m, g
}

// post has tag 0 serve a request from its next fetch on; tag 1 keeps the turns
// coming.
func (d *driven) post(op Op, off, n uint64) {
	d.descs[0] = ioDesc{OpFlags: uint32(op), NrSectors: uint32(n / sectorSize), StartSector: off / sectorSize}
}

func (d *driven) idle() {
	d.t.Helper()
	flushes := d.stats.ops[OpFlush].Load()
	d.until("some turns", func() bool { return d.stats.ops[OpFlush].Load() > flushes+5 })
}

// A first write waits until its granule is durable, and is not marked before:
// another write to the block would overtake the guard.
func TestFirstWriteWaitsForTheGuard(t *testing.T) {
	b, _ := newFileBackend(t, 8<<20)
	d := drive(t, b, 2)
	m, g := newGuarded(t, 8<<20)
	d.gate.setChanges(m)
	d.post(OpWrite, 4096, 4096)
	d.until("a parked write", func() bool { return len(d.parked) == 1 })
	d.idle()
	if m.Bytes() != 0 || d.stats.ops[OpWrite].Load() != 0 || d.counts().InFlight > 1 {
		t.Errorf("%d bytes marked, %+v", m.Bytes(), d.counts())
	}
	d.post(OpFlush, 0, 0)
	g.let(0)
	d.until("the write", func() bool { return d.stats.ops[OpWrite].Load() == 1 })
	if !m.Changed(4096, 1) || m.Bytes() != 64<<10 || len(d.parked) != 0 || d.counts().Parked != 1 {
		t.Errorf("%d bytes marked, %d parked, %+v", m.Bytes(), len(d.parked), d.counts())
	}
	// Another block of the granule, and the block again: nobody is asked.
	asked := len(g.asked)
	d.request(OpWrite, 0, 128<<10, 4096)
	d.request(OpWrite, 0, 4096, 4096)
	d.request(OpDiscard, 0, 64<<10, 64<<10)
	if len(g.asked) != asked || m.Bytes() != 3*64<<10 {
		t.Errorf("asked for %v, %d bytes marked", g.asked, m.Bytes())
	}
}

// A request over several granules waits for all of them, and marks nothing until
// then.
func TestWriteOverGranulesWaitsForAll(t *testing.T) {
	b, _ := newFileBackend(t, 8<<20)
	d := drive(t, b, 2)
	m, g := newGuarded(t, 8<<20)
	d.gate.setChanges(m)
	d.post(OpDiscard, guardGranule-64<<10, 2*guardGranule)
	d.until("a parked discard", func() bool { return len(d.parked) == 1 })
	d.post(OpFlush, 0, 0)
	for i := range uint64(2) {
		g.let(i)
		d.idle()
		if m.Bytes() != 0 || len(d.parked) != 1 {
			t.Errorf("with granule %d: %d bytes marked, %d parked", i, m.Bytes(), len(d.parked))
		}
	}
	g.let(2)
	d.until("the discard", func() bool { return d.stats.ops[OpDiscard].Load() == 1 })
	if m.Bytes() != 2*guardGranule {
		t.Errorf("%d bytes marked", m.Bytes())
	}
}

// What waits is not in flight: a drain does not wait for it. When the gate opens
// it is recorded in the map that counts then.
func TestGateOverWhatWaits(t *testing.T) {
	b, _ := newFileBackend(t, 8<<20)
	d := drive(t, b, 2)
	before, g := newGuarded(t, 8<<20)
	after := newChangeMap(t, 8<<20, 64<<10)
	d.gate.setChanges(before)
	d.post(OpWrite, 0, 4096)
	d.until("a parked write", func() bool { return len(d.parked) == 1 })
	d.post(OpFlush, 0, 0)
	d.gate.set(gateHold)
	for d.acked.Load() != d.gate.word.Load() || d.flight > 0 {
		d.step()
	}
	g.let(0)
	d.gate.setChanges(after)
	d.turn()
	if len(d.parked) != 1 || d.flight != 0 {
		t.Fatalf("behind the closed gate: %d parked, %d in flight", len(d.parked), d.flight)
	}
	d.gate.set(gateServe)
	d.until("the write", func() bool { return d.stats.ops[OpWrite].Load() == 1 })
	if before.Bytes() != 0 || after.Bytes() != 64<<10 {
		t.Errorf("%d bytes in the old map, %d in the new", before.Bytes(), after.Bytes())
	}
}

func TestRefusedGateAnswersWhatWaits(t *testing.T) {
	b, _ := newFileBackend(t, 8<<20)
	d := drive(t, b, 2)
	m, _ := newGuarded(t, 8<<20)
	d.gate.setChanges(m)
	d.post(OpWrite, 0, 4096)
	d.until("a parked write", func() bool { return len(d.parked) == 1 })
	d.post(OpFlush, 0, 0)
	d.gate.set(gateRefuse)
	d.turn()
	if len(d.parked) != 0 || d.counts().Refused == 0 || m.Bytes() != 0 {
		t.Errorf("%d parked, %+v", len(d.parked), d.counts())
	}
}

// A change map that can be neither kept nor given up fails the write.
func TestGuardThatFails(t *testing.T) {
	b, _ := newFileBackend(t, 8<<20)
	d := drive(t, b, 2)
	m, g := newGuarded(t, 8<<20)
	g.broken[0] = unix.EIO
	d.gate.setChanges(m)
	d.request(OpWrite, 0, 0, 4096)
	if got := d.counts().Write; got.Errors == 0 || got.Bytes != 0 || m.Bytes() != 0 {
		t.Errorf("%+v, %d bytes marked", got, m.Bytes())
	}
}

// After ResetGrants the guard is asked once more.
func TestGrantsEnd(t *testing.T) {
	m, g := newGuarded(t, 8<<20)
	g.let(0, 1)
	if yes, no := m.touch(0, 2*guardGranule, nil); !yes || no != 0 || !m.Granted(0) || !m.Granted(1) || m.Granted(2) {
		t.Error("not granted")
	}
	m.ResetGrants()
	g.open = map[uint64]bool{}
	if yes, no := m.touch(0, 1, nil); yes || no != 0 {
		t.Error("granted still")
	}
	if yes, _ := m.touch(1<<40, 4096, nil); !yes {
		t.Error("what lies behind the end waits")
	}
}
