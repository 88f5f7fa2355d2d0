package ublk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"
)

// segBoundary is the block layer's default (BLK_SEG_BOUNDARY_MASK), the only
// one there is a way to learn of.
const segBoundary = 0xffffffff

// minSegmentSize is UBLK_MIN_SEGMENT_SIZE.
const minSegmentSize = 4096

// paramsFor translates limits into what SET_PARAMS takes. Only with zero copy
// does it matter to the backend how the clients' memory lies.
func paramsFor(l Limits, o Options, zeroCopy bool) params {
	p := params{
		Types: paramTypeBasic,
		Basic: paramBasic{
			LogicalBSShift:  shift(l.LogicalBlockSize),
			PhysicalBSShift: shift(l.PhysicalBlockSize),
			IOMinShift:      shift(l.MinIOSize),
			IOOptShift:      shift(l.OptimalIOSize),
			MaxSectors:      uint32(o.MaxIOBytes / sectorSize),
			ChunkSectors:    uint32(l.Boundary / sectorSize),
			DevSectors:      l.Size / sectorSize,
		},
	}
	p.Len = paramsLen
	b := &p.Basic
	if b.IOMinShift < b.PhysicalBSShift {
		b.IOMinShift = b.PhysicalBSShift
	}
	// Zero means "1 byte" to the driver; the smallest honest hint is io_min. An
	// optimal size that is no multiple of it says nothing.
	if b.IOOptShift < b.IOMinShift {
		b.IOOptShift = b.IOMinShift
	}
	if l.ReadOnly {
		b.Attrs |= attrReadOnly
	}
	if l.Rotational {
		b.Attrs |= attrRotational
	}
	if l.VolatileCache {
		// The backend's own FUA does not matter: RWF_DSYNC writes and flushes
		// where the hardware has none.
		b.Attrs |= attrVolatileCache | attrFUA
	}
	if l.MaxDiscard > 0 || l.MaxWriteZeroes > 0 {
		p.Types |= paramTypeDiscard
		p.Discard = paramDiscard{
			DiscardAlignment:      l.DiscardAlignment,
			DiscardGranularity:    max(l.DiscardGranularity, l.LogicalBlockSize),
			MaxDiscardSectors:     toSectors(l.MaxDiscard, l.LogicalBlockSize),
			MaxWriteZeroesSectors: toSectors(l.MaxWriteZeroes, l.LogicalBlockSize),
			MaxDiscardSegments:    1, // all that the driver takes
		}
	}
	if zeroCopy {
		p.alignTo(l)
	}
	return p
}

// alignTo has clients' memory lie as the backend takes it. What the driver would
// refuse is left out: the block layer below then splits or refuses by itself.
func (p *params) alignTo(l Limits) {
	if a := l.DMAAlignment; a < uint32(os.Getpagesize()) && a&(a+1) == 0 {
		p.Types |= paramTypeDMAAlign
		p.DMA.Alignment = a
	}
	p.Basic.VirtBoundary = l.VirtBoundary
	if l.MaxSegments > 0 && l.MaxSegmentSize >= minSegmentSize {
		p.Types |= paramTypeSegment
		p.Seg = paramSegment{SegBoundaryMask: segBoundary, MaxSegmentSize: l.MaxSegmentSize, MaxSegments: l.MaxSegments}
	}
}

// toSectors clamps to the width of the field and to whole blocks.
func toSectors(bytes uint64, block uint32) uint32 {
	n := min(bytes/sectorSize, math.MaxUint32)
	return uint32(n &^ (uint64(block)/sectorSize - 1))
}

