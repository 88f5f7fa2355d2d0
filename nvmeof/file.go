package nvmeof

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fileHandler serves a file or block device with system calls that wait. Queues
// with a ring use it only for what is rare.
type fileHandler struct {
	f     *os.File
	block bool
}

// Handle carries out one request.
func (h *fileHandler) Handle(r *Request) unix.Errno {
	fd := int(h.f.Fd())
	switch r.Op {
	case OpRead:
		return whole(r, func(b []byte, off int64) (int, error) { return unix.Pread(fd, b, off) })
	case OpWrite:
		if e := whole(r, func(b []byte, off int64) (int, error) { return unix.Pwrite(fd, b, off) }); e != 0 || !r.FUA {
			return e
		}
		return errnoOf(unix.Fdatasync(fd))
	case OpFlush:
		return errnoOf(unix.Fdatasync(fd))
	case OpDiscard:
		if h.block {
			return blockDiscard(fd, r.Offset, r.Length)
		}
		return errnoOf(unix.Fallocate(fd, punchHole, int64(r.Offset), int64(r.Length)))
	case OpWriteZeroes:
		e := unix.EOPNOTSUPP
		for i := uint8(0); e == unix.EOPNOTSUPP; i++ {
			mode, ok := zeroMode(h.block, r.NoUnmap, i)
			if !ok {
				break
			}
			e = errnoOf(unix.Fallocate(fd, mode, int64(r.Offset), int64(r.Length)))
		}
		return e
	}
	return unix.EOPNOTSUPP
}

// whole repeats a transfer until all of it is done. No progress means that the
// file has become shorter.
func whole(r *Request, do func([]byte, int64) (int, error)) unix.Errno {
	for done := 0; done < len(r.Data); {
		n, err := do(r.Data[done:], int64(r.Offset)+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return errnoOf(err)
		case n == 0:
			return unix.EIO
		}
		done += max(n, 0)
	}
	return 0
}

func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if e, ok := err.(unix.Errno); ok {
		return e
	}
	return unix.EIO
}

const (
	punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zeroRange = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
)

// zeroMode gives the i-th way to write zeroes, best first. On a block device
// PUNCH_HOLE may unmap, and is refused where only writing zeroes would do;
// ZERO_RANGE keeps the space, and falls back to writing. On a file it depends on
// the filesystem which of them exist.
func zeroMode(block, noUnmap bool, i uint8) (mode uint32, ok bool) {
	switch {
	case i == 0 && noUnmap:
		return zeroRange, true
	case i == 0:
		return punchHole, true
	case i == 1 && !noUnmap:
		return zeroRange, true
	case i == 1 && !block:
		return punchHole, true
	}
	return 0, false
}

func blockDiscard(fd int, off, n uint64) unix.Errno {
	span := [2]uint64{off, n}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	return e
}

func blockSize(f *os.File) (uint64, error) {
	var n uint64
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return 0, fmt.Errorf("BLKGETSIZE64 of %s: %w", f.Name(), e)
	}
	return n, nil
}
