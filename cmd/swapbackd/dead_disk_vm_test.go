//go:build vm

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// TestRecoverFromDeadDisk is what recover is for: the disk of a volume is gone,
// and its name shows the backup again, on the disk that is left, all through the
// command line. What was on the dead disk stays under the spare's name, and is
// whole again when the disk is back.
func TestRecoverFromDeadDisk(t *testing.T) {
	p := newDeadDisk(t)
	d := p.d

	p.dir = rig.Mount(t, p.db.Device, "ext4")
	rig.WriteFile(t, filepath.Join(p.dir, "late"), p.late) // after the backup
	d.Kill()
	p.pull()
	d.Run()
	if v := d.Show("db"); v.State != api.StateDegraded {
		t.Fatalf("volume db: %s, %s", v.State, v.Error)
	}
	d.CLI(4, []string{p.dir}, "recover", "db")
	rig.Unmount(t, p.dir)

	d.CLI(0, []string{"db is back", "tank/db-spare now, read-only and in quarantine", "page cache and disks agree"}, "recover", "db")
	p.recovered()
	p.recoverDirty()
	p.stillRefused()
	d.Kill()
	d.Run()
	p.recovered()
	p.afterReboot()

	p.plug()
	d.CLI(0, []string{"all of its 2 disks"}, "pool", "rejoin", "tank")
	d.Check()
	p.comesBack()
}

// deadDisk is a pool of two disks, of which one is taken away.
type deadDisk struct {
	t          *testing.T
	d          *rig.Daemon
	pull, plug func()
	// db lies on the disk that dies, wide on both.
	db, wide           api.Volume
	data, late, blocks []byte
	dir                string // where db is mounted
}

func newDeadDisk(t *testing.T) *deadDisk {
	t.Helper()
	p := &deadDisk{t: t, data: rig.RandomBytes(7, 3000000), late: rig.RandomBytes(8, 100000), blocks: rig.RandomBytes(9, int(4*rig.MiB))}
	disks := []string{rig.Loop(t, 192*rig.MiB), rig.Loop(t, 192*rig.MiB)}
	for _, disk := range disks {
		// As many NVMe disks have it; what has no disk below it has 512.
		if err := setLoopBlock(disk, 4096); err != nil {
			t.Fatal(err)
		}
	}
	path, pull, plug := link(t, disks[1], "disk1")
	p.pull, p.plug = pull, plug
	d := rig.StartWith(t, rig.Options{Disks: []string{disks[0], path}, Args: []string{"--wait-for-members", "1s"}})
	p.d = d
	d.CLI(0, nil, "pool", "create", "tank", disks[0], path)
	if member(t, d.Volume("db", 32*rig.MiB)) == 0 {
		// The next one lies on the disk with more room.
		if err := d.Client.DeleteVolume(t.Context(), "db", false); err != nil {
			t.Fatal(err)
		}
		d.Volume("other", 32*rig.MiB)
		d.Volume("db", 32*rig.MiB)
	}
	p.db = d.Show("db")
	if member(t, p.db) != 1 {
		t.Fatalf("volume db lies on the wrong disk: %+v", p.db.Position)
	}
	p.wide = d.VolumeWith(api.CreateVolumeRequest{Name: "wide", Size: 8 * rig.MiB, Stripes: 2})
	rig.Tool(t, "mkfs.ext4", "-q", p.db.Device)
	dir := rig.Mount(t, p.db.Device, "ext4")
	rig.WriteFile(t, filepath.Join(dir, "data"), p.data)
	rig.Unmount(t, dir)
	rig.WriteDevice(t, p.wide.Device, 0, p.blocks)
	d.CLI(0, nil, "repo", "init")
	d.CLI(0, nil, "backup", "create", "db", "wide")
	return p
}

// setLoopBlock sets the logical block size of a loop device (linux/loop.h).
func setLoopBlock(path string, size int) error {
	const loopSetBlockSize = 0x4c09
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), loopSetBlockSize, size)
}

// afterReboot makes the devices anew while the disk is away. Those without a disk
// below them must suit one: a swap gives it to them.
func (p *deadDisk) afterReboot() {
	p.t.Helper()
	d := p.d
	d.Args = append(d.Args, "--on-exit=stop")
	d.Kill()
	d.Run()
	d.Signal(syscall.SIGTERM)
	rig.ExpectNoDevices(p.t)
	d.Run()
	p.recovered()
	limit := func(volume, name string) string {
		p.t.Helper()
		text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.Show(volume).Device), "queue", name))
		if err != nil {
			p.t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	if got := limit("db", "logical_block_size") + " " + limit("db", "write_cache"); got != "4096 write back" {
		p.t.Fatalf("the disks are not what the test needs: %s", got)
	}
	for _, name := range []string{"logical_block_size", "write_cache", "fua", "dma_alignment", "virt_boundary_mask"} {
		if want, got := limit("db", name), limit("db-spare", name); got != want {
			p.t.Errorf("%s of a device without a disk: %s, with one: %s", name, got, want)
		}
	}
}

