//go:build vm

package limits

import (
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// busy is a daemon with a volume under fio verify.
type busy struct {
	*rig.Daemon
	t    *testing.T
	load *rig.FioLoop
}

// busyVolume begins. The verification goes on until the test ends, and then must
// have met no error.
func busyVolume(t *testing.T, args ...string) *busy {
	t.Helper()
	d := rig.Start(t, args...)
	d.Pool()
	v := d.Volume("running", 256*rig.MiB)
	b := &busy{d, t, rig.LoopFio(t, rig.VerifyJob(v.Device, "4m", "--verify_backlog=64"))}
	t.Cleanup(func() { b.load.Stop() })
	b.goesOn()
	return b
}

// goesOn fails the test unless the load writes on. Every limit is met with it
// before and after.
func (b *busy) goesOn() {
	b.t.Helper()
	start := b.Show("running").IO.Writes
	rig.WaitUntil(b.t, "the load on the other volume to go on", func() bool {
		return b.load.Ended() || b.Show("running").IO.Writes > start
	})
	if b.load.Ended() {
		b.t.Fatalf("the load on the other volume has ended: %v", b.load.Err())
	}
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
		d.goesOn()
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
	d.goesOn()

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
	d.goesOn()
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

// TestSnapshotRunsFull overwrites more than a snapshot has room for while a backup
// reads it: the backup fails and says why and what to do, the volume goes on.
func TestSnapshotRunsFull(t *testing.T) {
	d := busyVolume(t)
	v := d.Volume("data", 64*rig.MiB)
	rig.WriteDevice(t, v.Device, 0, rig.RandomBytes(1, int(v.Size)))
	repo := []string{"--repo", filepath.Join(d.Dir, "repo")}
	d.CLI(0, nil, "repo", "init", repo[1])

	cmd := exec.Command("swapback", append([]string{"backup", "create", "data", "--cow-size", "4M"}, repo...)...)
	cmd.Env = append(os.Environ(), api.SocketEnv+"="+d.Socket())
	var out rig.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // of a test that failed
	rig.WaitUntil(t, "the backup's snapshot", func() bool { return d.Show("data").Snapshot })
	signal := func(sig syscall.Signal) {
		t.Helper()
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatalf("the backup is over too early: %v\n%s", err, out.String())
		}
	}
	signal(syscall.SIGSTOP)
	want := rig.RandomBytes(2, int(v.Size))
	rig.WriteDevice(t, v.Device, 0, want) // 64 MiB of old data for 4 MiB of room
	if now := d.Show("data"); !now.Snapshot || !now.SnapshotFull {
		t.Errorf("snapshot %v, full %v after 64 MiB were overwritten", now.Snapshot, now.SnapshotFull)
	}
	d.goesOn()
	signal(syscall.SIGCONT)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("the backup of a snapshot that ran full: %v, want exit code 1\n%s", err, out.String())
	}
	for _, words := range []string{"the snapshot of volume tank/data ran full: there was room for 4 MiB", "larger --cow-size"} {
		if !strings.Contains(out.String(), words) {
			t.Errorf("no %q in what the backup said:\n%s", words, out.String())
		}
	}
	d.CLI(0, []string{"no backups"}, append([]string{"backup", "list"}, repo...)...)

	d.goesOn()
	now := d.Show("data")
	if now.State != api.StateServing || now.Snapshot || now.SnapshotFull || now.IO.Errors > 0 || now.Position.DescendsFrom != "" {
		t.Errorf("the volume after its snapshot ran full: %+v, %+v", now, now.IO)
	}
	rig.WriteDevice(t, v.Device, 0, stamp(3))
	copy(want, stamp(3))
	if got := rig.ReadDevice(t, v.Device, 0, int(v.Size)); sha256.Sum256(got) != sha256.Sum256(want) {
		t.Errorf("the volume shows other data than was written, from byte %d on", rig.FirstDifference(got, want))
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
		d.goesOn()
	}
	d.CLI(0, nil, append([]string{"backup", "verify", "--all"}, repo...)...)
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=96m"); err != nil {
		t.Fatal(err)
	}
	d.CLI(0, nil, append([]string{"backup", "create", "data"}, repo...)...)
	d.CLI(0, nil, append([]string{"backup", "verify", "--all"}, repo...)...)
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
