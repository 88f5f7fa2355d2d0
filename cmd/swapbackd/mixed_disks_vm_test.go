//go:build vm

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// ramDisk is a disk without a volatile cache, with blocks of 512 bytes (the brd
// module).
func ramDisk(t *testing.T) string {
	t.Helper()
	rig.Tool(t, "modprobe", "brd", "rd_nr=1", fmt.Sprintf("rd_size=%d", 96*rig.MiB>>10))
	t.Cleanup(func() { rig.Tool(t, "rmmod", "brd") })
	if got, want := limitsText(t, "/dev/ram0"), "512 write through"; got != want {
		t.Fatalf("/dev/ram0: %s, want %s", got, want)
	}
	return "/dev/ram0"
}

// limitsText is the logical block size and the write cache of a device
// (Documentation/ABI/stable/sysfs-block).
func limitsText(t *testing.T, device string) string {
	t.Helper()
	var words []string
	for _, name := range []string{"logical_block_size", "write_cache"} {
		text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "queue", name))
		if err != nil {
			t.Fatal(err)
		}
		words = append(words, strings.TrimSpace(string(text)))
	}
	return strings.Join(words, " ")
}

// onePerDisk makes a pool of two disks with a volume on each.
func onePerDisk(t *testing.T, d *rig.Daemon) (volumes [2]api.Volume) {
	t.Helper()
	d.CLI(0, nil, "pool", "create", "tank", d.Disks[0], d.Disks[1])
	for _, name := range []string{"a", "b"} {
		v := d.Volume(name, 16*rig.MiB)
		volumes[member(t, v)] = v
	}
	if volumes[0].Name == "" || volumes[1].Name == "" {
		t.Fatalf("both volumes lie on one disk: %+v", volumes)
	}
	return volumes
}

// flushes is the number of flushes that a disk has completed, field 16 of its
// statistics (Documentation/block/stat.rst).
func flushes(t *testing.T, disk string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(disk), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(text))[15])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// flushed writes and syncs, which has to reach the cache of a disk.
func flushed(t *testing.T, device, disk string) {
	t.Helper()
	data, before := rig.RandomBytes(3, int(rig.MiB)), flushes(t, disk)
	rig.WriteDevice(t, device, 0, data)
	if flushes(t, disk) == before {
		t.Errorf("what was written to %s and synced was not flushed to %s", device, disk)
	}
	if !bytes.Equal(rig.ReadDevice(t, device, 0, len(data)), data) {
		t.Errorf("what was written to %s does not read back", device)
	}
}

// TestMixedDisks swaps a volume from a disk that needs no flush, with small
// blocks, to one that needs both: its device has told its users from the start.
func TestMixedDisks(t *testing.T) {
	disks := []string{ramDisk(t), rig.Loop(t, 96*rig.MiB)}
	if err := setLoopBlock(disks[1], 4096); err != nil {
		t.Fatal(err)
	}
	d := rig.StartWith(t, rig.Options{Disks: disks})
	volumes := onePerDisk(t, d)
	for i, v := range volumes {
		if got, want := limitsText(t, v.Device), "4096 write back"; got != want {
			t.Errorf("volume on disk %d: %s, want %s", i, got, want)
		}
	}
	flushed(t, volumes[1].Device, disks[1])
	d.Swap(volumes[0].Name, volumes[1].Name)
	flushed(t, volumes[0].Device, disks[1])
}

// TestDiskComesBackWithOtherLimits has a disk away while the devices are made,
// which has a cache and larger blocks, as the other has not. They ask for flushes
// from the start; a device that has promised smaller blocks is made anew, and not
// grown or swapped onto that disk.
func TestDiskComesBackWithOtherLimits(t *testing.T) {
	disks := []string{ramDisk(t), rig.Loop(t, 96*rig.MiB)}
	if err := setLoopBlock(disks[1], 4096); err != nil {
		t.Fatal(err)
	}
	path, pull, plug := link(t, disks[1], "disk1")
	d := rig.StartWith(t, rig.Options{Disks: []string{disks[0], path}, Args: []string{"--wait-for-members", "1s", "--on-exit=stop"}})
	volumes := onePerDisk(t, d)
	kept, moved := volumes[0], volumes[1]
	d.Signal(syscall.SIGTERM)
	rig.ExpectNoDevices(t)
	pull()
	d.Run()
	for _, v := range volumes {
		if got, want := limitsText(t, d.Show(v.Name).Device), "512 write back"; got != want {
			t.Fatalf("volume %s: %s, want %s", v.Name, got, want)
		}
	}
	plug()
	d.CLI(0, []string{"all of its 2 disks"}, "pool", "rejoin", "tank")
	flushed(t, d.Show(moved.Name).Device, disks[1])

	refusal := []string{"tank/" + kept.Name, path, "blocks of 4096 bytes", "detach"}
	d.CLI(2, append(refusal, "tank/"+moved.Name), "swap", kept.Name, moved.Name)
	if !rig.OldestKernel(t) { // its devices are made anew to grow
		d.CLI(2, refusal, "volume", "grow", kept.Name, "--size", "20M")
	}
	for _, v := range volumes {
		if got := d.Show(v.Name).Position; got.ID != v.Position.ID || got.Generation != v.Position.Generation {
			t.Errorf("volume %s has changed: %+v", v.Name, got)
		}
	}
	d.CLI(0, nil, "volume", "detach", kept.Name)
	d.CLI(0, nil, "volume", "attach", kept.Name)
	d.CLI(0, nil, "swap", kept.Name, moved.Name)
	flushed(t, d.Show(kept.Name).Device, disks[1])
}
