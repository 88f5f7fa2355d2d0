package wire

import "fmt"

// Reservation commands (Base 7.5 to 7.8).
const (
	OpResvRegister Opcode = 0x0d
	OpResvReport   Opcode = 0x0e
	OpResvAcquire  Opcode = 0x11
	OpResvRelease  Opcode = 0x15
)

// ReservationType is how a namespace is reserved (Base 8.19); 0: it is not.
type ReservationType uint8

// Types. Registrants only: what the holder may, every registrant may. All
// registrants: each of them is a holder.
const (
	WriteExclusive      ReservationType = 1
	ExclusiveAccess     ReservationType = 2
	WriteExclusiveRegs  ReservationType = 3
	ExclusiveAccessRegs ReservationType = 4
	WriteExclusiveAll   ReservationType = 5
	ExclusiveAccessAll  ReservationType = 6
)

func (t ReservationType) String() string {
	switch t {
	case 0:
		return "none"
	case WriteExclusive:
		return "write-exclusive"
	case ExclusiveAccess:
		return "exclusive-access"
	case WriteExclusiveRegs:
		return "write-exclusive-registrants-only"
	case ExclusiveAccessRegs:
		return "exclusive-access-registrants-only"
	case WriteExclusiveAll:
		return "write-exclusive-all-registrants"
	case ExclusiveAccessAll:
		return "exclusive-access-all-registrants"
	}
	return fmt.Sprintf("reservation type %d", uint8(t))
}

// Valid tells whether there is such a type.
func (t ReservationType) Valid() bool { return t >= WriteExclusive && t <= ExclusiveAccessAll }

// AllRegistrants tells whether every registrant is a holder.
func (t ReservationType) AllRegistrants() bool {
	return t == WriteExclusiveAll || t == ExclusiveAccessAll
}

// Actions of the commands, in bits 2–0 of CDW10.
const (
	ResvRegister   = 0
	ResvUnregister = 1
	ResvReplace    = 2

	ResvAcquire      = 0
	ResvPreempt      = 1
	ResvPreemptAbort = 2

	ResvRelease = 0
	ResvClear   = 1
)

// Reservation is what Register, Acquire and Release say:
//
//	CDW10   2–0 action, 3 IEKEY, 15–8 RTYPE, 31–30 CPTPL (Register)
//	data    CRKEY 8; NRKEY (Register) or PRKEY (Acquire) 8
type Reservation struct {
	Action    uint8
	IgnoreKey bool
	Type      ReservationType
	Persist   uint8 // CPTPL: 0 no change, 2 does not survive power loss, 3 does
	Key       uint64
	Other     uint64 // NRKEY or PRKEY
}

// ReservationSize is the bytes of the data; Release has the first half only.
const ReservationSize = 16

// Reservation reads it from a command and its data. The error is a Status.
func (s *SQE) Reservation(data []byte) (r Reservation, err error) {
	r = Reservation{
		Action: uint8(s.CDW10 & 7), IgnoreKey: s.CDW10&8 != 0, Type: ReservationType(s.CDW10 >> 8), Persist: uint8(s.CDW10 >> 30),
	}
	if len(data) < s.ReservationBytes() {
		return r, InvalidSGLLength | DNR
	}
	r.Key = le.Uint64(data)
	if s.Opcode != OpResvRelease {
		r.Other = le.Uint64(data[8:])
	}
	return r, nil
}

// ReservationBytes is how many bytes of data the command has.
func (s *SQE) ReservationBytes() int {
	if s.Opcode == OpResvRelease {
		return ReservationSize / 2
	}
	return ReservationSize
}

// SetReservation puts it into a command and returns its data.
func (s *SQE) SetReservation(op Opcode, r Reservation) []byte {
	s.Opcode = op
	s.CDW10 = uint32(r.Action&7) | uint32(r.Type)<<8 | uint32(r.Persist&3)<<30
	if r.IgnoreKey {
		s.CDW10 |= 8
	}
	data := le.AppendUint64(nil, r.Key)
	if op != OpResvRelease {
		data = le.AppendUint64(data, r.Other)
	}
	return data
}

// NoticeKind is what a host is told of that somebody else did to its reservations.
type NoticeKind uint8

