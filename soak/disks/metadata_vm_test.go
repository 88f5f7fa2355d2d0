//go:build vm

package disks

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

var metadata = stretch{0, metadataSectors}

// TestMetadataThatReadsBackWrong: one byte of a slot's header comes back as
// another. The pool check names disk and slot; nobody else is affected.
func TestMetadataThatReadsBackWrong(t *testing.T) {
	disks := newBadDisks(t, 2)
	d := start(t, disks)
	v := d.Volume("v", 4*rig.MiB)
	d.Volume("w", 4*rig.MiB) // both slots are used by now
	disks[1].Spoil(flakey("5 corrupt_bio_byte 100 r 165 0"), metadata)
	r, err := d.Client.CheckPool(t.Context(), "tank")
	if err != nil || r.OK || !strings.Contains(strings.Join(r.Problems, "\n"), disks[1].Path) {
		t.Errorf("pool check: %v %+v, want a problem of %s", err, r, disks[1].Path)
	}
	if strings.Contains(strings.Join(r.Problems, "\n"), disks[0].Path) {
		t.Errorf("the good disk is blamed: %q", r.Problems)
	}
	rig.WriteDevice(t, v.Device, 0, rig.RandomBytes(1, 4096))
	disks[1].Heal()
	d.Check()
}

// TestSwapWithoutMetadata: no member takes metadata. A swap is refused and names
// the disks, and the volumes go on as they were.
func TestSwapWithoutMetadata(t *testing.T) {
	disks := newBadDisks(t, 2)
	d := start(t, disks)
	a, b := d.Volume("a", 4*rig.MiB), d.Volume("b", 4*rig.MiB)
	dataA, dataB := rig.RandomBytes(1, 4096), rig.RandomBytes(2, 4096)
	rig.WriteDevice(t, a.Device, 0, dataA)
	rig.WriteDevice(t, b.Device, 0, dataB)
	for _, disk := range disks {
		disk.Spoil(failing, metadata)
	}
	_, err := d.Client.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "b"}}})
	if err == nil || !strings.Contains(err.Error(), disks[0].Path) || !strings.Contains(err.Error(), disks[1].Path) || !strings.Contains(err.Error(), "nothing has changed") {
		t.Errorf("a swap without metadata: %v", err)
	}
	if _, err := d.Client.CreateVolume(t.Context(), api.CreateVolumeRequest{Name: "n", Size: rig.MiB}); err == nil || !strings.Contains(err.Error(), disks[0].Path) {
		t.Errorf("a volume without metadata: %v", err)
	}
	for _, v := range []struct {
		api.Volume
		data []byte
	}{{a, dataA}, {b, dataB}} {
		if got := rig.ReadDevice(t, v.Device, 0, 4096); string(got) != string(v.data) {
			t.Errorf("volume %s shows something else", v.Name)
		}
		if now := d.Show(v.Name); now.Position.ID != v.Position.ID || now.State != api.StateServing {
			t.Errorf("volume %s: %+v", v.Name, now)
		}
	}
	for _, disk := range disks {
		disk.Heal()
	}
	d.Swap("a", "b")
	d.Check()
	if got := rig.ReadDevice(t, a.Device, 0, 4096); string(got) != string(dataB) {
		t.Error("the swap that came after shows something else")
	}
}

