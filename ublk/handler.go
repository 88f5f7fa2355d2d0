package ublk

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Op is what a request asks for: the UBLK_IO_OP_ values of ublk_cmd.h.
type Op uint8

// The operations that a server of an ordinary block device meets.
const (
	OpRead        Op = 0
	OpWrite       Op = 1
	OpFlush       Op = 2
	OpDiscard     Op = 3
	OpWriteZeroes Op = 5

	opCount = 6 // for arrays indexed by Op
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpDiscard:
		return "discard"
	case OpWriteZeroes:
		return "write-zeroes"
	}
	return fmt.Sprintf("op%d", uint8(o))
}

// Request is one block request as a Handler sees it. It and its Data are only
// valid until Handle returns.
type Request struct {
	Op      Op
	FUA     bool   // the write must be durable before Handle returns
	NoUnmap bool   // write-zeroes that must keep the space allocated
	Queue   int    // which queue the request came in on
	Offset  uint64 // bytes
	Length  uint64 // bytes; 0 for a flush
	Data    []byte // read: fill it; write: its content; otherwise nil
}

// Handler serves requests in this process, synchronously, on the queue's
// thread: while it works the other requests of that queue wait. Handle is
// called from several queues at once. It returns 0 when the whole request is
// done, else an errno; see the package comment for which of them a client gets
// to see. A panic is answered with EIO.
type Handler interface {
	Handle(r *Request) unix.Errno
}

// DataFree is a Handler that can do without Request.Data. When it says so its
// requests take the zero-copy paths, and Data is nil.
type DataFree interface {
	Handler
	DataFree() bool
}

// Null is a Handler that forgets writes and leaves what it reads unset. It
// shows what the ublk path itself costs.
type Null struct{}

// Handle says yes to everything.
func (Null) Handle(*Request) unix.Errno { return 0 }

// DataFree says that Null never looks at data.
func (Null) DataFree() bool { return true }

// Memory is a Handler that keeps the disk in memory. Pages are touched lazily:
// a block that was never written takes no memory. Requests that overlap are not
// ordered against one another, as on a real disk.
type Memory struct {
	mem []byte
}

// NewMemory reserves size bytes, a multiple of 4096. Close gives them back.
func NewMemory(size uint64) (*Memory, error) {
	if size == 0 || size%4096 != 0 || size > 1<<46 {
		return nil, fmt.Errorf("ublk: memory disk of %d bytes: want a multiple of 4096 up to 64 TiB", size)
	}
	mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("ublk: reserving %d bytes for a memory disk: %w", size, err)
	}
	return &Memory{mem: mem}, nil
}

// Size in bytes.
func (m *Memory) Size() uint64 { return uint64(len(m.mem)) }

// Close frees the memory. The device that served it must have ended.
func (m *Memory) Close() error {
	mem := m.mem
	m.mem = nil
	if mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}

// Handle carries out one request.
func (m *Memory) Handle(r *Request) unix.Errno {
	end := r.Offset + r.Length
	if end < r.Offset || end > uint64(len(m.mem)) {
		return unix.EIO
	}
	part := m.mem[r.Offset:end]
	switch r.Op {
	case OpRead:
		copy(r.Data, part)
	case OpWrite:
		copy(part, r.Data)
	case OpFlush:
	case OpDiscard, OpWriteZeroes:
		return m.zero(part)
	default:
		return unix.EOPNOTSUPP
	}
	return 0
}

// zero gives whole pages back to the kernel, which then reads them as zeroes
// (private anonymous memory), and clears the ragged ends.
func (m *Memory) zero(part []byte) unix.Errno {
	const page = 4096
	if len(part) == 0 {
		return 0
	}
	start := uintptr(unsafe.Pointer(&part[0]))
	head := int((page - start%page) % page)
	if head >= len(part) {
		clear(part)
		return 0
	}
	whole := (len(part) - head) / page * page
	clear(part[:head])
	clear(part[head+whole:])
	if whole == 0 {
		return 0
	}
	if err := unix.Madvise(part[head:head+whole], unix.MADV_DONTNEED); err != nil {
		clear(part[head : head+whole])
	}
	return 0
}
