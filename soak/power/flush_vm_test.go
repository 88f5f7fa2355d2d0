//go:build vm

package power

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/soak/power/logwrites"
	"github.com/swapback/swapback/soak/rig"
)

// TestFlushAfterSwap writes to a volume whose position lies on one disk, swaps it
// with a position on another, and flushes the volume. The flush goes to the disk
// that the volume lies on now; the write is in the cache of the one that it lay on.
// A volume is one device to whoever flushes it, so the write has to be durable,
// behind the other volume: the commit of the swap flushes all members.
//
// Each member has a log of its own here: in one common log a flush of either
// member would make the writes to both durable.
func TestFlushAfterSwap(t *testing.T) {
	const size = 32 * rig.MiB
	ctx := t.Context()
	disks := rig.Disks(t)
	logged := make([]*loggedDisk, members)
	var paths []string
	for i := range logged {
		logged[i] = newLoggedDisk(t, fmt.Sprintf("soakflush%d", i), half(t, disks[0], i), half(t, disks[1], i), 1, size)
		paths = append(paths, logged[i].Members[0])
	}
	p, err := dmswap.Create(ctx, dmswap.CreateOptions{Name: "tank", Disks: paths, ExtentSize: rig.MiB, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	a, b := onTwoMembers(t, p)

	swap, err := p.PrepareSwap(ctx, []dmswap.SwapPair{{A: a.Name, B: b.Name}})
	if err != nil {
		t.Fatal(err)
	}
	f := rig.OpenDirect(t, a.Device, os.O_WRONLY)
	block := rig.Aligned(t, blockSize)
	stamped(1, 0, block)
	if _, err := f.WriteAt(block, 0); err != nil {
		t.Fatal(err)
	}
	if err := swap.Execute(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, l := range logged {
		l.Mark("flushed")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Destroy(ctx); err != nil {
		t.Fatal(err)
	}

	s := newScratch(t, members, size)
	for i, l := range logged {
		l.Close()
		log := l.Log()
		mark := slices.IndexFunc(log.Entries, func(e logwrites.Entry) bool { return e.Text == "flushed" })
		r := logwrites.NewReplay(log, size, func(p logwrites.Patch) {
			s.Settle(logwrites.Patch{Offset: p.Offset + int64(i)*size, Data: p.Data})
		})
		if err := r.Advance(mark); err != nil || mark < 0 {
			t.Fatalf("mark at %d: %v", mark, err)
		}
	}
	p, err = dmswap.Open(ctx, dmswap.OpenOptions{Disks: s.Members})
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Volume(b.Name)
	if err != nil || v.Position.ID != a.Position.ID {
		t.Errorf("the swap is not there: %+v, %v", v, err)
	}
	if got := rig.ReadDevice(t, v.Device, 0, blockSize); !bytes.Equal(got, block) {
		t.Errorf("a write that was flushed after the swap is lost: the block begins with % x", got[:16])
	}
	if report, err := p.Check(ctx); err != nil || !report.OK() {
		t.Errorf("pool check: %v %q", err, report.Problems)
	}
	if err := p.Destroy(ctx); err != nil {
		t.Error(err)
	}
}

// half makes a device of one half of a disk.
func half(t *testing.T, disk string, n int) string {
	t.Helper()
	control, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	l := &loggedDisk{t: t, control: control}
	t.Cleanup(func() {
		l.Close()
		control.Close()
	})
	const size = 256 * rig.MiB
	d := l.device(fmt.Sprintf("soakhalf%d-%s", n, disk[len("/dev/"):]), size, dm.Linear{Device: deviceOf(t, disk), Start: uint64(int64(n) * size / dm.SectorSize)})
	return d.Path()
}

// onTwoMembers makes volumes until two lie on different members.
func onTwoMembers(t *testing.T, p *dmswap.Pool) (a, b dmswap.VolumeInfo) {
	t.Helper()
	on := map[int]dmswap.VolumeInfo{}
	for i := 0; len(on) < members; i++ {
		v, err := p.CreateVolume(t.Context(), dmswap.VolumeSpec{Name: fmt.Sprintf("v%d", i), Size: 2 * rig.MiB, Zero: true})
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Position.Segments) == 1 {
			on[v.Position.Segments[0].Stripes[0].Member] = v
		}
	}
	return on[0], on[1]
}
