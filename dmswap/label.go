package dmswap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/swapback/swapback/dmswap/extmap"
)

// A member disk:
//
//	offset            size        what
//	0                 4 KiB       zeroes (a boot sector's place is left alone)
//	4 KiB             4 KiB       label
//	8 KiB             slot size   metadata slot A
//	8 KiB + slot size slot size   metadata slot B
//	behind slot B     see extmap  change map, if there is room for it before the
//	                              data offset; pools are made so that there is
//	data offset       extents     extent 0, 1, 2 …; a multiple of the extent
//	                              size, at least 1 MiB
//
// The label says what the disk is and where things are. It is written once, but
// for its state: a pool is there when one of its labels at least is in use. A
// pool in the making has unfinished labels on all members before the first is
// put in use, and one that is deleted gets them on all before the first is wiped:
// so a crash leaves all of a pool or nothing of it.
// All numbers are little-endian; bytes not listed are zero.
//
//	offset  size  field
//	0       8     magic "SWAPBACK"
//	8       4     version, 1
//	12      4     CRC32C of the 4096 bytes of the label with this field zero
//	16      16    UUID of the pool
//	32      16    UUID of the member
//	48      4     index of the member, from 0
//	52      4     number of members of the pool
//	56      8     extent size in bytes, a power of two
//	64      8     data offset in bytes
//	72      8     number of extents on this member
//	80      8     offset of slot A in bytes
//	88      8     offset of slot B in bytes
//	96      8     slot size in bytes, a multiple of 4096
//	104     8     size of the disk in bytes when it became a member
//	112     8     time of creation, nanoseconds since 1970 UTC
//	120     64    name of the pool, padded with zeroes
//	184     4     state: 0 in use, 1 unfinished
const (
	labelOffset  = 4096
	labelSize    = blockSize
	labelMagic   = "SWAPBACK"
	labelVersion = 1
	slotsOffset  = labelOffset + labelSize

	minExtentSize     = 64 << 10
	maxExtentSize     = 1 << 30
	defaultExtentSize = 4 << 20
	minDataOffset     = 1 << 20

	// A slot has room for metadata in which every extent of the pool is a
	// segment of its own, at slotBytesPerExtent each, up to maxSlotSize.
	minSlotSize        = 1 << 20
	maxSlotSize        = 32 << 20
	slotBytesPerExtent = 32

	maxMembers = 1024
)

// label is the decoded label of a member.
type label struct {
	Pool, Member UUID
	PoolName     string
	Index, Count int
	ExtentSize   int64
	DataOffset   int64
	Extents      int64
	Slots        [2]int64
	SlotSize     int64
	DiskSize     int64
	Created      time.Time
	// Unfinished is set while the pool is being made or deleted.
	Unfinished bool
}

var (
	// errNoLabel means that there is no sign of a pool.
	errNoLabel = errors.New("no swapback label")
	// errBadLabel means that there was a label once.
	errBadLabel = errors.New("the swapback label is corrupt")
	// errNewer means that a later version of swapback wrote this.
	errNewer = errors.New("written by a newer swapback")
)

func (l label) encode() []byte {
	b := alignedBuffer(labelSize)
	le := binary.LittleEndian
	copy(b, labelMagic)
	le.PutUint32(b[8:], labelVersion)
	pool, member := uuidBytes(l.Pool), uuidBytes(l.Member)
	copy(b[16:], pool[:])
	copy(b[32:], member[:])
	le.PutUint32(b[48:], uint32(l.Index))
	le.PutUint32(b[52:], uint32(l.Count))
	for i, v := range []int64{l.ExtentSize, l.DataOffset, l.Extents, l.Slots[0], l.Slots[1], l.SlotSize, l.DiskSize, l.Created.UnixNano()} {
		le.PutUint64(b[56+8*i:], uint64(v))
	}
	copy(b[120:184], l.PoolName)
	if l.Unfinished {
		le.PutUint32(b[184:], 1)
	}
	le.PutUint32(b[12:], crc(b))
	return b
}

