package wire

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/golden.txt anew")

// TestGolden holds every structure to its bytes. Each field has a value of its
// own, so that two that changed places would show. The file is meant to be read
// beside the specification.
func TestGolden(t *testing.T) {
	var text strings.Builder
	for _, g := range goldens() {
		fmt.Fprintf(&text, "%s (%d bytes)\n%s\n", g.name, len(g.bytes), dump(g.bytes))
	}
	const path = "testdata/golden.txt"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, wanted := strings.Split(text.String(), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(got), len(wanted)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(wanted) {
			w = wanted[i]
		}
		if g != w {
			t.Fatalf("line %d of %s:\n got %s\nwant %s", i+1, path, g, w)
		}
	}
}

// dump leaves out lines of 16 zero bytes.
func dump(b []byte) string {
	var s strings.Builder
	for off := 0; off < len(b); off += 16 {
		line := b[off:min(off+16, len(b))]
		if strings.Trim(string(line), "\x00") == "" {
			continue
		}
		fmt.Fprintf(&s, "%5d  % x  |", off, line)
		for _, c := range line {
			if c < ' ' || c > '~' {
				c = '.'
			}
			s.WriteByte(c)
		}
		s.WriteString("|\n")
	}
	return s.String()
}

type golden struct {
	name  string
	bytes []byte
}

func ident(first byte) (id [16]byte) {
	for i := range id {
		id[i] = first + byte(i)
	}
	return id
}

