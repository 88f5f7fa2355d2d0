package dmswap

import (
	"errors"
	"strings"
	"testing"
)

// refuseCommits makes every commit fail before its point of no return, as a disk
// that hangs does.
func refuseCommits(w *world) {
	w.fail = func(what string) error {
		if strings.HasPrefix(what, "sync disk") {
			return errf(ErrBusy, "", "injected")
		}
		return nil
	}
}

// TestARefusedDeleteTouchesNothingElse: a swap that is prepared, a snapshot that
// is open and a volume in the making stay as they are.
func TestARefusedDeleteTouchesNothingElse(t *testing.T) {
	for name, remove := range map[string]func(p *Pool) error{
		"delete":     func(p *Pool) error { return p.DeleteVolume(ctx, "c") },
		"deactivate": func(p *Pool) error { return p.Deactivate(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			p, _, w := swapWorld(t)
			d := mustCreate(t, p, VolumeSpec{Name: "d", Size: 4 << 20})
			making := volumeRecord{UUID: NewUUID(), Name: "new", Size: 1 << 20}
			pos := positionRecord{ID: NewUUID()}
			done, err := p.reserve(&making, &pos, 1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.createDevice(ctx, making, "", p.place().volumeTable(&making, &pos)); err != nil {
				t.Fatal(err)
			}
			var swap *Swap
			var snap *Snapshot
			if name == "delete" {
				swap = prepare(t, p, "a", "b")
				if snap, err = p.OpenSnapshot(ctx, "d", SnapshotOptions{}); err != nil {
					t.Fatal(err)
				}
				refuseCommits(w)
			} else {
				w.kernel.devices[dmUUID(p.uuid, d.UUID, "")].info.OpenCount = 1
			}
			before := fingerprint(p)
			if err := remove(p); !errors.Is(err, ErrBusy) && !errors.Is(err, ErrInUse) {
				t.Fatalf("got %v", err)
			}
			w.fail = nil
			if _, err := p.kernel.Info(p.ref(making.UUID, "")); err != nil {
				t.Errorf("the volume in the making: %v", err)
			}
			done()
			if err := p.removeDevice(ctx, p.ref(making.UUID, "")); err != nil {
				t.Fatal(err)
			}
			if got := fingerprint(p); got != before {
				t.Errorf("got\n%sbut it was\n%s", got, before)
			}
			mustCheck(t, p)
			if name == "deactivate" {
				w.kernel.devices[dmUUID(p.uuid, d.UUID, "")].info.OpenCount = 0
				return
			}
			if err := errors.Join(swap.Execute(ctx), snap.Close(ctx)); err != nil {
				t.Fatal(err)
			}
			mustCheck(t, p)
			again := w.open(t)
			mustCheck(t, again)
			if fingerprint(p) != fingerprint(again) {
				t.Errorf("the process saw\n%sbut after opening again it is\n%s", fingerprint(p), fingerprint(again))
			}
		})
	}
}

// TestASwapWhoseTableIsGone is called off before its commit: a resume would make
// the old table live.
func TestASwapWhoseTableIsGone(t *testing.T) {
	p, effects, w := swapWorld(t)
	before, generation := fingerprint(p), p.Info().Generation
	s := prepare(t, p, "a", "b")
	b, _ := p.Volume("b")
	if err := p.kernel.Clear(p.ref(b.UUID, "")); err != nil {
		t.Fatal(err)
	}
	*effects = nil
	err := s.Execute(ctx)
	if err == nil || errors.Is(err, ErrCommitted) || !strings.Contains(err.Error(), "volume b") || !strings.Contains(err.Error(), "nothing has changed") {
		t.Errorf("got %v", err)
	}
	for _, e := range *effects {
		if strings.HasPrefix(e, "fua") {
			t.Errorf("it wrote: %s", e)
		}
	}
	again := w.open(t)
	for _, pool := range []*Pool{p, again} {
		mustCheck(t, pool)
		if fingerprint(pool) != before || pool.Info().Generation != generation {
			t.Errorf("got\n%sbut it was\n%s", fingerprint(pool), before)
		}
	}
}

// TestASnapshotThatIsClosedWhileADiskHangs: it is closed, and only its extents stay
// reserved, until the next snapshot, repair or delete.
// Whoever waits for the end of a snapshot can use the volume then.
func TestAVolumeIsFreeWhenItsSnapshotIsGone(t *testing.T) {
	p, _, w := swapWorld(t)
	w.fail = nil
	s, err := p.OpenSnapshot(ctx, "a", SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	w.fail = func(effect string) error {
		if strings.Contains(effect, "write") {
			looked++
			if v, err := p.Volume("a"); err != nil || v.Busy != "" && !v.Snapshot {
				t.Errorf("at %s: snapshot %v, busy with %q, %v", effect, v.Snapshot, v.Busy, err)
			}
		}
		return nil
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	w.fail = nil
	if looked == 0 {
		t.Error("nobody looked while it was closed")
	}
	if v, err := p.Volume("a"); err != nil || v.Snapshot || v.Busy != "" {
		t.Errorf("after it: %+v, %v", v, err)
	}
}

func TestASnapshotThatIsClosedWhileADiskHangs(t *testing.T) {
	for name, next := range map[string]func(t *testing.T, p *Pool) error{
		"snapshot": func(_ *testing.T, p *Pool) error {
			s, err := p.OpenSnapshot(ctx, "a", SnapshotOptions{})
			if err != nil {
				return err
			}
			return s.Close(ctx)
		},
		"snapshot of another volume": func(_ *testing.T, p *Pool) error {
			s, err := p.OpenSnapshot(ctx, "b", SnapshotOptions{})
			if err != nil {
				return err
			}
			return s.Close(ctx)
		},
		"repair": func(t *testing.T, p *Pool) error {
			r, err := p.Repair(ctx, RepairOptions{KeepDir: t.TempDir()})
			if len(r.Mended) != 1 {
				t.Errorf("mended %v", r.Mended)
			}
			return err
		},
		"delete": func(_ *testing.T, p *Pool) error { return p.DeleteVolume(ctx, "a") },
	} {
		t.Run(name, func(t *testing.T) {
			p, _, w := swapWorld(t)
			w.fail = nil
			free := p.Info().FreeExtents
			s, err := p.OpenSnapshot(ctx, "a", SnapshotOptions{})
			if err != nil {
				t.Fatal(err)
			}
			refuseCommits(w)
			if err := s.Close(ctx); err != nil {
				t.Errorf("the close: %v", err)
			}
			w.fail = nil
			if v, _ := p.Volume("a"); v.Snapshot || v.Busy != "" {
				t.Errorf("after it: %+v", v)
			}
			if r, err := p.Check(ctx); err != nil || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "reserved for a snapshot") {
				t.Errorf("check: %+v, %v", r, err)
			}
			for range 2 {
				if err := swapNow(p, SwapPair{A: "a", B: "b"}); err != nil {
					t.Error(err)
				}
			}
			if err := next(t, p); err != nil {
				t.Fatal(err)
			}
			mustCheck(t, p)
			if name == "delete" {
				free += 4
			}
			if got := p.Info().FreeExtents; got != free {
				t.Errorf("%d extents are free, it were %d", got, free)
			}
			mustCheck(t, w.open(t))
		})
	}
}
