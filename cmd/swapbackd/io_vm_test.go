//go:build vm

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// TestDataLiesWhereTheMapSays writes through the block device and reads the
// same bytes from the member disks, by the extent map that the API shows.
func TestDataLiesWhereTheMapSays(t *testing.T) {
	d := startDaemon(t)
	pool := d.Pool()
	for _, req := range []api.CreateVolumeRequest{
		{Name: "linear", Size: 24 * MiB},
		{Name: "striped", Size: 24 * MiB, Stripes: 2},
		{Name: "narrow", Size: 20*MiB + 4096, Stripes: 2, StripeSize: 16 << 10},
	} {
		t.Run(req.Name, func(t *testing.T) {
			v := d.VolumeWith(req)
			data := rig.RandomBytes(1, int(v.Size))
			rig.WriteDevice(t, v.Device, 0, data)
			if got := readByMap(t, pool, v); !bytes.Equal(got, data) {
				t.Errorf("the member disks hold other data than was written, first at byte %d", rig.FirstDifference(got, data))
			}
			if got := rig.ReadDevice(t, v.Link, 0, int(v.Size)); !bytes.Equal(got, data) {
				t.Error("the link shows other data than was written")
			}
			if tree := rig.Tool(t, "lsblk", "-l"); !strings.Contains(tree, "swapback-tank-"+v.Name) {
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
			out = append(out, rig.ReadDevice(t, m.Path, at, int(chunk))...)
		}
	}
	return out[:v.Size]
}

func TestFioVerify(t *testing.T) {
	for _, queues := range []int{1, 4} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			d := startDaemon(t, "--queues", fmt.Sprint(queues))
			d.Pool()
			v := d.Volume("data", 256*MiB)
			if v.Queues != queues {
				t.Errorf("the volume has %d queues, want %d", v.Queues, queues)
			}
			rig.RunFio(t, rig.VerifyJob(v.Device, "16m", "--verify_backlog=64"))
			io := d.Show("data").IO
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
			d.Pool()
			v := d.Volume("files", 384*MiB)
			rig.Tool(t, "sh", "-c", fs.mkfs+" "+v.Device)
			dir := rig.Mount(t, v.Link, fs.name)
			data := rig.RandomBytes(2, int(8*MiB))
			rig.WriteFile(t, filepath.Join(dir, "file"), data)
			rig.Tool(t, "fstrim", dir)
			rig.Unmount(t, dir)
			rig.Tool(t, "sh", "-c", fs.fsck+" "+v.Device)
			dir = rig.Mount(t, v.Link, fs.name)
			if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, data) {
				t.Errorf("the file came back wrong: %v", err)
			}
			rig.Unmount(t, dir)
		})
	}
}

// TestStoppedDaemonKeepsDevices ends the daemon by SIGTERM and starts it again
// while a filesystem is mounted.
func TestStoppedDaemonKeepsDevices(t *testing.T) {
	d := startDaemon(t)
	d.Pool()
	v := d.Volume("files", 128*MiB)
	rig.Tool(t, "mkfs.ext4", "-q", "-F", v.Device)
	dir := rig.Mount(t, v.Device, "ext4")
	data := rig.RandomBytes(3, int(4*MiB))
	rig.WriteFile(t, filepath.Join(dir, "file"), data)
	d.Signal(syscall.SIGTERM)
	if _, err := os.Stat("/sys/block/" + filepath.Base(v.Device)); err != nil {
		t.Errorf("the device went with the daemon: %v", err)
	}
	d.Run()
	// Past the cache: the bytes come through the adopted device.
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file came back wrong: %v", err)
	}
	rig.Unmount(t, dir)
	rig.Tool(t, "e2fsck", "-f", "-n", v.Device)
}