// Kinds; 0 is in a log without a notice.
const (
	RegistrationPreempted NoticeKind = 1
	ReservationReleased   NoticeKind = 2
	ReservationPreempted  NoticeKind = 3
)

// AllNotices are the bits of all kinds in FeatureReservationMask.
const AllNotices = 1<<RegistrationPreempted | 1<<ReservationReleased | 1<<ReservationPreempted

// ReservationNotice is the log of reservation notifications (Base 5.16.1.24), which has one
// at a time, 64 bytes. The zero value says that there is none.
type ReservationNotice struct {
	Count uint64 // which notice since the controller began
	Kind  NoticeKind
	More  uint8 // that wait; 255: or more
	NSID  uint32
}

// ReservationNoticeSize is its bytes.
const ReservationNoticeSize = 64

func (n *ReservationNotice) layout(l layout) {
	kind := uint8(n.Kind)
	l.u64(0, &n.Count)
	l.u8(8, &kind)
	l.u8(9, &n.More)
	l.u32(12, &n.NSID)
	n.Kind = NoticeKind(kind)
}

// Append appends the page.
func (n ReservationNotice) Append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, ReservationNoticeSize)...)
	n.layout(layout{b[start:], true})
	return b
}

// ParseReservationNotice reads ReservationNoticeSize bytes.
func ParseReservationNotice(b []byte) (n ReservationNotice) {
	n.layout(layout{b: b[:ReservationNoticeSize]})
	return n
}

// ReservationStatus is what Report returns (Base 7.7), in its extended form, which
// has identifiers of 128 bits:
//
//	offset bytes
//	     0     4  GEN
//	     4     1  RTYPE
//	     5     2  registrants
//	     9     1  PTPLS
//	    64    64  each registrant: CNTLID 2, RCSTS 1, reserved 5, RKEY 8, HOSTID 16
type ReservationStatus struct {
	Generation  uint32
	Type        ReservationType
	Persist     bool
	Registrants []Registrant
}

// Registrant is a host that has registered.
type Registrant struct {
	CNTLID uint16 // DynamicController: none at present
	Holder bool
	Key    uint64
	HostID [16]byte
}

const registrantSize = 64

// ReportExtended of CDW11 asks for the extended form.
const ReportExtended = 1

// Append appends the status.
func (r ReservationStatus) Append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, registrantSize*(1+len(r.Registrants)))...)
	h := b[start:]
	le.PutUint32(h, r.Generation)
	h[4] = byte(r.Type)
	le.PutUint16(h[5:], uint16(len(r.Registrants)))
	h[9] = bit(r.Persist)
	for i, g := range r.Registrants {
		e := h[registrantSize*(1+i):]
		le.PutUint16(e, g.CNTLID)
		e[2] = bit(g.Holder)
		le.PutUint64(e[8:], g.Key)
		copy(e[16:32], g.HostID[:])
	}
	return b
}

func bit(on bool) byte {
	if on {
		return 1
	}
	return 0
}

// ParseReservationStatus reads a status.
func ParseReservationStatus(b []byte) (r ReservationStatus, err error) {
	if len(b) < registrantSize {
		return r, fmt.Errorf("nvme: reservation status of %d bytes", len(b))
	}
	r = ReservationStatus{Generation: le.Uint32(b), Type: ReservationType(b[4]), Persist: b[9]&1 != 0}
	n := int(le.Uint16(b[5:]))
	if b = b[registrantSize:]; n > len(b)/registrantSize {
		return r, fmt.Errorf("nvme: reservation status with %d of %d registrants", len(b)/registrantSize, n)
	}
	for range n {
		g := Registrant{CNTLID: le.Uint16(b), Holder: b[2]&1 != 0, Key: le.Uint64(b[8:])}
		copy(g.HostID[:], b[16:])
		r.Registrants = append(r.Registrants, g)
		b = b[registrantSize:]
	}
	return r, nil
}

// RESCAP of Identify Namespace: which types there are, and that they may survive
// power loss.
const (
	RescapPersist = 1 << 0
	RescapAll     = 0x3f << 1
	RescapIEKEY13 = 1 << 7 // IEKEY as in NVMe 1.3 and later
)
