package dmswap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// A metadata slot is a header of 4 KiB and the body behind it. Every member
// has two slots, and every member holds the metadata of the whole pool. All
// numbers are little-endian; bytes not listed are zero.
//
//	offset  size  field
//	0       8     magic "SWAPMETA"
//	8       4     version, 1
//	12      4     CRC32C of the 4096 bytes of the header with this field zero
//	16      8     generation
//	24      8     length of the body in bytes
//	32      4     CRC32C of the body
//	40      16    UUID of the pool
//	56      16    UUID of the member
//	72      8     time of the commit, nanoseconds since 1970 UTC
//	4096    …     body: JSON, see metadata.go; zeroes up to a multiple of 4096
//
// A commit writes the slot that does not hold the newest generation: first the
// body, then, when the body is durable on every member that takes part, the
// header. Until the header is whole the slot is not valid, and the other one
// counts. When a pool is opened the highest valid generation on any member wins,
// and members that are behind on its line are brought up to it, see lineage.go.
const (
	slotMagic   = "SWAPMETA"
	slotVersion = 1
	slotBody    = blockSize
)

// disk is what slots and labels are kept on. Offsets and lengths are multiples
// of 4096, buffers are aligned to as much. What was written is durable when
// Sync returns; what WriteDurable writes is when it returns, and nothing else.
type disk interface {
	io.ReaderAt
	io.WriterAt
	WriteDurable(p []byte, off int64) error
	Sync() error
}

var (
	errEmptySlot  = errors.New("empty")
	errBadSlot    = errors.New("corrupt")
	errUnreadable = errors.New("can't be read")
)

type slotHeader struct {
	Generation   uint64
	BodyLen      int64
	BodyCRC      uint32
	Pool, Member UUID
	Written      time.Time
}

func (h slotHeader) encode() []byte {
	b := alignedBuffer(blockSize)
	le := binary.LittleEndian
	copy(b, slotMagic)
	le.PutUint32(b[8:], slotVersion)
	le.PutUint64(b[16:], h.Generation)
	le.PutUint64(b[24:], uint64(h.BodyLen))
	le.PutUint32(b[32:], h.BodyCRC)
	pool, member := uuidBytes(h.Pool), uuidBytes(h.Member)
	copy(b[40:], pool[:])
	copy(b[56:], member[:])
	le.PutUint64(b[72:], uint64(h.Written.UnixNano()))
	le.PutUint32(b[12:], crc(b))
	return b
}

// decodeSlotHeader returns errEmptySlot for a slot that was never written and
// errBadSlot for one whose header is not whole.
func decodeSlotHeader(b []byte, slotSize int64) (slotHeader, error) {
	if len(b) < blockSize {
		return slotHeader{}, fmt.Errorf("%w: header is cut off", errBadSlot)
	}
	if len(bytes.TrimLeft(b[:blockSize], "\x00")) == 0 {
		return slotHeader{}, errEmptySlot
	}
	if string(b[:8]) != slotMagic {
		return slotHeader{}, fmt.Errorf("%w: header has no magic", errBadSlot)
	}
	le := binary.LittleEndian
	b = bytes.Clone(b[:blockSize])
	want := le.Uint32(b[12:])
	le.PutUint32(b[12:], 0)
	if got := crc(b); got != want {
		return slotHeader{}, fmt.Errorf("%w: checksum of the header is %08x, not %08x", errBadSlot, got, want)
	}
	if v := le.Uint32(b[8:]); v != slotVersion {
		return slotHeader{}, fmt.Errorf("%w: the slot has version %d, this program knows %d", errNewer, v, slotVersion)
	}
	h := slotHeader{
		Generation: le.Uint64(b[16:]), BodyLen: int64(le.Uint64(b[24:])), BodyCRC: le.Uint32(b[32:]),
		Pool: uuidText(b[40:]), Member: uuidText(b[56:]), Written: time.Unix(0, int64(le.Uint64(b[72:]))).UTC(),
	}
	if h.Generation == 0 || h.BodyLen < 1 || h.BodyLen > slotSize-slotBody {
		return slotHeader{}, fmt.Errorf("%w: generation %d with a body of %d bytes", errBadSlot, h.Generation, h.BodyLen)
	}
	return h, nil
}

// slotState is what one slot holds.
type slotState struct {
	header slotHeader
	body   []byte
	meta   *metadata
	err    error // why the slot does not count, or nil
}

// headerUnreadable tells that it is not known which generation the slot holds.
func (s *slotState) headerUnreadable() bool {
	return errors.Is(s.err, errUnreadable) && s.header.Generation == 0
}

// readSlot reads one slot of a member and checks everything about it.
func readSlot(d disk, l *label, index int) slotState {
	head := alignedBuffer(blockSize)
	if _, err := d.ReadAt(head, l.Slots[index]); err != nil {
		return slotState{err: fmt.Errorf("header %w: %w", errUnreadable, err)}
	}
	h, err := decodeSlotHeader(head, l.SlotSize)
	s := slotState{header: h, err: err}
	if err != nil {
		return s
	}
	if h.Pool != l.Pool || h.Member != l.Member {
		s.err = fmt.Errorf("%w: it belongs to member %s of pool %s", errBadSlot, h.Member, h.Pool)
		return s
	}
	body := alignedBuffer(int(roundUp(h.BodyLen, blockSize)))
	if _, err := d.ReadAt(body, l.Slots[index]+slotBody); err != nil {
		s.err = fmt.Errorf("body %w: %w", errUnreadable, err)
		return s
	}
	s.body = body[:h.BodyLen]
	if got := crc(s.body); got != h.BodyCRC {
		s.err = fmt.Errorf("%w: checksum of the body is %08x, not %08x", errBadSlot, got, h.BodyCRC)
		return s
	}
	if s.meta, err = decodeMetadata(s.body); err != nil {
		s.err = err
	} else if s.meta.Generation != h.Generation || s.meta.Pool.UUID != l.Pool {
		s.err = fmt.Errorf("%w: header and body name different generations or pools", errBadSlot)
	}
	return s
}

// writeBody puts a body into a slot and makes it durable. The slot is not
// valid from here until writeHeader has returned.
func writeBody(d disk, l *label, index int, body []byte) error {
	if int64(len(body)) > l.SlotSize-slotBody {
		return errTooLarge(len(body), l.SlotSize)
	}
	b := alignedBuffer(int(roundUp(int64(len(body)), blockSize)))
	copy(b, body)
	if _, err := d.WriteAt(b, l.Slots[index]+slotBody); err != nil {
		return err
	}
	return d.Sync()
}

// stampHeader notes the time of the commit in an encoded header.
func stampHeader(header []byte, now time.Time) {
	le := binary.LittleEndian
	le.PutUint64(header[72:], uint64(now.UnixNano()))
	le.PutUint32(header[12:], 0)
	le.PutUint32(header[12:], crc(header))
}

func errTooLarge(body int, slotSize int64) error {
	return errf(ErrNoSpace, "delete or move volumes that are in many pieces",
		"the pool's metadata would have %s, a slot holds %s", sizeText(int64(body)), sizeText(slotSize-slotBody))
}
