//go:build vm

package main

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// TestChangesBelongToThePosition: what was written is told of the content, so a
// swap takes it along, and growing and detaching keep it.
func TestChangesBelongToThePosition(t *testing.T) {
	d := startDaemon(t)
	d.Pool()
	a, b := d.Volume("a", 16*MiB), d.Volume("b", 16*MiB)
	d.VolumeWith(api.CreateVolumeRequest{Name: "c", Size: 16 * MiB, Detached: true})
	expect := func(when string, want map[string]int64) {
		t.Helper()
		for name, n := range want {
			v := d.Show(name)
			if v.Changed == nil || v.Changed.Bytes != n || v.Changed.BlockSize != 64<<10 {
				t.Errorf("%s: %s has %+v, want %d bytes", when, name, v.Changed, n)
			}
		}
	}
	data := rig.RandomBytes(40, int(1*MiB))
	rig.WriteDevice(t, a.Device, 3*MiB, data)
	rig.WriteDevice(t, b.Device, 0, data[:4096])
	expect("after writing", map[string]int64{"a": 1 * MiB, "b": 64 << 10})
	rig.ReadDevice(t, a.Device, 0, int(8*MiB))
	expect("after reading", map[string]int64{"a": 1 * MiB, "b": 64 << 10})

	d.Swap("a", "b")
	expect("after a swap", map[string]int64{"a": 64 << 10, "b": 1 * MiB})
	rig.WriteDevice(t, a.Device, 64<<10, data[:4096])
	expect("after writing to what came", map[string]int64{"a": 128 << 10, "b": 1 * MiB})

	if _, err := d.Client.GrowVolume(t.Context(), "b", 32*MiB); err != nil {
		t.Fatal(err)
	}
	expect("after growing", map[string]int64{"b": 1 * MiB})
	rig.WriteDevice(t, b.Device, 31*MiB, data)
	expect("after writing behind the old end", map[string]int64{"b": 2 * MiB})
	if !bytes.Equal(rig.ReadDevice(t, b.Device, 31*MiB, len(data)), data) {
		t.Error("what was written behind the old end is not there")
	}
	if _, err := d.Client.Detach(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Client.GrowVolume(t.Context(), "b", 48*MiB); err != nil {
		t.Fatal(err)
	}
	v, err := d.Client.Attach(t.Context(), "b", api.AttachRequest{})
	if err != nil {
		t.Fatal(err)
	}
	rig.WriteDevice(t, v.Device, 47*MiB, data)
	expect("after growing while detached", map[string]int64{"b": 3 * MiB})

	d.Swap("a", "c")
	expect("after a swap with a detached volume", map[string]int64{"a": 0, "c": 128 << 10})
	rig.WriteDevice(t, a.Device, 0, data[:4096])
	expect("after writing to what was detached", map[string]int64{"a": 64 << 10, "c": 128 << 10})
}

// TestVolumesTakeEachDataPath: what --data-path asks for is what volumes get,
// and an adopted device keeps its own.
func TestVolumesTakeEachDataPath(t *testing.T) {
	for _, path := range []string{"copy", "zero-copy", "batch"} {
		t.Run(path, func(t *testing.T) {
			if path != "copy" && !hasPath(t, path) {
				t.Skipf("this kernel has no %s (needs 6.16, batch 7.0)", path)
			}
			d := startDaemon(t, "--data-path", path)
			d.Pool()
			v := d.Volume("a", 32*MiB)
			if v.DataPath != path || v.MaxIO == 0 || len(v.UblkFlags) == 0 {
				t.Errorf("volume on %s: %+v", path, v)
			}
			rig.RunFio(t, rig.VerifyJob(v.Device, "16M"))
			if now := d.Show("a"); now.IO.Errors != 0 || now.IO.WriteBytes < uint64(16*MiB) {
				t.Errorf("counters: %+v", now.IO)
			}
		})
	}
}

// hasPath says whether the running kernel is new enough for a path.
func hasPath(t *testing.T, path string) bool {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major >= 7 || path == "zero-copy" && major == 6 && minor >= 16
}
