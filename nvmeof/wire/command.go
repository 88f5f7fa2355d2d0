package wire

import "fmt"

// Sizes of a queue's entries.
const (
	SQESize = 64
	CQESize = 16
)

// SQE is a submission queue entry, a command (Base 3.3.3.1):
//
//	offset bytes
//	     0     1  opcode
//	     1     1  fused, PSDT
//	     2     2  CID
//	     4     4  NSID; of a Fabrics command: its type, in the first byte
//	     8     8  CDW2, CDW3
//	    16     8  metadata pointer
//	    24    16  SGL descriptor: address 8, length 4, reserved 3, type 1
//	    40    24  CDW10 to CDW15
type SQE struct {
	Opcode   Opcode
	Flags    uint8
	CID      uint16
	NSID     uint32
	SGL      SGL
	CDW10    uint32
	CDW11    uint32
	CDW12    uint32
	CDW13    uint32
	CDW14    uint32
	CDW15    uint32
	FCType   FCType // of a Fabrics command; it lies in the first byte of NSID
	Reserved uint64 // CDW2 and CDW3
}

// SGL is a command's one data descriptor (Base 4.1.2).
type SGL struct {
	Address uint64
	Length  uint32
	Type    uint8 // descriptor type and sub type
}

// What Type of an SGL may be.
const (
	SGLInCapsule uint8 = 0x01 // data block, Address is the offset in the capsule's data
	SGLTransport uint8 = 0x5a // the data travels in PDUs of its own
	SGLInMemory  uint8 = 0x00 // data block with an address: not over TCP
)

// Bits of SQE.Flags.
const (
	FlagFused = 0x03
	FlagPSDT  = 0xc0
	FlagSGL   = 0x40 // PSDT: the command has an SGL, as all over Fabrics
)

// Parse reads 64 bytes.
func (s *SQE) Parse(b []byte) {
	_ = b[SQESize-1]
	s.Opcode, s.Flags = Opcode(b[0]), b[1]
	s.CID = le.Uint16(b[2:])
	s.NSID = le.Uint32(b[4:])
	s.FCType = FCType(b[4])
	s.Reserved = le.Uint64(b[8:])
	s.SGL = SGL{le.Uint64(b[24:]), le.Uint32(b[32:]), b[39]}
	s.CDW10, s.CDW11, s.CDW12 = le.Uint32(b[40:]), le.Uint32(b[44:]), le.Uint32(b[48:])
	s.CDW13, s.CDW14, s.CDW15 = le.Uint32(b[52:]), le.Uint32(b[56:]), le.Uint32(b[60:])
}

// Put writes 64 bytes.
func (s *SQE) Put(b []byte) {
	b = b[:SQESize]
	clear(b)
	b[0], b[1] = byte(s.Opcode), s.Flags
	le.PutUint16(b[2:], s.CID)
	le.PutUint32(b[4:], s.NSID)
	if s.Opcode == OpFabrics {
		b[4] = byte(s.FCType)
	}
	le.PutUint64(b[8:], s.Reserved)
	le.PutUint64(b[24:], s.SGL.Address)
	le.PutUint32(b[32:], s.SGL.Length)
	b[39] = s.SGL.Type
	for i, v := range [...]uint32{s.CDW10, s.CDW11, s.CDW12, s.CDW13, s.CDW14, s.CDW15} {
		le.PutUint32(b[40+4*i:], v)
	}
}

// LBA is the first block of a Read, Write, Compare, Write Zeroes (NVM 3.2).
func (s *SQE) LBA() uint64 { return uint64(s.CDW11)<<32 | uint64(s.CDW10) }

// Blocks is how many, 1 to 65536.
func (s *SQE) Blocks() uint32 { return s.CDW12&0xffff + 1 }

// Bits of CDW12 of those commands.
const (
	ControlFUA        = 1 << 30
	ControlLimited    = 1 << 31 // limited retry
	ControlDeallocate = 1 << 25 // of Write Zeroes: the blocks may be deallocated
	ControlPRInfo     = 0xf << 26
)

// CQE is a completion queue entry (Base 3.3.3.2):
//
//	offset bytes
//	     0     8  result: DW0 and DW1
//	     8     2  SQHD
//	    10     2  SQID, reserved over Fabrics
//	    12     2  CID
//	    14     2  status; bit 0, the phase, is reserved over Fabrics
type CQE struct {
	Result uint64
	SQHead uint16
	CID    uint16
	Status Status
}

// ParseCQE reads 16 bytes.
func ParseCQE(b []byte) CQE {
	_ = b[CQESize-1]
	return CQE{le.Uint64(b), le.Uint16(b[8:]), le.Uint16(b[12:]), Status(le.Uint16(b[14:]) >> 1)}
}

// Put writes 16 bytes.
func (c CQE) Put(b []byte) {
	_ = b[CQESize-1]
	le.PutUint64(b, c.Result)
	le.PutUint16(b[8:], c.SQHead)
	le.PutUint16(b[10:], 0)
	le.PutUint16(b[12:], c.CID)
	le.PutUint16(b[14:], uint16(c.Status)<<1)
}

// Opcode of a command. Those of the admin queue and of the others overlap.
type Opcode uint8

// Admin commands (Base 5).
const (
	OpGetLogPage  Opcode = 0x02
	OpIdentify    Opcode = 0x06
	OpAbort       Opcode = 0x08
	OpSetFeatures Opcode = 0x09
	OpGetFeatures Opcode = 0x0a
	OpAsyncEvent  Opcode = 0x0c
	OpKeepAlive   Opcode = 0x18
	OpFabrics     Opcode = 0x7f
)

// I/O commands (Base 7, NVM 3.2).
const (
	OpFlush       Opcode = 0x00
	OpWrite       Opcode = 0x01
	OpRead        Opcode = 0x02
	OpCompare     Opcode = 0x05
	OpWriteZeroes Opcode = 0x08
	OpDSM         Opcode = 0x09
)

// Transfer directions, the low two bits of an opcode (Base 3.3.3.1).
const (
	TransferNone     = 0
	TransferToCtrl   = 1
	TransferFromCtrl = 2
)

// Transfer tells which way a command's data goes: by its opcode, of a Fabrics
// command by its type.
func (s *SQE) Transfer() uint8 {
	if s.Opcode == OpFabrics {
		return uint8(s.FCType) & 3
	}
	return uint8(s.Opcode) & 3
}

// Range is one of a Dataset Management command (NVM 3.2.3), 16 bytes: context
// attributes 4, blocks 4, first block 8.
type Range struct {
	Attributes uint32
	Blocks     uint32
	LBA        uint64
}

// RangeSize is its bytes; MaxRanges is how many a command may have.
const (
	RangeSize = 16
	MaxRanges = 256
)

// ParseRange reads 16 bytes.
func ParseRange(b []byte) Range {
	_ = b[RangeSize-1]
	return Range{le.Uint32(b), le.Uint32(b[4:]), le.Uint64(b[8:])}
}

// Put writes 16 bytes.
func (r Range) Put(b []byte) {
	_ = b[RangeSize-1]
	le.PutUint32(b, r.Attributes)
	le.PutUint32(b[4:], r.Blocks)
	le.PutUint64(b[8:], r.LBA)
}

// DSMDeallocate is the attribute (CDW11) that asks to deallocate.
const DSMDeallocate = 1 << 2

func (o Opcode) String() string { return fmt.Sprintf("opcode %02xh", uint8(o)) }
