package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

var le = binary.LittleEndian

// PDUType is the first byte of a PDU (TCP 3.6).
type PDUType uint8

// PDU types. H2C: host to controller; C2H: the other way.
const (
	TypeICReq       PDUType = 0x00 // H2C: initialise the connection
	TypeICResp      PDUType = 0x01 // C2H
	TypeH2CTermReq  PDUType = 0x02 // H2C: fatal error, the connection ends
	TypeC2HTermReq  PDUType = 0x03 // C2H
	TypeCapsuleCmd  PDUType = 0x04 // H2C: a command, perhaps with data
	TypeCapsuleResp PDUType = 0x05 // C2H: a completion
	TypeH2CData     PDUType = 0x06 // H2C: data of a write
	TypeC2HData     PDUType = 0x07 // C2H: data of a read
	TypeR2T         PDUType = 0x09 // C2H: ready to take data of a write
)

func (t PDUType) String() string {
	switch t {
	case TypeICReq:
		return "ICReq"
	case TypeICResp:
		return "ICResp"
	case TypeH2CTermReq:
		return "H2CTermReq"
	case TypeC2HTermReq:
		return "C2HTermReq"
	case TypeCapsuleCmd:
		return "CapsuleCmd"
	case TypeCapsuleResp:
		return "CapsuleResp"
	case TypeH2CData:
		return "H2CData"
	case TypeC2HData:
		return "C2HData"
	case TypeR2T:
		return "R2T"
	}
	return fmt.Sprintf("PDU %#02x", uint8(t))
}

// Flags of a PDU (TCP 3.6).
const (
	FlagHeaderDigest uint8 = 1 << 0 // the header is followed by its digest
	FlagDataDigest   uint8 = 1 << 1 // the data is followed by its digest
	FlagLast         uint8 = 1 << 2 // last data PDU of an R2T or a read
	FlagSuccess      uint8 = 1 << 3 // C2HData: the command is done, no CapsuleResp follows
)

// Sizes in bytes.
const (
	HeaderSize      = 8   // common header
	ICSize          = 128 // ICReq and ICResp, whole
	CapsuleCmdSize  = HeaderSize + SQESize
	CapsuleRespSize = HeaderSize + CQESize
	DataSize        = 24 // header of H2CData, C2HData and R2T
	TermSize        = 24 // header of a TermReq
	MaxTermSize     = 152
	DigestSize      = 4
)

// Header is the common header of every PDU (TCP 3.6):
//
//	offset bytes
//	     0     1  type
//	     1     1  flags
//	     2     1  hlen: bytes of the header, without its digest
//	     3     1  pdo: where the data begins, from the start of the PDU; 0: none
//	     4     4  plen: bytes of the whole PDU
type Header struct {
	Type  PDUType
	Flags uint8
	HLen  uint8
	PDO   uint8
	PLen  uint32
}

// ParseHeader reads the first 8 bytes of a PDU. See Check.
func ParseHeader(b []byte) Header {
	_ = b[7]
	return Header{Type: PDUType(b[0]), Flags: b[1], HLen: b[2], PDO: b[3], PLen: le.Uint32(b[4:])}
}

// Put writes the header into 8 bytes.
func (h Header) Put(b []byte) {
	_ = b[7]
	b[0], b[1], b[2], b[3] = byte(h.Type), h.Flags, h.HLen, h.PDO
	le.PutUint32(b[4:], h.PLen)
}

// Digests are those that a connection has agreed on, in ICReq and ICResp.
type Digests struct{ Header, Data bool }

// HeaderBytes is what a digest adds to a header.
func (d Digests) HeaderBytes() int {
	if d.Header {
		return DigestSize
	}
	return 0
}

// DataBytes is what a digest adds to data.
func (d Digests) DataBytes() int {
	if d.Data {
		return DigestSize
	}
	return 0
}

// byte is DGST of ICReq and ICResp.
func (d Digests) byte() (b byte) {
	if d.Header {
		b |= 1
	}
	if d.Data {
		b |= 2
	}
	return b
}

func parseDigests(b byte) Digests { return Digests{Header: b&1 != 0, Data: b&2 != 0} }

// FES is the Fatal Error Status of a TermReq (TCP 3.6.2.3).
type FES uint16

// Why a connection ends.
const (
	FESInvalidHeader  FES = 1 // a field of the header is wrong; FEI is its offset
	FESSequence       FES = 2 // not the PDU that had to come
	FESHeaderDigest   FES = 3 // FEI is the digest that was received
	FESOutOfRange     FES = 4 // data outside of what was asked for
	FESLimitExceeded  FES = 5 // more data, or more R2Ts, than allowed
	FESUnsupportedPar FES = 6 // FEI is the offset of the parameter
)

func (s FES) String() string {
	switch s {
	case FESInvalidHeader:
		return "invalid PDU header field"
	case FESSequence:
		return "PDU sequence error"
	case FESHeaderDigest:
		return "header digest error"
	case FESOutOfRange:
		return "data transfer out of range"
	case FESLimitExceeded:
		return "data transfer limit exceeded"
	case FESUnsupportedPar:
		return "unsupported parameter"
	}
	return fmt.Sprintf("fatal error %d", uint16(s))
}

