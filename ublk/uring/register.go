package uring

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (r *Ring) register(what string, op uintptr, arg unsafe.Pointer, n int) error {
	_, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), op, uintptr(arg), uintptr(n), 0, 0)
	if e != 0 {
		return fmt.Errorf("uring: registering %d %s: %w", n, what, e)
	}
	return nil
}

// RegisterFiles makes the descriptors known to the ring; an SQE with
// SQEFixedFile names them by index. -1 leaves a slot empty. The ring holds its
// own reference to each file until it is closed.
func (r *Ring) RegisterFiles(fds []int32) error {
	return r.register("files", registerFiles, unsafe.Pointer(unsafe.SliceData(fds)), len(fds))
}

// UpdateFile replaces the file in one slot; -1 empties it. Operations that
// already took the old file keep it until they complete.
func (r *Ring) UpdateFile(slot int, fd int32) error {
	fds := []int32{fd}
	u := filesUpdate{Offset: uint32(slot), FDs: uint64(uintptr(unsafe.Pointer(&fds[0])))}
	var pin runtime.Pinner
	pin.Pin(&fds[0])
	defer pin.Unpin()
	return r.register("files", registerFilesUpdate, unsafe.Pointer(&u), 1)
}

// RegisterBuffers pins the buffers in memory and makes them known to the ring;
// ReadFixed and WriteFixed name them by index. They must not be heap memory:
// the kernel keeps the pages until the ring is gone.
func (r *Ring) RegisterBuffers(bufs [][]byte) error {
	iov := make([]unix.Iovec, len(bufs))
	for i, b := range bufs {
		iov[i].Base = unsafe.SliceData(b)
		iov[i].SetLen(len(b))
	}
	var pin runtime.Pinner
	if len(iov) > 0 {
		pin.Pin(&iov[0])
		defer pin.Unpin()
	}
	return r.register("buffers", registerBuffers, unsafe.Pointer(unsafe.SliceData(iov)), len(iov))
}
