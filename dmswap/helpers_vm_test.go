//go:build vm

package dmswap

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap/dm"
)

// vmDisks are the disks that tests may overwrite.
func vmDisks(t *testing.T) []string {
	t.Helper()
	list := strings.Fields(os.Getenv("SWAPBACK_TEST_DISKS"))
	if len(list) == 0 {
		list = []string{"/dev/nvme0n1", "/dev/nvme1n1"}
	}
	for _, d := range list {
		if _, err := os.Stat(d); err != nil {
			t.Fatalf("the test needs a disk: %v", err)
		}
	}
	return list
}

func testLogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// noDevices fails the test if it leaves device-mapper devices of swapback.
func noDevices(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		c, err := dm.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		list, err := c.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			if strings.HasPrefix(l.UUID, uuidPrefix) {
				t.Errorf("device %s (%s) is left over", l.Name, l.UUID)
				// So that the next test does not suffer.
				table, _ := c.Table(dm.ByUUID(l.UUID), false)
				_ = c.Load(dm.ByUUID(l.UUID), dm.Table{{Start: 0, Length: max(table.Size(), 1), Target: dm.ErrorTarget{}}}, false)
				_ = c.Resume(ctx, dm.ByUUID(l.UUID))
				_ = c.Remove(dm.ByUUID(l.UUID), true)
			}
		}
	})
}

// vmPool makes a pool on the real disks, which is checked and destroyed when
// the test ends. Tests that open it anew put the new one into place.
type vmPool struct {
	*Pool
	disks []string
}

func newVMPool(t *testing.T, extentSize int64) *vmPool {
	t.Helper()
	noDevices(t)
	disks := vmDisks(t)
	p, err := Create(ctx, CreateOptions{Name: "tank", Disks: disks, ExtentSize: extentSize, Force: true, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	v := &vmPool{Pool: p, disks: disks}
	t.Cleanup(func() {
		if v.Pool == nil {
			return
		}
		mustCheck(t, v.Pool)
		if err := v.Destroy(ctx); err != nil {
			t.Error(err)
		}
	})
	return v
}

// reopen closes the pool and opens it again.
func (v *vmPool) reopen(t *testing.T) {
	t.Helper()
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	v.open(t)
}

func (v *vmPool) open(t *testing.T) {
	t.Helper()
	p, err := Open(ctx, OpenOptions{Disks: v.disks, Logger: testLogger(t)})
	if err != nil {
		v.Pool = nil
		t.Fatal(err)
	}
	v.Pool = p
}

func (v *vmPool) volume(t *testing.T, name string) VolumeInfo {
	t.Helper()
	info, err := v.Volume(name)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// direct opens a device past the page cache.
func direct(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// block makes a block whose content says which one it is: a tag, a number and
// a sequence, all over.
func block(tag byte, number, seq uint64) []byte {
	b := alignedBuffer(blockSize)
	for at := 0; at < len(b); at += 32 {
		b[at] = tag
		binary.LittleEndian.PutUint64(b[at+8:], number)
		binary.LittleEndian.PutUint64(b[at+16:], seq)
		binary.LittleEndian.PutUint64(b[at+24:], uint64(at))
	}
	return b
}

// readStamp reads a block and returns what it says. A block that is torn, or
// was never written by block, has ok false.
func readStamp(f *os.File, number uint64) (tag byte, num, seq uint64, ok bool, err error) {
	b := alignedBuffer(blockSize)
	if _, err := f.ReadAt(b, int64(number)*blockSize); err != nil {
		return 0, 0, 0, false, err
	}
	tag, num, seq = b[0], binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	return tag, num, seq, bytes.Equal(b, block(tag, num, seq)), nil
}

// fill writes tagged blocks over a device, in larger writes.
func fill(t *testing.T, f *os.File, tag byte, size int64) {
	t.Helper()
	const step = 64
	for at := int64(0); at < size; at += step * blockSize {
		n := min(step, (size-at)/blockSize)
		b := alignedBuffer(int(n * blockSize))
		for i := range n {
			copy(b[i*blockSize:], block(tag, uint64(at/blockSize+i), 0))
		}
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
}

// verify reads a device and wants the tag everywhere.
func verify(t *testing.T, f *os.File, tag byte, size int64) {
	t.Helper()
	b := alignedBuffer(64 * blockSize)
	for at := int64(0); at < size; at += int64(len(b)) {
		n := min(int64(len(b)), size-at)
		if _, err := f.ReadAt(b[:n], at); err != nil {
			t.Fatal(err)
		}
		for i := int64(0); i < n; i += blockSize {
			if want := block(tag, uint64((at+i)/blockSize), 0); !bytes.Equal(b[i:i+blockSize], want) {
				t.Fatalf("%s: block %d is not of %c: it begins with % x", f.Name(), (at+i)/blockSize, tag, b[i:i+32])
			}
		}
	}
}

// tool runs a tool of the machine.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// loop makes a block device of a sparse file.
func loop(t *testing.T, name string, size int64, flags ...string) string {
	t.Helper()
	path := t.TempDir() + "/" + name
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return attachLoop(t, path, flags...)
}

func attachLoop(t *testing.T, path string, flags ...string) string {
	t.Helper()
	dev := tool(t, "losetup", append(append([]string{"--show", "-f"}, flags...), path)...)
	t.Cleanup(func() { tool(t, "losetup", "-d", dev) })
	return dev
}
