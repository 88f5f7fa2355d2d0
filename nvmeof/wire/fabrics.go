package wire

import (
	"bytes"
	"fmt"
)

// FCType is the type of a Fabrics command (Base 6).
type FCType uint8

// Fabrics commands.
const (
	FCPropertySet FCType = 0x00
	FCConnect     FCType = 0x01
	FCPropertyGet FCType = 0x04
	FCAuthSend    FCType = 0x05
	FCAuthReceive FCType = 0x06
	FCDisconnect  FCType = 0x08
)

// Connect is what a Connect command has in its CDWs (Base 6.3):
//
//	offset bytes
//	    40     2  RECFMT, 0
//	    42     2  QID, 0 the admin queue
//	    44     2  SQSIZE, entries minus one
//	    46     1  CATTR: bit 2, no flow control of the submission queue
//	    48     4  KATO in milliseconds
type Connect struct {
	Format     uint16
	QID        uint16
	SQSize     uint16
	Attributes uint8
	KATO       uint32
}

// ConnectNoSQFlow of Attributes: SQHD of completions is not looked at, and reads
// may end with the SUCCESS flag.
const ConnectNoSQFlow = 1 << 2

// Connect reads it from a command.
func (s *SQE) Connect() Connect {
	return Connect{uint16(s.CDW10), uint16(s.CDW10 >> 16), uint16(s.CDW11), uint8(s.CDW11 >> 16), s.CDW12}
}

// SetConnect puts it into one.
func (s *SQE) SetConnect(c Connect) {
	s.Opcode, s.FCType = OpFabrics, FCConnect
	s.CDW10 = uint32(c.Format) | uint32(c.QID)<<16
	s.CDW11 = uint32(c.SQSize) | uint32(c.Attributes)<<16
	s.CDW12 = c.KATO
}

// ConnectDataSize is the bytes of ConnectData.
const ConnectDataSize = 1024

// MaxNQN is the most bytes that a name may have, without its end.
const MaxNQN = 223

// DynamicController asks for any controller.
const DynamicController = 0xffff

// ConnectData says who wants to be connected with what (Base 6.3):
//
//	offset bytes
//	     0    16  HOSTID
//	    16     2  CNTLID, FFFFh for any
//	   256   256  SUBNQN
//	   512   256  HOSTNQN
type ConnectData struct {
	HostID   [16]byte
	CNTLID   uint16
	Subsys   string
	HostName string
}

func (d *ConnectData) layout(l layout) {
	l.bytes(0, d.HostID[:])
	l.u16(16, &d.CNTLID)
	l.text(256, 256, 0, &d.Subsys)
	l.text(512, 256, 0, &d.HostName)
}

// Append appends the 1024 bytes.
func (d ConnectData) Append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, ConnectDataSize)...)
	d.layout(layout{b[start:], true})
	return b
}

// FieldError is a field of a structure that cannot be what it is.
type FieldError struct {
	Offset uint16 // bytes into the structure
	Detail string
}

func (e *FieldError) Error() string { return fmt.Sprintf("nvme: at offset %d: %s", e.Offset, e.Detail) }

// ParseConnectData reads the data of a Connect. The error is a *FieldError.
func ParseConnectData(b []byte) (ConnectData, error) {
	var d ConnectData
	if len(b) < ConnectDataSize {
		return d, &FieldError{0, fmt.Sprintf("%d bytes of connect data", len(b))}
	}
	d.layout(layout{b: b})
	for _, f := range []struct {
		off  uint16
		name string
	}{{256, d.Subsys}, {512, d.HostName}} {
		if err := CheckNQN(f.name); err != nil || bytes.IndexByte(b[f.off:f.off+256], 0) < 0 {
			return d, &FieldError{f.off, fmt.Sprintf("%q is no NQN", f.name)}
		}
	}
	return d, nil
}

