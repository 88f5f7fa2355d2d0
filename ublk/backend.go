package ublk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Backend is where the requests of a device go: a block device or a file,
// reached through the queue's own ring, or a Handler or AsyncHandler in this
// process. It belongs to whoever opened it: close it after the device has ended
// (Stop or Abandon), not before.
type Backend struct {
	path    string
	file    *os.File // nil for a handler, which is one of the two below
	block   bool     // file is a block device
	handler Handler
	async   AsyncHandler
	limits  Limits
}

// OpenBackend opens a block device (O_DIRECT, so that no second copy lies in
// the page cache) or a regular file (through the page cache, so that any block
// size works) and reads its limits. A device or file that cannot be written is
// opened for reading, and its Limits say ReadOnly.
func OpenBackend(path string) (*Backend, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("ublk: backend %s: %w", path, err)
	}
	flags := os.O_RDWR
	block := false
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		block = true
		flags |= unix.O_DIRECT
	case unix.S_IFREG:
	default:
		return nil, fmt.Errorf("ublk: backend %s is neither a block device nor a regular file", path)
	}
	f, err := os.OpenFile(path, flags, 0)
	readOnly := false
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EPERM) {
		readOnly = true
		f, err = os.OpenFile(path, flags&^os.O_RDWR|os.O_RDONLY, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("ublk: opening backend: %w", err)
	}
	b := &Backend{path: path, file: f, block: block}
	if block {
		b.limits, err = blockLimits(f)
	} else {
		b.limits, err = fileLimits(f, readOnly)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("ublk: backend %s: %w", path, err)
	}
	b.limits.ReadOnly = b.limits.ReadOnly || readOnly
	return b, nil
}

// NewHandlerBackend serves requests by h. Zero fields of limits get defaults:
// 512-byte logical and 4096-byte physical blocks. Discard and write-zeroes are
// advertised when limits give them a size.
func NewHandlerBackend(name string, h Handler, limits Limits) (*Backend, error) {
	if h == nil {
		return nil, errors.New("ublk: backend without a handler")
	}
	limits = limits.withDefaults()
	if err := limits.validate(); err != nil {
		return nil, fmt.Errorf("ublk: backend %s: %w", name, err)
	}
	return &Backend{path: name, handler: h, limits: limits}, nil
}

// zeroCopy tells whether requests can be served without their data ever being in
// this process.
func (b *Backend) zeroCopy() bool {
	if b.file != nil {
		return true
	}
	h, ok := b.handler.(DataFree)
	return ok && h.DataFree()
}

// Path is the path or name that the backend was opened by.
func (b *Backend) Path() string { return b.path }

// Limits are those read when the backend was opened.
func (b *Backend) Limits() Limits { return b.limits }

// AlsoFor makes the limits such that a disk of any of these paths could be the
// backend, too. It is for a backend that will come to lie on them while devices
// are served from it, as a device-mapper device whose table has no disk yet. Call
// it before the backend is used.
func (b *Backend) AlsoFor(disks ...string) error {
	for _, path := range disks {
		l, err := limitsOfPath(path)
		if err != nil {
			return err
		}
		b.limits = b.limits.both(l)
	}
	return b.limits.validate()
}

// AlsoCached has devices ask their clients for flushes, as [Backend.AlsoFor] does
// for a disk with a volatile cache: for one that is not there to be looked at.
func (b *Backend) AlsoCached() { b.limits.VolatileCache = true }

// Size asks for the present size in bytes: a device-mapper table or a file may
// have grown since.
func (b *Backend) Size() (uint64, error) {
	if b.file == nil {
		return b.limits.Size, nil
	}
	if b.block {
		return blockSize(b.file)
	}
	st, err := b.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("ublk: backend %s: %w", b.path, err)
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
