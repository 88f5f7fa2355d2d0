package nvmeof

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Op is what a Request asks for.
type Op uint8

// Operations.
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpDiscard
	OpWriteZeroes
)

// Request is one request as a Handler sees it. It and its Data are only valid
// until Handle returns.
type Request struct {
	Op      Op
	FUA     bool   // the write must be durable before Handle returns
	NoUnmap bool   // write-zeroes that must keep the space allocated
	Offset  uint64 // bytes
	Length  uint64 // bytes; 0 for a flush
	Data    []byte // read: fill it; write: its content; otherwise nil
}

// Handler serves requests in this process, on the goroutine of the queue that
// they came in on: while it works the other commands of that queue wait. Handle is
// called from several queues at once. It returns 0 when the whole request is
// done, else an errno; see statusOf for what hosts get to see. A panic is
// answered with Internal Error.
type Handler interface {
	Handle(r *Request) unix.Errno
}

// Limits describe what a backend can take. All sizes are bytes.
type Limits struct {
	Size              uint64
	LogicalBlockSize  uint32 // of the namespace: 512 or 4096 (512)
	PhysicalBlockSize uint32 // smallest unit written without read-modify-write (4096)
	OptimalIOSize     uint32 // 0: none
	VolatileCache     bool   // a write is durable only after a flush (or with FUA)
	ReadOnly          bool
	Discard           bool // it can deallocate
}

func (l Limits) withDefaults() Limits {
	if l.LogicalBlockSize == 0 {
		l.LogicalBlockSize = 512
	}
	if l.PhysicalBlockSize == 0 {
		l.PhysicalBlockSize = max(4096, l.LogicalBlockSize)
	}
	return l
}

func (l Limits) validate() error {
	pow2 := func(v uint32) bool { return v != 0 && v&(v-1) == 0 }
	switch {
	case l.LogicalBlockSize != 512 && l.LogicalBlockSize != 4096:
		return fmt.Errorf("blocks of %d bytes: want 512 or 4096", l.LogicalBlockSize)
	case !pow2(l.PhysicalBlockSize) || l.PhysicalBlockSize < l.LogicalBlockSize:
		return fmt.Errorf("physical blocks of %d bytes: want a power of two, not below the logical %d", l.PhysicalBlockSize, l.LogicalBlockSize)
	case l.Size == 0 || l.Size%uint64(l.LogicalBlockSize) != 0:
		return fmt.Errorf("size %d is not a positive multiple of the block size %d", l.Size, l.LogicalBlockSize)
	}
	return nil
}

// Backend is where the requests of a namespace go: a block device or a file, or
// a Handler in this process. It belongs to whoever made it: close it after the
// namespace is removed, not before.
type Backend struct {
	name    string
	handler Handler
	file    *os.File // nil for a Handler of somebody else
	block   bool     // file is a block device
	limits  Limits
}

// NewHandlerBackend serves requests by h; name is for messages. Zero fields of
// the limits get defaults.
func NewHandlerBackend(name string, h Handler, limits Limits) (*Backend, error) {
	if h == nil {
		return nil, errors.New("nvmeof: backend without a handler")
	}
	limits = limits.withDefaults()
	if err := limits.validate(); err != nil {
		return nil, fmt.Errorf("nvmeof: backend %s: %w", name, err)
	}
	return &Backend{name: name, handler: h, limits: limits}, nil
}

// OpenBackend opens a block device (O_DIRECT, so that no second copy lies in the
// page cache) or a regular file. What the limits have that is not 0 or false is
// taken as it is; of the rest the size and the logical block size are asked for,
// and a device or file that cannot be written is ReadOnly.
func OpenBackend(path string, limits Limits) (*Backend, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("nvmeof: backend %s: %w", path, err)
	}
	flags, block := os.O_RDWR, false
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		flags |= unix.O_DIRECT
		block = true
	case unix.S_IFREG:
	default:
		return nil, fmt.Errorf("nvmeof: backend %s is neither a block device nor a regular file", path)
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EPERM) {
		limits.ReadOnly = true
		f, err = os.OpenFile(path, flags&^os.O_RDWR|os.O_RDONLY, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("nvmeof: opening backend: %w", err)
	}
	b := &Backend{name: path, file: f, block: block, handler: &fileHandler{f: f, block: block}, limits: limits}
	if err := b.ask(); err != nil {
		f.Close()
		return nil, fmt.Errorf("nvmeof: backend %s: %w", path, err)
	}
	return b, nil
}

// ask completes the limits from the file.
func (b *Backend) ask() error {
	size, err := b.Size()
	if err != nil {
		return err
	}
	l := &b.limits
	if l.LogicalBlockSize == 0 && b.block {
		n, err := unix.IoctlGetInt(int(b.file.Fd()), unix.BLKSSZGET)
		if err != nil {
			return fmt.Errorf("asking for its block size: %w", err)
		}
		l.LogicalBlockSize = uint32(n)
	}
	if !b.block {
		l.VolatileCache = true
	}
	*l = l.withDefaults()
	if l.Size == 0 {
		l.Size = size &^ uint64(l.LogicalBlockSize-1)
	}
	return l.validate()
}

// Name is the path or name that the backend was made with.
func (b *Backend) Name() string { return b.name }

// Limits are those of the time when the backend was made.
func (b *Backend) Limits() Limits { return b.limits }

// Size asks for the present size in bytes: a device-mapper table or a file may
// have grown since.
func (b *Backend) Size() (uint64, error) {
	switch {
	case b.file == nil:
		return b.limits.Size, nil
	case b.block:
		return blockSize(b.file)
	}
	st, err := b.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("nvmeof: backend %s: %w", b.name, err)
	}
	return uint64(st.Size()), nil
}

// Close closes the file. A Handler is its owner's to close.
func (b *Backend) Close() error {
	if b.file == nil {
		return nil
	}
	return b.file.Close()
}
