package dmswap

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap/dm"
)

func TestVolumesComeAndGo(t *testing.T) {
	p, w := testPool(t, 16, 16)
	a := mustCreate(t, p, VolumeSpec{Name: "a", Size: 5<<20 + 1})
	if a.Size != 5<<20+4096 || a.Device == "" || a.DeviceNumber != -1 || a.Position.Generation != 1 || countExtents(a.Position.Segments) != 6 {
		t.Errorf("created %+v", a)
	}
	if got, err := p.Volume(a.UUID); err != nil || got.Name != "a" {
		t.Errorf("by UUID: %+v, %v", got, err)
	}
	info := p.Info()
	if info.Extents != 32 || info.FreeExtents != 26 || info.Members[0].FreeExtents+info.Members[1].FreeExtents != 26 {
		t.Errorf("pool %+v", info)
	}
	g, err := p.GrowVolume(ctx, "a", 12<<20)
	if err != nil || g.Size != 12<<20 || g.Position.Generation != 2 || g.Busy != "" {
		t.Errorf("grown %+v, %v", g, err)
	}
	if err := p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.Attached, a.DeviceNumber, a.ReadOnly = true, 3, true }); err != nil {
		t.Error(err)
	}
	if err := p.SetPosition(ctx, "a", func(a *PositionAttrs) { a.DescendsFrom = "b1" }); err != nil {
		t.Error(err)
	}
	mustCheck(t, p)
	again := w.open(t)
	v, err := again.Volume("a")
	if err != nil || !v.Attached || v.DeviceNumber != 3 || !v.ReadOnly || v.Position.DescendsFrom != "b1" || v.Device != a.Device {
		t.Errorf("opened again: %+v, %v", v, err)
	}
	if err := p.DeleteVolume(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if len(p.Volumes()) != 0 || p.Info().FreeExtents != 32 || len(w.kernel.devices) != 0 {
		t.Errorf("after the delete: %+v, %d devices", p.Info(), len(w.kernel.devices))
	}
}

