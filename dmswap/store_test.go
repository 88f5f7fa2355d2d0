package dmswap

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// TestOneMemberMissesTheHeader: the commit counts, and before it is answered the
// others have recorded that the member is left out.
func TestOneMemberMissesTheHeader(t *testing.T) {
	p, w := testPool(t, 8, 8)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
	w.fail = func(what string) error {
		if what == "fua end disk1" {
			return errors.New("injected")
		}
		return nil
	}
	if err := p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.Attached = true }); err != nil {
		t.Fatal(err)
	}
	w.fail = nil
	if r, err := p.Check(ctx); err != nil || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "disk1") || !strings.Contains(r.Problems[0], "injected") {
		t.Errorf("check: %+v, %v", r, err)
	}
	if p.meta.missing(1) == nil || len(p.meta.Epochs) != 1 {
		t.Errorf("recorded: %+v %+v", p.meta.Missing, p.meta.Epochs)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	// The write did arrive; had it not, opening again would bring the member up.
	copy(w.disks[1].bytes[slotsOffset:], make([]byte, 2*p.store.members[1].label.SlotSize))
	again := w.open(t)
	mustCheck(t, again)
	if v, err := again.Volume("a"); err != nil || !v.Attached {
		t.Errorf("got %+v, %v", v, err)
	}
	if err := again.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.Attached = false }); err != nil {
		t.Fatal(err)
	}
	if len(again.meta.Missing) != 0 || len(again.meta.Epochs) != 2 {
		t.Errorf("after the return: %+v %+v", again.meta.Missing, again.meta.Epochs)
	}
	mustCheck(t, again)
}

func TestAllHeadersFail(t *testing.T) {
	for _, broken := range []bool{false, true} {
		p, w := testPool(t, 8, 8)
		mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
		headers := map[string]int{}
		w.fail = func(what string) error {
			if strings.HasPrefix(what, "fua end") {
				if headers[what]++; headers[what] == 1 || broken {
					return errors.New("injected")
				}
			}
			return nil
		}
		err := p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.Attached = true })
		w.fail = nil
		if err == nil || errors.Is(err, ErrDamaged) != broken {
			t.Fatalf("got %v", err)
		}
		if v, _ := p.Volume("a"); v.Attached {
			t.Error("the change is seen")
		}
		if err := p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.ReadOnly = true }); (err != nil) != broken {
			t.Errorf("the next change: %v", err)
		}
		again := w.open(t)
		mustCheck(t, again)
	}
}

func TestPowerCutOfAMemberBehind(t *testing.T) {
	w := newWorld(t, 8, 8)
	p := w.open(t)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
	// Member 1 loses both slots.
	clear(w.disks[1].bytes[slotsOffset:])
	again := w.open(t)
	mustCheck(t, again)
	clear(w.disks[0].bytes[slotsOffset:])
	clear(w.disks[1].bytes[slotsOffset:])
	if _, err := w.tryOpen(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "disk0 slot A") {
		t.Errorf("no slot at all: %v", err)
	}
}

func TestMembersThatDisagree(t *testing.T) {
	w := newWorld(t, 8, 8)
	mustCreate(t, w.open(t), VolumeSpec{Name: "a", Size: 1 << 20})
	// An old image of one disk was used by itself meanwhile: same generation,
	// other content.
	other := w.clone()
	if err := w.open(t).SetVolume(ctx, "a", func(a *VolumeAttrs) { a.Attached = true }); err != nil {
		t.Fatal(err)
	}
	if err := other.open(t).SetVolume(ctx, "a", func(a *VolumeAttrs) { a.ReadOnly = true }); err != nil {
		t.Fatal(err)
	}
	copy(w.disks[1].bytes, other.disks[1].bytes)
	_, err := w.tryOpen()
	if !errors.Is(err, ErrSplit) || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "disk disk1 holds another generation 3 than the other disks") {
		t.Errorf("got %v", err)
	}
	const remedy = "decide which half is right. If it is the others: leave it out (swapbackd --disk with the other disks only), " +
		"or make it follow them: swapback pool metadata dump --disk OTHER -o FILE; " +
		"swapback pool metadata restore FILE --disk disk1 --force. If it is this one, the other way round"
	if got := Remedy(err); got != remedy {
		t.Errorf("the remedy is %q, not %q", got, remedy)
	}
}

// TestAnOldCopyOfAMember: its metadata could be brought up to date, but not its
// extents.
func TestAnOldCopyOfAMember(t *testing.T) {
	for _, tt := range []struct {
		commits int
		opens   bool
	}{{0, true}, {1, true}, {2, false}, {5, false}} {
		w := newWorld(t, 8, 8)
		p := w.open(t)
		mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
		old := bytes.Clone(w.disks[1].bytes)
		for i := range tt.commits {
			if err := p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.DeviceNumber = i }); err != nil {
				t.Fatal(err)
			}
		}
		copy(w.disks[1].bytes, old)
		again, err := w.tryOpen()
		if (err == nil) != tt.opens {
			t.Errorf("%d commits later: %v", tt.commits, err)
		}
		if err == nil {
			mustCheck(t, again)
		} else if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "disk1") || !bytes.Equal(w.disks[1].bytes, old) {
			t.Errorf("%d commits later: %v", tt.commits, err)
		}
	}
}

// TestADeadMemberIsLeftOut: from the moment in which a member can't be written
// to the others go on, volumes on it are told, and it comes back with the next
// open.
func TestADeadMemberIsLeftOut(t *testing.T) {
	p, w := testPool(t, 8, 8)
	on := map[int]string{}
	for _, name := range []string{"a", "b"} {
		v := mustCreate(t, p, VolumeSpec{Name: name, Size: 4 << 20})
		on[v.Position.Segments[0].Stripes[0].Member] = name
	}
	w.fail = func(what string) error {
		if strings.HasSuffix(what, "disk1") {
			return errors.New("injected")
		}
		return nil
	}
	for i := range 3 {
		if err := p.SetVolume(ctx, on[0], func(a *VolumeAttrs) { a.DeviceNumber = i }); err != nil {
			t.Fatal(err)
		}
	}
	if v, _ := p.Volume(on[1]); !strings.Contains(v.Degraded, "member 1 (disk1) is failed") {
		t.Errorf("the volume on it: %q", v.Degraded)
	}
	if v, _ := p.Volume(on[0]); v.Degraded != "" {
		t.Errorf("the volume beside it: %q", v.Degraded)
	}
	v := mustCreate(t, p, VolumeSpec{Name: "n", Size: 1 << 20})
	if m := v.Position.Segments[0].Stripes[0].Member; m != 0 {
		t.Errorf("created on member %d", m)
	}
	w.fail = nil
	again := w.open(t)
	mustCheck(t, again)
	if v, err := again.Volume(on[0]); err != nil || v.DeviceNumber != 2 {
		t.Errorf("got %+v, %v", v, err)
	}
}
