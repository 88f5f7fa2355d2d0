package dmswap

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap/extmap"
)

func mustTrack(t *testing.T, p *Pool, session UUID) UUID {
	t.Helper()
	now, err := p.Track(session, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return now
}

func mustCover(t *testing.T, p *Pool, position UUID) *Coverage {
	t.Helper()
	c, err := p.Coverage(position)
	if err != nil {
		t.Fatal(err)
	}
	if c == nil {
		t.Fatal("the position has no durable map")
	}
	return c
}

func mustSet(t *testing.T, c *Coverage, granule int64) {
	t.Helper()
	done := make(chan error, 1)
	if c.Set(granule, func(err error) { done <- err }) {
		return
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// clearAll takes all bits back and waits until that is on the disks.
func clearAll(p *Pool, c *Coverage) {
	c.Clear(func(int64) bool { return false })
	for _, m := range p.maps {
		if m != nil {
			m.Close()
		}
	}
}

func granules(each func(func(int64))) []int64 {
	var list []int64
	each(func(g int64) {
		if !slices.Contains(list, g) {
			list = append(list, g)
		}
	})
	slices.Sort(list)
	return list
}

func setBase(t *testing.T, p *Pool, volume string, b Base) Base {
	t.Helper()
	if err := p.SetPosition(ctx, volume, func(a *PositionAttrs) { a.Base = b }); err != nil {
		t.Fatal(err)
	}
	return baseOf(t, p, volume)
}

func baseOf(t *testing.T, p *Pool, volume string) Base {
	t.Helper()
	v, err := p.Volume(volume)
	if err != nil {
		t.Fatal(err)
	}
	return v.Position.Base
}

// TestGoldenBase: positions with a base, and with a reason why there is none.
func TestGoldenBase(t *testing.T) {
	m := goldenMetadata()
	m.Positions[0].Base = &Base{Generation: 3, Why: "the disk <nvme0n1> died"}
	m.Positions[1].Base = &Base{Backup: "b-1", Size: 1 << 30, Since: goldenTime, Generation: 9}
	body, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "base.json", body)
	if got, err := decodeMetadata(body); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("decoded %+v, %v", got, err)
	}
	for name, b := range map[string]Base{
		"no generation":    {Backup: "b-1", Size: 1 << 20},
		"no size":          {Backup: "b-1", Generation: 1},
		"a reason as well": {Backup: "b-1", Size: 1 << 20, Generation: 1, Why: "x"},
		"size of nothing":  {Size: 1 << 20, Generation: 1},
		"negative":         {Backup: "b-1", Size: -1, Generation: 1},
	} {
		m.Positions[1].Base = &b
		if err := m.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestCoverageFollowsTheLayout: a granule is the extents on which its bytes lie,
// and no others.
func TestCoverageFollowsTheLayout(t *testing.T) {
	p, _ := testPool(t, 32, 32, 32)
	mustCreate(t, p, VolumeSpec{Name: "hole", Size: 5 << 20})
	striped := mustCreate(t, p, VolumeSpec{Name: "striped", Size: 6 << 20, Stripes: 3, StripeSize: 64 << 10})
	linear := mustCreate(t, p, VolumeSpec{Name: "linear", Size: 70 << 20})
	if c, err := p.Coverage(linear.Position.ID); c != nil || err != nil {
		t.Errorf("before anything is tracked: %v, %v", c, err)
	}
	mustTrack(t, p, "")
	if _, err := p.Coverage(NewUUID()); !errors.Is(err, ErrNotFound) {
		t.Errorf("of no position: %v", err)
	}
	for _, v := range []VolumeInfo{linear, striped} {
		c := mustCover(t, p, v.Position.ID)
		if want := int64(max(v.Position.Stripes, 1)) << 20; c.Granule() != want || c.Granules()*want < v.Size {
			t.Errorf("%s: %d granules of %d", v.Name, c.Granules(), c.Granule())
		}
		for _, x := range []VolumeInfo{linear, striped} {
			clearAll(p, mustCover(t, p, x.Position.ID))
		}
		for g := range c.Granules() {
			mustSet(t, c, g)
			pos := p.meta.position(v.Position.ID)
			want := map[[2]int64]bool{}
			for _, piece := range mapRange(p.place().members, 1<<20, pos, g*c.Granule(), c.Granule()) {
				want[[2]int64{int64(piece.member), (piece.at - p.place().members[piece.member].DataOffset) >> 20}] = true
			}
			for i, m := range p.maps {
				m.Each(0, p.meta.Members[i].Extents, func(e int64) {
					owned := func(x VolumeInfo) bool {
						return slices.ContainsFunc(x.Position.Segments, func(s Segment) bool {
							return slices.ContainsFunc(s.Stripes, func(st SegmentStripe) bool {
								return st.Member == i && e >= st.Start && e < st.Start+s.Extents
							})
						})
					}
					if !owned(linear) && !owned(striped) {
						return // nobody's: as they were on blank disks
					}
					if !want[[2]int64{int64(i), e}] {
						t.Errorf("%s granule %d: extent %d of member %d is set", v.Name, g, e, i)
					}
					delete(want, [2]int64{int64(i), e})
				})
			}
			if len(want) != 0 {
				t.Errorf("%s granule %d: not set: %v", v.Name, g, want)
			}
			if got := granules(c.Each); !slices.Equal(got, []int64{g}) {
				t.Errorf("%s: set %d, got %v", v.Name, g, got)
			}
			clearAll(p, c)
		}
	}
}

// TestSwapTakesBitsAlong: they lie with the extents, so nothing has to be done.
func TestSwapTakesBitsAlong(t *testing.T) {
	p, w := testPool(t, 32, 32)
	a := mustCreate(t, p, VolumeSpec{Name: "a", Size: 8 << 20})
	b := mustCreate(t, p, VolumeSpec{Name: "b", Size: 8 << 20})
	session := mustTrack(t, p, "")
	ca, cb := mustCover(t, p, a.Position.ID), mustCover(t, p, b.Position.ID)
	clearAll(p, ca)
	clearAll(p, cb)
	mustSet(t, ca, 2)
	mustSet(t, cb, 5)
	base := setBase(t, p, "a", Base{Backup: "b-1", Size: 8 << 20, Since: goldenTime})
	s, err := p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Execute(ctx); err != nil {
		t.Fatal(err)
	}
	if got := baseOf(t, p, "b"); got != base || baseOf(t, p, "a").Backup != "" {
		t.Errorf("after the swap b has base %+v, a %+v", got, baseOf(t, p, "a"))
	}
	again := w.open(t)
	if now := mustTrack(t, again, session); now != session {
		t.Error("the session has changed though the disks were in no other hands")
	}
	for name, want := range map[string]int64{"a": 5, "b": 2} {
		v, err := again.Volume(name)
		if err != nil {
			t.Fatal(err)
		}
		c := mustCover(t, again, v.Position.ID)
		if got := granules(c.Each); !slices.Equal(got, []int64{want}) {
			t.Errorf("%s: %v", name, got)
		}
		if got := granules(c.TakeWhole); len(got) != 0 {
			t.Errorf("%s: whole %v under its session", name, got)
		}
	}
}

// TestAnotherSession: what others tracked is known by whole granules, and they are
// told before anything else of theirs is void.
func TestAnotherSession(t *testing.T) {
	p, w := testPool(t, 32, 32)
	a := mustCreate(t, p, VolumeSpec{Name: "a", Size: 8 << 20})
	session := mustTrack(t, p, "")
	c := mustCover(t, p, a.Position.ID)
	clearAll(p, c)
	mustSet(t, c, 3)

	again := w.open(t)
	var seen []extmap.ID
	now, err := again.Track(NewUUID(), func() error {
		for _, m := range again.maps {
			seen = append(seen, m.Session())
		}
		return nil
	})
	if err != nil || now == session {
		t.Fatalf("session %s, %v", now, err)
	}
	if old := extmap.ID(uuidBytes(session)); len(seen) != 2 || seen[0] != old || seen[1] != old {
		t.Errorf("when it begins the disks say %x", seen)
	}
	if got := granules(mustCover(t, again, a.Position.ID).TakeWhole); !slices.Equal(got, []int64{3}) {
		t.Errorf("whole are %v", got)
	}
	third := w.open(t)
	if got := mustTrack(t, third, session); got == session {
		t.Error("the first session counts although another came between")
	}
}

// TestTrackingThatFails gives the bases up, or says that nothing may be served.
func TestTrackingThatFails(t *testing.T) {
	for _, all := range []bool{false, true} {
		p, w := testPool(t, 32, 32)
		mustCreate(t, p, VolumeSpec{Name: "a", Size: 8 << 20})
		setBase(t, p, "a", Base{Backup: "b-1", Size: 8 << 20, Since: goldenTime})
		heads := 0
		w.fail = func(effect string) error {
			if strings.HasPrefix(effect, "fua write") {
				if heads++; heads == 1 || all {
					return unix.EIO
				}
			}
			return nil
		}
		_, err := p.Track("", func() error { return nil })
		w.reborn()
		if err == nil || errors.Is(err, ErrDamaged) != all {
			t.Errorf("all writes fail: %v: %v", all, err)
		}
		if b := baseOf(t, p, "a"); !all && (b.Backup != "" || !strings.Contains(b.Why, "can't be kept")) {
			t.Errorf("base %+v", b)
		}
		if p.Session() != "" {
			t.Error("there is a session")
		}
		v, err := p.Volume("a")
		if err != nil {
			t.Fatal(err)
		}
		if c, err := p.Coverage(v.Position.ID); c != nil || err != nil {
			t.Errorf("coverage %v, %v", c, err)
		}
	}
}

// TestBaseIsDropped says why, and a grow that began before brings none back.
func TestBaseIsDropped(t *testing.T) {
	p, _ := testPool(t, 64)
	a := mustCreate(t, p, VolumeSpec{Name: "a", Size: 8 << 20})
	mustCreate(t, p, VolumeSpec{Name: "b", Size: 8 << 20})
	first := setBase(t, p, "a", Base{Backup: "b-1", Size: 8 << 20, Since: goldenTime})
	other := setBase(t, p, "b", Base{Backup: "b-2", Size: 8 << 20, Since: goldenTime})
	if first.Generation != 1 {
		t.Errorf("generation %d", first.Generation)
	}
	v := *p.meta.volume("a")
	v.Size = 16 << 20
	pos, done, err := p.extend(&v, v.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if err := p.DropBases("it was in the way", a.Position.ID); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	err = p.commitGrown(&v, pos)
	p.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if got := baseOf(t, p, "a"); got != (Base{Generation: 2, Why: "it was in the way"}) {
		t.Errorf("after the grow: %+v", got)
	}
	if got := baseOf(t, p, "b"); got != other {
		t.Errorf("the other volume has base %+v", got)
	}
	before := p.Info().Generation
	if err := p.DropBases("once more", a.Position.ID); err != nil || p.Info().Generation != before {
		t.Errorf("dropping nothing: %v, generation %d to %d", err, before, p.Info().Generation)
	}
	// The device was left as it was.
	if err := p.recreateFor(t, "a"); err != nil {
		t.Fatal(err)
	}
}

// recreateFor brings a volume's device to the committed map.
func (p *Pool) recreateFor(t *testing.T, volume string) error {
	t.Helper()
	for _, w := range p.wantedDevices() {
		if w.volume.Name == volume {
			if again, _, err := p.prepareDevice(ctx, w); err != nil || !again {
				return err
			}
			return p.kernel.Resume(ctx, w.ref)
		}
	}
	return ErrNotFound
}

// TestRestoredMetadataHasNoBase: what was written since the dump, and what the maps
// counted from then, is not known.
func TestRestoredMetadataHasNoBase(t *testing.T) {
	w := newWorld(t, 32, 32)
	p := w.open(t)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 8 << 20})
	mustCreate(t, p, VolumeSpec{Name: "b", Size: 8 << 20})
	setBase(t, p, "a", Base{Backup: "b-1", Size: 8 << 20, Since: goldenTime})
	d, err := p.Dump()
	if err != nil {
		t.Fatal(err)
	}
	setBase(t, p, "a", Base{Backup: "b-2", Size: 8 << 20, Since: goldenTime})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	w.restoreOn(t, d, 0, 1)
	again := w.open(t)
	if got := baseOf(t, again, "a"); got.Backup != "" || !strings.Contains(got.Why, "restored from a dump") || got.Generation != 2 {
		t.Errorf("base %+v", got)
	}
	if got := baseOf(t, again, "b"); got != (Base{}) {
		t.Errorf("a volume without a base has %+v", got)
	}
}

// TestMemberComesBackWithItsMap: while it is away nothing is granted; when it is
// back its bits count, as whole if somebody else has had it.
func TestMemberComesBackWithItsMap(t *testing.T) {
	for name, foreign := range map[string]bool{"as it went": false, "from other hands": true} {
		w := newWorld(t, 4, 32)
		p := w.open(t)
		a := mustCreate(t, p, VolumeSpec{Name: "a", Size: 3 << 20})
		mustCreate(t, p, VolumeSpec{Name: "big", Size: 20 << 20})
		if !a.Position.LiesOn(1) {
			t.Fatalf("volume a lies on %v", a.Position.Segments)
		}
		session := mustTrack(t, p, "")
		c := mustCover(t, p, a.Position.ID)
		clearAll(p, c)
		mustSet(t, c, 1)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}

		p, err := w.tryOpenOn(func(i int) bool { return i == 1 })
		if err != nil {
			t.Fatal(err)
		}
		if now := mustTrack(t, p, session); now != session {
			t.Errorf("%s: a member that is away changed the session", name)
		}
		c = mustCover(t, p, a.Position.ID)
		failed := make(chan error, 1)
		if c.Set(0, func(err error) { failed <- err }) {
			t.Errorf("%s: granted on a member that is away", name)
		} else if err := <-failed; !errors.Is(err, extmap.ErrAbsent) {
			t.Errorf("%s: %v", name, err)
		}
		if foreign {
			m := extmap.New(extmap.Options{
				Pool: uuidBytes(p.uuid), Member: uuidBytes(w.labels[1].Member),
				Offset: w.labels[1].Slots[1] + w.labels[1].SlotSize, Extents: w.labels[1].Extents, Logger: p.log,
			})
			m.Load(w.disks[1], extmap.ID{})
			if err := m.SetSession(extmap.ID{1}); err != nil {
				t.Fatal(err)
			}
		}
		back := openMember{disk: w.disks[1], label: w.labels[1], device: memberDevice(1), path: "disk1", size: w.labels[1].DiskSize}
		if err := p.rejoin(ctx, 1, back); err != nil {
			t.Fatal(err)
		}
		want := []int64{}
		if foreign {
			want = []int64{0, 1}
		}
		if got := granules(c.TakeWhole); !slices.Equal(got, want) && len(got)+len(want) > 0 {
			t.Errorf("%s: whole are %v", name, got)
		}
		mustSet(t, c, 2)
		if got := granules(c.Each); !slices.Equal(got, []int64{0, 1, 2}) {
			t.Errorf("%s: set are %v", name, got)
		}
		if got := p.maps[1].Session() == uuidBytes(session); got == foreign {
			t.Errorf("%s: the member is trusted: %v", name, got)
		}
		mustCheck(t, p)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPoolWithoutRoomForMaps: pools of earlier versions, on disks of many extents.
func TestPoolWithoutRoomForMaps(t *testing.T) {
	p, _ := testPool(t, 32, 32)
	a := mustCreate(t, p, VolumeSpec{Name: "a", Size: 8 << 20})
	b := mustCreate(t, p, VolumeSpec{Name: "b", Size: 8 << 20, Stripes: 2})
	for i, m := range p.store.members {
		if room := m.label.DataOffset - m.label.Slots[1] - m.label.SlotSize; room < extmap.Size(m.label.Extents) {
			t.Errorf("member %d of a new pool has %d bytes for its map of %d", i, room, extmap.Size(m.label.Extents))
		}
	}
	p.meta.Members[1].Extents = 1 << 40
	defer func() { p.meta.Members[1].Extents = 32 }()
	p.openMaps()
	mustTrack(t, p, "")
	mustCover(t, p, a.Position.ID)
	if c, err := p.Coverage(b.Position.ID); c != nil || err != nil {
		t.Errorf("coverage %v, %v", c, err)
	}
}
