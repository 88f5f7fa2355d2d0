//go:build vm

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// TestRefusedPoolDelete has somebody hold the device below the last volume of a
// pool: it stays, and the volumes that had lost their devices show their own
// contents again, though the kernel numbers new devices as it likes.
func TestRefusedPoolDelete(t *testing.T) {
	d := rig.Start(t)
	d.Pool()
	data := map[string][]byte{}
	for i, name := range []string{"b", "a", "c"} { // made in another order than deleted
		data[name] = rig.RandomBytes(uint64(i), int(rig.MiB))
		rig.WriteDevice(t, d.Volume(name, 8*rig.MiB).Device, 0, data[name])
	}
	f, err := os.Open(d.Show("c").Backend)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := d.Client.DeletePool(t.Context(), "tank", true); err == nil {
		t.Fatal("the pool was deleted under somebody's feet")
	}
	for name, want := range data {
		v := d.Show(name)
		if v.State != api.StateServing {
			t.Errorf("volume %s is %s: %s", name, v.State, v.Error)
			continue
		}
		if !bytes.Equal(rig.ReadDevice(t, v.Device, 0, len(want)), want) {
			t.Errorf("volume %s shows something else", name)
		}
	}
}

// TestDeviceThatCannotBeAdopted has somebody in the way of the adoption of a device
// that is in use. Nobody serves it then, and still its volume is not given away.
func TestDeviceThatCannotBeAdopted(t *testing.T) {
	d := rig.Start(t)
	d.Pool()
	v := d.Volume("held", 8*rig.MiB)
	d.Volume("spare", 8*rig.MiB)
	free := d.Volume("free", 8*rig.MiB)
	data := rig.RandomBytes(1, int(rig.MiB))
	rig.WriteDevice(t, v.Device, 0, data)
	rig.WriteDevice(t, free.Device, 0, data)
	f := rig.OpenDirect(t, v.Device, os.O_RDWR)
	defer f.Close()
	d.Kill()
	blocker, other := openChar(t, v.Device), openChar(t, free.Device)
	defer blocker.Close()
	defer other.Close()
	d.Run()
	if s := d.Show("held"); s.State != api.StateFailed {
		t.Fatalf("volume held is %s", s.State)
	}
	holder := "PID"
	d.CLI(4, []string{"tank/held", "in use", holder, filepath.Base(v.Device)}, "volume", "detach", "held")
	d.CLI(4, []string{"tank/held", "in use", holder}, "volume", "delete", "held", "--yes")
	d.CLI(4, []string{"tank/held", "in use", holder}, "pool", "delete", "tank", "--force", "--yes")
	if err := d.Client.DeleteVolume(t.Context(), "spare", false); err != nil {
		t.Error(err)
	}
	// What nobody holds can be taken away, and made anew.
	other.Close()
	d.CLI(0, nil, "volume", "detach", "free")
	if _, err := os.Stat(free.Device); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", free.Device, err)
	}
	d.CLI(0, nil, "volume", "attach", "free")
	if !bytes.Equal(rig.ReadDevice(t, d.Show("free").Device, 0, len(data)), data) {
		t.Error("volume free does not show its content")
	}
	blocker.Close()
	d.CLI(0, nil, "pool", "check", "tank", "--repair")
	if s := d.Show("held"); s.State != api.StateServing || s.Device != v.Device {
		t.Errorf("volume held is %s at %s: %s", s.State, s.Device, s.Error)
	}
	buf := rig.Aligned(t, len(data))
	if _, err := f.ReadAt(buf, 0); err != nil || !bytes.Equal(buf, data) {
		t.Errorf("what the holder reads: %v", err)
	}
}

// openChar opens the char device that a dead daemon has let go of, which is in the
// way of its successor.
func openChar(t *testing.T, device string) (f *os.File) {
	t.Helper()
	rig.WaitUntil(t, "the dead daemon to let go of "+device, func() bool {
		var err error
		f, err = os.OpenFile(strings.Replace(device, "ublkb", "ublkc", 1), os.O_RDWR, 0)
		return err == nil
	})
	return f
}
