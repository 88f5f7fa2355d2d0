// Package pagecache empties the page cache of block devices before their content
// changes below them, and proves afterwards that nothing of the old content is left in it.
package pagecache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// probeSize is the block that is compared; no logical block is larger on
	// the disks that a pool takes.
	probeSize = 4096
	// probes is the number of places that are compared, spread evenly.
	probes = 8
	// probeTries bounds the repetitions when a raw user writes meanwhile.
	probeTries = 3
)

// flushBuffers writes back and drops the cached pages of a block device
// (BLKFLSBUF, linux/fs.h).
func flushBuffers(f *os.File) error {
	if _, err := unix.IoctlRetInt(int(f.Fd()), unix.BLKFLSBUF); err != nil {
		return fmt.Errorf("BLKFLSBUF on %s: %w", f.Name(), err)
	}
	return nil
}

// openFlushed opens a block device and drops its cached pages.
func openFlushed(device string) (*os.File, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	if err := flushBuffers(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// WriteBack writes back and drops the cached pages of block devices. lost has an
// error for each of which some could not be written, which are gone then. After
// another error there may be pages left. It waits for the devices even when nobody
// has written: fsync always asks for a flush.
//
// The process that serves the devices must not do that itself: killed meanwhile, it
// would wait for itself.
func WriteBack(_ context.Context, devices []string) (lost []error, err error) {
	lost = make([]error, len(devices))
	for i, d := range devices {
		f, err := openFlushed(d)
		if err != nil {
			return nil, err
		}
		lost[i] = f.Sync() // BLKFLSBUF tells of no errors
		f.Close()
	}
	return lost, nil
}

// CheckCoherent drops the cached pages of a block device and compares blocks of it
// read through the page cache with the same blocks read past it. A block that
// neither read gets, because its disk is dead or bad there, is no difference.
//
// The process that serves the device must not do that itself, see [WriteBack].
func CheckCoherent(ctx context.Context, device string) error {
	f, err := openFlushed(device)
	if err != nil {
		return err
	}
	defer f.Close()
	direct, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer direct.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("size of %s: %w", f.Name(), err)
	}
	cached, raw := make([]byte, probeSize), alignedBlock(probeSize)
	for i := range int64(probes) {
		// Whole blocks from the first to the last, both included.
		off := (size/probeSize - 1) * i / (probes - 1) * probeSize
		if err := compareBlock(ctx, f, direct, off, cached, raw); err != nil {
			return err
		}
	}
	return nil
}

// CheckAllCoherent is [CheckCoherent] of several devices; it tells of all that
// are not.
func CheckAllCoherent(ctx context.Context, devices []string) error {
	var errs []error
	for _, d := range devices {
		errs = append(errs, CheckCoherent(ctx, d))
	}
	return errors.Join(errs...)
}

func compareBlock(ctx context.Context, f, direct *os.File, off int64, cached, raw []byte) error {
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, errCached := f.ReadAt(cached, off)
		_, errRaw := direct.ReadAt(raw, off)
		switch same := bytes.Equal(cached, raw); {
		case unreadable(errCached) && unreadable(errRaw):
			return nil // the page cache has no more than the disk
		case errCached == nil && errRaw == nil && same:
			return nil
		case try < probeTries:
		case errCached != nil:
			return fmt.Errorf("cached read of %s at byte %d: %w", f.Name(), off, errCached)
		case errRaw != nil:
			return fmt.Errorf("direct read of %s at byte %d: %w", f.Name(), off, errRaw)
		default:
			return fmt.Errorf("%s at byte %d: page cache and disk differ", f.Name(), off)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// unreadable tells the answer of a disk from that of a wrong question.
func unreadable(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno) && errno != unix.EINVAL
}

// alignedBlock returns n bytes that begin at a multiple of n, as O_DIRECT asks.
func alignedBlock(n int) []byte {
	b := make([]byte, 2*n)
	skip := n - int(uintptr(unsafe.Pointer(&b[0]))%uintptr(n))
	return b[skip : skip+n : skip+n]
}