// TestHungDisk: a disk that does not answer stalls its own volumes. The others
// go on under fio verify; state can be looked at; changes of the pool are refused
// within the pool's patience, with the name of the disk. When the disk answers
// everything goes on, without an error.
func TestHungDisk(t *testing.T) {
	disks := newBadDisks(t, 3)
	d := start(t, disks)
	hung := volumeOn(t, d, 2, "hung", 32*rig.MiB)
	a, b := volumeOn(t, d, 0, "a", 64*rig.MiB), volumeOn(t, d, 1, "b", 64*rig.MiB)
	f := rig.OpenDirect(t, hung.Device, os.O_RDWR)
	defer f.Close()
	buf := rig.Aligned(t, 4096)
	copy(buf, rig.RandomBytes(9, 4096))

	disks[2].Hang()
	done := make(chan error, 1)
	go func() {
		_, err := f.WriteAt(buf, 0)
		done <- err
	}()
	rig.WaitUntil(t, "the write to reach the disk that hangs", func() bool {
		return d.Metrics()[`swapback_volume_in_flight_requests{pool="tank",volume="`+hung.Name+`"}`] == 1
	})
	// A change waits for the disk; meanwhile one can look.
	created := make(chan error, 1)
	go func() {
		_, err := d.Client.CreateVolume(t.Context(), api.CreateVolumeRequest{Name: "n", Size: rig.MiB})
		created <- err
	}()
	load := d.StartFio(a.Name, rig.VerifyJob(a.Device, "1m", "--offset_increment=16m"))
	for waiting := true; waiting; {
		d.Show(b.Name)
		if list, err := d.Client.Volumes(t.Context(), "tank"); err != nil || len(list) < 3 {
			t.Errorf("listing: %v, %v", list, err)
		}
		select {
		case err := <-created:
			expectBusy(t, "create", err, disks[2])
			waiting = false
		case <-time.After(50 * time.Millisecond):
		}
	}
	_, err := d.Client.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: a.Name, B: b.Name}}, AllowHolders: true})
	expectBusy(t, "swap of volumes on other disks", err, disks[2])
	rig.WriteDevice(t, b.Device, 0, buf)
	load.Wait()
	select {
	case err := <-done:
		t.Errorf("the write to the disk that hangs has ended: %v", err)
	default:
	}
	p, err := d.Client.Pool(t.Context(), "tank")
	if err != nil || p.Members[2].State != "ok" {
		t.Errorf("the disk that hangs: %+v, %v", p.Members[2], err)
	}

	disks[2].Heal()
	if err := <-done; err != nil {
		t.Errorf("the write that waited: %v", err)
	}
	rig.WaitUntil(t, "changes to be possible again", func() bool {
		_, err := d.Client.CreateVolume(t.Context(), api.CreateVolumeRequest{Name: "n", Size: rig.MiB})
		return err == nil
	})
	d.Swap(a.Name, b.Name)
	d.Check()
}

func expectBusy(t *testing.T, what string, err error, disk *badDisk) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeBusy || !strings.Contains(e.Message, disk.Path) || e.Remedy == "" {
		t.Errorf("%s while %s hangs: %#v", what, disk.Path, err)
	}
}

// TestSlowDisk: a disk that takes its time delays its own volumes alone, and
// nothing fails. The order shows it: what is asked of another disk later is done
// before.
func TestSlowDisk(t *testing.T) {
	disks := newBadDisks(t, 2)
	d := start(t, disks)
	slowed, other := volumeOn(t, d, 1, "slowed", 4*rig.MiB), volumeOn(t, d, 0, "other", 4*rig.MiB)
	f := rig.OpenDirect(t, slowed.Device, os.O_RDWR)
	defer f.Close()
	data, buf := rig.RandomBytes(5, 64<<10), rig.Aligned(t, blockSize)
	copy(buf, data)
	inFlight := func() float64 {
		return d.Metrics()[`swapback_volume_in_flight_requests{pool="tank",volume="`+slowed.Name+`"}`]
	}

	// Longer than the test is to take; healing lets go what is delayed. The metadata
	// is spared: it lies on every disk.
	disks[1].Spoil(slow(5*time.Minute), disks[1].Extents())
	done := make(chan error, 1)
	go func() {
		_, err := f.WriteAt(buf, 0)
		done <- err
	}()
	rig.WaitUntil(t, "the write to reach the slow disk", func() bool { return inFlight() == 1 })
	rig.WriteDevice(t, other.Device, 0, data)
	if got := rig.ReadDevice(t, other.Device, 0, len(data)); !bytes.Equal(got, data) {
		t.Error("the volume on the other disk shows something else")
	}
	select {
	case err := <-done:
		t.Fatalf("the write to the slow disk was done before those to the other: %v", err)
	default:
	}
	if n := inFlight(); n != 1 {
		t.Errorf("%v requests are in flight to the slow disk, want 1", n)
	}
	disks[1].Heal()
	if err := <-done; err != nil {
		t.Errorf("the write that was slow: %v", err)
	}
	f.Close()
	if got := rig.ReadDevice(t, slowed.Device, 0, blockSize); !bytes.Equal(got, buf) {
		t.Error("the write that was slow is not there")
	}

	// A change of the pool takes as long as its slowest disk.
	disks[1].Spoil(slow(100*time.Millisecond), disks[1].All())
	d.Swap(slowed.Name, other.Name)
	if got := rig.ReadDevice(t, slowed.Device, 0, len(data)); !bytes.Equal(got, data) {
		t.Error("the volume shows something else after the swap")
	}
	if got := rig.ReadDevice(t, other.Device, 0, blockSize); !bytes.Equal(got, buf) {
		t.Error("the other volume shows something else after the swap")
	}
	d.Check()
}

