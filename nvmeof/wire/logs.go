package wire

import "fmt"

// Log pages (Base 5.16).
const (
	LogPages       = 0x00
	LogErrors      = 0x01
	LogSMART       = 0x02
	LogFirmware    = 0x03
	LogChangedNS   = 0x04
	LogEffects     = 0x05
	LogANA         = 0x0c
	LogDiscovery   = 0x70
	LogReservation = 0x80
)

// LogRequest is what a Get Log Page command asks for (Base 5.16):
//
//	CDW10   7–0 LID, 14–8 LSP, 15 RAE, 31–16 NUMDL
//	CDW11  15–0 NUMDU
//	CDW12, CDW13 offset in bytes
//	CDW14  23 OT: the offset is an index
type LogRequest struct {
	Page   uint8
	Field  uint8  // LSP
	Retain bool   // RAE: leave the event that it is about
	Length uint64 // bytes
	Offset uint64
	Index  bool // Offset is an index
}

// LogRequest reads it from a command.
func (s *SQE) LogRequest() LogRequest {
	return LogRequest{
		Page: uint8(s.CDW10), Field: uint8(s.CDW10>>8) & 0x7f, Retain: s.CDW10&(1<<15) != 0,
		Length: 4 * (uint64(s.CDW11&0xffff)<<16 | uint64(s.CDW10>>16) + 1),
		Offset: uint64(s.CDW13)<<32 | uint64(s.CDW12), Index: s.CDW14&(1<<23) != 0,
	}
}

// SetLogRequest puts it into one. The length is a multiple of 4.
func (s *SQE) SetLogRequest(r LogRequest) {
	n := uint32(r.Length/4 - 1)
	s.Opcode = OpGetLogPage
	s.CDW10 = uint32(r.Page) | uint32(r.Field&0x7f)<<8 | n<<16
	if r.Retain {
		s.CDW10 |= 1 << 15
	}
	s.CDW11, s.CDW12, s.CDW13 = n>>16, uint32(r.Offset), uint32(r.Offset>>32)
	if r.Index {
		s.CDW14 |= 1 << 23
	}
}

// ErrorEntry is an entry of the error log (Base 5.16.1.2), 64 bytes.
type ErrorEntry struct {
	Count    uint64 // which error since the controller began; 0: no entry
	QID, CID uint16
	Status   Status
	Location uint16 // of the wrong parameter; FFFFh: none in particular
	LBA      uint64
	NSID     uint32
	Trtype   uint8
	Result   uint64
}

// ErrorEntrySize is its bytes.
const ErrorEntrySize = 64

func (e *ErrorEntry) layout(l layout) {
	status := uint16(e.Status) << 1
	l.u64(0, &e.Count)
	l.u16(8, &e.QID)
	l.u16(10, &e.CID)
	l.u16(12, &status)
	l.u16(14, &e.Location)
	l.u64(16, &e.LBA)
	l.u32(24, &e.NSID)
	l.u8(29, &e.Trtype)
	l.u64(32, &e.Result)
	e.Status = Status(status >> 1)
}

// Append appends the entry.
func (e ErrorEntry) Append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, ErrorEntrySize)...)
	e.layout(layout{b[start:], true})
	return b
}

// ParseErrorEntry reads ErrorEntrySize bytes.
func ParseErrorEntry(b []byte) (e ErrorEntry) {
	e.layout(layout{b: b[:ErrorEntrySize]})
	return e
}

// SMART is the health log (Base 5.16.1.3), 512 bytes; counters have 128 bits on
// the wire.
type SMART struct {
	Warning              uint8
	Temperature          uint16 // Kelvin
	Spare, SpareLimit    uint8  // percent
	Used                 uint8  // percent
	DataRead, DataWrite  uint64 // thousands of 512-byte units
	Reads, Writes        uint64 // commands
	PowerCycles, Hours   uint64
	Errors, ErrorEntries uint64
}

// SMARTSize is its bytes.
const SMARTSize = 512

func (s *SMART) layout(l layout) {
	l.u8(0, &s.Warning)
	l.u16(1, &s.Temperature)
	l.u8(3, &s.Spare)
	l.u8(4, &s.SpareLimit)
	l.u8(5, &s.Used)
	l.u64(32, &s.DataRead)
	l.u64(48, &s.DataWrite)
	l.u64(64, &s.Reads)
	l.u64(80, &s.Writes)
	l.u64(112, &s.PowerCycles)
	l.u64(128, &s.Hours)
	l.u64(160, &s.Errors)
	l.u64(176, &s.ErrorEntries)
}