func TestRefusals(t *testing.T) {
	p, w := testPool(t, 16, 16)
	for _, s := range []VolumeSpec{{Name: "a", Size: 4 << 20}, {Name: "b", Size: 4 << 20}, {Name: "big", Size: 5 << 20}, {Name: "bad", Size: 4 << 20}, {Name: "shot", Size: 4 << 20}} {
		mustCreate(t, p, s)
	}
	if err := p.SetPosition(ctx, "bad", func(a *PositionAttrs) { a.Quarantine = &Quarantine{Reason: "step 2 failed"} }); err != nil {
		t.Fatal(err)
	}
	snap, err := p.OpenSnapshot(ctx, "shot", SnapshotOptions{COWSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := snap.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	swap := func(a, b string, ea, eb uint64) func() error {
		return func() error {
			_, err := p.PrepareSwap(ctx, []SwapPair{{A: a, B: b, ExpectA: ea, ExpectB: eb}})
			return err
		}
	}
	create := func(s VolumeSpec) func() error {
		return func() error { _, err := p.CreateVolume(ctx, s); return err }
	}
	grow := func(ref string, size int64) func() error {
		return func() error { _, err := p.GrowVolume(ctx, ref, size); return err }
	}
	for _, tt := range []struct {
		name string
		call func() error
		kind error
		text string
	}{
		{"swap unknown", swap("a", "x", 0, 0), ErrNotFound, `"x"`},
		{"swap with itself", swap("a", "a", 0, 0), ErrInvalid, "twice"},
		{"swap wrong generation", swap("a", "b", 1, 7), ErrGeneration, "volume b has generation 1, not 7"},
		{"swap unequal", swap("a", "big", 0, 0), ErrInvalid, "4194304 bytes and volume big has 5242880"},
		{"swap quarantined", swap("a", "bad", 0, 0), ErrQuarantined, "step 2 failed"},
		{"swap with snapshot", swap("a", "shot", 0, 0), ErrSnapshot, snap.Device()},
		{"swap nothing", func() error { _, err := p.PrepareSwap(ctx, nil); return err }, ErrInvalid, "no volumes"},
		{"grow with snapshot", grow("shot", 8<<20), ErrSnapshot, "snapshot"},
		{"delete with snapshot", func() error { return p.DeleteVolume(ctx, "shot") }, ErrSnapshot, "snapshot"},
		{"second snapshot", func() error { _, err := p.OpenSnapshot(ctx, "shot", SnapshotOptions{}); return err }, ErrSnapshot, "snapshot"},
		{"grow quarantined", grow("bad", 8<<20), ErrQuarantined, "step 2"},
		{"grow to less", grow("a", 1<<20), ErrInvalid, "shrink"},
		{"grow to the same", grow("a", 4<<20), ErrInvalid, "has 4 MiB already"},
		{"grow too far", grow("a", 400<<20), ErrNoSpace, "extents are needed"},
		{"grow unknown", grow("x", 8<<20), ErrNotFound, `"x"`},
		{"create too large", create(VolumeSpec{Name: "n", Size: 1 << 40}), ErrNoSpace, "extents are needed"},
		{"create taken name", create(VolumeSpec{Name: "a", Size: 1 << 20}), ErrExists, "a already"},
		{"create bad name", create(VolumeSpec{Name: "../a", Size: 1 << 20}), ErrInvalid, "name"},
		{"create name like a UUID", create(VolumeSpec{Name: NewUUID(), Size: 1 << 20}), ErrInvalid, "UUID"},
		{"create without size", create(VolumeSpec{Name: "n"}), ErrInvalid, "size"},
		{"create of 8 EiB", create(VolumeSpec{Name: "n", Size: 1<<63 - 1}), ErrInvalid, "size"},
		{"too many stripes", create(VolumeSpec{Name: "n", Size: 1 << 20, Stripes: 3}), ErrInvalid, "3 stripes on a pool of 2"},
		{"odd stripe size", create(VolumeSpec{Name: "n", Size: 1 << 20, Stripes: 2, StripeSize: 5000}), ErrInvalid, "power of two"},
		{"snapshot without room", func() error { _, err := p.OpenSnapshots(ctx, []string{"a", "a"}, SnapshotOptions{}); return err }, ErrInvalid, "twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, devices := fingerprint(p), len(w.kernel.devices)
			err := tt.call()
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("got %v, want %v with %q", err, tt.kind, tt.text)
			}
			if Remedy(err) == "" {
				t.Errorf("%v names no remedy", err)
			}
			if fingerprint(p) != before || len(w.kernel.devices) != devices {
				t.Error("something has changed")
			}
			mustCheck(t, p)
		})
	}
}

func TestSwapMovesPositions(t *testing.T) {
	p, w := testPool(t, 32, 32)
	a, b := mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20}), mustCreate(t, p, VolumeSpec{Name: "b", Size: 4 << 20})
	s, err := p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b", ExpectA: 1, ExpectB: 1}})
	if err != nil {
		t.Fatal(err)
	}
	for _, try := range []func() error{
		func() error { return p.DeleteVolume(ctx, "a") },
		func() error { return p.SetPosition(ctx, "b", func(*PositionAttrs) {}) },
		func() error { return swapNow(p, SwapPair{A: "b", B: "a"}) },
	} {
		if err := try(); !errors.Is(err, ErrBusy) {
			t.Errorf("while the swap is prepared: %v", err)
		}
	}
	if v, err := p.Volume("a"); err != nil || v.Busy == "" || v.Position.ID != a.Position.ID {
		t.Errorf("prepared: %+v, %v", v, err)
	}
	if err := s.Execute(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Execute(ctx); !errors.Is(err, ErrInvalid) {
		t.Errorf("second Execute: %v", err)
	}
	if err := s.Abort(ctx); err != nil {
		t.Errorf("Abort after Execute: %v", err)
	}
	va, _ := p.Volume("a")
	vb, _ := p.Volume("b")
	if va.Position.ID != b.Position.ID || vb.Position.ID != a.Position.ID || va.Position.Generation != 2 || vb.Position.Generation != 2 {
		t.Errorf("after the swap: %+v %+v", va.Position, vb.Position)
	}
	if va.UUID != a.UUID || va.Device != a.Device || va.DeviceNumber != a.DeviceNumber {
		t.Errorf("the name has moved: %+v", va)
	}
	mustCheck(t, p)
	if err := swapNow(p, SwapPair{A: "a", B: "b"}); err != nil {
		t.Fatal(err)
	}
	if va, _ = p.Volume("a"); va.Position.ID != a.Position.ID || va.Position.Generation != 3 {
		t.Errorf("swapped back: %+v", va.Position)
	}
	if t1 := s.Timing(); t1.Suspend <= 0 || t1.Commit <= 0 || t1.Resume <= 0 {
		t.Errorf("timing %+v", t1)
	}
	_ = w
}