func goldens() (list []golden) {
	add := func(name string, b []byte) { list = append(list, golden{name, b}) }
	put := func(name string, n int, put func([]byte)) {
		b := make([]byte, n)
		put(b)
		add(name, b)
	}
	put("ICReq", ICSize, ICReq{HPDA: 3, Digests: Digests{true, false}, MaxR2T: 15}.Put)
	put("ICResp", ICSize, ICResp{CPDA: 1, Digests: Digests{false, true}, MaxH2CData: 0x20000}.Put)
	add("C2HTermReq", AppendTermReq(nil, TypeC2HTermReq, &Fault{FESInvalidHeader, 4, ""}, []byte("offender")))
	put("H2CData", DataSize, func(b []byte) {
		Header{TypeH2CData, FlagHeaderDigest | FlagDataDigest | FlagLast, DataSize, 28, 4128}.Put(b)
		Data{0x0102, 0x0304, 0x05060708, 0x1000}.Put(b)
	})
	put("CQE", CQESize, CQE{0x0102030405060708, 0x090a, 0x0b0c, NamespaceNotReady.WithDelay(1)}.Put)
	put("CQE, DNR", CQESize, CQE{0, 1, 2, ConnectInvalidHost | DNR}.Put)
	sqe := SQE{
		Opcode: OpRead, Flags: FlagSGL, CID: 0x0102, NSID: 0x03040506, Reserved: 0x0708090a0b0c0d0e,
		SGL:   SGL{0x1112131415161718, 0x191a1b1c, SGLTransport},
		CDW10: 0x20212223, CDW11: 0x24252627, CDW12: 0x28292a2b, CDW13: 0x2c2d2e2f, CDW14: 0x30313233, CDW15: 0x34353637,
	}
	put("SQE", SQESize, sqe.Put)
	connect := SQE{Flags: FlagSGL, CID: 1, SGL: SGL{0, ConnectDataSize, SGLInCapsule}}
	connect.SetConnect(Connect{0x0102, 0x0304, 0x0506, ConnectNoSQFlow, 0x0708090a})
	put("SQE, Connect", SQESize, connect.Put)
	property := SQE{Flags: FlagSGL, CID: 2}
	property.SetProperty(FCPropertySet, Property{true, RegCC, 0x0102030405060708})
	put("SQE, Property Set", SQESize, property.Put)
	authentication := SQE{Flags: FlagSGL, CID: 5}
	authentication.SetAuthentication(FCAuthReceive, 0x0102)
	put("SQE, Authentication Receive", SQESize, authentication.Put)
	log := SQE{Flags: FlagSGL, CID: 3}
	log.SetLogRequest(LogRequest{LogANA, 1, true, 0x100004, 0x0102030405060708, true})
	put("SQE, Get Log Page", SQESize, log.Put)
	put("Range", RangeSize, Range{0x01020304, 0x05060708, 0x090a0b0c0d0e0f10}.Put)
	add("Connect data", ConnectData{ident(0x10), 0x0203, "nqn.2026-01.org.example:subsystem", "nqn.2026-01.org.example:host"}.Append(nil))
	add("Identify Controller", IdentifyController{
		Serial: "serial", Model: "model", Firmware: "firmware", CMIC: 0x0a, MDTS: 5, CNTLID: 0x0102, Version: Version,
		OAES: 0x80000900, CTRATT: 0x03040506, Type: ControllerIO, CRDT: [3]uint16{0x0708, 0x090a, 0x0b0c},
		ACL: 0x0d, AERL: 0x0e, ELPE: 0x0f, FRMW: 0x10, LPA: 0x11, WarnTemp: 0x1213, CritTemp: 0x1415, KAS: 0x1617,
		ANATT: 0x18, ANACAP: 0x19, ANAGroupMax: 0x1a1b1c1d, ANAGroups: 0x1e1f2021, SQES: 0x66, CQES: 0x44, MaxCmd: 0x2223,
		NN: 0x24252627, ONCS: 0x2829, VWC: 0x2a, SGLS: 0x2b2c2d2e, MNAN: 0x2f303132, Subsys: "nqn.2026-01.org.example:subsystem",
		IOCCSZ: 0x33343536, IORCSZ: 0x3738393a, ICDOFF: 0x3b3c, FCAttributes: 0x3d, MSDBD: 0x3e,
	}.Page())
	add("Identify Namespace", IdentifyNamespace{
		Size: 0x0102030405060708, Capacity: 0x1112131415161718, Used: 0x2122232425262728, Features: 0x30, NMIC: 0x31,
		RESCAP: 0x32, FPI: 0x33, DLFEAT: 0x34, NPWG: 0x3536, NPWA: 0x3738, NPDG: 0x393a, NPDA: 0x3b3c, NOWS: 0x3d3e,
		ANAGroup: 0x3f404142, Attributes: 0x43, NGUID: ident(0x50), EUI64: [8]byte{0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67},
		BlockShift: 12, FormatsMinusOne: 0x70, FormatInUse: 0x71,
	}.Page())
	add("Identify, common", NamespaceCommon{1, 2, 3, 4, 0x05060708, 9, 1}.Page())
	add("Identify, descriptors", NamespaceID{[8]byte{1, 2, 3, 4, 5, 6, 7, 8}, ident(0x20), ident(0x30), 0}.Page())
	add("Identify, list", IDList([]uint32{1, 2, 0x01020304}))
	add("Identify, controllers", ControllerList([]uint16{1, 0x0203}))
	add("error log", ErrorEntry{0x0102030405060708, 0x090a, 0x0b0c, LBAOutOfRange | DNR, 0x0d0e, 0x1112131415161718, 0x191a1b1c, TransportTCP, 0x21}.Append(nil))
	add("SMART log", SMART{1, 0x0203, 4, 5, 6, 0x0708, 0x090a, 0x0b0c, 0x0d0e, 0x0f10, 0x1112, 0x1314, 0x1516}.Append(nil))
	add("ANA log", ANALog{0x0102030405060708, []ANAGroup{
		{0x090a0b0c, 0x0d0e0f1011121314, ANAUnreachable, []uint32{0x15161718, 0x191a1b1c}}, {2, 3, ANAOptimized, nil},
	}}.Append(nil))
	add("discovery log", DiscoveryLog{0x0102030405060708, []DiscoveryEntry{
		{TransportTCP, FamilyIPv4, KindNVM, 0x0102, 0xffff, 0x0304, EntryPersistent, "4420", "nqn.2026-01.org.example:subsystem", "192.0.2.1"},
	}}.Append(nil))
	acquire := SQE{Flags: FlagSGL, CID: 4}
	data := acquire.SetReservation(OpResvAcquire, Reservation{ResvPreempt, true, ExclusiveAccessAll, 3, 0x0102030405060708, 0x1112131415161718})
	put("SQE, Reservation Acquire", SQESize, acquire.Put)
	add("its data", data)
	add("reservation status", ReservationStatus{0x01020304, WriteExclusiveRegs, true, []Registrant{
		{0x0506, true, 0x0708090a0b0c0d0e, ident(0x10)}, {DynamicController, false, 2, ident(0x30)},
	}}.Append(nil))
	add("reservation notice", ReservationNotice{0x0102030405060708, ReservationPreempted, 9, 0x0a0b0c0d}.Append(nil))
	add("effects log", Effects([]Opcode{OpIdentify}, []Opcode{OpRead}, []Opcode{OpWrite}))
	add("log pages", SupportedPages(LogErrors, LogDiscovery))
	return list
}
