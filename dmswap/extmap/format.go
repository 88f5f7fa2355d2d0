package extmap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"unsafe"
)

// The map area of a member is a head and pages of 4 KiB each. It is written in
// whole pages only, each durable before the next thing that depends on it. All
// numbers are little-endian; bytes not listed are zero.
//
// Head, the first page:
//
//	offset  size  field
//	0       8     magic "SWAPMAPH"
//	8       4     version, 1
//	12      4     CRC32C of the 4096 bytes with this field zero
//	16      16    UUID of the pool
//	32      16    UUID of the member
//	48      16    session: who has the finer half of the map, see [Map.Session]
//
// Page k, the page k+1 of the area:
//
//	offset  size  field
//	0       8     magic "SWAPMAPB"
//	8       4     version, 1
//	12      4     CRC32C of the 4096 bytes with this field zero
//	16      16    UUID of the pool
//	32      16    UUID of the member
//	48      8     k
//	56      8     number of the write, grows with each write of the page
//	64      4032  bit i of byte j: something may have been written to extent
//	              k × 32256 + 8 j + i since the backup that its position counts from
//
// There is one copy. A page that is torn by a power cut fails its checksum, and
// all its extents count as written to: a second copy could only be older, and to
// tell "torn, so the older one is right" from "gone bad, so the older one lacks
// bits" is not possible.
const (
	pageSize  = 4096
	version   = 1
	headMagic = "SWAPMAPH"
	bitsMagic = "SWAPMAPB"
	bitsAt    = 64
	// pageBits is how many extents a page has.
	pageBits  = (pageSize - bitsAt) * 8
	pageWords = pageBits / 64
)

var (
	errEmpty = errors.New("it was never written")
	errBad   = errors.New("it is damaged")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ID is the 16 bytes of a UUID.
type ID [16]byte

// Pages returns how many pages of bits some extents need.
func Pages(extents int64) int64 { return (extents + pageBits - 1) / pageBits }

// Size returns how many bytes the area for some extents has.
func Size(extents int64) int64 { return (1 + Pages(extents)) * pageSize }

func begin(magic string, pool, member ID) []byte {
	b := aligned()
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	copy(b[16:], pool[:])
	copy(b[32:], member[:])
	return b
}

func seal(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b, castagnoli))
	return b
}

func encodeHead(pool, member, session ID) []byte {
	b := begin(headMagic, pool, member)
	copy(b[48:], session[:])
	return seal(b)
}

// encodePage takes pageWords words.
func encodePage(pool, member ID, index, number uint64, words []uint64) []byte {
	b := begin(bitsMagic, pool, member)
	le := binary.LittleEndian
	le.PutUint64(b[48:], index)
	le.PutUint64(b[56:], number)
	for i, w := range words {
		le.PutUint64(b[bitsAt+8*i:], w)
	}
	return seal(b)
}

// open checks what head and pages have in common.
func open(b []byte, magic string, pool, member ID) ([]byte, error) {
	if len(b) != pageSize {
		return nil, fmt.Errorf("%w: %d bytes", errBad, len(b))
	}
	if len(bytes.TrimLeft(b, "\x00")) == 0 {
		return nil, errEmpty
	}
	le := binary.LittleEndian
	if string(b[:8]) != magic {
		return nil, fmt.Errorf("%w: no magic", errBad)
	}
	b = bytes.Clone(b)
	want := le.Uint32(b[12:])
	le.PutUint32(b[12:], 0)
	if got := crc32.Checksum(b, castagnoli); got != want {
		return nil, fmt.Errorf("%w: its checksum is %08x, not %08x", errBad, got, want)
	}
	if v := le.Uint32(b[8:]); v != version {
		return nil, fmt.Errorf("%w: version %d, this program knows %d", errBad, v, version)
	}
	if ID(b[16:32]) != pool || ID(b[32:48]) != member {
		return nil, fmt.Errorf("%w: it is of another member", errBad)
	}
	return b, nil
}

func decodeHead(b []byte, pool, member ID) (session ID, err error) {
	if b, err = open(b, headMagic, pool, member); err != nil {
		return session, err
	}
	return ID(b[48:64]), nil
}

func decodePage(b []byte, pool, member ID, index uint64) (number uint64, words []uint64, err error) {
	if b, err = open(b, bitsMagic, pool, member); err != nil {
		return 0, nil, err
	}
	le := binary.LittleEndian
	if k := le.Uint64(b[48:]); k != index {
		return 0, nil, fmt.Errorf("%w: it is page %d, not %d", errBad, k, index)
	}
	words = make([]uint64, pageWords)
	for i := range words {
		words[i] = le.Uint64(b[bitsAt+8*i:])
	}
	return le.Uint64(b[56:]), words, nil
}

// aligned returns a zero page at an address that O_DIRECT accepts.
func aligned() []byte {
	b := make([]byte, 2*pageSize)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (pageSize - 1))
	return b[skip : skip+pageSize : skip+pageSize]
}
