package ublk

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const sectorSize = 512

// Limits describe what a backend can take. All sizes are bytes.
type Limits struct {
	Size              uint64
	LogicalBlockSize  uint32 // smallest unit of a request
	PhysicalBlockSize uint32 // smallest unit written without read-modify-write
	MinIOSize         uint32
	OptimalIOSize     uint32 // 0: none
	Rotational        bool
	VolatileCache     bool // a write is durable only after a flush (or with FUA)
	ReadOnly          bool

	MaxDiscard         uint64 // 0: no discard
	DiscardGranularity uint32
	DiscardAlignment   uint32
	MaxWriteZeroes     uint64 // 0: none; clients write zeroes themselves

	// Boundary is what no request reaches across, nor a merge of several: multiples
	// of it on the device; 0: none.
	Boundary uint64

	// How the memory of a request may lie. With zero copy it is handed to the
	// backend as it is, so the device asks of its clients what the backend asks.
	DMAAlignment   uint32 // mask: addresses and lengths are multiples of it plus one; 0: any
	VirtBoundary   uint64 // mask: no gaps between segments but at its multiples; 0: any
	MaxSegments    uint16 // 0: the kernel's default
	MaxSegmentSize uint32 // 0: the kernel's default

	// MaxIOSize is the largest request that the backend takes in one piece; 0: not
	// known. Larger ones are cut by the server. It is the backend's alone: the
	// device has Options.MaxIOBytes.
	MaxIOSize uint32
}

func (l Limits) withDefaults() Limits {
	if l.LogicalBlockSize == 0 {
		l.LogicalBlockSize = sectorSize
	}
	if l.PhysicalBlockSize == 0 {
		l.PhysicalBlockSize = max(4096, l.LogicalBlockSize)
	}
	if l.MinIOSize == 0 {
		l.MinIOSize = l.PhysicalBlockSize
	}
	if l.MaxDiscard > 0 && l.DiscardGranularity == 0 {
		l.DiscardGranularity = l.PhysicalBlockSize
	}
	return l
}

// validate keeps to what the driver accepts: ublk_validate_params in
// drivers/block/ublk_drv.c wants 512 <= logical <= page and logical <= physical.
func (l Limits) validate() error {
	pow2 := func(v uint32) bool { return v != 0 && v&(v-1) == 0 }
	switch {
	case !pow2(l.LogicalBlockSize) || l.LogicalBlockSize < sectorSize || l.LogicalBlockSize > uint32(os.Getpagesize()):
		return fmt.Errorf("logical block size %d: want a power of two from 512 to the page size", l.LogicalBlockSize)
	case !pow2(l.PhysicalBlockSize) || l.PhysicalBlockSize < l.LogicalBlockSize:
		return fmt.Errorf("physical block size %d: want a power of two, not below the logical %d", l.PhysicalBlockSize, l.LogicalBlockSize)
	case l.Boundary%uint64(l.LogicalBlockSize) != 0 || l.Boundary/sectorSize > math.MaxUint32:
		return fmt.Errorf("boundary %d: want a multiple of the logical block size %d", l.Boundary, l.LogicalBlockSize)
	case l.Size == 0 || l.Size%uint64(l.LogicalBlockSize) != 0:
		return fmt.Errorf("size %d is not a positive multiple of the block size %d", l.Size, l.LogicalBlockSize)
	}
	return nil
}

// shift is the exponent of the largest power of two that divides v; the driver
// takes I/O hints as exponents only (struct ublk_param_basic).
func shift(v uint32) uint8 {
	if v == 0 {
		return 0
	}
	return uint8(bits.TrailingZeros32(v))
}

func blockSize(f *os.File) (uint64, error) {
	var n uint64
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return 0, fmt.Errorf("BLKGETSIZE64 of %s: %w", f.Name(), e)
	}
	return n, nil
}

