package wire

// CNS selects what Identify returns (Base 5.17).
const (
	CNSNamespace       = 0x00
	CNSController      = 0x01
	CNSActiveList      = 0x02
	CNSDescriptors     = 0x03
	CNSNamespaceCSI    = 0x05
	CNSControllerCSI   = 0x06
	CNSActiveListCSI   = 0x07
	CNSNamespaceCommon = 0x08
	CNSAttached        = 0x12 // controllers attached to a namespace
	CNSControllers     = 0x13
	CNSCommandSets     = 0x1c
)

// IdentifySize is the bytes of what Identify returns.
const IdentifySize = 4096

// Values of IdentifyController.Type.
const (
	ControllerIO        = 1
	ControllerDiscovery = 2
)

// Bits of IdentifyController.
const (
	CMICMultiController = 1 << 1
	CMICANA             = 1 << 3

	OAESNamespace = 1 << 8
	OAESANA       = 1 << 11
	OAESDiscovery = 1 << 31

	ONCSCompare     = 1 << 0
	ONCSDSM         = 1 << 2
	ONCSWriteZeroes = 1 << 3
	ONCSReservation = 1 << 5

	LPAEffects  = 1 << 1
	LPAExtended = 1 << 2 // Get Log Page has 32-bit lengths and offsets
	LPAPages    = 1 << 5 // there is a list of log pages

	VWCPresent       = 1 << 0
	VWCNoBroadcast   = 2 << 1 // Flush does not take all namespaces at once
	SGLSSupported    = 1      // without alignment
	SGLSOffset       = 1 << 20
	SGLSKeyless      = 1 << 21 // transport descriptors
	ANACAPOptimized  = 1 << 0
	ANACAPNonOpt     = 1 << 1
	ANACAPInaccess   = 1 << 2
	ANACAPLoss       = 1 << 3
	ANACAPTransition = 1 << 4
)

// IdentifyController is Identify with CNS 01h (Base 5.17.2.1), what of it this
// project fills in or looks at. The other bytes are 0.
type IdentifyController struct {
	Serial, Model, Firmware string // at most 20, 40 and 8 bytes
	CMIC                    uint8
	MDTS                    uint8 // log2 of the most 4 KiB pages a command may carry; 0: any
	CNTLID                  uint16
	Version                 uint32
	OAES                    uint32
	CTRATT                  uint32
	Type                    uint8
	CRDT                    [3]uint16 // retry delays, in 100 ms
	ACL, AERL, ELPE         uint8     // aborts, event requests, error log entries; 0-based
	FRMW                    uint8
	LPA                     uint8
	WarnTemp, CritTemp      uint16
	KAS                     uint16 // granularity of KATO, in 100 ms
	ANATT                   uint8  // seconds that a transition may take
	ANACAP                  uint8
	ANAGroupMax, ANAGroups  uint32
	SQES, CQES              uint8
	MaxCmd                  uint16
	NN                      uint32 // highest NSID
	ONCS                    uint16
	VWC                     uint8
	SGLS                    uint32
	MNAN                    uint32
	Subsys                  string
	IOCCSZ, IORCSZ          uint32 // capsule sizes, in 16 bytes
	ICDOFF                  uint16
	FCAttributes            uint8
	MSDBD                   uint8
}

