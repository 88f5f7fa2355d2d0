//go:build vm

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// link makes a name for a disk that can be taken away, as a disk is pulled.
func link(t *testing.T, disk, name string) (path string, pull, plug func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	plug = func() {
		t.Helper()
		if err := os.Symlink(disk, path); err != nil {
			t.Fatal(err)
		}
	}
	pull = func() {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	plug()
	return path, pull, plug
}

// member is the disk that a linear volume lies on.
func member(t *testing.T, v api.Volume) int {
	t.Helper()
	if len(v.Position.Segments) != 1 || len(v.Position.Segments[0].Stripes) != 1 {
		t.Fatalf("volume %s is in pieces: %+v", v.Name, v.Position.Segments)
	}
	return v.Position.Segments[0].Stripes[0].Member
}

// TestDegradedPool pulls a disk, lives without it, plugs it in again, damages
// labels and metadata and mends them, and restores them from a dump, all through
// the command line. Two volumes are open and written all the time.
func TestDegradedPool(t *testing.T) {
	disks := []string{rig.Loop(t, 96*rig.MiB), rig.Loop(t, 96*rig.MiB)}
	path, pull, plug := link(t, disks[1], "disk1")
	kept := t.TempDir()
	d := rig.StartWith(t, rig.Options{
		Disks: []string{disks[0], path},
		Args:  []string{"--wait-for-members", "1s", "--metadata-dir", filepath.Join(kept, "metadata")},
	})
	d.CLI(0, nil, "pool", "create", "tank", disks[0], path)
	names := make([]string, 2) // by member
	for _, name := range []string{"a", "b"} {
		names[member(t, d.Volume(name, 16*rig.MiB))] = name
	}
	d.VolumeWith(api.CreateVolumeRequest{Name: "wide", Size: 16 * rig.MiB, Stripes: 2})
	good, bad := d.Show(names[0]), d.Show(names[1])
	data := rig.RandomBytes(1, int(4*rig.MiB))
	for _, v := range []api.Volume{good, bad} {
		rig.WriteDevice(t, v.Device, 0, data)
	}
	users := []*os.File{rig.OpenDirect(t, good.Device, os.O_RDWR), rig.OpenDirect(t, bad.Device, os.O_RDWR)}
	defer func() {
		for _, f := range users {
			f.Close()
		}
	}()
	same := func(v api.Volume) {
		t.Helper()
		if got := rig.ReadDevice(t, v.Device, 0, len(data)); !bytes.Equal(got, data) {
			t.Errorf("volume %s: byte %d has changed", v.Name, rig.FirstDifference(got, data))
		}
	}

	d.Kill()
	pull()
	d.Run()
	withoutDisk(t, d, users, good.Name, bad.Name)
	same(good)
	rig.RunFio(t, rig.VerifyJob(good.Device, "4M", "--offset=8M", "--numjobs=1"))

	plug()
	d.CLI(0, []string{"all of its 2 disks"}, "pool", "rejoin", "tank")
	d.Check()
	same(good)
	same(bad)
	for _, name := range []string{names[1], "wide"} {
		if v := d.Show(name); v.State != api.StateServing || v.Degraded {
			t.Errorf("volume %s after the return: %s, %s", name, v.State, v.Error)
		}
	}

	repairs(t, d, disks, kept)
	rescue(t, d, disks, path, kept)
	same(good)
	same(bad)
}

// withoutDisk looks at a pool of which a disk is missing, and changes it.
func withoutDisk(t *testing.T, d *rig.Daemon, users []*os.File, good, bad string) {
	t.Helper()
	d.CLI(0, []string{"degraded", "missing"}, "pool", "show", "tank")
	d.CLI(1, []string{"member 1 is missing"}, "pool", "check", "tank")
	if v := d.Show(bad); v.State != api.StateDegraded || !v.Degraded || !strings.Contains(v.Error, "member 1") {
		t.Errorf("volume %s: %s, %s", bad, v.State, v.Error)
	}
	if v := d.Show(good); v.State != api.StateServing || v.Degraded {
		t.Errorf("volume %s: %s, %s", good, v.State, v.Error)
	}
	b := rig.Aligned(t, 4096)
	for _, try := range []func([]byte, int64) (int, error){users[1].ReadAt, users[1].WriteAt} {
		if _, err := try(b, 0); !errors.Is(err, unix.EIO) {
			t.Errorf("volume %s answers %v", bad, err)
		}
	}
	d.CLI(5, []string{"degraded", "member 1"}, "volume", "grow", bad, "--size", "20M")
	for _, name := range []string{"new", "newer"} {
		if m := member(t, d.Volume(name, 4*rig.MiB)); m != 0 {
			t.Errorf("volume %s was made on member %d", name, m)
		}
	}
	d.Swap("new", "newer")
	d.CLI(0, nil, "volume", "delete", "newer", "--yes")
	d.Kill()
	d.Run() // nothing has come back
	d.CLI(1, []string{"member 1 is missing"}, "pool", "check", "tank")
	d.CLI(0, []string{"degraded", "disk 1"}, "pool", "rejoin", "tank")
}

// repairs damages a disk behind the daemon's back.
func repairs(t *testing.T, d *rig.Daemon, disks []string, kept string) {
	t.Helper()
	damage := func(disk string, at int64) {
		t.Helper()
		rig.WriteDevice(t, disk, at, bytes.Repeat([]byte("damaged!"), 512))
	}
	for what, at := range map[string]int64{"label": 4096, "slot A": 8192, "slot B": 8192 + 1<<20} {
		damage(disks[1], at)
		if what == "label" {
			d.CLI(1, []string{"label"}, "pool", "check", "tank")
		}
		save := filepath.Join(kept, strings.ReplaceAll(what, " ", "")+".meta")
		d.CLI(0, []string{"consistent"}, "pool", "check", "tank", "--repair", "--save", save)
		if text, err := os.ReadFile(save); err != nil || !bytes.HasPrefix(text, []byte("swapback-metadata ")) {
			t.Errorf("saved %q: %v", text, err)
		}
		d.Check()
	}
	if list, err := filepath.Glob(filepath.Join(kept, "metadata", "tank-generation*.meta")); err != nil || len(list) == 0 {
		t.Errorf("the daemon kept %v, %v", list, err)
	}
	d.CLI(2, []string{"--repair"}, "pool", "check", "tank", "--save", "x")
}

// rescue takes the metadata away and brings it back from a dump.
func rescue(t *testing.T, d *rig.Daemon, disks []string, path, kept string) {
	t.Helper()
	file := func(name string) string { return filepath.Join(kept, name) }
	on := []string{"--disk", disks[0], "--disk", path}
	d.CLI(0, []string{"generation"}, "pool", "metadata", "dump", "tank", "-o", file("open.meta"))
	d.CLI(2, []string{"exists already"}, "pool", "metadata", "dump", "tank", "-o", file("open.meta"))
	d.CLI(4, []string{"name the pool"}, "pool", "metadata", "dump", "--disk", disks[0])
	d.CLI(4, []string{"stop it first"}, append([]string{"pool", "metadata", "restore", file("open.meta"), "--yes"}, on...)...)
	d.CLI(2, nil, "pool", "metadata", "restore", filepath.Join(d.RunDir(), "swapbackd.lock"), "--disk", disks[0])
	d.CLI(0, nil, "volume", "delete", "new", "--yes")
	d.Kill()

	d.CLI(0, nil, append([]string{"pool", "metadata", "dump", "-o", file("closed.meta")}, on...)...)
	d.CLI(5, []string{"--force"}, append([]string{"pool", "metadata", "restore", file("open.meta"), "--yes"}, on...)...)
	d.CLI(2, []string{"--yes", "member 0"}, append([]string{"pool", "metadata", "restore", file("closed.meta")}, on...)...)
	// All metadata of both, and one label, are lost.
	for _, disk := range disks {
		for at := int64(8192); at <= 8192+1<<20; at += 1 << 20 {
			rig.WriteDevice(t, disk, at, make([]byte, 4096))
		}
	}
	rig.WriteDevice(t, disks[1], 4096, make([]byte, 4096))
	d.CLI(1, []string{"no valid metadata slot"}, "pool", "metadata", "dump", "--disk", disks[0])
	d.CLI(2, []string{"--force"}, append([]string{"pool", "metadata", "restore", file("closed.meta"), "--yes", "--keep-dir", file("raw")}, on...)...)
	d.CLI(0, []string{"restored", file("raw")}, append([]string{"pool", "metadata", "restore", file("closed.meta"), "--yes", "--force", "--keep-dir", file("raw")}, on...)...)
	d.Run()
	d.Check()
}
