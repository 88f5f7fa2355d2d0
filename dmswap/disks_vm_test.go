//go:build vm

package dmswap

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hashDisk reads the ends of a disk: all places that a pool that is created or
// opened could write to, and then some. It is not more, because the machine is
// emulated.
func hashDisk(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	const head, tail = 6 << 20, 2 << 20
	h := sha256.New()
	b, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); at < size; at += int64(len(b)) {
		if at >= head && at < size-tail {
			continue
		}
		n, err := f.ReadAt(b, at)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		// Zeroes are most of it, and comparing is much faster than hashing.
		if !bytes.Equal(b[:n], zero[:n]) {
			fmt.Fprintln(h, at)
			h.Write(b[:n])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestVMDisksThatCarrySomething: what real tools leave is found, named and not
// touched, and --force takes it away.
func TestVMDisksThatCarrySomething(t *testing.T) {
	noDevices(t)
	for _, tt := range []struct {
		tool string
		args []string // the disk comes last
		want string
	}{
		{"mkfs.ext4", []string{"-q", "-F"}, "an ext4 filesystem"},
		{"mke2fs", []string{"-q", "-F", "-t", "ext2"}, "an ext2 filesystem"},
		{"mkfs.xfs", []string{"-q", "-f"}, "an XFS filesystem"},
		{"mkswap", []string{"-q"}, "swap space"},
		{"mkfs.btrfs", []string{"-q", "-f"}, "a btrfs filesystem"},
		{"mkfs.vfat", nil, "a FAT filesystem"},
	} {
		t.Run(tt.tool, func(t *testing.T) {
			size := int64(32 << 20)
			if tt.tool == "mkfs.xfs" || tt.tool == "mkfs.btrfs" {
				size = 320 << 20 // they refuse less
			}
			disk := loop(t, "disk", size)
			tool(t, tt.tool, append(slices.Clone(tt.args), disk)...)
			refuseAndForce(t, disk, tt.want)
		})
	}
}

func refuseAndForce(t *testing.T, disk, want string) {
	t.Helper()
	before := hashDisk(t, disk)
	_, err := Create(ctx, CreateOptions{Name: "tank", Disks: []string{disk}})
	var inUse *DiskInUseError
	if !errors.As(err, &inUse) || inUse.Held || !slices.Contains(inUse.Found, want) || !strings.Contains(err.Error(), disk) || !strings.Contains(err.Error(), "--force") {
		t.Fatalf("got %v, want %q", err, want)
	}
	if hashDisk(t, disk) != before {
		t.Error("the disk was changed")
	}
	p, err := Create(ctx, CreateOptions{Name: "tank", Disks: []string{disk}, Force: true, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	// Now it is a pool's, and is refused as such.
	_, err = Create(ctx, CreateOptions{Name: "other", Disks: []string{disk}})
	if !errors.As(err, &inUse) || !slices.Equal(inUse.Found, []string{`a member of the swapback pool "tank"`}) {
		t.Errorf("over a pool: %v", err)
	}
	p, err = Open(ctx, OpenOptions{Disks: []string{disk}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Destroy(ctx); err != nil {
		t.Error(err)
	}
	// And now it is blank.
	p, err = Create(ctx, CreateOptions{Name: "third", Disks: []string{disk}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Destroy(ctx); err != nil {
		t.Error(err)
	}
}

func TestVMDisksInUse(t *testing.T) {
	noDevices(t)
	mounted := loop(t, "mounted", 64<<20)
	tool(t, "mkfs.ext4", "-q", "-F", mounted)
	dir := t.TempDir()
	tool(t, "mount", mounted, dir)
	t.Cleanup(func() { tool(t, "umount", dir) })
	swapped := loop(t, "swapped", 64<<20)
	tool(t, "mkswap", "-q", swapped)
	tool(t, "swapon", swapped)
	t.Cleanup(func() { tool(t, "swapoff", swapped) })
	readOnly := loop(t, "ro", 64<<20, "-r")
	small := loop(t, "small", 2<<20)
	good, other := loop(t, "good", 64<<20), loop(t, "other", 64<<20)
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	link := t.TempDir() + "/link"
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	before := hashDisk(t, good) + hashDisk(t, other)
	for _, tt := range []struct {
		name string
		opt  CreateOptions
		kind error
		want string
	}{
		{"mounted", CreateOptions{Disks: []string{good, mounted}, Force: true}, ErrInUse, "mounted on " + dir},
		{"swap", CreateOptions{Disks: []string{good, swapped}, Force: true}, ErrInUse, "in use"},
		{"read-only", CreateOptions{Disks: []string{good, readOnly}}, ErrInvalid, readOnly},
		{"too small", CreateOptions{Disks: []string{good, small}}, ErrInvalid, "at least"},
		{"extents too large", CreateOptions{Disks: []string{good}, ExtentSize: 64 << 20}, ErrInvalid, "at least 128 MiB"},
		{"twice", CreateOptions{Disks: []string{good, good}}, ErrInvalid, "same disk"},
		{"twice by a link", CreateOptions{Disks: []string{good, link}}, ErrInvalid, "same disk"},
		{"a file", CreateOptions{Disks: []string{good, file}}, ErrInvalid, "losetup"},
		{"a character device", CreateOptions{Disks: []string{good, "/dev/null"}}, ErrInvalid, "not a block device"},
		{"missing", CreateOptions{Disks: []string{good, "/dev/nosuch"}}, ErrNotFound, "/dev/nosuch"},
		{"no disks", CreateOptions{}, ErrInvalid, "0 disks"},
		{"odd extents", CreateOptions{Disks: []string{good}, ExtentSize: 3 << 20}, ErrInvalid, "power of two"},
		{"bad name", CreateOptions{Name: "a/b", Disks: []string{good}}, ErrInvalid, "a/b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.opt.Name == "" {
				tt.opt.Name = "tank"
			}
			_, err := Create(ctx, tt.opt)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %v with %q", err, tt.kind, tt.want)
			}
			if err != nil && Remedy(err) == "" {
				t.Errorf("%v names no remedy", err)
			}
		})
	}
	if hashDisk(t, good)+hashDisk(t, other) != before {
		t.Error("a disk that was not to blame was changed")
	}
}

func TestVMBadMembers(t *testing.T) {
	noDevices(t)
	dir := t.TempDir()
	var files, disks []string
	for _, n := range []string{"0", "1"} {
		f := dir + "/disk" + n
		if err := errors.Join(os.WriteFile(f, nil, 0o600), os.Truncate(f, 64<<20)); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	for _, f := range files {
		disks = append(disks, attachLoop(t, f))
	}
	p, err := Create(ctx, CreateOptions{Name: "tank", Disks: disks, ExtentSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	v := mustCreate(t, p, VolumeSpec{Name: "v", Size: 4 << 20, Stripes: 2})
	tool(t, "cp", "--sparse=always", files[1], dir+"/old")
	for i := range 3 {
		if err := p.SetVolume(ctx, "v", func(a *VolumeAttrs) { a.DeviceNumber = i }); err != nil {
			t.Fatal(err)
		}
	}
	oldCopy := attachLoop(t, dir+"/old")
	f := direct(t, v.Device)
	fill(t, f, 'v', v.Size)
	f.Close()
	if err := errors.Join(p.Deactivate(ctx), p.Close()); err != nil {
		t.Fatal(err)
	}
	blankDisk := loop(t, "blank", 64<<20)
	// copyOf is a disk with the content of a member, changed.
	copyOf := func(n int, size int64, change func(f *os.File) error) string {
		path := t.TempDir() + "/copy"
		tool(t, "cp", "--sparse=always", files[n], path)
		c, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			err = change(c)
		}
		if err = errors.Join(err, c.Truncate(size), c.Close()); err != nil {
			t.Fatal(err)
		}
		return attachLoop(t, path)
	}
	garble := func(at int64) func(f *os.File) error {
		return func(f *os.File) error { _, err := f.WriteAt([]byte("garbage"), at); return err }
	}
	slotSize := int64(minSlotSize)
	bothSlots := func(f *os.File) error {
		return errors.Join(garble(slotsOffset+slotBody+5)(f), garble(slotsOffset+slotSize+slotBody+5)(f))
	}
	const degraded = "opens degraded"
	for _, tt := range []struct {
		name  string
		disks []string
		kind  error // nil: the pool opens
		want  string
	}{
		{"missing", disks[:1], nil, degraded},
		{"no label", []string{disks[0], blankDisk}, ErrNoPool, blankDisk},
		{"twice", []string{disks[0], disks[0]}, ErrInvalid, "same disk"},
		{"copy", []string{disks[0], disks[1], copyOf(1, 64<<20, nil)}, ErrDamaged, "both are member 1"},
		{"truncated", []string{disks[0], copyOf(1, 63<<20, nil)}, ErrDamaged, "67108864"},
		{"cut to nothing", []string{disks[0], copyOf(1, 4096, nil)}, ErrNoPool, "ends before byte 8192"},
		{"corrupt label", []string{disks[0], copyOf(1, 64<<20, garble(labelOffset+200))}, nil, "opens with a problem"},
		{"garbled label", []string{disks[0], copyOf(1, 64<<20, garble(labelOffset))}, nil, "opens with a problem"},
		{"corrupt label and slots", []string{disks[0], copyOf(1, 64<<20, func(f *os.File) error {
			return errors.Join(bothSlots(f), garble(labelOffset+200)(f))
		})}, nil, degraded},
		{"future label", []string{disks[0], copyOf(1, 64<<20, func(f *os.File) error {
			l, err := readLabel(alignedFile{f})
			if err != nil {
				return err
			}
			b := l.encode()
			b[8] = 9
			clear(b[12:16])
			sum := crc(b)
			b[12], b[13], b[14], b[15] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
			_, err = f.WriteAt(b, labelOffset)
			return err
		})}, ErrDamaged, "newer swapback"},
		{"all slots of all members", []string{copyOf(0, 64<<20, bothSlots), copyOf(1, 64<<20, bothSlots)}, ErrDamaged, "no member has a valid metadata slot"},
		{"an old copy", []string{disks[0], oldCopy}, ErrDamaged, "holds metadata generation"},
		{"the slots of one member", []string{disks[0], copyOf(1, 64<<20, bothSlots)}, nil, "repaired"},
		{"a larger disk", []string{disks[0], copyOf(1, 80<<20, nil)}, nil, "opens"},
		{"in the other order", []string{disks[1], disks[0]}, nil, "opens"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before []string
			for _, d := range tt.disks {
				before = append(before, hashDisk(t, d))
			}
			p, err := Open(ctx, OpenOptions{Disks: tt.disks, Logger: testLogger(t)})
			if err == nil {
				info, e := p.Volume("v")
				if e != nil {
					t.Fatal(e)
				}
				if (tt.want == degraded) != p.Info().Degraded() {
					t.Errorf("members %+v", p.Info().Members)
				}
				if tt.want == degraded {
					mustCheckDegraded(t, p)
					mustFail(t, info.Device)
					if err := errors.Join(p.Deactivate(ctx), p.Close()); err != nil {
						t.Fatal(err)
					}
					return
				}
				if tt.want != "opens with a problem" {
					mustCheck(t, p)
				}
				f := direct(t, info.Device)
				verify(t, f, 'v', info.Size)
				f.Close()
				if err := errors.Join(p.Deactivate(ctx), p.Close()); err != nil {
					t.Fatal(err)
				}
				if tt.kind != nil {
					t.Error("the pool opened")
				}
				return
			}
			if tt.kind == nil || !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %v with %q", err, tt.kind, tt.want)
			}
			if !namesADisk(err, tt.disks) || Remedy(err) == "" {
				t.Errorf("%v names no disk or no remedy", err)
			}
			for i, d := range tt.disks {
				if hashDisk(t, d) != before[i] {
					t.Errorf("%s was changed", d)
				}
			}
		})
	}
	found, err := Scan(ctx, ScanOptions{Disks: disks[1:]})
	if err != nil || len(found) != 1 || !slices.Equal(found[0].Missing, []int{0}) || len(found[0].Problems) != 0 || found[0].MissingText() == "" {
		t.Errorf("scan with a disk missing: %+v, %v", found, err)
	}
}

// mustFail wants a device to answer reads and writes with I/O errors.
func mustFail(t *testing.T, path string) {
	t.Helper()
	f := direct(t, path)
	defer f.Close()
	b := alignedBuffer(blockSize)
	if _, err := f.ReadAt(b, 0); !errors.Is(err, unix.EIO) {
		t.Errorf("%s: read: %v", path, err)
	}
	if _, err := f.WriteAt(b, 0); !errors.Is(err, unix.EIO) {
		t.Errorf("%s: write: %v", path, err)
	}
}

func namesADisk(err error, disks []string) bool {
	for _, d := range disks {
		if strings.Contains(err.Error(), d) {
			return true
		}
	}
	return false
}

// alignedFile lets a file be read as a disk.
type alignedFile struct{ *os.File }
