// Package device opens what is backed up and what is restored onto: block
// devices and files, past the page cache where that can be.
package device

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Errors for errors.Is.
var (
	// ErrInUse is a block device that somebody holds: a mount, a device on top
	// of it, or another exclusive opener.
	ErrInUse = errors.New("device is in use")
	// ErrKind is neither a block device nor a regular file.
	ErrKind = errors.New("neither a block device nor a regular file")
)

// pageSize aligns memory and offsets for O_DIRECT on files. Block devices have
// logical blocks of at most this.
const pageSize = 4096

// Buffer returns n bytes of memory that O_DIRECT takes. The collector frees it.
func Buffer(n int) []byte {
	b := make([]byte, n+pageSize)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (pageSize - 1)
	return b[skip:][:n:n]
}

// File is an open block device or regular file. ReadAt, WriteAt and Zero may be
// called concurrently on ranges that do not overlap.
type File struct {
	path     string
	size     int64
	block    bool
	source   bool // a file that is read only
	align    int64
	created  bool
	noPunch  atomic.Bool // PUNCH_HOLE was refused once
	buffered *os.File
	direct   *os.File // nil when the file system has no O_DIRECT
}

// OpenSource opens a device or file for reading. A device may be in use.
func OpenSource(path string) (*File, error) {
	f, err := open(path, os.O_RDONLY)
	if err == nil {
		// A device's own cache is nobody's but ours: it is as good as empty.
		f.source = !f.block
	}
	return f, err
}

// TargetOptions says how to open a target.
type TargetOptions struct {
	// Held says that the caller has the block device open exclusively already.
	Held bool
	// Create makes a new regular file of Size bytes, all of it a hole. What is
	// there already gives fs.ErrExist.
	Create bool
	Size   int64
}

// OpenTarget opens a device or file for reading and writing. A block device is
// opened exclusively, which fails with ErrInUse while it is mounted or otherwise
// held.
func OpenTarget(path string, o TargetOptions) (*File, error) {
	flag := os.O_RDWR
	if !o.Held {
		flag |= os.O_EXCL
	}
	if !o.Create {
		return open(path, flag)
	}
	if err := create(path, o.Size); err != nil {
		return nil, err
	}
	f, err := open(path, flag)
	if err != nil {
		os.Remove(path)
		return nil, err
	}
	f.created = true
	return f, nil
}

func create(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	f.Close()
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("make a file of %d bytes: %w", size, err)
	}
	return nil
}