// decodeLabel returns errNoLabel when b is no label, and errBadLabel when it
// was one.
func decodeLabel(b []byte) (label, error) {
	if len(b) < labelSize || string(b[:8]) != labelMagic {
		return label{}, errNoLabel
	}
	le := binary.LittleEndian
	b = bytes.Clone(b[:labelSize])
	want := le.Uint32(b[12:])
	le.PutUint32(b[12:], 0)
	if got := crc(b); got != want {
		return label{}, fmt.Errorf("%w: checksum is %08x, not %08x", errBadLabel, got, want)
	}
	if v := le.Uint32(b[8:]); v != labelVersion {
		return label{}, fmt.Errorf("%w: the label has version %d, this program knows %d", errNewer, v, labelVersion)
	}
	num := func(i int) int64 { return int64(le.Uint64(b[56+8*i:])) }
	l := label{
		Pool: uuidText(b[16:]), Member: uuidText(b[32:]),
		Index: int(le.Uint32(b[48:])), Count: int(le.Uint32(b[52:])),
		ExtentSize: num(0), DataOffset: num(1), Extents: num(2), Slots: [2]int64{num(3), num(4)}, SlotSize: num(5), DiskSize: num(6),
		Created:  time.Unix(0, num(7)).UTC(),
		PoolName: string(bytes.TrimRight(b[120:184], "\x00")),
	}
	switch state := le.Uint32(b[184:]); state {
	case 0:
	case 1:
		l.Unfinished = true
	default:
		return label{}, fmt.Errorf("%w: state %d", errBadLabel, state)
	}
	if err := l.check(); err != nil {
		return label{}, fmt.Errorf("%w: %w", errBadLabel, err)
	}
	return l, nil
}

// check holds what the rest of the package relies on, so that a label with a
// right checksum and wrong numbers does no harm.
func (l label) check() error {
	switch {
	case !validName(l.PoolName):
		return fmt.Errorf("pool name %q", l.PoolName)
	case l.Count < 1 || l.Count > maxMembers || l.Index < 0 || l.Index >= l.Count:
		return fmt.Errorf("member %d of %d", l.Index, l.Count)
	case !isPowerOfTwo(l.ExtentSize) || l.ExtentSize < minExtentSize || l.ExtentSize > maxExtentSize:
		return fmt.Errorf("extent size %d", l.ExtentSize)
	case l.SlotSize < 2*blockSize || l.SlotSize > maxSlotSize || l.SlotSize%blockSize != 0:
		return fmt.Errorf("slot size %d", l.SlotSize)
	case l.Slots[0] != slotsOffset || l.Slots[1] != slotsOffset+l.SlotSize:
		return fmt.Errorf("slots at %d and %d", l.Slots[0], l.Slots[1])
	case l.DataOffset < l.Slots[1]+l.SlotSize || l.DataOffset%l.ExtentSize != 0 || l.DataOffset > l.DiskSize:
		return fmt.Errorf("data offset %d", l.DataOffset)
	case l.Extents < 1 || l.Extents > (l.DiskSize-l.DataOffset)/l.ExtentSize:
		return fmt.Errorf("%d extents of %d bytes on a disk of %d bytes", l.Extents, l.ExtentSize, l.DiskSize)
	}
	return nil
}

// layout computes where things go on new members with these sizes.
func layout(sizes []int64, extentSize int64) (slotSize, dataOffset int64, extents []int64) {
	var total int64
	for _, s := range sizes {
		total += s / extentSize
	}
	slotSize = min(max(roundUp(total*slotBytesPerExtent, minSlotSize), minSlotSize), maxSlotSize)
	var most int64
	for _, s := range sizes {
		most = max(most, s/extentSize)
	}
	dataOffset = roundUp(max(slotsOffset+2*slotSize+extmap.Size(most), minDataOffset), extentSize)
	extents = make([]int64, len(sizes))
	for i, s := range sizes {
		extents[i] = max((s-dataOffset)/extentSize, 0)
	}
	return slotSize, dataOffset, extents
}
