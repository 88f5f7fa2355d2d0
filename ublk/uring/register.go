package uring

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync/atomic"
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

// RegisterSparseBuffers makes a table of n empty slots (kernel 5.19), which a
// driver may fill with buffers of its own requests. An operation that names such
// a slot gives the offset in the buffer in place of an address.
func (r *Ring) RegisterSparseBuffers(n int) error {
	reg := rsrcRegister{Nr: uint32(n), Flags: rsrcSparse}
	return r.register("sparse buffers", registerBuffers2, unsafe.Pointer(&reg), int(unsafe.Sizeof(reg)))
}

// RegisterSelf makes the ring known to the calling thread, so that Enter need
// not look its descriptor up each time (kernel 5.18). From then on no other
// thread may enter it. The thread refers to the ring until it ends: a Close that
// comes before is only complete then.
func (r *Ring) RegisterSelf() error {
	up := rsrcUpdate{Offset: ^uint32(0), Data: uint64(r.fd)}
	if err := r.register("rings", registerRingFDs, unsafe.Pointer(&up), 1); err != nil {
		return err
	}
	r.enterFD, r.enterFlags = uintptr(up.Offset), enterRegisteredRing
	return nil
}

// BufferRing is a group of buffers that the kernel takes one after the other for
// operations with SQEBufferSelect (kernel 5.19). It belongs to the goroutine of
// its Ring.
type BufferRing struct {
	mem  []byte // the entries, then the buffers
	bufs []buf
	tail *uint16 // shared with the kernel, which reads it
	size int     // bytes of one buffer
	next uint16
}

// NewBufferRing registers n buffers (a power of two) of size bytes as a group,
// all of them free to take.
func (r *Ring) NewBufferRing(group uint16, n, size int) (*BufferRing, error) {
	head := n * int(unsafe.Sizeof(buf{}))
	mem, err := unix.Mmap(-1, 0, head+n*size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("uring: mapping %d buffers of %d bytes: %w", n, size, err)
	}
	b := &BufferRing{mem: mem, bufs: unsafe.Slice((*buf)(unsafe.Pointer(&mem[0])), n), size: size}
	b.tail = &b.bufs[0].Resv
	reg := bufReg{RingAddr: uint64(uintptr(unsafe.Pointer(&mem[0]))), RingEntries: uint32(n), BGID: group}
	if err := r.register("buffer rings", registerPbufRing, unsafe.Pointer(&reg), 1); err != nil {
		b.Close()
		return nil, err
	}
	for i := range n {
		b.Put(uint16(i))
	}
	return b, nil
}

// Get is the content of buffer id, n bytes long, as a completion told them.
func (b *BufferRing) Get(id uint16, n int) []byte {
	start := len(b.bufs)*int(unsafe.Sizeof(buf{})) + int(id)*b.size
	return b.mem[start : start+n : start+b.size]
}

// Put gives buffer id back to the kernel.
func (b *BufferRing) Put(id uint16) {
	e := &b.bufs[int(b.next)&(len(b.bufs)-1)]
	e.Addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b.Get(id, b.size)))))
	e.Len = uint32(b.size)
	e.BID = id
	b.next++
	storeRelease16(b.tail, b.next)
}

// storeRelease16 publishes the tail. sync/atomic has no 16-bit store; the word
// that holds it also holds the first entry's buffer number, which only this side
// writes.
func storeRelease16(tail *uint16, v uint16) {
	word := (*uint32)(unsafe.Add(unsafe.Pointer(tail), -2))
	if bigEndian {
		atomic.StoreUint32(word, *word&^0xffff|uint32(v))
		return
	}
	atomic.StoreUint32(word, *word&0xffff|uint32(v)<<16)
}

var bigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// Close unmaps the buffers. The ring must be closed, and nothing in flight.
func (b *BufferRing) Close() error { return unix.Munmap(b.mem) }
