//go:build vm

package backup

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/backup/internal/device"
)

// The machine's two blank disks, of one size.
const (
	sourceDisk = "/dev/nvme0n1"
	targetDisk = "/dev/nvme1n1"
)

// spots are where the source has data, in MiB; elsewhere it is zero. The target
// is full of stale data around all of them and at its end.
var spots = []int64{0, 1, 2, 7, 64, 65, 500}

const mib = 1 << 20

func diskSize(t *testing.T, path string) int64 {
	t.Helper()
	f, err := device.OpenSource(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return f.Size()
}

// writeDisk writes p at offset, past the page cache, or through it.
func writeDisk(t *testing.T, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

// readDisk reads through the page cache, or past it.
func readDisk(t *testing.T, path string, n int, off int64, direct bool) []byte {
	t.Helper()
	flag := os.O_RDONLY
	if direct {
		flag |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := device.Buffer(n)
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

// prepare fills the source's spots and soils the target. It returns the content
// of the source's first areas by their offsets.
func prepare(t *testing.T, size int64) {
	t.Helper()
	cc := rand.NewChaCha8([32]byte{1})
	p := make([]byte, mib)
	for _, at := range append(spots, size/mib-1) {
		cc.Read(p[:mib/2]) // the other half stays compressible
		writeDisk(t, sourceDisk, p, at*mib)
	}
	stale := bytes.Repeat([]byte{0xd1}, 4*mib)
	for _, r := range [][2]int64{{0, 80}, {496, 508}, {1000, 1012}, {size/mib - 12, size / mib}} {
		for at := r[0]; at < r[1]; at += 4 {
			writeDisk(t, targetDisk, stale, at*mib)
		}
	}
}

// sameAround compares the disks wherever either had data, both ways of reading.
func sameAround(t *testing.T, size int64) {
	t.Helper()
	for _, r := range [][2]int64{{0, 80}, {496, 508}, {1000, 1012}, {size/mib - 12, size / mib}} {
		for at := r[0]; at < r[1]; at += 4 {
			want := readDisk(t, sourceDisk, 4*mib, at*mib, true)
			for _, direct := range []bool{false, true} {
				if !bytes.Equal(readDisk(t, targetDisk, 4*mib, at*mib, direct), want) {
					t.Errorf("MiB %d-%d differ, direct=%v", at, at+4, direct)
				}
			}
		}
	}
}

// A disk restored onto another that is full of stale data, some of it in the page
// cache, is the same as the first, whichever way it is read.
func TestVMRestoreLeavesNoStaleData(t *testing.T) {
	size := diskSize(t, sourceDisk)
	if n := diskSize(t, targetDisk); n != size {
		t.Fatalf("disks have %d and %d bytes", size, n)
	}
	prepare(t, size)
	r, err := Init(t.Context(), filepath.Join(t.TempDir(), "repo"), InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := r.Create(t.Context(), []Source{{Path: sourceDisk, Volume: VolumeRef{Name: "db", Size: size}}}, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	v := b.Volumes[0]
	if want := int64(len(spots)+1) * mib; v.DataBytes != want || v.ZeroBytes != size-want {
		t.Errorf("volume is %+v, want %d bytes of data", v, want)
	}
	t.Logf("backup of %d MiB took %.1f s and %d bytes", size/mib, b.Seconds, v.StoredBytes)

	readDisk(t, targetDisk, 80*mib, 0, false) // stale pages
	keep, err := os.Open(targetDisk)          // and nobody drops them by closing last
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	res, err := r.Restore(t.Context(), RestoreOptions{Backup: b.ID, Target: targetDisk, VerifyAfter: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("restore took %.1f s, of which reading back %.1f s", res.Seconds, res.VerifySeconds)
	if !res.Verified || res.DataBytes != v.DataBytes || res.ZeroBytes != v.ZeroBytes {
		t.Errorf("result is %+v", res)
	}
	sameAround(t, size)

	// The unchanged disk adds nothing to the repository, and comes from the
	// other disk as well.
	again, err := r.Create(t.Context(), []Source{{Path: targetDisk, Volume: VolumeRef{Name: "db"}}}, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if w := again.Volumes[0]; w.StoredBytes != 0 || w.Table != v.Table {
		t.Errorf("backup of the restored disk is %+v, of the first %+v", w, v)
	}
}

// A target that somebody holds, or that can't be written, is refused and stays as
// it is; a caller who holds it may say so.
func TestVMTargetInUse(t *testing.T) {
	size := diskSize(t, targetDisk)
	stale := bytes.Repeat([]byte{0xd1}, mib)
	writeDisk(t, targetDisk, stale, 0)
	r, err := Init(t.Context(), filepath.Join(t.TempDir(), "repo"), InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, []byte("some data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	create(t, r, CreateOptions{}, Source{Path: image, Volume: VolumeRef{Name: "db"}})
	o := RestoreOptions{Backup: "latest", Target: targetDisk}
	untouched := func() {
		t.Helper()
		if !bytes.Equal(readDisk(t, targetDisk, mib, 0, true), stale) {
			t.Error("the target was written")
		}
	}

	holder, err := os.OpenFile(targetDisk, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	_, err = r.Restore(t.Context(), o)
	wantErr(t, "held", err, ErrInUse, targetDisk)
	untouched()

	if err := unix.IoctlSetPointerInt(int(holder.Fd()), unix.BLKROSET, 1); err != nil {
		t.Fatal(err)
	}
	o.Held = true
	_, err = r.Restore(t.Context(), o)
	wantErr(t, "read-only", err, ErrPermission, targetDisk)
	untouched()
	if err := unix.IoctlSetPointerInt(int(holder.Fd()), unix.BLKROSET, 0); err != nil {
		t.Fatal(err)
	}

	if _, err := r.Restore(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got := readDisk(t, targetDisk, mib, 0, true); string(got[:9]) != "some data" || !bytes.Equal(got[9:], make([]byte, mib-9)) {
		t.Errorf("the target begins %q", got[:32])
	}
}