// A generation that somebody saw behind a volume does not come back with other
// content: of two positions the one that was swapped less often would bring it.
func TestGenerationsTellContentsApart(t *testing.T) {
	p, _ := testPool(t, 32, 32)
	for _, name := range []string{"a", "b", "y"} {
		mustCreate(t, p, VolumeSpec{Name: name, Size: 4 << 20})
	}
	if err := swapNow(p, SwapPair{A: "a", B: "b"}); err != nil {
		t.Fatal(err)
	}
	seen, err := p.Volume("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := swapNow(p, SwapPair{A: "a", B: "y"}); err != nil {
		t.Fatal(err)
	}
	_, err = p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b", ExpectA: seen.Position.Generation}})
	var stale *GenerationError
	if !errors.As(err, &stale) {
		t.Errorf("volume a shows what was behind y, and passes for generation %d: %v", seen.Position.Generation, err)
	}
}

func TestSwapIsCalledOffByContext(t *testing.T) {
	p, _ := testPool(t, 32)
	a := mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	mustCreate(t, p, VolumeSpec{Name: "b", Size: 4 << 20})
	s, err := p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Execute(over); !errors.Is(err, context.Canceled) || errors.Is(err, ErrCommitted) {
		t.Errorf("got %v", err)
	}
	if v, _ := p.Volume("a"); v.Position.ID != a.Position.ID || v.Busy != "" {
		t.Errorf("after it: %+v", v)
	}
}

func TestResumeFailureAfterCommitIsTold(t *testing.T) {
	p, w := testPool(t, 32)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	b := mustCreate(t, p, VolumeSpec{Name: "b", Size: 4 << 20})
	w.fail = func(what string) error {
		if strings.HasPrefix(what, "resume") {
			return errors.New("injected")
		}
		return nil
	}
	err := swapNow(p, SwapPair{A: "a", B: "b"})
	w.fail = nil
	if !errors.Is(err, ErrCommitted) {
		t.Fatalf("got %v", err)
	}
	if v, _ := p.Volume("a"); v.Position.ID != b.Position.ID {
		t.Error("the commit is not seen")
	}
	again := w.open(t)
	mustCheck(t, again)
}