// Fault is a fatal error of the transport: whoever finds it sends a TermReq and
// ends the connection.
type Fault struct {
	Status FES
	Info   uint32 // FEI
	Detail string
}

func (f *Fault) Error() string {
	return fmt.Sprintf("nvme/tcp: %v: %s", f.Status, f.Detail)
}

// Offsets of the fields that a Fault may name.
const (
	offFlags = 1
	offHLen  = 2
	offPDO   = 3
	offPLen  = 4
)

func badField(off uint32, format string, args ...any) error {
	return &Fault{FESInvalidHeader, off, fmt.Sprintf(format, args...)}
}

// hlens are the header lengths by type; 0: no such type.
var hlens = [...]uint8{
	TypeICReq: ICSize, TypeICResp: ICSize,
	TypeH2CTermReq: TermSize, TypeC2HTermReq: TermSize,
	TypeCapsuleCmd: CapsuleCmdSize, TypeCapsuleResp: CapsuleRespSize,
	TypeH2CData: DataSize, TypeC2HData: DataSize, TypeR2T: DataSize,
}

// Check holds a header to the rules of its type, given the digests of the
// connection. maxData bounds the bytes of data that the PDU may bring. The
// error is a *Fault. After it, HeaderEnd and DataLen are within PLen.
func (h Header) Check(d Digests, maxData uint32) error {
	if int(h.Type) >= len(hlens) || hlens[h.Type] == 0 {
		return badField(0, "no PDU has type %#x", uint8(h.Type))
	}
	if h.HLen != hlens[h.Type] {
		return badField(offHLen, "%v has a header of %d bytes", h.Type, h.HLen)
	}
	var ok bool
	switch h.Type {
	case TypeICReq, TypeICResp:
		ok = h.PLen == ICSize
	case TypeH2CTermReq, TypeC2HTermReq:
		ok = h.PLen >= TermSize && h.PLen <= MaxTermSize
	case TypeCapsuleResp, TypeR2T:
		ok = h.PLen == uint32(h.headerEnd(d))
	default:
		return h.checkData(d, maxData)
	}
	if !ok {
		return badField(offPLen, "%v of %d bytes", h.Type, h.PLen)
	}
	return h.checkDigestFlag(d)
}

func (h Header) checkDigestFlag(d Digests) error {
	if h.Type > TypeC2HTermReq && (h.Flags&FlagHeaderDigest != 0) != d.Header {
		return badField(offFlags, "%v says the wrong thing about its header digest (flags %#x)", h.Type, h.Flags)
	}
	return nil
}

// checkData is Check for the types that may bring data.
func (h Header) checkData(d Digests, maxData uint32) error {
	end := uint32(h.headerEnd(d))
	if err := h.checkDigestFlag(d); err != nil {
		return err
	}
	if h.Type == TypeCapsuleCmd && h.PLen == end {
		return nil
	}
	if uint32(h.PDO) < end || h.PDO%4 != 0 {
		return badField(offPDO, "%v has its data at %d", h.Type, h.PDO)
	}
	if h.PLen <= uint32(h.PDO)+uint32(d.DataBytes()) {
		return badField(offPLen, "%v of %d bytes, its data at %d", h.Type, h.PLen, h.PDO)
	}
	if (h.Flags&FlagDataDigest != 0) != d.Data {
		return badField(offFlags, "%v says the wrong thing about its data digest (flags %#x)", h.Type, h.Flags)
	}
	if n := h.DataLen(d); n > maxData {
		return &Fault{FESLimitExceeded, 0, fmt.Sprintf("%v brings %d bytes, at most %d may come", h.Type, n, maxData)}
	}
	return nil
}

// headerEnd is where the header and its digest end.
func (h Header) headerEnd(d Digests) int {
	if h.Type <= TypeC2HTermReq {
		return int(h.HLen) // IC and TermReq never have one
	}
	return int(h.HLen) + d.HeaderBytes()
}

// HeaderEnd is how many bytes the header has, with its digest and the padding
// before the data.
func (h Header) HeaderEnd(d Digests) int {
	if h.DataLen(d) > 0 {
		return int(h.PDO)
	}
	return h.headerEnd(d)
}

// DataLen is how many bytes of data the PDU brings. The header must have passed
// Check.
func (h Header) DataLen(d Digests) uint32 {
	switch h.Type {
	case TypeCapsuleCmd, TypeH2CData, TypeC2HData:
		if h.PLen != uint32(h.headerEnd(d)) {
			return h.PLen - uint32(h.PDO) - uint32(d.DataBytes())
		}
	}
	return 0
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Digest is the CRC32C of header or data (TCP 3.3.1.1).
func Digest(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// UpdateDigest goes on with a digest, from 0.
func UpdateDigest(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli, b) }

// PutDigest writes a digest into 4 bytes.
func PutDigest(b []byte, sum uint32) { le.PutUint32(b, sum) }

// ParseDigest reads one.
func ParseDigest(b []byte) uint32 { return le.Uint32(b) }
