//go:build vm

package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
)

// TestDataLiesWhereTheMapSays writes through the block device and reads the
// same bytes from the member disks, by the extent map that the API shows.
func TestDataLiesWhereTheMapSays(t *testing.T) {
	d := startDaemon(t)
	pool := d.pool()
	for _, req := range []api.CreateVolumeRequest{
		{Name: "linear", Size: 24 * MiB},
		{Name: "striped", Size: 24 * MiB, Stripes: 2},
		{Name: "narrow", Size: 20*MiB + 4096, Stripes: 2, StripeSize: 16 << 10},
	} {
		t.Run(req.Name, func(t *testing.T) {
			v := d.volumeWith(req)
			data := randomBytes(1, int(v.Size))
			writeDevice(t, v.Device, 0, data)
			if got := readByMap(t, pool, v); !bytes.Equal(got, data) {
				t.Errorf("the member disks hold other data than was written, first at byte %d", firstDifference(got, data))
			}
			if got := readDevice(t, v.Link, 0, int(v.Size)); !bytes.Equal(got, data) {
				t.Error("the link shows other data than was written")
			}
			if tree := tool(t, "lsblk", "-l"); !strings.Contains(tree, "swapback-tank-"+v.Name) {
				t.Errorf("lsblk does not name the volume:\n%s", tree)
			}
		})
	}
}

// readByMap reads a whole volume from the member disks.
func readByMap(t *testing.T, pool api.Pool, v api.Volume) []byte {
	t.Helper()
	var out []byte
	for _, seg := range v.Position.Segments {
		unit := int64(len(seg.Stripes)) * seg.Extents * pool.ExtentSize
		chunk := unit
		if len(seg.Stripes) > 1 {
			chunk = v.Position.StripeSize
		}
		for off := int64(0); off < unit; off += chunk {
			stripe := seg.Stripes[off/chunk%int64(len(seg.Stripes))]
			within := off / chunk / int64(len(seg.Stripes)) * chunk
			m := pool.Members[stripe.Member]
			at := m.DataOffset + stripe.Start*pool.ExtentSize + within
			out = append(out, readDevice(t, m.Path, at, int(chunk))...)
		}
	}
	return out[:v.Size]
}

func TestFioVerify(t *testing.T) {
	for _, queues := range []int{1, 4} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			d := startDaemon(t, "--queues", fmt.Sprint(queues))
			d.pool()
			v := d.volume("data", 256*MiB)
			if v.Queues != queues {
				t.Errorf("the volume has %d queues, want %d", v.Queues, queues)
			}
			runFio(t, verifyJob(v.Device, "16m", "--verify_backlog=64"))
			io := d.show("data").IO
			if io == nil || io.Writes == 0 || io.Reads == 0 || io.Errors != 0 {
				t.Errorf("counters after fio: %+v", io)
			}
		})
	}
}

func TestFilesystems(t *testing.T) {
	for _, fs := range []struct{ name, mkfs, fsck string }{
		{"ext4", "mkfs.ext4 -q -F", "e2fsck -f -n"},
		{"xfs", "mkfs.xfs -q -f", "xfs_repair -n"},
	} {
		t.Run(fs.name, func(t *testing.T) {
			d := startDaemon(t)
			d.pool()
			v := d.volume("files", 384*MiB)
			tool(t, "sh", "-c", fs.mkfs+" "+v.Device)
			dir := mount(t, v.Link, fs.name)
			data := randomBytes(2, int(8*MiB))
			writeFile(t, filepath.Join(dir, "file"), data)
			tool(t, "fstrim", dir)
			unmount(t, dir)
			tool(t, "sh", "-c", fs.fsck+" "+v.Device)
			dir = mount(t, v.Link, fs.name)
			if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, data) {
				t.Errorf("the file came back wrong: %v", err)
			}
			unmount(t, dir)
		})
	}
}

// TestKilledDaemonIsAPause kills the daemon while fio writes and verifies. The
// next daemon adopts the device; fio sees no error and no wrong byte.
func TestKilledDaemonIsAPause(t *testing.T) {
	d := startDaemon(t)
	d.pool()
	v := d.volume("data", 256*MiB)
	load := d.startFio("data", verifyJob(v.Device, "16m", "--verify_backlog=64", "--loops=2"))
	for kill := range uint64(3) {
		d.waitWrites("data", 50)
		d.signal(syscall.SIGKILL)
		d.start()
		after := d.show("data")
		if after.State != api.StateServing || after.Device != v.Device || after.DeviceNumber != v.DeviceNumber {
			t.Fatalf("after kill %d the volume is %s at %s, want serving at %s", kill+1, after.State, after.Device, v.Device)
		}
	}
	load.wait()
}

// TestStoppedDaemonKeepsDevices ends the daemon by SIGTERM and starts it again
// while a filesystem is mounted.
func TestStoppedDaemonKeepsDevices(t *testing.T) {
	d := startDaemon(t)
	d.pool()
	v := d.volume("files", 128*MiB)
	tool(t, "mkfs.ext4", "-q", "-F", v.Device)
	dir := mount(t, v.Device, "ext4")
	data := randomBytes(3, int(4*MiB))
	writeFile(t, filepath.Join(dir, "file"), data)
	d.signal(syscall.SIGTERM)
	if _, err := os.Stat("/sys/block/" + filepath.Base(v.Device)); err != nil {
		t.Errorf("the device went with the daemon: %v", err)
	}
	d.start()
	// Past the cache: the bytes come through the adopted device.
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file came back wrong: %v", err)
	}
	unmount(t, dir)
	tool(t, "e2fsck", "-f", "-n", v.Device)
}

// waitWrites waits until the device has answered n more writes, so that a kill
// comes in the middle of the load however slow the machine is.
func (d *process) waitWrites(name string, n uint64) {
	d.t.Helper()
	start := d.show(name).IO.Writes
	waitUntil(d.t, fmt.Sprintf("%d writes to volume %s", n, name), func() bool { return d.show(name).IO.Writes >= start+n })
}

func randomBytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// openDirect opens a device past the page cache.
func openDirect(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// aligned returns memory that O_DIRECT accepts; it is unmapped with the test.
func aligned(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, (n+4095)&^4095, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b[:n]
}

func writeDevice(t *testing.T, path string, off int64, data []byte) {
	t.Helper()
	f := openDirect(t, path, os.O_WRONLY)
	defer f.Close()
	buf := aligned(t, len(data))
	copy(buf, data)
	if _, err := f.WriteAt(buf, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func readDevice(t *testing.T, path string, off int64, n int) []byte {
	t.Helper()
	f := openDirect(t, path, os.O_RDONLY)
	defer f.Close()
	buf := aligned(t, n)
	if _, err := io.ReadFull(io.NewSectionReader(f, off, int64(n)), buf); err != nil {
		t.Fatalf("reading %d bytes at %d of %s: %v", n, off, path, err)
	}
	return buf
}

// mount mounts a device below /mnt and unmounts it when the test ends without
// having done so.
func mount(t *testing.T, device, fstype string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/mnt", "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(device, dir, fstype, 0, ""); err != nil {
		t.Fatalf("mount %s (%s): %v", device, fstype, err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(dir, 0)
		_ = os.Remove(dir)
	})
	return dir
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatalf("unmount %s: %v", dir, err)
	}
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