// Append appends the log.
func (s SMART) Append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, SMARTSize)...)
	s.layout(layout{b[start:], true})
	return b
}

// ParseSMART reads SMARTSize bytes.
func ParseSMART(b []byte) (s SMART) {
	s.layout(layout{b: b[:SMARTSize]})
	return s
}

// ANAState of a group (Base 8.1). Mind that the numbers are not those of the
// statuses: inaccessible is 03h here and 302h there.
type ANAState uint8

// States of a group.
const (
	ANAOptimized    ANAState = 0x01
	ANANonOptimized ANAState = 0x02
	ANAUnreachable  ANAState = 0x03 // inaccessible
	ANALost         ANAState = 0x04 // persistent loss
	ANAChanging     ANAState = 0x0f
)

func (s ANAState) String() string {
	switch s {
	case ANAOptimized:
		return "optimized"
	case ANANonOptimized:
		return "non-optimized"
	case ANAUnreachable:
		return "inaccessible"
	case ANALost:
		return "persistent-loss"
	case ANAChanging:
		return "change"
	}
	return fmt.Sprintf("ANA state %#x", uint8(s))
}

// ANALog is the log of asymmetric access (Base 5.16.1.13):
//
//	offset bytes
//	     0     8  change count
//	     8     2  groups
//	    16   32+  each: group 4, namespaces 4, change count 8, state 1, reserved 15,
//	              then their numbers, 4 each
type ANALog struct {
	Changes uint64
	Groups  []ANAGroup
}

// ANAGroup is one group of it. Without namespaces it has none, or they were not
// asked for.
type ANAGroup struct {
	ID         uint32
	Changes    uint64
	State      ANAState
	Namespaces []uint32
}

// ANAGroupsOnly of LogRequest.Field leaves the namespaces out.
const ANAGroupsOnly = 1

const (
	anaHeaderSize = 16
	anaGroupSize  = 32
)

// ANALogSize is how long a log with so many groups and namespaces is.
func ANALogSize(groups, namespaces int) int {
	return anaHeaderSize + groups*anaGroupSize + namespaces*4
}

// Append appends the log.
func (a ANALog) Append(b []byte) []byte {
	b = le.AppendUint64(b, a.Changes)
	b = le.AppendUint16(b, uint16(len(a.Groups)))
	b = append(b, make([]byte, anaHeaderSize-10)...)
	for _, g := range a.Groups {
		b = le.AppendUint32(b, g.ID)
		b = le.AppendUint32(b, uint32(len(g.Namespaces)))
		b = le.AppendUint64(b, g.Changes)
		b = append(b, byte(g.State))
		b = append(b, make([]byte, anaGroupSize-17)...)
		for _, ns := range g.Namespaces {
			b = le.AppendUint32(b, ns)
		}
	}
	return b
}

// ParseANALog reads a log.
func ParseANALog(b []byte) (a ANALog, err error) {
	if len(b) < anaHeaderSize {
		return a, fmt.Errorf("nvme: ANA log of %d bytes", len(b))
	}
	a.Changes = le.Uint64(b)
	groups := int(le.Uint16(b[8:]))
	b = b[anaHeaderSize:]
	for i := range groups {
		if len(b) < anaGroupSize || int64(le.Uint32(b[4:])) > int64(len(b)-anaGroupSize)/4 {
			return a, fmt.Errorf("nvme: ANA log ends in group %d of %d", i+1, groups)
		}
		g := ANAGroup{ID: le.Uint32(b), Changes: le.Uint64(b[8:]), State: ANAState(b[16])}
		n := int(le.Uint32(b[4:]))
		b = b[anaGroupSize:]
		for range n {
			g.Namespaces = append(g.Namespaces, le.Uint32(b))
			b = b[4:]
		}
		a.Groups = append(a.Groups, g)
	}
	return a, nil
}

// Discovery log (Base 5.16.1.23).
const (
	DiscoveryHeaderSize = 1024
	DiscoveryEntrySize  = 1024
)

// DiscoveryLog is the list of what a host may connect to:
//
//	offset bytes
//	     0     8  GENCTR
//	     8     8  NUMREC
//	    16     2  RECFMT, 0
//	  1024  1024  each entry
type DiscoveryLog struct {
	Generation uint64
	Entries    []DiscoveryEntry
}