func open(path string, flag int) (*File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	block := st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
	if !block {
		if !st.Mode().IsRegular() {
			return nil, fmt.Errorf("open %s: %w", path, ErrKind)
		}
		flag &^= os.O_EXCL
	}
	f := &File{path: path, block: block, align: pageSize}
	if f.buffered, err = os.OpenFile(path, flag, 0); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: %w", ErrInUse, err)
		}
		return nil, err
	}
	if err := f.inspect(); err != nil {
		f.buffered.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	// The claim of O_EXCL is the first descriptor's; the second is the same
	// device under it. The path may name another device by now.
	f.direct, err = os.OpenFile(path, flag&^os.O_EXCL|unix.O_DIRECT, 0)
	if err == nil {
		err = f.sameFile()
	} else if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // no O_DIRECT here
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// inspect looks at the open descriptor what the path turned out to be.
func (f *File) inspect() (err error) {
	st, err := f.buffered.Stat()
	if err != nil {
		return err
	}
	if block := st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice; block != f.block || !block && !st.Mode().IsRegular() {
		return ErrKind
	}
	if f.size, err = f.buffered.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	if f.block {
		n, err := unix.IoctlGetInt(int(f.buffered.Fd()), unix.BLKSSZGET)
		if err != nil {
			return fmt.Errorf("get logical block size: %w", err)
		}
		f.align = int64(n)
	}
	return nil
}

func (f *File) sameFile() error {
	a, err := f.buffered.Stat()
	if err != nil {
		return err
	}
	b, err := f.direct.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(a, b) {
		return fmt.Errorf("open %s: it changed while it was opened", f.path)
	}
	return nil
}

// Path is the path it was opened by.
func (f *File) Path() string { return f.path }

// Size is its size in bytes at the time of opening.
func (f *File) Size() int64 { return f.size }

// Direct tells whether aligned transfers go past the page cache.
func (f *File) Direct() bool { return f.direct != nil }

// pick returns the descriptor for a transfer: O_DIRECT when memory, offset and
// length allow it.
func (f *File) pick(p []byte, off int64) *os.File {
	mem := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	if f.direct == nil || off%f.align != 0 || int64(len(p))%f.align != 0 || mem%uintptr(f.align) != 0 {
		return f.buffered
	}
	return f.direct
}

// ReadAt fills p or fails. What of a source file is in the page cache comes from
// there: nobody has to ask the disk for it. A target is read past the cache.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	file := f.pick(p, off)
	if file == f.direct && f.source && f.cached(off, int64(len(p))) {
		file = f.buffered
	}
	n, err := file.ReadAt(p, off)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// cached tells whether all of a range is in the page cache: cachestat(2), since
// Linux 6.5. Without it nothing is.
func (f *File) cached(off, n int64) bool {
	var st unix.Cachestat_t
	err := unix.Cachestat(uint(f.buffered.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &st, 0)
	return err == nil && int64(st.Cache) >= (n+pageSize-1)/pageSize
}

// WriteAt writes p or fails. It does not write beyond Size.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > f.size-int64(len(p)) {
		return 0, fmt.Errorf("write %d bytes at %d of %s: it ends at %d", len(p), off, f.path, f.size)
	}
	if f.created {
		// Writes past the page cache into holes go one after the other on ext4;
		// into space that is there they go side by side. Where this can't be
		// done, or there is no space, the write itself says so.
		_ = unix.Fallocate(int(f.buffered.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, int64(len(p)))
	}
	return f.pick(p, off).WriteAt(p, off)
}

// Zero makes n bytes at off read as zeroes, and gives their space back where that
// can be done: by a hole in files, and on block devices by a write of zeroes that
// may unmap. Where the device or file system has neither, zeroes are written. It
// does not go beyond Size. A long run should be zeroed in pieces, as nothing ends
// one early.
//
// A plain discard is never used: afterwards a device may answer with zeroes, with
// old data, or with either. fallocate(2) with PUNCH_HOLE is what asks a block
// device to unmap and promises zeroes (block/fops.c, blkdev_fallocate: REQ_OP_WRITE_ZEROES
// without NOUNMAP, or an error). BLKZEROOUT promises them too, but never unmaps.
// Both drop what the page cache has of the range.
func (f *File) Zero(off, n int64) error {
	if off < 0 || n < 0 || off > f.size-n {
		return fmt.Errorf("zero %d bytes at %d of %s: it ends at %d", n, off, f.path, f.size)
	}
	if n == 0 {
		return nil
	}
	aligned := off%f.align == 0 && n%f.align == 0
	err := error(unix.EOPNOTSUPP)
	if !f.noPunch.Load() && (aligned || !f.block) {
		err = f.punch(off, n)
		f.noPunch.Store(unsupported(err))
	}
	if unsupported(err) && f.block && aligned {
		err = zeroOut(f.buffered, off, n)
	}
	switch {
	case err == nil:
		return nil
	case unsupported(err):
		return f.writeZeroes(off, n)
	}
	return fmt.Errorf("zero %d bytes at %d of %s: %w", n, off, f.path, err)
}

func (f *File) punch(off, n int64) error {
	for {
		err := unix.Fallocate(int(f.buffered.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err != unix.EINTR {
			return err
		}
	}
}

// unsupported tells whether an error means that there is no such operation here.
func unsupported(err error) bool {
	switch err {
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.ENOTTY, unix.EINVAL:
		return true
	}
	return false
}

func (f *File) writeZeroes(off, n int64) error {
	zeroes := Buffer(int(min(n, 1<<20)))
	for n > 0 {
		p := zeroes[:min(n, int64(len(zeroes)))]
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// zeroOut is ioctl BLKZEROOUT of linux/fs.h, which takes {start, length}. The
// kernel also drops what its page cache has of the range.
func zeroOut(f *os.File, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&arg)))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// Hole tells whether n bytes at off of a file are a hole, which reads as zeroes.
// It is false when that can't be told, as on block devices.
func (f *File) Hole(off, n int64) bool {
	if f.block {
		return false
	}
	// The position of the descriptor, which this moves, is used by nothing.
	data, err := unix.Seek(int(f.buffered.Fd()), off, unix.SEEK_DATA)
	return err == unix.ENXIO || err == nil && data >= off+n
}

// Sync makes what was written durable, and the name of a file that was created.
func (f *File) Sync() error {
	if err := f.buffered.Sync(); err != nil || !f.created {
		return err
	}
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Created tells whether OpenTarget made the file.
func (f *File) Created() bool { return f.created }

// Discard removes the file that OpenTarget made, unless another one has its name by
// now. It does nothing to what was there before.
func (f *File) Discard() error {
	if !f.created {
		return nil
	}
	a, err := f.buffered.Stat()
	if err != nil {
		return err
	}
	b, err := os.Lstat(f.path)
	if err != nil || !os.SameFile(a, b) {
		return err
	}
	return os.Remove(f.path)
}

// Close closes the file and gives up the claim on a block device.
func (f *File) Close() error {
	err := f.buffered.Close()
	if f.direct != nil {
		err = errors.Join(err, f.direct.Close())
	}
	return err
}