func (c *IdentifyController) layout(l layout) {
	l.text(4, 20, ' ', &c.Serial)
	l.text(24, 40, ' ', &c.Model)
	l.text(64, 8, ' ', &c.Firmware)
	l.u8(76, &c.CMIC)
	l.u8(77, &c.MDTS)
	l.u16(78, &c.CNTLID)
	l.u32(80, &c.Version)
	l.u32(92, &c.OAES)
	l.u32(96, &c.CTRATT)
	l.u8(111, &c.Type)
	l.u16(128, &c.CRDT[0])
	l.u16(130, &c.CRDT[1])
	l.u16(132, &c.CRDT[2])
	l.u8(258, &c.ACL)
	l.u8(259, &c.AERL)
	l.u8(260, &c.FRMW)
	l.u8(261, &c.LPA)
	l.u8(262, &c.ELPE)
	l.u16(266, &c.WarnTemp)
	l.u16(268, &c.CritTemp)
	l.u16(320, &c.KAS)
	l.u8(342, &c.ANATT)
	l.u8(343, &c.ANACAP)
	l.u32(344, &c.ANAGroupMax)
	l.u32(348, &c.ANAGroups)
	l.u8(512, &c.SQES)
	l.u8(513, &c.CQES)
	l.u16(514, &c.MaxCmd)
	l.u32(516, &c.NN)
	l.u16(520, &c.ONCS)
	l.u8(525, &c.VWC)
	l.u32(536, &c.SGLS)
	l.u32(540, &c.MNAN)
	l.text(768, 256, 0, &c.Subsys)
	l.u32(1792, &c.IOCCSZ)
	l.u32(1796, &c.IORCSZ)
	l.u16(1800, &c.ICDOFF)
	l.u8(1802, &c.FCAttributes)
	l.u8(1803, &c.MSDBD)
}

// Page is the structure as a page of IdentifySize bytes.
func (c IdentifyController) Page() []byte { return page(c.layout) }

// ParseIdentifyController reads a page of IdentifySize bytes.
func ParseIdentifyController(b []byte) (c IdentifyController) {
	c.layout(layout{b: b[:IdentifySize]})
	return c
}

// Bits of IdentifyNamespace.
const (
	NSFEATThin        = 1 << 0
	NSFEATOptimal     = 1 << 4 // NPWG and its neighbours are there
	NMICShared        = 1 << 0
	DLFEATZeroes      = 1 // deallocated blocks read as zeroes
	DLFEATWriteZeroes = 1 << 3
	NSATTRReadOnly    = 1 << 0
)

// IdentifyNamespace is Identify with CNS 00h (NVM 4.1.5.1). Sizes are blocks;
// fields that end in W, G or A are 0-based numbers of blocks.
type IdentifyNamespace struct {
	Size, Capacity, Used         uint64
	Features                     uint8
	NMIC, RESCAP, FPI, DLFEAT    uint8
	NPWG, NPWA, NPDG, NPDA, NOWS uint16
	ANAGroup                     uint32
	Attributes                   uint8
	NGUID                        [16]byte
	EUI64                        [8]byte
	BlockShift                   uint8 // LBADS of format 0
	FormatsMinusOne, FormatInUse uint8
}

func (n *IdentifyNamespace) layout(l layout) {
	l.u64(0, &n.Size)
	l.u64(8, &n.Capacity)
	l.u64(16, &n.Used)
	l.u8(24, &n.Features)
	l.u8(25, &n.FormatsMinusOne)
	l.u8(26, &n.FormatInUse)
	l.u8(30, &n.NMIC)
	l.u8(31, &n.RESCAP)
	l.u8(32, &n.FPI)
	l.u8(33, &n.DLFEAT)
	l.u16(64, &n.NPWG)
	l.u16(66, &n.NPWA)
	l.u16(68, &n.NPDG)
	l.u16(70, &n.NPDA)
	l.u16(72, &n.NOWS)
	l.u32(92, &n.ANAGroup)
	l.u8(99, &n.Attributes)
	l.bytes(104, n.NGUID[:])
	l.bytes(120, n.EUI64[:])
	l.u8(130, &n.BlockShift)
}

// Page is the structure as a page of IdentifySize bytes.
func (n IdentifyNamespace) Page() []byte { return page(n.layout) }

// ParseIdentifyNamespace reads a page of IdentifySize bytes.
func ParseIdentifyNamespace(b []byte) (n IdentifyNamespace) {
	n.layout(layout{b: b[:IdentifySize]})
	return n
}

// NamespaceCommon is Identify with CNS 08h: what does not depend on the command
// set (Base 5.17.2.8).
type NamespaceCommon struct {
	Features, NMIC, RESCAP, FPI uint8
	ANAGroup                    uint32
	Attributes                  uint8
	State                       uint8 // bit 0: ready
}

