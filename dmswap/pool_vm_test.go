//go:build vm

package dmswap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/dmswap/dm"
)

func TestVMVolumes(t *testing.T) {
	p := newVMPool(t, 0)
	info := p.Info()
	if len(info.Members) != 2 || info.ExtentSize != 4<<20 || info.Extents != info.FreeExtents || info.Extents < 2*1000 {
		t.Errorf("pool %+v", info)
	}
	a := mustCreate(t, p.Pool, VolumeSpec{Name: "a-1", Size: 64<<20 + 4096})
	mustCheck(t, p.Pool)
	if got := deviceSize(t, a.Device); got != 64<<20+4096 {
		t.Errorf("%s has %d bytes", a.Device, got)
	}
	name, err := os.ReadFile("/sys/class/block/" + filepath.Base(a.Device) + "/dm/name")
	if err != nil || strings.TrimSpace(string(name)) != "swapback-tank-a--1" {
		t.Errorf("name %q, %v", name, err)
	}
	f := direct(t, a.Device)
	fill(t, f, 'a', a.Size)
	g, err := p.GrowVolume(ctx, "a-1", 96<<20)
	if err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p.Pool)
	if got := deviceSize(t, a.Device); got != 96<<20 || g.Device != a.Device {
		t.Errorf("%s has %d bytes after the grow", g.Device, got)
	}
	verify(t, f, 'a', a.Size)
	if err := p.DeleteVolume(ctx, "a-1"); !errors.Is(err, ErrInUse) {
		t.Errorf("delete of an open device: %v", err)
	}
	mustCheck(t, p.Pool)
	if err := p.Deactivate(ctx); !errors.Is(err, ErrInUse) {
		t.Errorf("deactivate with an open device: %v", err)
	}
	f.Close()

	p.reopen(t)
	mustCheck(t, p.Pool)
	found, err := Scan(ctx, ScanOptions{Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Name != "tank" || !slices.Equal(found[0].Disks, p.disks) || len(found[0].Problems) != 0 {
		t.Errorf("scan found %+v", found)
	}
	if err := p.Deactivate(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a.Device); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s after the deactivation: %v", a.Device, err)
	}
	p.reopen(t)
	verify(t, direct(t, p.volume(t, "a-1").Device), 'a', a.Size)
}

