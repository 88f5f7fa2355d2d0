//go:build vm

package limits

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// busyVolume is a daemon with a volume under fio verify. The verification goes
// on until the test ends, and then must have met no error.
func busyVolume(t *testing.T, args ...string) *rig.Daemon {
	t.Helper()
	d := rig.Start(t, args...)
	d.Pool()
	v := d.Volume("running", 256*rig.MiB)
	load := d.StartFio("running", rig.VerifyJob(v.Device, "8m", "--verify_backlog=64", "--loops=3"))
	t.Cleanup(load.Wait)
	return d
}

// TestOutOfExtents asks for more than there is, in every way.
func TestOutOfExtents(t *testing.T) {
	d := busyVolume(t)
	pool, err := d.Client.Pool(t.Context(), "tank")
	if err != nil {
		t.Fatal(err)
	}
	free := pool.Free
	refuse := func(what string, err error) {
		t.Helper()
		expectCode(t, what, err, api.CodeNoSpace)
	}
	_, err = d.Client.CreateVolume(t.Context(), api.CreateVolumeRequest{Name: "big", Size: free + pool.ExtentSize})
	refuse("create", err)
	_, err = d.Client.CreateVolume(t.Context(), api.CreateVolumeRequest{Name: "big", Size: free + pool.ExtentSize, Stripes: 2})
	refuse("create striped", err)
	small := d.Volume("small", 8*rig.MiB)
	_, err = d.Client.GrowVolume(t.Context(), "small", free+8*rig.MiB)
	refuse("grow", err)
	if now := d.Show("small"); now.Size != small.Size || now.Position.Generation != small.Position.Generation {
		t.Errorf("a grow that was refused changed the volume: %+v", now)
	}
	d.CLI(1, []string{"extents are needed"}, "volume", "create", "big", "--size", "1T")

	// Every extent taken: a snapshot finds no room for old data.
	pool, err = d.Client.Pool(t.Context(), "tank")
	if err != nil {
		t.Fatal(err)
	}
	d.VolumeWith(api.CreateVolumeRequest{Name: "rest", Size: pool.Free, Detached: true})
	_, closeSnapshot, err := d.Client.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"running"}})
	if err == nil {
		_ = closeSnapshot(t.Context())
	}
	refuse("snapshot", err)
	d.Check()
	if err := d.Client.DeleteVolume(t.Context(), "rest", false); err != nil {
		t.Error(err)
	}
}

// TestOutOfMemoryForAQueue takes the daemon's address space away. A volume that
// can't have its queues is refused and leaves nothing behind.
func TestOutOfMemoryForAQueue(t *testing.T) {
	// Copying needs buffers: 4 queues of 1024 requests are 4 GiB.
	d := busyVolume(t, "--data-path", "copy", "--depth", "64", "--queues", "4")
	before := usageOf(t, d.PID())
	limit(t, d.PID(), addressSpace(t, d.PID())+16<<20)
	_, err := d.Client.CreateVolume(t.Context(), api.CreateVolumeRequest{Name: "more", Size: 8 * rig.MiB})
	if err == nil || !strings.Contains(err.Error(), "more") || !strings.Contains(err.Error(), unix.ENOMEM.Error()) {
		t.Errorf("create without memory for its queues: %v", err)
	}
	limit(t, d.PID(), unix.RLIM_INFINITY)
	if _, err := d.Client.Volume(t.Context(), "more"); err == nil {
		t.Error("the volume that was not created is there")
	}
	d.Check()
	d.Volume("more", 8*rig.MiB)
	if err := d.Client.DeleteVolume(t.Context(), "more", false); err != nil {
		t.Error(err)
	}
	if after := usageOf(t, d.PID()); after.fds > before.fds+4 {
		t.Errorf("descriptors grew from %d to %d", before.fds, after.fds)
	}
}

// TestSnapshotRunsFull fills the room of a snapshot while a backup reads it:
// the backup fails and says why, the volume goes on.
func TestSnapshotRunsFull(t *testing.T) {
	d := busyVolume(t)
	v := d.Volume("data", 64*rig.MiB)
	rig.WriteDevice(t, v.Device, 0, rig.RandomBytes(1, int(v.Size)))
	s, closeSnapshot, err := d.Client.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"data"}, COWSize: 4 * rig.MiB})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := closeSnapshot(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	want := rig.RandomBytes(2, int(v.Size))
	rig.WriteDevice(t, v.Device, 0, want) // 64 MiB of old data for 4 MiB of room
	f := rig.OpenDirect(t, s.Volumes[0].Device, os.O_RDONLY)
	defer f.Close()
	if _, err := f.ReadAt(rig.Aligned(t, 1<<20), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("reading a snapshot that ran full: %v, want %v", err, unix.EIO)
	}
	if got := rig.ReadDevice(t, v.Device, 0, int(v.Size)); rig.FirstDifference(got, want) < len(want) {
		t.Error("the volume shows other data than was written after its snapshot ran full")
	}
}

// TestFullRepository makes backups into a repository without room: they fail
// with what is in the way, what was there before stays good, and with room the
// next one succeeds.
func TestFullRepository(t *testing.T) {
	d := busyVolume(t)
	v := d.VolumeWith(api.CreateVolumeRequest{Name: "data", Size: 32 * rig.MiB, Zero: true})
	rig.WriteDevice(t, v.Device, 0, rig.RandomBytes(3, int(4*rig.MiB)))
	dir := filepath.Join(d.Dir, "repo")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rig.Unmount(t, dir) })
	d.CLI(0, nil, "repo", "init", filepath.Join(dir, "r"))
	repo := []string{"--repo", filepath.Join(dir, "r")}
	d.CLI(0, nil, append([]string{"backup", "create", "data"}, repo...)...)
	rig.WriteDevice(t, v.Device, 0, rig.RandomBytes(4, int(v.Size)))
	for range 2 {
		d.CLI(1, []string{"no space left on device"}, append([]string{"backup", "create", "data"}, repo...)...)
	}
	d.CLI(0, nil, append([]string{"backup", "verify"}, repo...)...)
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=96m"); err != nil {
		t.Fatal(err)
	}
	d.CLI(0, nil, append([]string{"backup", "create", "data"}, repo...)...)
	d.CLI(0, nil, append([]string{"backup", "verify"}, repo...)...)
}

func expectCode(t *testing.T, what string, err error, code string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code || e.Remedy == "" {
		t.Errorf("%s: %#v, want code %s and a remedy", what, err, code)
	}
}

// addressSpace is the size of a process in bytes.
func addressSpace(t *testing.T, pid int) uint64 {
	t.Helper()
	return uint64(statusField(t, pid, "VmSize")) << 10
}

func limit(t *testing.T, pid int, bytes uint64) {
	t.Helper()
	if err := unix.Prlimit(pid, unix.RLIMIT_AS, &unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}, nil); err != nil {
		t.Fatal(err)
	}
}
