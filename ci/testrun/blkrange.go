package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockRange calls one of the block ioctls that take a range of bytes
// (linux/fs.h: BLKDISCARD, BLKZEROOUT).
func blockRange(f *os.File, request uint, start, length uint64) error {
	r := [2]uint64{start, length}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(&r)))
	if errno != 0 {
		return errno
	}
	return nil
}
