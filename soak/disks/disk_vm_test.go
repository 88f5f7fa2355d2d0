//go:build vm

package disks

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/soak/rig"
)

const (
	memberSize = 256 * rig.MiB
	// metadataSectors lie before the extents: the label and two slots of 1 MiB.
	metadataSectors = 3 << 20 / dm.SectorSize
)

// badDisk is a member whose sectors can be made bad.
type badDisk struct {
	t       *testing.T
	control *dm.Control
	ref     dm.Ref
	below   dm.Linear // where it lies
	sectors uint64
	Path    string
}

// newBadDisks cuts n disks out of the machine's, two of each.
func newBadDisks(t *testing.T, n int) (list []*badDisk) {
	t.Helper()
	for _, module := range []string{"dm_flakey", "dm_delay"} {
		if out, err := exec.Command("modprobe", module).CombinedOutput(); err != nil {
			t.Fatalf("modprobe %s: %v\n%s", module, err, out)
		}
	}
	control, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	disks := rig.Disks(t)
	for i := range n {
		var st unix.Stat_t
		if err := unix.Stat(disks[i%2], &st); err != nil {
			t.Fatal(err)
		}
		d := &badDisk{
			t: t, control: control, ref: dm.ByName(fmt.Sprintf("soakdisk%d", i)),
			below: dm.Linear{Device: dm.DeviceOf(st.Rdev), Start: uint64(int64(i/2) * memberSize / dm.SectorSize)}, sectors: uint64(memberSize / dm.SectorSize),
		}
		info, err := control.Create(d.ref.Name, "SOAK-"+d.ref.Name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			d.Heal()
			if err := control.Remove(d.ref, false); err != nil {
				t.Error(err)
			}
		})
		d.Path = info.Path()
		d.Heal()
		list = append(list, d)
	}
	return list
}

// start runs the daemon on disks, which are good again when it is taken down.
func start(t *testing.T, disks []*badDisk, args ...string) *rig.Daemon {
	t.Helper()
	// A disk that hangs is what this is about.
	d := rig.StartWith(t, rig.Options{Disks: paths(disks), Args: append([]string{"--disk-timeout", "10s"}, args...)})
	t.Cleanup(func() {
		for _, disk := range disks {
			disk.Heal()
		}
	})
	d.PoolWith(api.CreatePoolRequest{Name: "tank", ExtentSize: rig.MiB})
	return d
}

func paths(list []*badDisk) (out []string) {
	for _, d := range list {
		out = append(out, d.Path)
	}
	return out
}

// stretch is sectors of a disk.
type stretch struct{ Start, Length uint64 }

// Spoil has stretches, in their order, answered by what target makes for a
// place below, and everything else as it should be.
func (d *badDisk) Spoil(target func(below dm.Linear) dm.Target, bad ...stretch) {
	d.t.Helper()
	var table dm.Table
	at := uint64(0)
	add := func(length uint64, make func(dm.Linear) dm.Target) {
		if length > 0 {
			below := dm.Linear{Device: d.below.Device, Start: d.below.Start + at}
			table = append(table, dm.Entry{Start: at, Length: length, Target: make(below)})
			at += length
		}
	}
	good := func(below dm.Linear) dm.Target { return below }
	for _, b := range bad {
		add(b.Start-at, good)
		add(b.Length, target)
	}
	add(d.sectors-at, good)
	err := d.control.Load(d.ref, table, false)
	if err == nil {
		err = d.control.Suspend(context.Background(), d.ref, dm.SuspendOptions{})
	}
	if err == nil {
		err = d.control.Resume(context.Background(), d.ref)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// Extents is everything behind the metadata.
func (d *badDisk) Extents() stretch { return stretch{metadataSectors, d.sectors - metadataSectors} }

// All is the whole disk.
func (d *badDisk) All() stretch { return stretch{0, d.sectors} }

// Heal makes everything good, and lets go what hangs.
func (d *badDisk) Heal() {
	d.t.Helper()
	d.Spoil(nil)
}

// Hang has the disk answer nothing until it is healed.
func (d *badDisk) Hang() {
	d.t.Helper()
	if err := d.control.Suspend(context.Background(), d.ref, dm.SuspendOptions{}); err != nil {
		d.t.Fatal(err)
	}
}

func failing(dm.Linear) dm.Target { return dm.ErrorTarget{} }

// flakey is a disk with a feature of dm-flakey, all the time.
func flakey(features string) func(dm.Linear) dm.Target {
	return func(below dm.Linear) dm.Target {
		return dm.Other{Name: "flakey", Text: below.Params() + " 0 1 " + features}
	}
}

// slow delays every request. What is delayed is let go when the table changes.
func slow(by time.Duration) func(dm.Linear) dm.Target {
	return func(below dm.Linear) dm.Target {
		return dm.Other{Name: "delay", Text: fmt.Sprintf("%s %d", below.Params(), by.Milliseconds())}
	}
}

// volumeOn makes a volume on one member: the pool puts it where it likes, so
// those that come to lie elsewhere are deleted again.
func volumeOn(t *testing.T, d *rig.Daemon, member int, name string, size int64) api.Volume {
	t.Helper()
	var strays []string
	for i := 0; ; i++ {
		v := d.VolumeWith(api.CreateVolumeRequest{Name: fmt.Sprintf("%s%d", name, i), Size: size, Detached: true})
		seg := v.Position.Segments
		if len(seg) == 1 && seg[0].Stripes[0].Member == member {
			for _, s := range strays {
				if err := d.Client.DeleteVolume(t.Context(), s, false); err != nil {
					t.Fatal(err)
				}
			}
			v, err := d.Client.Attach(t.Context(), v.Name, api.AttachRequest{})
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		strays = append(strays, v.Name)
	}
}

// sectorOf is where a byte of a linear volume lies on its member.
func sectorOf(d *rig.Daemon, t *testing.T, v api.Volume, offset int64) uint64 {
	t.Helper()
	p, err := d.Client.Pool(t.Context(), "tank")
	if err != nil {
		t.Fatal(err)
	}
	s := v.Position.Segments[0].Stripes[0]
	return uint64(p.Members[s.Member].DataOffset+s.Start*p.ExtentSize+offset) / dm.SectorSize
}

// expectErrno wants one of the errnos.
func expectErrno(t *testing.T, what string, err error, want ...unix.Errno) {
	t.Helper()
	if !slices.ContainsFunc(want, func(e unix.Errno) bool { return errors.Is(err, e) }) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}
