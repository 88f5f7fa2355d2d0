//go:build vm

package disks

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

const blockSize = 4096

// TestBadSectors: the error of exactly the requests that touch a bad sector
// reaches the application, on every data path. Counters and the log name disk and
// sector. Neighbours, other volumes of the disk, and other disks go on.
func TestBadSectors(t *testing.T) {
	for _, path := range []string{"copy", "zero-copy", "batch"} {
		t.Run(path, func(t *testing.T) {
			if !hasPath(t, path) {
				t.Skipf("this kernel has no %s (needs 6.16, batch 7.0)", path)
			}
			disks := newBadDisks(t, 2)
			d := start(t, disks, "--data-path", path)
			v := d.Volume("bad", 4*rig.MiB)
			neighbour := volumeOn(t, d, v.Position.Segments[0].Stripes[0].Member, "near", 64*rig.MiB)
			load := d.StartFio(neighbour.Name, rig.VerifyJob(neighbour.Device, "4m", "--offset_increment=16m"))
			badSectors(t, d, disks, v)
			load.Wait()
			d.Check()
		})
	}
}

// hasPath says whether the running kernel is new enough for a data path.
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
	switch path {
	case "zero-copy":
		return major > 6 || major == 6 && minor >= 16
	case "batch":
		return major >= 7
	}
	return true
}