// CheckNQN tells whether a name has the length and the beginning of an NVMe
// Qualified Name (Base 4.5). It is not pedantic about domains and dates.
func CheckNQN(nqn string) error {
	switch {
	case len(nqn) > MaxNQN:
		return fmt.Errorf("nvme: a name of %d bytes, at most %d are allowed", len(nqn), MaxNQN)
	case len(nqn) < len("nqn.yyyy-mm.x") || nqn[:4] != "nqn.":
		return fmt.Errorf("nvme: %q does not look like nqn.2014-08.org.example:name", nqn)
	}
	for _, c := range []byte(nqn) {
		if c <= ' ' || c == 0x7f {
			return fmt.Errorf("nvme: %q has spaces or control characters in it", nqn)
		}
	}
	return nil
}

// DiscoveryNQN is the name of every discovery subsystem.
const DiscoveryNQN = "nqn.2014-08.org.nvmexpress.discovery"

// InvalidConnect is the result (DW0) of ConnectInvalid: where the wrong field
// lies, in the command or in its data (Base 6.3).
func InvalidConnect(off uint16, inData bool) uint64 {
	r := uint64(off)
	if inData {
		r |= 1 << 16
	}
	return r
}

// ConnectAuthRequired of the result of a Connect: the host has to prove who it is.
const ConnectAuthRequired = 1 << 17

// Property is what Property Get and Set name (Base 6.5, 6.6):
//
//	offset bytes
//	    40     1  ATTRIB: 0 four bytes, 1 eight
//	    44     4  OFST of the register
//	    48     8  value, of Property Set
type Property struct {
	Wide   bool
	Offset uint32
	Value  uint64
}

// Property reads it from a command.
func (s *SQE) Property() Property {
	return Property{s.CDW10&7 == 1, s.CDW11, uint64(s.CDW13)<<32 | uint64(s.CDW12)}
}

// SetProperty puts it into one, of type t.
func (s *SQE) SetProperty(t FCType, p Property) {
	s.Opcode, s.FCType = OpFabrics, t
	s.CDW10, s.CDW11 = 0, p.Offset
	if p.Wide {
		s.CDW10 = 1
	}
	s.CDW12, s.CDW13 = uint32(p.Value), uint32(p.Value>>32)
}

// Authentication is what Authentication Send and Receive say (Base 6.1, 6.2): the
// length of the data; ok when it is of NVMe's own protocols.
//
//	offset bytes
//	    41     1  SPSP0, 01h
//	    42     1  SPSP1, 01h
//	    43     1  SECP, E9h
//	    44     4  length
func (s *SQE) Authentication() (n uint32, ok bool) { return s.CDW11, s.CDW10>>8 == securityNVMe }

// SetAuthentication puts it into a command of type t.
func (s *SQE) SetAuthentication(t FCType, n uint32) {
	s.Opcode, s.FCType, s.CDW10, s.CDW11 = OpFabrics, t, securityNVMe<<8, n
}

const securityNVMe = 0xe90101

// MaxAuthentication is more than any message has.
const MaxAuthentication = 4096

// Offsets of the registers that there are over Fabrics (Base 3.1.3).
const (
	RegCAP  = 0x00 // 8 bytes
	RegVS   = 0x08
	RegCC   = 0x14
	RegCSTS = 0x1c
	RegNSSR = 0x20
	RegCRTO = 0x68
)

// Fields of CAP.
const (
	CapCQR      = 1 << 16 // queues are contiguous
	CapTO       = 24      // shift: how long RDY may take, in 500 ms
	CapNVM      = 1 << 37 // NVM command set
	CapCSI      = 1 << 43 // more than one command set
	CapNoIO     = 1 << 44
	CapReadyNow = 1 << 59 // CRMS: ready with media
)

// Fields of CC.
const (
	CCEnable       = 1 << 0
	CCShutdown     = 3 << 14
	CCShutdownAny  = 1 << 14 // normal; 2 << 14 abrupt
	CCSelectMask   = 7 << 4
	CCSelectAllCSI = 6 << 4
	CCIOSQES       = 16 // shift
	CCIOCQES       = 20 // shift
)

// Fields of CSTS.
const (
	CSTSReady        = 1 << 0
	CSTSFatal        = 1 << 1
	CSTSShutdownDone = 2 << 2
	CSTSShutdownMask = 3 << 2
)

// Version is NVMe 2.0, as VS and Identify Controller tell it.
const Version = 0x00020000
