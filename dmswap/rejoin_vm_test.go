//go:build vm

package dmswap

import (
	"errors"
	"slices"
	"testing"

	"github.com/swapback/swapback/dmswap/dm"
)

// TestVMMemberThatFailed: a disk that fails while the pool is open is left out,
// and taken back on the same device when it works again.
func TestVMMemberThatFailed(t *testing.T) {
	noDevices(t)
	under := loop(t, "under", 64<<20)
	kernel, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kernel.Close() })
	d, err := openBlockDevice(under, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	sectors, on := uint64(d.size)/dm.SectorSize, d.number
	d.Close()
	ref := dm.ByUUID("TEST-swapback-member")
	info, err := kernel.Create("test-swapback-member", ref.UUID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := kernel.Remove(ref, false); err != nil {
			t.Error(err)
		}
	})
	become := func(target dm.Target) {
		t.Helper()
		err := errors.Join(kernel.Load(ref, dm.Table{{Start: 0, Length: sectors, Target: target}}, false), kernel.Resume(ctx, ref))
		if err != nil {
			t.Fatal(err)
		}
	}
	become(dm.Linear{Device: on})
	disks := []string{loop(t, "good", 64<<20), info.Path()}
	p, err := Create(ctx, CreateOptions{Name: "tank", Disks: disks, ExtentSize: 1 << 20, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Destroy(ctx); err != nil {
			t.Error(err)
		}
	}()
	mustCreate(t, p, VolumeSpec{Name: "v", Size: 4 << 20, Stripes: 2})
	number := func(n int) {
		t.Helper()
		if err := p.SetVolume(ctx, "v", func(a *VolumeAttrs) { a.DeviceNumber = n }); err != nil {
			t.Fatal(err)
		}
	}
	for n, again := range []func() ([]int, error){
		func() ([]int, error) { return p.Rejoin(ctx, disks) },
		func() ([]int, error) {
			r, err := p.Repair(ctx, RepairOptions{KeepDir: t.TempDir()})
			if !r.OK() {
				t.Errorf("left after the repair: %q", r.Problems)
			}
			return []int{1}, err
		},
	} {
		become(dm.ErrorTarget{})
		number(n)
		mustCheckDegraded(t, p)
		if state := p.Info().Members[1].State; state != MemberFailed {
			t.Errorf("the member is %s", state)
		}
		if back, err := p.Rejoin(ctx, disks); err == nil || len(back) > 0 {
			t.Errorf("a disk that still fails came back: %v, %v", back, err)
		}
		become(dm.Linear{Device: on})
		if back, err := again(); err != nil || !slices.Equal(back, []int{1}) {
			t.Fatalf("came back: %v, %v", back, err)
		}
		mustCheck(t, p)
		number(n + 10)
	}
}