func TestSnapshotDevices(t *testing.T) {
	p, w := testPool(t, 32)
	v := mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	s, err := p.OpenSnapshot(ctx, v.UUID, SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	if len(w.kernel.devices) != 4 || s.COWSize() != 4<<20 || s.Device() == v.Device {
		t.Errorf("%d devices, %s for %s, COW of %d", len(w.kernel.devices), s.Device(), v.Device, s.COWSize())
	}
	table, err := w.kernel.Table(dm.ByUUID(dmUUID(p.uuid, v.UUID, "")), false)
	if err != nil || len(table) != 1 || table[0].Target.Kind() != "snapshot-origin" {
		t.Errorf("table of the volume: %v, %v", table, err)
	}
	if st, err := s.Status(ctx); err != nil || st.Used != 16*512 || st.Total != 4<<20 || st.Invalid {
		t.Errorf("status %+v, %v", st, err)
	}
	if st, err := p.SnapshotStatus(ctx, v.UUID); err != nil || st.Total != 4<<20 {
		t.Errorf("status of the volume's snapshot %+v, %v", st, err)
	}
	if p.Info().FreeExtents != 24 {
		t.Errorf("%d free", p.Info().FreeExtents)
	}
	// The reader is still there.
	w.kernel.devices[dmUUID(p.uuid, v.UUID, suffixSnap)].info.OpenCount = 1
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	if _, err := p.SnapshotStatus(ctx, v.UUID); !errors.Is(err, ErrNotFound) {
		t.Errorf("status of a snapshot that is closed: %v", err)
	}
	left := w.kernel.devices[dmUUID(p.uuid, v.UUID, suffixSnap)]
	if left == nil || !left.info.DeferredRemove || left.active[0].Target.Kind() != "error" || len(w.kernel.devices) != 2 {
		t.Errorf("left behind: %+v", left)
	}
	if _, err := p.OpenSnapshot(ctx, "a", SnapshotOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("while the old one is open: %v", err)
	}
	mustCheck(t, p)
	delete(w.kernel.devices, dmUUID(p.uuid, v.UUID, suffixSnap))
	if s, err = p.OpenSnapshot(ctx, "a", SnapshotOptions{COWSize: 1}); err != nil || s.COWSize() != 1<<20 {
		t.Fatalf("%+v, %v", s, err)
	}
	// Left open: Close of the pool ends it.
}

// TestTwoPoolsOfOneName: the UUID counts, the name is for people.
func TestTwoPoolsOfOneName(t *testing.T) {
	p, w := testPool(t, 16)
	for _, suffix := range []string{"", suffixReal, suffixCOW, suffixSnap} {
		if _, err := w.kernel.Create("swapback-tank-a"+suffix, "SWAPBACK-other"+suffix); err != nil {
			t.Fatal(err)
		}
	}
	v := mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
	if name := w.kernel.devices[dmUUID(p.uuid, v.UUID, "")].info.Name; name != "swapback-tank-a~"+v.UUID[:8] {
		t.Errorf("name %s", name)
	}
	s, err := p.OpenSnapshot(ctx, "a", SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if len(w.kernel.devices) != 5 {
		t.Errorf("%d devices", len(w.kernel.devices))
	}
}

func TestSnapshotNeedsRoom(t *testing.T) {
	p, _ := testPool(t, 8)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 8 << 20})
	if _, err := p.OpenSnapshot(ctx, "a", SnapshotOptions{}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("got %v", err)
	}
}

func TestDeleteOfAnOpenVolume(t *testing.T) {
	p, w := testPool(t, 8)
	v := mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
	mustCreate(t, p, VolumeSpec{Name: "b", Size: 1 << 20})
	d := w.kernel.devices[dmUUID(p.uuid, v.UUID, "")]
	d.info.OpenCount = 1
	if err := p.DeleteVolume(ctx, "a"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "volume a") {
		t.Errorf("delete: %v", err)
	}
	if err := p.Deactivate(ctx); !errors.Is(err, ErrInUse) {
		t.Errorf("deactivate: %v", err)
	}
	mustCheck(t, p) // b is back
	if err := p.Destroy(ctx); !errors.Is(err, ErrInUse) {
		t.Errorf("destroy: %v", err)
	}
	mustCheck(t, p)
	d.info.OpenCount = 0
	if err := p.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := readLabel(w.disks[0]); !errors.Is(err, errNoLabel) || len(w.kernel.devices) != 0 {
		t.Errorf("after the destroy: label %v, %d devices", err, len(w.kernel.devices))
	}
	if err := p.SetVolume(ctx, "b", func(a *VolumeAttrs) { a.Attached = true }); !errors.Is(err, ErrClosed) {
		t.Errorf("use after the destroy: %v", err)
	}
}