// blockLimits reads the limits of an open block device from sysfs.
func blockLimits(f *os.File) (Limits, error) {
	size, err := blockSize(f)
	if err != nil {
		return Limits{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Limits{}, err
	}
	l, err := sysfsLimits(sysfsOf(st.Rdev))
	if err != nil {
		return Limits{}, err
	}
	l.Size = size
	return l, l.validate()
}

// sysfsOf is the sysfs directory of a block device.
func sysfsOf(rdev uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

// both are limits that suit two backends, with the size and the access of the
// first.
func (l Limits) both(o Limits) Limits {
	l.LogicalBlockSize = max(l.LogicalBlockSize, o.LogicalBlockSize)
	l.PhysicalBlockSize = max(l.PhysicalBlockSize, o.PhysicalBlockSize)
	l.MinIOSize = max(l.MinIOSize, o.MinIOSize)
	l.OptimalIOSize = max(l.OptimalIOSize, o.OptimalIOSize)
	l.Rotational = l.Rotational || o.Rotational
	l.VolatileCache = l.VolatileCache || o.VolatileCache
	l.MaxDiscard = min(l.MaxDiscard, o.MaxDiscard)
	l.DiscardGranularity = max(l.DiscardGranularity, o.DiscardGranularity)
	l.MaxWriteZeroes = min(l.MaxWriteZeroes, o.MaxWriteZeroes)
	l.DMAAlignment |= o.DMAAlignment
	l.VirtBoundary |= o.VirtBoundary
	l.MaxSegments = smaller(l.MaxSegments, o.MaxSegments)
	l.MaxSegmentSize = smaller(l.MaxSegmentSize, o.MaxSegmentSize)
	l.MaxIOSize = smaller(l.MaxIOSize, o.MaxIOSize)
	return l
}

// Suit tells whether what a device with these limits is asked for can be done by
// the disk at a path: the error names what the disk needs and the device does
// not tell its clients. Larger requests are no matter, the server cuts them.
func (l Limits) Suit(disk string) error {
	o, err := limitsOfPath(disk)
	switch {
	case err != nil:
		return err
	case o.LogicalBlockSize > l.LogicalBlockSize:
		return fmt.Errorf("disk %s has blocks of %d bytes, the device has blocks of %d", disk, o.LogicalBlockSize, l.LogicalBlockSize)
	case o.VolatileCache && !l.VolatileCache:
		return fmt.Errorf("disk %s has a volatile write cache, and the device says that it needs no flush", disk)
	}
	return nil
}

// limitsOfPath reads the limits of a disk without opening it.
func limitsOfPath(path string) (Limits, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Limits{}, fmt.Errorf("ublk: limits of %s: %w", path, err)
	}
	l, err := sysfsLimits(sysfsOf(st.Rdev))
	if err != nil {
		return Limits{}, fmt.Errorf("ublk: limits of %s: %w", path, err)
	}
	return l, nil
}

// smaller is the smaller of two bounds, of which 0 is none.
func smaller[T uint16 | uint32](a, b T) T {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// sysfsLimits reads the queue directory of a block device, or of the disk that
// a partition belongs to (Documentation/ABI/stable/sysfs-block).
func sysfsLimits(dir string) (Limits, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Limits{}, err
	}
	queue := filepath.Join(real, "queue")
	if _, err := os.Stat(queue); errors.Is(err, fs.ErrNotExist) {
		queue = filepath.Join(filepath.Dir(real), "queue")
	}
	r := sysfsReader{dir: queue}
	l := Limits{
		LogicalBlockSize:   uint32(r.number("logical_block_size")),
		PhysicalBlockSize:  uint32(r.number("physical_block_size")),
		MinIOSize:          uint32(r.number("minimum_io_size")),
		OptimalIOSize:      uint32(r.number("optimal_io_size")),
		Rotational:         r.number("rotational") != 0,
		VolatileCache:      r.text("write_cache") == "write back",
		MaxDiscard:         r.number("discard_max_bytes"),
		DiscardGranularity: uint32(r.number("discard_granularity")),
		MaxWriteZeroes:     r.number("write_zeroes_max_bytes"),
		DMAAlignment:       uint32(r.number("dma_alignment")),
		VirtBoundary:       r.number("virt_boundary_mask"),
		MaxSegments:        uint16(min(r.number("max_segments"), math.MaxUint16)),
		MaxSegmentSize:     uint32(min(r.number("max_segment_size"), math.MaxUint32)),
		MaxIOSize:          uint32(min(r.number("max_sectors_kb"), maxIOBytes>>10)) << 10,
	}
	// These two lie beside the queue directory, on the partition itself.
	r.dir = real
	l.DiscardAlignment = uint32(r.number("discard_alignment"))
	l.ReadOnly = r.number("ro") != 0
	return l.withDefaults(), r.err
}

// sysfsReader reads attribute files and keeps the first error.
type sysfsReader struct {
	dir string
	err error
}

func (r *sysfsReader) text(name string) string {
	b, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("reading queue limits: %w", err)
	}
	return strings.TrimSpace(string(b))
}

func (r *sysfsReader) number(name string) uint64 {
	text := r.text(name)
	if r.err != nil {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		r.err = fmt.Errorf("reading queue limits: %s: %w", filepath.Join(r.dir, name), err)
	}
	return n
}

// fileLimits describes a regular file. Discard and write-zeroes become holes,
// where the filesystem can punch them.
func fileLimits(f *os.File, readOnly bool) (Limits, error) {
	st, err := f.Stat()
	if err != nil {
		return Limits{}, err
	}
	l := Limits{Size: uint64(st.Size()) &^ (sectorSize - 1), VolatileCache: true}
	if l.Size == 0 {
		return Limits{}, errors.New("the file is shorter than one 512-byte block (remedy: truncate -s SIZE)")
	}
	if !readOnly && canPunch(f, st.Size()) {
		l.MaxDiscard = 1 << 30
		l.DiscardGranularity = 4096
		l.MaxWriteZeroes = 1 << 30
	}
	return l.withDefaults(), nil
}

// canPunch tries to punch a hole behind the end of the file, which changes
// nothing and is refused by filesystems that cannot.
func canPunch(f *os.File, size int64) bool {
	off := (size + 4095) &^ 4095
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 4096) == nil
}
