//go:build vm

package backup

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// loop makes a loop device of 4 KiB blocks over a new file full of stale data.
func loop(t *testing.T, size int64) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, bytes.Repeat([]byte{0xd1}, int(size)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", "4096", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	return device, file
}

// A device of 4 KiB blocks is restored onto, whole and by the difference; what the
// backup has as zeroes it frees, and shows as zeroes to whoever reads.
func TestVMRestoreOnto4KBlocks(t *testing.T) {
	const size = 64 << 20
	device, file := loop(t, size)
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{3}).Read(content[5<<20 : 9<<20])
	copy(content[40<<20+4096:], "one block")
	r, _, b := deltaRepo(t, content)
	allocated := func() int64 {
		t.Helper()
		st, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return st.Sys().(*syscall.Stat_t).Blocks * 512
	}
	if n := allocated(); n < size {
		t.Fatalf("the stale disk takes %d bytes", n)
	}
	res := restore(t, r, RestoreOptions{Backup: b.ID, Target: device, VerifyAfter: true})
	if !res.Verified || res.DataBytes+res.ZeroBytes != size {
		t.Errorf("result is %+v", res)
	}
	if n := allocated(); n > 8<<20 {
		t.Errorf("the disk takes %d bytes: what is zero was not freed", n)
	}
	same := func(what string) {
		t.Helper()
		for _, direct := range []bool{false, true} {
			if !bytes.Equal(readDisk(t, device, size, 0, direct), content) {
				t.Errorf("%s: content is wrong, direct=%v", what, direct)
			}
		}
	}
	same("whole")

	writeDisk(t, device, []byte("stale"), 20<<20+77)
	writeDisk(t, device, []byte("stale"), 6<<20+77)
	res = restore(t, r, RestoreOptions{Backup: b.ID, Target: device, VerifyAfter: true, Delta: true})
	if res.DataBytes != deltaGrain || res.ZeroBytes != deltaGrain || !res.Verified {
		t.Errorf("result is %+v", res)
	}
	same("the difference")
}

// written is how many bytes have been written to a disk since the start.
func written(t *testing.T, disk string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/%s/stat", filepath.Base(disk)))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(b))[6], 10, 64) // Documentation/block/stat.rst
	if err != nil {
		t.Fatal(err)
	}
	return n * 512
}

// The kernel's own count of a disk says what a differential restore writes: what
// differs, and nothing when nothing does.
func TestVMDeltaWritesLittle(t *testing.T) {
	size := diskSize(t, targetDisk)
	const data = 32 << 20
	content := make([]byte, data)
	rand.NewChaCha8([32]byte{4}).Read(content)
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	r, err := Init(t.Context(), filepath.Join(t.TempDir(), "repo"), InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	create(t, r, CreateOptions{}, Source{Path: image, Volume: VolumeRef{Name: "db"}})
	restore(t, r, RestoreOptions{Backup: "latest", Target: targetDisk})
	before := written(t, targetDisk)
	restore(t, r, RestoreOptions{Backup: "latest", Target: targetDisk, Delta: true})
	if n := written(t, targetDisk) - before; n != 0 {
		t.Errorf("%d bytes were written where nothing differs", n)
	}
	for _, at := range []int64{3 << 20, 17<<20 + 9, size - 4096} {
		writeDisk(t, targetDisk, bytes.Repeat([]byte{7}, 4096), at&^4095)
	}
	before = written(t, targetDisk)
	res := restore(t, r, RestoreOptions{Backup: "latest", Target: targetDisk, Delta: true, VerifyAfter: true})
	if n := written(t, targetDisk) - before; n > 3*deltaGrain || res.DataBytes != 2*deltaGrain || res.ZeroBytes != deltaGrain {
		t.Errorf("%d bytes were written, result is %+v", n, res)
	}
	if !bytes.Equal(readDisk(t, targetDisk, data, 0, true), content) {
		t.Error("content is wrong")
	}
}

// A file system that fills up ends a restore with an error that says so; when there
// is room, the difference completes it.
func TestVMRestoreToFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	content := image(9, 400)
	r, _, b := deltaRepo(t, content)
	target := filepath.Join(dir, "image")
	res, err := r.Restore(t.Context(), RestoreOptions{Backup: b.ID, Target: target, CreateTarget: true})
	wantErr(t, "full", err, ErrNoSpace, "free space where the target lies")
	if !res.Incomplete || res.DataBytes == 0 || res.DataBytes > 8<<20 {
		t.Errorf("result is %+v", res)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	next := restore(t, r, RestoreOptions{Backup: b.ID, Target: target, Delta: true, VerifyAfter: true})
	if next.UnchangedBytes < res.DataBytes || next.DataBytes+res.DataBytes > b.Volumes[0].DataBytes+4*deltaGrain {
		t.Errorf("result is %+v, then %+v", res, next)
	}
	wantContent(t, "gone on", target, content)
}