func deviceSize(t *testing.T, path string) int64 {
	t.Helper()
	d, err := openBlockDevice(path, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return d.size
}

// TestVMDataByExtentMap writes through the volumes and reads back from the
// members, with a way of finding the place that shares nothing with the code
// under test but the map that the API shows.
func TestVMDataByExtentMap(t *testing.T) {
	p := newVMPool(t, 1<<20)
	// Holes between volumes, so that segments are in pieces.
	for i := range 4 {
		mustCreate(t, p.Pool, VolumeSpec{Name: fmt.Sprintf("x%d", i), Size: 3 << 20})
	}
	for _, spec := range []VolumeSpec{
		{Name: "linear", Size: 16<<20 + 8192},
		{Name: "striped", Size: 16<<20 + 3*4096, Stripes: 2},
		{Name: "fine", Size: 5<<20 + 4096, Stripes: 2, StripeSize: 4096},
	} {
		v := mustCreate(t, p.Pool, spec)
		if _, err := p.GrowVolume(ctx, v.Name, v.Size+7<<20+4096); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		if err := p.DeleteVolume(ctx, fmt.Sprintf("x%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"linear", "striped", "fine"} {
		if _, err := p.GrowVolume(ctx, name, 30<<20+4096); err != nil {
			t.Fatal(err)
		}
		v := p.volume(t, name)
		fill(t, direct(t, v.Device), name[0], v.Size)
	}
	var members []*os.File
	for _, m := range p.Info().Members {
		members = append(members, direct(t, m.Path))
	}
	for _, name := range []string{"linear", "striped", "fine"} {
		v := p.volume(t, name)
		t.Logf("%s: %v", name, v.Position.Segments)
		for n := uint64(0); n < uint64(v.Size)/blockSize; n++ {
			member, at := locate(t, p.Info(), v, int64(n)*blockSize)
			b := alignedBuffer(blockSize)
			if _, err := members[member].ReadAt(b, at); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, block(name[0], n, 0)) {
				t.Fatalf("block %d of %s is not at %d of member %d", n, name, at, member)
			}
		}
	}
}

// locate finds an offset of a volume on the members.
func locate(t *testing.T, pool PoolInfo, v VolumeInfo, offset int64) (member int, at int64) {
	t.Helper()
	for _, s := range v.Position.Segments {
		n := int64(len(s.Stripes))
		if size := s.Extents * n * pool.ExtentSize; offset >= size {
			offset -= size
			continue
		}
		stripe, in := int64(0), offset
		if n > 1 {
			row := offset / (v.Position.StripeSize * n)
			stripe = offset / v.Position.StripeSize % n
			in = row*v.Position.StripeSize + offset%v.Position.StripeSize
		}
		st := s.Stripes[stripe]
		return st.Member, pool.Members[st.Member].DataOffset + st.Start*pool.ExtentSize + in
	}
	t.Fatalf("offset %d is outside the map of %s", offset, v.Name)
	return 0, 0
}

func TestVMNewVolumesAreBlankAtBothEnds(t *testing.T) {
	p := newVMPool(t, 1<<20)
	for _, stripes := range []int{1, 2} {
		v := mustCreate(t, p.Pool, VolumeSpec{Name: "v", Size: 8 << 20, Stripes: stripes})
		f := direct(t, v.Device)
		fill(t, f, 'o', v.Size)
		f.Close()
		removeVolume(t, p, "v")
		for _, zero := range []bool{false, true} {
			v := mustCreate(t, p.Pool, VolumeSpec{Name: "v", Size: 8 << 20, Stripes: stripes, Zero: zero})
			b, err := os.ReadFile(v.Device)
			if err != nil || int64(len(b)) != v.Size {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
			blank := func(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
			if !blank(b[:1<<20]) || !blank(b[7<<20:]) {
				t.Errorf("stripes %d, zero %v: an end is not blank", stripes, zero)
			}
			if blank(b[1<<20:7<<20]) != zero {
				t.Errorf("stripes %d, zero %v: the middle is blank: %v", stripes, zero, !zero)
			}
			removeVolume(t, p, "v")
		}
	}
}

func removeVolume(t *testing.T, p *vmPool, name string) {
	t.Helper()
	if err := p.DeleteVolume(ctx, name); err != nil {
		t.Fatal(err)
	}
}

// TestVMSecondOpen: a pool that is open is locked.
func TestVMSecondOpen(t *testing.T) {
	p := newVMPool(t, 0)
	if _, err := Open(ctx, OpenOptions{Disks: p.disks}); !errors.Is(err, ErrBusy) {
		t.Errorf("second open: %v", err)
	}
	if _, err := Create(ctx, CreateOptions{Name: "other", Disks: p.disks, Force: true}); !errors.Is(err, ErrBusy) && !errors.Is(err, ErrInUse) {
		t.Errorf("create over an open pool: %v", err)
	}
	mustCreate(t, p.Pool, VolumeSpec{Name: "v", Size: 1 << 20})
	var held *DiskInUseError
	if _, err := Create(ctx, CreateOptions{Name: "other", Disks: p.disks, Force: true}); !errors.As(err, &held) || !held.Held || !strings.Contains(err.Error(), "swapback-tank-v") {
		t.Errorf("create over a pool with volumes: %v", err)
	}
	mustCheck(t, p.Pool)
}

// TestVMCheckSeesDamage breaks things, wants the check to say so, and has them
// mended.
func TestVMCheckSeesDamage(t *testing.T) {
	p := newVMPool(t, 0)
	mustCreate(t, p.Pool, VolumeSpec{Name: "a", Size: 4 << 20})
	b := mustCreate(t, p.Pool, VolumeSpec{Name: "b", Size: 4 << 20})
	f := direct(t, b.Device)
	fill(t, f, 'b', b.Size)
	f.Close()
	c, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ref := p.ref(b.UUID, "")
	good, err := c.Table(ref, false)
	if err != nil {
		t.Fatal(err)
	}
	stray := dm.ByUUID(dmUUID(p.uuid, NewUUID(), ""))
	for _, tt := range []struct {
		name   string
		break_ func() error
		found  string
		mended string
	}{
		{"suspended", func() error { return c.Suspend(ctx, ref, dm.SuspendOptions{}) },
			"is suspended", "volume b: its device is suspended, and was brought to the map"},
		{"second table", func() error { return c.Load(ref, good, false) },
			"second table", "volume b: its device has a table loaded that was never committed, and was brought to the map"},
		{"wrong table", func() error {
			return errors.Join(c.Load(ref, dm.Table{{Start: 0, Length: good.Size(), Target: dm.ErrorTarget{}}}, false), c.Resume(ctx, ref))
		}, "but should have", "volume b: its device has the table 0 8192 error, and was brought to the map"},
		{"stray device", func() error { _, err := c.Create("swapback-tank-stray", stray.UUID); return err },
			"belongs to no volume", "device swapback-tank-stray, which belonged to no volume, was removed"},
		{"missing device", func() error { return c.Remove(ref, false) },
			"does not exist", "volume b: its device DEVICE was made anew; detach and attach the volume to serve it"},
	} {
		if err := tt.break_(); err != nil {
			t.Fatal(err)
		}
		found, err := p.Check(ctx)
		if err != nil || len(found.Problems) != 1 || !strings.Contains(found.Problems[0], tt.found) {
			t.Errorf("%s: %q, %v", tt.name, found.Problems, err)
		}
		r, err := p.Repair(ctx, RepairOptions{KeepDir: t.TempDir()})
		now := p.volume(t, "b")
		mended := strings.Replace(tt.mended, "DEVICE", now.Device, 1)
		if err != nil || !slices.Equal(r.Found, found.Problems) || !slices.Equal(r.Mended, []string{mended}) || !r.OK() {
			t.Errorf("%s: repair: %+v, %v", tt.name, r, err)
		}
		text, err := os.ReadFile(r.Kept)
		if err != nil {
			t.Fatalf("%s: the old metadata: %v", tt.name, err)
		}
		if d, err := DecodeDump(text); err != nil || d.Generation() != p.Info().Generation || d.PoolUUID() != p.uuid {
			t.Errorf("%s: kept %+v, %v", tt.name, d, err)
		}
		mustCheck(t, p.Pool)
		f := direct(t, now.Device)
		verify(t, f, 'b', b.Size)
		f.Close()
	}
}