func TestWipeOfNewVolumes(t *testing.T) {
	p, w := testPool(t, 32, 32)
	zeroed := func() (n int64) {
		for _, d := range w.disks {
			for _, z := range d.zeroed {
				n += z[1]
			}
			d.zeroed = nil
		}
		return n
	}
	for i, tt := range []struct {
		spec VolumeSpec
		want int64
	}{
		{VolumeSpec{Size: 8 << 20}, 2 << 20},
		{VolumeSpec{Size: 8 << 20, Zero: true}, 8 << 20},
		{VolumeSpec{Size: 8 << 20, Stripes: 2}, 2 << 20},
		{VolumeSpec{Size: 1<<20 + 4096}, 1<<20 + 4096},
	} {
		tt.spec.Name = fmt.Sprintf("v%d", i)
		mustCreate(t, p, tt.spec)
		if got := zeroed(); got != tt.want {
			t.Errorf("%+v: %d bytes zeroed, want %d", tt.spec, got, tt.want)
		}
	}
	if _, err := p.GrowVolume(ctx, "v0", 8<<20+4096); err != nil || zeroed() != 4096 {
		t.Errorf("grow by a block: %v", err)
	}
}

// TestConcurrentUse has many goroutines at one pool; run it with -race.
func TestConcurrentUse(t *testing.T) {
	p, _ := testPool(t, 256, 256)
	for i := range 4 {
		mustCreate(t, p, VolumeSpec{Name: fmt.Sprintf("v%d", i), Size: 2 << 20})
	}
	var all sync.WaitGroup
	for worker := range 6 {
		all.Go(func() {
			rng := rand.New(rand.NewSource(int64(worker)))
			v := func() string { return fmt.Sprintf("v%d", rng.Intn(4)) }
			for i := range 40 {
				var err error
				switch rng.Intn(6) {
				case 0:
					err = swapNow(p, SwapPair{A: v(), B: v()})
				case 1:
					name := fmt.Sprintf("w%d-%d", worker, i)
					if _, err = p.CreateVolume(ctx, VolumeSpec{Name: name, Size: 1 << 20, Stripes: rng.Intn(3)}); err == nil {
						err = p.DeleteVolume(ctx, name)
					}
				case 2:
					var s *Snapshot
					if s, err = p.OpenSnapshot(ctx, v(), SnapshotOptions{COWSize: 1 << 20}); err == nil {
						err = s.Close(ctx)
					}
				case 3:
					err = p.SetVolume(ctx, v(), func(a *VolumeAttrs) { a.DeviceNumber = rng.Intn(9) })
				case 4:
					_, _ = p.Volumes(), p.Info()
				case 5:
					var r Report
					if r, err = p.Check(ctx); err == nil && !r.OK() {
						t.Errorf("check: %v", r.Problems)
					}
				}
				if err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrSnapshot) {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// TestCreateBesideADeadDisk: a disk that has died since the last commit is the one
// with most room, and nobody but the volume that is being made notices.
func TestCreateBesideADeadDisk(t *testing.T) {
	p, w := testPool(t, 16, 32)
	w.fail = func(what string) error {
		if strings.HasSuffix(what, " disk1") {
			return unix.EIO
		}
		return nil
	}
	v := mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	if m := v.Position.Segments[0].Stripes[0].Member; m != 0 || !p.Info().Degraded() {
		t.Errorf("created on member %d: %+v", m, p.Info())
	}
	// Only the extents are bad: that is for somebody to look at.
	p, w = testPool(t, 16, 32)
	w.fail = func(what string) error {
		if what == "zero disk1" {
			return unix.EIO
		}
		return nil
	}
	if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "a", Size: 4 << 20}); !errors.Is(err, unix.EIO) || p.Info().Degraded() {
		t.Errorf("created on bad extents: %v", err)
	}
	w.fail = nil
}
