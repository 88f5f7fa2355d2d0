package nvmeof

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Memory is a Handler that keeps the disk in memory. Pages are touched lazily: a
// block that was never written takes none. Requests that overlap are not ordered
// against one another, as on a real disk.
type Memory struct {
	mem []byte
}

// NewMemory reserves size bytes, a multiple of 4096. Close gives them back.
func NewMemory(size uint64) (*Memory, error) {
	if size == 0 || size%4096 != 0 || size > 1<<46 {
		return nil, fmt.Errorf("nvmeof: memory disk of %d bytes: want a multiple of 4096 up to 64 TiB", size)
	}
	mem, err := mapMemory(int(size))
	if err != nil {
		return nil, err
	}
	return &Memory{mem: mem}, nil
}

func mapMemory(n int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("nvmeof: reserving %d bytes: %w", n, err)
	}
	return mem, nil
}

// Size in bytes.
func (m *Memory) Size() uint64 { return uint64(len(m.mem)) }

// Close frees the memory. The namespace that served it must be gone.
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
		clear(part)
	default:
		return unix.EOPNOTSUPP
	}
	return 0
}
