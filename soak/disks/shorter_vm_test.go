//go:build vm

package disks

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// TestDiskGetsShorter: a disk loses its end under an open pool. What touches the
// missing part fails, and the log says why; what lies before it, other volumes of
// the disk and other disks go on.
func TestDiskGetsShorter(t *testing.T) {
	const (
		size = 64 * rig.MiB
		bad  = 4<<20/blockSize + 37 // the first block of the volume that is missing
	)
	disks := []string{rig.Loop(t, size), rig.Loop(t, size)}
	d := rig.StartWith(t, rig.Options{Disks: disks})
	d.PoolWith(api.CreatePoolRequest{Name: "tank", ExtentSize: rig.MiB})
	near, v, other := volumeOn(t, d, 1, "near", 16*rig.MiB), volumeOn(t, d, 1, "cut", 8*rig.MiB), volumeOn(t, d, 0, "other", 16*rig.MiB)
	if near.Position.Segments[0].Stripes[0].Start > v.Position.Segments[0].Stripes[0].Start {
		t.Fatal("the volume that is to be cut does not lie behind its neighbour")
	}
	data := rig.RandomBytes(1, int(v.Size))
	rig.WriteDevice(t, v.Device, 0, data)
	var loads []*rig.Fio
	for _, w := range []api.Volume{near, other} {
		loads = append(loads, d.StartFio(w.Name, rig.VerifyJob(w.Device, "2m", "--offset_increment=4m")))
	}
	before := d.Show(v.Name).IO.Errors
	sector := sectorOf(d, t, v, bad*blockSize)
	resize(t, disks[1], int64(sector)*512)
	t.Cleanup(func() { resize(t, disks[1], size) })

	f := rig.OpenDirect(t, v.Device, os.O_RDWR)
	defer f.Close()
	block, large := rig.Aligned(t, blockSize), rig.Aligned(t, 64<<10)
	reads, writes := 0, 0
	blocks := []int64{0, v.Size/blockSize - 1}
	for n := int64(bad - 8); n <= bad+8; n++ {
		blocks = append(blocks, n)
	}
	// Twice: what has been written is read.
	for round := range 2 {
		for _, n := range blocks {
			want := data[n*blockSize:][:blockSize]
			_, err := f.ReadAt(block, n*blockSize)
			switch {
			case n >= bad:
				expectErrno(t, fmt.Sprintf("reading block %d, which is missing", n), err, unix.EIO)
				reads++
			case err != nil || !bytes.Equal(block, want):
				t.Errorf("reading block %d: %v", n, err)
			}
			copy(want, rig.RandomBytes(uint64(2+round), blockSize))
			copy(block, want)
			_, err = f.WriteAt(block, n*blockSize)
			switch {
			case n >= bad:
				expectErrno(t, fmt.Sprintf("writing block %d, which is missing", n), err, unix.EIO)
				writes++
			case err != nil:
				t.Errorf("writing block %d: %v", n, err)
			}
		}
	}
	// Requests across the end, with what is there already.
	across := int64(bad-5) * blockSize
	_, err := f.ReadAt(large, across)
	expectErrno(t, "a read across the end", err, unix.EIO)
	copy(large, data[across:])
	_, err = f.WriteAt(large, across)
	expectErrno(t, "a write across the end", err, unix.EIO)
	reads, writes = reads+1, writes+1
	if _, err := f.ReadAt(large, (bad-16)*blockSize); err != nil || !bytes.Equal(large, data[(bad-16)*blockSize:][:len(large)]) {
		t.Errorf("a read that ends where the disk does: %v", err)
	}
	if err := f.Sync(); err != nil {
		t.Errorf("flush: %v", err)
	}

	rig.WaitUntil(t, "the failures to be counted", func() bool { return d.Show(v.Name).IO.Errors == before+uint64(reads+writes) })
	disk := fmt.Sprintf(`disk="%s sectors %d+8"`, disks[1], sectorOf(d, t, v, v.Size-blockSize))
	for _, op := range []string{"read", "write"} {
		want := fmt.Sprintf(`op=%s offset=%d length=4096 err="input/output error" %s why="%s has become shorter, it ends at sector %d"`,
			op, v.Size-blockSize, disk, disks[1], sector)
		rig.WaitUntil(t, "the log to have "+want, func() bool { return strings.Contains(d.Log.String(), want) })
	}
	got := d.Metrics()
	for name, want := range map[string]int{
		fmt.Sprintf(`swapback_volume_errors_total{op="read",pool="tank",volume="%s"}`, v.Name):  reads,
		fmt.Sprintf(`swapback_volume_errors_total{op="write",pool="tank",volume="%s"}`, v.Name): writes,
		fmt.Sprintf(`swapback_disk_errors_total{disk="%s",op="read",pool="tank"}`, disks[1]):    reads,
		fmt.Sprintf(`swapback_disk_errors_total{disk="%s",op="write",pool="tank"}`, disks[1]):   writes,
		fmt.Sprintf(`swapback_disk_errors_total{disk="%s",op="write",pool="tank"}`, disks[0]):   0,
	} {
		if got[name] != float64(want) {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	for _, load := range loads {
		load.Wait()
	}
	for _, w := range []api.Volume{near, other} {
		if now := d.Show(w.Name); now.IO.Errors != 0 || now.State != api.StateServing {
			t.Errorf("volume %s beside it: %+v", w.Name, now)
		}
	}

	resize(t, disks[1], size)
	copy(block, data)
	if _, err := f.WriteAt(block, v.Size-blockSize); err != nil {
		t.Errorf("writing the last block after the disk has its size back: %v", err)
	}
	d.Check()
}

// resize has a loop device end where its file is made to.
func resize(t *testing.T, loop string, size int64) {
	t.Helper()
	file, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(loop), "loop/backing_file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(strings.TrimSpace(string(file)), size); err != nil {
		t.Fatal(err)
	}
	rig.Tool(t, "losetup", "--set-capacity", loop)
}