// DiscoveryEntry is one way to one subsystem.
type DiscoveryEntry struct {
	Transport uint8 // 3: TCP
	Family    uint8 // 1: IPv4, 2: IPv6
	Kind      uint8 // SUBTYPE
	Port      uint16
	CNTLID    uint16
	AdminSize uint16 // most entries of the admin queue
	Flags     uint16
	Service   string // TCP port
	Subsys    string
	Address   string
}

// Values of DiscoveryEntry.
const (
	TransportTCP = 3
	FamilyIPv4   = 1
	FamilyIPv6   = 2

	KindReferral  = 1
	KindNVM       = 2
	KindDiscovery = 3 // the discovery subsystem itself

	// EntryPersistent is a flag of the entry about the discovery subsystem itself:
	// a connection to it may stay, for the sake of its events.
	EntryPersistent = 1 << 1
)

func (e *DiscoveryEntry) layout(l layout) {
	l.u8(0, &e.Transport)
	l.u8(1, &e.Family)
	l.u8(2, &e.Kind)
	l.u16(4, &e.Port)
	l.u16(6, &e.CNTLID)
	l.u16(8, &e.AdminSize)
	l.u16(10, &e.Flags)
	l.text(32, 32, ' ', &e.Service)
	l.text(256, 256, 0, &e.Subsys)
	l.text(512, 256, ' ', &e.Address)
}

// Append appends the log.
func (d DiscoveryLog) Append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, DiscoveryHeaderSize+len(d.Entries)*DiscoveryEntrySize)...)
	le.PutUint64(b[start:], d.Generation)
	le.PutUint64(b[start+8:], uint64(len(d.Entries)))
	for i := range d.Entries {
		e := d.Entries[i]
		e.layout(layout{b[start+DiscoveryHeaderSize+i*DiscoveryEntrySize:], true})
	}
	return b
}

// ParseDiscoveryLog reads a log.
func ParseDiscoveryLog(b []byte) (d DiscoveryLog, err error) {
	if len(b) < DiscoveryHeaderSize {
		return d, fmt.Errorf("nvme: discovery log of %d bytes", len(b))
	}
	d.Generation = le.Uint64(b)
	n := le.Uint64(b[8:])
	b = b[DiscoveryHeaderSize:]
	if n > uint64(len(b)/DiscoveryEntrySize) {
		return d, fmt.Errorf("nvme: discovery log with %d of %d entries", len(b)/DiscoveryEntrySize, n)
	}
	for range n {
		var e DiscoveryEntry
		e.layout(layout{b: b[:DiscoveryEntrySize]})
		d.Entries = append(d.Entries, e)
		b = b[DiscoveryEntrySize:]
	}
	return d, nil
}

// EffectsSize and PagesSize are the bytes of those logs.
const (
	EffectsSize  = 4096
	PagesSize    = 1024
	FirmwareSize = 512
)

// Effects is the log of supported commands (Base 5.16.1.6): 256 words for admin
// commands, 256 for those of the queues, 1 for a command that there is, and 3 for
// one that changes content.
func Effects(admin, io, writes []Opcode) []byte {
	b := make([]byte, EffectsSize)
	for _, o := range admin {
		le.PutUint32(b[4*int(o):], 1)
	}
	for _, o := range io {
		le.PutUint32(b[1024+4*int(o):], 1)
	}
	for _, o := range writes {
		le.PutUint32(b[1024+4*int(o):], 3)
	}
	return b
}

// SupportedPages is the log of log pages (Base 5.16.1.1).
func SupportedPages(pages ...uint8) []byte {
	b := make([]byte, PagesSize)
	for _, p := range pages {
		le.PutUint32(b[4*int(p):], 1)
	}
	return b
}

// Features (Base 5.27.1).
const (
	FeatureCache           = 0x06
	FeatureQueues          = 0x07
	FeatureAsyncEvents     = 0x0b
	FeatureKeepAlive       = 0x0f
	FeatureHostBehavior    = 0x16
	FeatureHostID          = 0x81
	FeatureReservationMask = 0x82 // of a namespace: bit N is set: no notices of kind N
)

// HostBehaviorSize is the bytes of the data of that feature; byte 0 is ACRE: the
// host heeds retry delays.
const HostBehaviorSize = 512

// Asynchronous events, as their request is completed (Base 5.2).
const (
	EventNamespace   = 0x00040002 // read LogChangedNS
	EventANA         = 0x000c0302 // read LogANA
	EventDiscovery   = 0x0070f002 // read LogDiscovery
	EventReservation = 0x00800006 // read LogReservation
)