// limitsOf translates what GET_PARAMS answered back into limits.
func limitsOf(p params) (Limits, error) {
	if p.Types&paramTypeBasic == 0 {
		return Limits{}, errors.New("device parameters lack the basic part")
	}
	b := p.Basic
	for _, s := range []uint8{b.LogicalBSShift, b.PhysicalBSShift, b.IOMinShift, b.IOOptShift} {
		if s > 31 {
			return Limits{}, fmt.Errorf("device parameters hold a shift of %d", s)
		}
	}
	if b.DevSectors > math.MaxUint64/sectorSize {
		return Limits{}, fmt.Errorf("device parameters hold %d sectors", b.DevSectors)
	}
	l := Limits{
		Size:              b.DevSectors * sectorSize,
		LogicalBlockSize:  1 << b.LogicalBSShift,
		PhysicalBlockSize: 1 << b.PhysicalBSShift,
		MinIOSize:         1 << b.IOMinShift,
		OptimalIOSize:     1 << b.IOOptShift,
		Rotational:        b.Attrs&attrRotational != 0,
		VolatileCache:     b.Attrs&attrVolatileCache != 0,
		ReadOnly:          b.Attrs&attrReadOnly != 0,
		VirtBoundary:      b.VirtBoundary,
		Boundary:          uint64(b.ChunkSectors) * sectorSize,
	}
	if p.Types&paramTypeDMAAlign != 0 {
		l.DMAAlignment = p.DMA.Alignment
	}
	if p.Types&paramTypeSegment != 0 {
		l.MaxSegments, l.MaxSegmentSize = p.Seg.MaxSegments, p.Seg.MaxSegmentSize
	}
	if p.Types&paramTypeDiscard != 0 {
		l.MaxDiscard = uint64(p.Discard.MaxDiscardSectors) * sectorSize
		l.MaxWriteZeroes = uint64(p.Discard.MaxWriteZeroesSectors) * sectorSize
		l.DiscardGranularity = p.Discard.DiscardGranularity
		l.DiscardAlignment = p.Discard.DiscardAlignment
	}
	return l, l.validate()
}

// decodeParams reads a buffer filled by GET_PARAMS. An older driver may fill
// less than it was given: what it left out is zero.
func decodeParams(buf []byte) (params, error) {
	var p params
	if len(buf) < 8 {
		return p, fmt.Errorf("device parameters of %d bytes", len(buf))
	}
	n := int(binary.NativeEndian.Uint32(buf))
	if n < 8 {
		return p, fmt.Errorf("device parameters say %d bytes", n)
	}
	// Whoever set them may have known a longer structure than was asked for.
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&p)), paramsLen)
	copy(raw, buf[:min(n, len(buf))])
	return p, nil
}

// decodeInfo reads a struct ublksrv_ctrl_dev_info.
func decodeInfo(buf []byte) (Info, error) {
	var d devInfo
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&d)), unsafe.Sizeof(d))
	if len(buf) < len(raw) {
		return Info{}, fmt.Errorf("device info of %d bytes, want %d", len(buf), len(raw))
	}
	copy(raw, buf)
	return d.info()
}

func (d *devInfo) info() (Info, error) {
	if d.NrHWQueues == 0 || d.NrHWQueues > MaxQueues || d.QueueDepth == 0 || d.QueueDepth > MaxDepth ||
		d.MaxIOBufBytes > maxIOBytes || d.DevID > math.MaxInt32 {
		return Info{}, fmt.Errorf("device info is out of bounds: %d queues, depth %d, %d bytes per request, number %d",
			d.NrHWQueues, d.QueueDepth, d.MaxIOBufBytes, d.DevID)
	}
	return Info{
		ID:         int(d.DevID),
		Queues:     int(d.NrHWQueues),
		Depth:      int(d.QueueDepth),
		State:      State(d.State),
		MaxIOBytes: int(d.MaxIOBufBytes),
		PID:        int(d.UblksrvPID),
		Flags:      Features(d.Flags),
		Tag:        d.UblksrvFlags,
	}, nil
}

// decodeDesc takes an I/O descriptor apart. ok is false for what a server must
// not act upon: an operation it does not know, or a range that overflows.
func decodeDesc(d ioDesc) (op Op, flags uint32, off, n uint64, ok bool) {
	op = Op(d.OpFlags & 0xff)
	flags = d.OpFlags &^ 0xff
	switch op {
	case OpFlush:
		// Its start sector is not set: the block layer leaves it at ^0.
		return op, flags, 0, 0, true
	case OpRead, OpWrite, OpDiscard, OpWriteZeroes:
	default:
		return op, flags, 0, 0, false
	}
	n = uint64(d.NrSectors) * sectorSize
	if d.StartSector > (math.MaxInt64-n)/sectorSize {
		return op, flags, 0, 0, false
	}
	return op, flags, d.StartSector * sectorSize, n, true
}