// recovered looks at db, which is back, and at what is under its spare's name,
// while the disk is away.
func (p *deadDisk) recovered() {
	p.t.Helper()
	v, failed := p.d.Show("db"), p.d.Show("db-spare")
	if v.State != api.StateServing || v.Degraded || v.Device != p.db.Device || member(p.t, v) != 0 {
		p.t.Errorf("volume db: %+v", v)
	}
	if failed.State != api.StateDegraded || failed.Position.ID != p.db.Position.ID || failed.Position.Quarantine == nil || failed.Position.Quarantine.Volume != "tank/db" {
		p.t.Errorf("volume db-spare: %+v", failed)
	}
	p.files(v.Device, false)
	report, err := p.d.Client.CheckPool(p.t.Context(), "tank")
	if err != nil || len(report.Problems) != 1 || !strings.Contains(report.Problems[0], "member 1 is missing") {
		p.t.Errorf("pool check: %q, %v", report.Problems, err)
	}
}

// files holds the filesystem on a device against what was written to it, without
// changing it.
func (p *deadDisk) files(device string, late bool) {
	p.t.Helper()
	dir := p.t.TempDir()
	if err := unix.Mount(device, dir, "ext4", unix.MS_RDONLY, ""); err != nil {
		p.t.Fatalf("mount %s: %v", device, err)
	}
	defer rig.Unmount(p.t, dir)
	if got, err := os.ReadFile(filepath.Join(dir, "data")); err != nil || !bytes.Equal(got, p.data) {
		p.t.Errorf("the file on %s: %d bytes, %v", device, len(got), err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "late"))
	if late && (err != nil || !bytes.Equal(got, p.late)) || !late && !os.IsNotExist(err) {
		p.t.Errorf("the later file on %s: %d bytes, %v", device, len(got), err)
	}
}

// recoverDirty recovers a volume that somebody has open, who has written what
// can't reach the dead disk any more: it must not reach the other one instead.
func (p *deadDisk) recoverDirty() {
	p.t.Helper()
	f, err := os.OpenFile(p.wide.Device, os.O_RDWR, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("lost"), 1<<16), 1<<20); err != nil {
		p.t.Fatal(err)
	}
	p.d.CLI(4, []string{"wide"}, "recover", "wide")
	p.d.CLI(0, []string{"wide is back", "tank/wide-spare now", "page cache and disks agree", "could not be written back and is lost"},
		"recover", "wide", "--allow-holders")
	cached := make([]byte, len(p.blocks))
	if _, err := f.ReadAt(cached, 0); err != nil || !bytes.Equal(cached, p.blocks) {
		p.t.Errorf("read through the page cache, byte %d is not the backup's: %v", rig.FirstDifference(cached, p.blocks), err)
	}
	// Whoever wrote is told once; there is nothing left to write.
	if err := f.Sync(); !errors.Is(err, unix.EIO) {
		p.t.Errorf("the writer's sync after the swap: %v", err)
	}
	if err := f.Sync(); err != nil {
		p.t.Errorf("one more sync after the swap: %v", err)
	}
	if got := rig.ReadDevice(p.t, p.wide.Device, 0, len(p.blocks)); !bytes.Equal(got, p.blocks) {
		p.t.Errorf("byte %d on the disk is not the backup's", rig.FirstDifference(got, p.blocks))
	}
	if v := p.d.Show("wide"); v.Degraded || v.State != api.StateServing {
		p.t.Errorf("volume wide: %+v", v)
	}
}

// stillRefused is what a degraded volume is not good for.
func (p *deadDisk) stillRefused() {
	p.t.Helper()
	d := p.d
	d.CLI(5, []string{"in quarantine"}, "recover", "db", "--onto", "db-spare")
	d.CLI(5, []string{"quarantine"}, "swap", "db", "db-spare")
	d.CLI(0, nil, "volume", "release", "wide-spare")
	for _, args := range [][]string{
		{"recover", "wide", "--onto", "wide-spare"},
		{"backup", "restore", "latest", "--volume", "wide", "--onto", "wide-spare", "--yes"},
		{"volume", "grow", "wide-spare", "--size", "20M"},
		{"backup", "create", "wide-spare"},
	} {
		d.CLI(5, []string{"degraded", "member 1"}, args...)
	}
}

// comesBack looks at the volumes that failed when the disk is there again.
func (p *deadDisk) comesBack() {
	p.t.Helper()
	d := p.d
	if v := d.Show("db-spare"); v.State != api.StateServing || v.Degraded || v.Position.Quarantine == nil || v.Position.ID != p.db.Position.ID {
		p.t.Errorf("volume db-spare: %+v", v)
	}
	p.files(d.Show("db").Device, false)
	d.CLI(0, nil, "volume", "release", "db-spare")
	p.files(d.Show("db-spare").Device, true)
	if got := rig.ReadDevice(p.t, d.Show("wide-spare").Device, 0, len(p.blocks)); !bytes.Equal(got, p.blocks) {
		p.t.Errorf("volume wide-spare: byte %d has changed", rig.FirstDifference(got, p.blocks))
	}
	for _, name := range []string{"db-spare", "wide-spare"} {
		d.CLI(0, nil, "volume", "delete", name, "--yes")
	}
	d.Check()
	p.files(d.Show("db").Device, false)
}
