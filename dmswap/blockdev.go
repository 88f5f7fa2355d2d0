package dmswap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/dmswap/probe"
)

// blockDevice is an open block device. Reads and writes go past the page cache.
type blockDevice struct {
	f        *os.File
	path     string
	number   dm.Device
	size     int64 // bytes
	block    int   // logical block size in bytes
	readOnly bool
	carries  []probe.Found // what a new member carried before
}

// openBlockDevice opens path for reading, or for writing as well. Extra flags
// are those of open(2).
func openBlockDevice(path string, write bool, extra int) (*blockDevice, error) {
	// Looked at before it is opened: opening a FIFO would wait.
	if err := mustBeBlockDevice(path); err != nil {
		return nil, err
	}
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(path, flags|unix.O_DIRECT|unix.O_CLOEXEC|extra, 0)
	if err != nil {
		return nil, err
	}
	d := &blockDevice{f: f, path: path}
	if err := d.look(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

func mustBeBlockDevice(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return errf(ErrNotFound, "look for the right name with lsblk", "there is no disk %s", path)
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeDevice == 0 || info.Mode()&os.ModeCharDevice != 0 {
		return errf(ErrInvalid, "name a disk or partition; a file becomes one with losetup", "%s is not a block device", path)
	}
	return nil
}

func (d *blockDevice) look() error {
	fd := int(d.f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	d.number = dm.DeviceOf(st.Rdev)
	var size uint64
	if err := d.ioctl("BLKGETSIZE64", unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		return err
	}
	d.size = int64(size)
	var block, ro int32
	if err := d.ioctl("BLKSSZGET", unix.BLKSSZGET, unsafe.Pointer(&block)); err != nil {
		return err
	}
	if err := d.ioctl("BLKROGET", unix.BLKROGET, unsafe.Pointer(&ro)); err != nil {
		return err
	}
	d.block, d.readOnly = int(block), ro != 0
	return nil
}

func (d *blockDevice) ioctl(name string, cmd uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), uintptr(cmd), uintptr(arg))
		runtime.KeepAlive(d)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return fmt.Errorf("%s: %w", name, errno)
	}
}

func (d *blockDevice) ReadAt(p []byte, off int64) (int, error)  { return d.f.ReadAt(p, off) }
func (d *blockDevice) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }
func (d *blockDevice) Close() error                             { return d.f.Close() }

// WriteDurable writes past the disk's cache, in one call: O_DIRECT and RWF_DSYNC
// make a write with FUA (dio_bio_write_op in the kernel's block/fops.c). A flush
// of the disk comes after it (blkdev_write_iter), and swaps need that one: a volume
// that is flushed after a swap lies on other disks by then, and what was written
// to it before is in the caches of the old ones (TestFlushAfterSwap in soak/power).
func (d *blockDevice) WriteDurable(p []byte, off int64) error {
	for {
		n, err := unix.Pwritev2(int(d.f.Fd()), [][]byte{p}, off, unix.RWF_DSYNC)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && n < len(p):
			return fmt.Errorf("%d of %d bytes were written at %d: %w", n, len(p), off, io.ErrShortWrite)
		}
		return err
	}
}

// Sync has the disk write its cache back.
func (d *blockDevice) Sync() error {
	for {
		if err := unix.Fdatasync(int(d.f.Fd())); err != unix.EINTR {
			return err
		}
	}
}

// Zero writes zeroes (BLKZEROOUT, linux/fs.h: the disk may do it by itself,
// but the blocks stay allocated and read as zeroes). It works in pieces, so
// that ctx can end it.
func (d *blockDevice) Zero(ctx context.Context, off, length int64) error {
	const step = 64 << 20
	for length > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		arg := [2]uint64{uint64(off), uint64(min(length, step))}
		if err := d.ioctl("BLKZEROOUT", unix.BLKZEROOUT, unsafe.Pointer(&arg)); err != nil {
			return fmt.Errorf("zeroing %s at %d: %w", d.path, off, err)
		}
		off += int64(arg[1])
		length -= int64(arg[1])
	}
	return nil
}

// lock takes the exclusive lock that keeps a second process from opening the
// pool. udev locks a disk for the moment in which it probes it, so a lock that
// is taken is waited for shortly.
func (d *blockDevice) lock(ctx context.Context) error {
	const patience = 2 * time.Second
	deadline := time.Now().Add(patience)
	for {
		err := unix.Flock(int(d.f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("locking %s: %w", d.path, err)
		case time.Now().After(deadline):
			return errf(ErrBusy, "it may be a member of a pool that is open here, or in another swapbackd", "disk %s is locked by another process", d.path)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the lock of %s: %w", d.path, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// dropCache drops the page cache of a block device. Somebody may have read it
// through the cache before its table changed.
func dropCache(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKFLSBUF, 0)
	if errno != 0 {
		return fmt.Errorf("BLKFLSBUF on %s: %w", path, errno)
	}
	return nil
}