// A daemon that is killed while it waits for its own device itself never ends, and
// no other can take over: it must not, wherever in a swap it is.

// TestKillInWriteBack kills the daemon while a swap waits for pages of a holder
// that can't be written yet, or for nothing but the flush of a device that nobody
// holds.
func TestKillInWriteBack(t *testing.T) {
	for _, held := range []bool{true, false} {
		t.Run(map[bool]string{true: "held", false: "free"}[held], func(t *testing.T) {
			disks := newBadDisks(t, 2)
			d := start(t, disks)
			a, b := volumeOn(t, d, 0, "a", 16*rig.MiB), volumeOn(t, d, 1, "b", 16*rig.MiB)
			data := rig.RandomBytes(3, int(rig.MiB))
			rig.WriteDevice(t, a.Device, 0, data)
			sync := func() error { return nil }
			if held {
				f, err := os.OpenFile(a.Device, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				disks[0].Hang()
				data = rig.RandomBytes(4, int(rig.MiB))
				if _, err := f.WriteAt(data, 0); err != nil { // into the page cache
					t.Fatal(err)
				}
				sync = f.Sync
			} else {
				disks[0].Hang()
			}
			swapped := swapAside(d, api.SwapRequest{Pairs: []api.SwapPair{{A: a.Name, B: b.Name}}, AllowHolders: held})
			rig.WaitUntil(t, "a request to reach the disk that hangs", func() bool {
				return d.Metrics()[`swapback_volume_in_flight_requests{pool="tank",volume="`+a.Name+`"}`] > 0
			})
			killInSwap(t, d, swapped, disks[0])
			if err := sync(); err != nil {
				t.Error(err)
			}
			expectUnswapped(t, d, a, data)
		})
	}
}

// TestKillWithPagesOfOneWhoHasGone kills the daemon in a swap during which a holder
// has written and gone. Who closes the device now writes his pages.
func TestKillWithPagesOfOneWhoHasGone(t *testing.T) {
	disks := newBadDisks(t, 2)
	d := start(t, disks)
	a, b := volumeOn(t, d, 0, "a", 16*rig.MiB), volumeOn(t, d, 1, "b", 16*rig.MiB)
	if _, err := d.Client.Detach(t.Context(), b.Name); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(a.Device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	disks[1].Hang() // has metadata, and none of the data
	swapped := swapAside(d, api.SwapRequest{Pairs: []api.SwapPair{{A: a.Name, B: b.Name}}, AllowHolders: true})
	rig.WaitUntil(t, "the swap to claim the device", func() bool {
		fd, err := unix.Open(a.Device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err == unix.EBUSY
	})
	data := rig.RandomBytes(5, int(rig.MiB))
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	killInSwap(t, d, swapped, disks[1])
	expectUnswapped(t, d, a, data)
}

func swapAside(d *rig.Daemon, req api.SwapRequest) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := d.Client.Swap(context.Background(), req)
		done <- err
	}()
	return done
}

// killInSwap kills the daemon, heals a disk, sees the daemon end, and runs another.
func killInSwap(t *testing.T, d *rig.Daemon, swapped <-chan error, hung *badDisk) {
	t.Helper()
	if err := syscall.Kill(d.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	hung.Heal()
	d.WaitEnd()
	if err := <-swapped; api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("the swap whose daemon died: %v", err)
	}
	d.Run()
}

func expectUnswapped(t *testing.T, d *rig.Daemon, v api.Volume, data []byte) {
	t.Helper()
	if got := d.Show(v.Name); got.Position.ID != v.Position.ID || got.State != api.StateServing {
		t.Errorf("volume %s is %s and shows another position", v.Name, got.State)
	}
	if !bytes.Equal(rig.ReadDevice(t, v.Device, 0, len(data)), data) {
		t.Error("what was written is not there")
	}
}