func (n *NamespaceCommon) layout(l layout) {
	l.u8(0, &n.Features)
	l.u8(1, &n.NMIC)
	l.u8(2, &n.RESCAP)
	l.u8(3, &n.FPI)
	l.u32(4, &n.ANAGroup)
	l.u8(8, &n.Attributes)
	l.u8(14, &n.State)
}

// Page is the structure as a page of IdentifySize bytes.
func (n NamespaceCommon) Page() []byte { return page(n.layout) }

// ParseNamespaceCommon reads a page of IdentifySize bytes.
func ParseNamespaceCommon(b []byte) (n NamespaceCommon) {
	n.layout(layout{b: b[:IdentifySize]})
	return n
}

func page(fill func(layout)) []byte {
	b := make([]byte, IdentifySize)
	fill(layout{b, true})
	return b
}

// NamespaceID is the list of Identify with CNS 03h (Base 5.17.2.3): descriptors
// of type 1, length 1, reserved 2, and the identifier; one of length 0 ends it.
type NamespaceID struct {
	EUI64 [8]byte  // zero: none
	NGUID [16]byte // zero: none
	UUID  [16]byte // zero: none
	CSI   uint8    // command set, 0 the NVM one
}

// Types of the descriptors.
const (
	nidEUI64 = 1
	nidNGUID = 2
	nidUUID  = 3
	nidCSI   = 4
)

// Page is the list as a page of IdentifySize bytes.
func (n NamespaceID) Page() []byte {
	b := make([]byte, 0, IdentifySize)
	add := func(kind byte, id []byte) {
		for _, c := range id {
			if c != 0 || kind == nidCSI {
				b = append(append(b, kind, byte(len(id)), 0, 0), id...)
				return
			}
		}
	}
	add(nidUUID, n.UUID[:])
	add(nidNGUID, n.NGUID[:])
	add(nidEUI64, n.EUI64[:])
	add(nidCSI, []byte{n.CSI})
	return b[:IdentifySize]
}

// ParseNamespaceID reads such a list. What does not fit, or has a length of its
// own, is left out.
func ParseNamespaceID(b []byte) (n NamespaceID) {
	for len(b) >= 4 && b[1] != 0 && int(b[1]) <= len(b)-4 {
		kind, id := b[0], b[4:4+int(b[1])]
		b = b[4+len(id):]
		switch {
		case kind == nidEUI64 && len(id) == 8:
			copy(n.EUI64[:], id)
		case kind == nidNGUID && len(id) == 16:
			copy(n.NGUID[:], id)
		case kind == nidUUID && len(id) == 16:
			copy(n.UUID[:], id)
		case kind == nidCSI && len(id) == 1:
			n.CSI = id[0]
		}
	}
	return n
}

// IDList is a page with ascending namespace numbers, as Identify with CNS 02h and
// the changed namespace list have it. Only the first 1024 fit.
func IDList(ids []uint32) []byte {
	b := make([]byte, IdentifySize)
	for i, id := range ids[:min(len(ids), IdentifySize/4)] {
		le.PutUint32(b[4*i:], id)
	}
	return b
}

// ParseIDList reads one.
func ParseIDList(b []byte) (ids []uint32) {
	for ; len(b) >= 4; b = b[4:] {
		id := le.Uint32(b)
		if id == 0 {
			break
		}
		ids = append(ids, id)
	}
	return ids
}

// ControllerList is the page of Identify with CNS 12h and 13h (Base 4.4.1): their
// number in 2 bytes, then the ascending identifiers. Only the first 2047 fit.
func ControllerList(ids []uint16) []byte {
	b := make([]byte, IdentifySize)
	ids = ids[:min(len(ids), IdentifySize/2-1)]
	le.PutUint16(b, uint16(len(ids)))
	for i, id := range ids {
		le.PutUint16(b[2+2*i:], id)
	}
	return b
}

// ParseControllerList reads one.
func ParseControllerList(b []byte) (ids []uint16) {
	if len(b) < 2 {
		return nil
	}
	n := min(int(le.Uint16(b)), len(b)/2-1)
	for i := range n {
		ids = append(ids, le.Uint16(b[2+2*i:]))
	}
	return ids
}