func badSectors(t *testing.T, d *rig.Daemon, disks []*badDisk, v api.Volume) {
	const bad = 37 // block
	disk := disks[v.Position.Segments[0].Stripes[0].Member]
	data := rig.RandomBytes(1, int(v.Size))
	rig.WriteDevice(t, v.Device, 0, data)
	sector := sectorOf(d, t, v, bad*blockSize)
	before := d.Show(v.Name).IO.Errors
	disk.Spoil(failing, stretch{sector + 3, 1}) // one sector in the block

	f := rig.OpenDirect(t, v.Device, os.O_RDWR)
	defer f.Close()
	block, large := rig.Aligned(t, blockSize), rig.Aligned(t, 64<<10)
	failed := uint64(0)
	for n := int64(bad - 8); n <= bad+8; n++ {
		_, err := f.ReadAt(block, n*blockSize)
		if n == bad {
			expectErrno(t, "reading the bad block", err, unix.EIO)
			failed++
			continue
		}
		if err != nil || !bytes.Equal(block, data[n*blockSize:][:blockSize]) {
			t.Errorf("reading block %d beside the bad one: %v", n, err)
		}
	}
	_, err := f.WriteAt(block, bad*blockSize)
	expectErrno(t, "writing the bad block", err, unix.EIO)
	_, err = f.ReadAt(large, (bad-5)*blockSize)
	expectErrno(t, "a large read over the bad block", err, unix.EIO)
	failed += 2
	// A request of half the block, which spares the sector, is good.
	if _, err := f.ReadAt(block[:1024], bad*blockSize+2048); err != nil {
		t.Errorf("reading sectors of the block that are good: %v", err)
	}
	if err := f.Sync(); err != nil {
		t.Errorf("flush: %v", err)
	}

	rig.WaitUntil(t, "the failures to be counted", func() bool { return d.Show(v.Name).IO.Errors == before+failed })
	got := d.Metrics()
	for name, want := range map[string]float64{
		fmt.Sprintf(`swapback_volume_errors_total{op="read",pool="tank",volume="%s"}`, v.Name):  2,
		fmt.Sprintf(`swapback_volume_errors_total{op="write",pool="tank",volume="%s"}`, v.Name): 1,
		fmt.Sprintf(`swapback_disk_errors_total{disk="%s",op="read",pool="tank"}`, disk.Path):   2,
		fmt.Sprintf(`swapback_disk_errors_total{disk="%s",op="write",pool="tank"}`, disk.Path):  1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	for _, want := range []string{
		fmt.Sprintf(`op=read offset=%d length=4096 err="input/output error" disk="%s sectors %d+8"`, bad*blockSize, disk.Path, sector),
		fmt.Sprintf(`op=write offset=%d length=4096 err="input/output error" disk="%s sectors %d+8"`, bad*blockSize, disk.Path, sector),
		fmt.Sprintf(`op=read offset=%d length=65536 err="input/output error" disk="%s sectors %d+128"`, (bad-5)*blockSize, disk.Path, sector-40),
	} {
		rig.WaitUntil(t, "the log to have "+want, func() bool { return strings.Contains(d.Log.String(), want) })
	}

	disk.Heal()
	if _, err := f.WriteAt(block, bad*blockSize); err != nil {
		t.Errorf("writing the block after the disk has remapped it: %v", err)
	}
}

// TestStripedVolumeNamesTheRightDisk: only the stripe on the bad disk fails.
func TestStripedVolumeNamesTheRightDisk(t *testing.T) {
	disks := newBadDisks(t, 2)
	d := start(t, disks)
	v := d.VolumeWith(api.CreateVolumeRequest{Name: "striped", Size: 4 * rig.MiB, Stripes: 2})
	rig.WriteDevice(t, v.Device, 0, rig.RandomBytes(2, int(v.Size)))
	const stripe = 64 << 10
	disks[1].Spoil(failing, disks[1].Extents())
	f := rig.OpenDirect(t, v.Device, os.O_RDONLY)
	defer f.Close()
	buf := rig.Aligned(t, blockSize)
	onBad := v.Position.Segments[0].Stripes[1].Member == 1
	for chunk := range int64(8) {
		_, err := f.ReadAt(buf, chunk*stripe)
		if bad := (chunk%2 == 1) == onBad; bad {
			expectErrno(t, fmt.Sprintf("chunk %d, on the bad disk", chunk), err, unix.EIO)
		} else if err != nil {
			t.Errorf("chunk %d, on the good disk: %v", chunk, err)
		}
	}
	rig.WaitUntil(t, "the metrics", func() bool {
		return d.Metrics()[fmt.Sprintf(`swapback_disk_errors_total{disk="%s",op="read",pool="tank"}`, disks[1].Path)] == 4
	})
	if n := d.Metrics()[fmt.Sprintf(`swapback_disk_errors_total{disk="%s",op="read",pool="tank"}`, disks[0].Path)]; n != 0 {
		t.Errorf("%v errors are put down to the good disk", n)
	}
	disks[1].Heal()
	d.Check()
}

// TestDisksThatTakeOneDirection: dm-flakey answers writes (and flushes, which are
// writes to it), or reads, with errors and does the others.
func TestDisksThatTakeOneDirection(t *testing.T) {
	disks := newBadDisks(t, 2)
	d := start(t, disks)
	bad, good := volumeOn(t, d, 0, "bad", 4*rig.MiB), volumeOn(t, d, 1, "good", 4*rig.MiB)
	data := rig.RandomBytes(3, int(bad.Size))
	rig.WriteDevice(t, bad.Device, 0, data)
	f, g := rig.OpenDirect(t, bad.Device, os.O_RDWR), rig.OpenDirect(t, good.Device, os.O_RDWR)
	defer f.Close()
	defer g.Close()
	buf := rig.Aligned(t, blockSize)
	write := func() error { copy(buf, data); _, err := f.WriteAt(buf, 0); return err }
	read := func() error { _, err := f.ReadAt(buf, 0); return err }
	disks[0].Spoil(flakey("1 error_writes"), disks[0].Extents())
	expectErrno(t, "a write", write(), unix.EIO)
	expectErrno(t, "a flush", f.Sync(), unix.EIO)
	rig.WaitUntil(t, "the log to name the disk of the flush", func() bool {
		return strings.Contains(d.Log.String(), `op=flush offset=0 length=0 err="input/output error" disk=`+disks[0].Path)
	})
	if err := read(); err != nil || !bytes.Equal(buf, data[:blockSize]) {
		t.Errorf("a read of a disk that takes no writes: %v", err)
	}
	disks[0].Spoil(flakey("1 error_reads"), disks[0].Extents())
	expectErrno(t, "a read", read(), unix.EIO)
	if err := write(); err != nil {
		t.Errorf("a write to a disk that can't read: %v", err)
	}
	for _, err := range []error{f.Sync(), func() error { _, err := g.WriteAt(buf, 0); return err }(), g.Sync()} {
		if err != nil {
			t.Errorf("what is good fails: %v", err)
		}
	}
	disks[0].Heal()
	if err := f.Sync(); err != nil {
		t.Errorf("a flush after the disk is back: %v", err)
	}
	d.Check()
}

// TestSwapAfterAFailedWrite: what lies in the page cache of a volume and can't be
// written is nobody's to lose without a word, nor to write to the other volume.
func TestSwapAfterAFailedWrite(t *testing.T) {
	disks := newBadDisks(t, 2)
	d := start(t, disks)
	a, b := volumeOn(t, d, 0, "a", 8*rig.MiB), volumeOn(t, d, 1, "b", 8*rig.MiB)
	data := rig.RandomBytes(3, int(rig.MiB))
	rig.WriteDevice(t, b.Device, 0, data)
	f, err := os.OpenFile(a.Device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	disks[0].Spoil(failing, disks[0].Extents())
	if _, err := f.WriteAt(make([]byte, 1<<16), 0); err != nil {
		t.Fatal(err)
	}
	out := d.CLI(1, []string{"swap refused", "writing back", "input/output error"}, "swap", a.Name, b.Name, "--allow-holders")
	if now := d.Show(a.Name); now.Position.ID != a.Position.ID {
		t.Errorf("swapped all the same: %s", out)
	}
	// Asked again he knows, and the page cache has nothing more.
	d.CLI(0, []string{"page cache and disks agree"}, "swap", a.Name, b.Name, "--allow-holders")
	if got := rig.ReadDevice(t, a.Device, 0, len(data)); !bytes.Equal(got, data) {
		t.Errorf("byte %d of what is shown now was written over", rig.FirstDifference(got, data))
	}
}
