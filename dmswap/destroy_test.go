package dmswap

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDestroyBesideADeadDisk: the pool is gone from the disks that can be written
// to, whether the dead one was noticed before or not.
func TestDestroyBesideADeadDisk(t *testing.T) {
	for dead, disk := range []string{"disk0", "disk1"} {
		for _, noticed := range []bool{true, false} {
			p, w := testPool(t, 8, 8)
			mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
			mustCreate(t, p, VolumeSpec{Name: "b", Size: 1 << 20})
			w.fail = func(what string) error {
				if strings.HasSuffix(what, disk) {
					return unix.EIO
				}
				return nil
			}
			if noticed {
				if err := p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.Attached = true }); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Destroy(ctx); err != nil {
				t.Errorf("%s dead, noticed %v: %v", disk, noticed, err)
			}
			w.fail = nil
			alive := w.disks[1-dead]
			if _, err := readLabel(alive); !errors.Is(err, errNoLabel) || !slices.Contains(alive.zeroed, [2]int64{slotsOffset, 2 * w.labels[0].SlotSize}) {
				t.Errorf("%s dead, noticed %v: the other one keeps its label, %v, or metadata, zeroed %v", disk, noticed, err, alive.zeroed)
			}
			if len(w.kernel.devices) != 0 {
				t.Errorf("devices are left")
			}
			// The dead one knows nothing of it. By itself it is a pool that lacks a
			// member, and nothing is in its place that passes for that.
			again, err := w.tryOpenOn(func(i int) bool { return i != dead })
			if err != nil {
				t.Fatal(err)
			}
			if info := again.Info(); !info.Degraded() || info.Members[1-dead].State != MemberMissing {
				t.Errorf("%s back: %+v", disk, info)
			}
			mustCheckDegraded(t, again)
		}
	}
}

// TestDestroyTakesALeftOutMember: one that can be written to again is not left with
// a label that would bring half of the pool back.
func TestDestroyTakesALeftOutMember(t *testing.T) {
	p, w := testPool(t, 8, 8)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
	w.fail = func(what string) error {
		if strings.HasSuffix(what, "disk1") {
			return unix.EIO
		}
		return nil
	}
	if err := p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.Attached = true }); err != nil {
		t.Fatal(err)
	}
	w.fail = nil
	if err := p.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	for _, d := range w.disks {
		if !bytes.Equal(d.bytes[labelOffset:labelOffset+labelSize], make([]byte, labelSize)) {
			t.Errorf("%s keeps its label", d.name)
		}
	}
}
