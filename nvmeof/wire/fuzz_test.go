package wire

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seed gives a target the goldens that its decoder is for.
func seed(f *testing.F, names ...string) {
	for _, g := range goldens() {
		for _, name := range names {
			if g.name == name {
				f.Add(g.bytes)
			}
		}
	}
}

// FuzzHeader: what passes Check has its header and data within its length.
func FuzzHeader(f *testing.F) {
	seed(f, "ICReq", "ICResp", "C2HTermReq", "H2CData")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		h := ParseHeader(b)
		again := make([]byte, HeaderSize)
		if h.Put(again); !bytes.Equal(again, b[:HeaderSize]) {
			t.Errorf("%x became %x", b[:HeaderSize], again)
		}
		const most = 1 << 20
		for _, d := range []Digests{{}, {true, false}, {false, true}, {true, true}} {
			if h.Check(d, most) != nil {
				continue
			}
			data := uint64(h.DataLen(d))
			end := uint64(h.HeaderEnd(d)) + data
			if data > 0 {
				end += uint64(d.DataBytes())
			}
			isTerm := h.Type == TypeC2HTermReq || h.Type == TypeH2CTermReq
			if data > most || (end != uint64(h.PLen) && !isTerm) || h.HeaderEnd(d) < int(h.HLen) {
				t.Errorf("%+v with %+v: header of %d, data of %d bytes", h, d, h.HeaderEnd(d), data)
			}
		}
	})
}

// FuzzPDU: whole PDUs come back the same.
func FuzzPDU(f *testing.F) {
	seed(f, "ICReq", "ICResp", "C2HTermReq", "H2CData")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < ICSize {
			b = append(bytes.Clone(b), make([]byte, ICSize-len(b))...)
		}
		again := make([]byte, ICSize)
		if r, err := ParseICReq(b); err == nil {
			r.Put(again)
			if back, err := ParseICReq(again); err != nil || back != r {
				t.Errorf("%+v became %+v, %v", r, back, err)
			}
		}
		if r, err := ParseICResp(b); err == nil {
			r.Put(again)
			if back, err := ParseICResp(again); err != nil || back != r {
				t.Errorf("%+v became %+v, %v", r, back, err)
			}
		}
		d := ParseData(b)
		d.Put(again)
		if back := ParseData(again); back != d {
			t.Errorf("%+v became %+v", d, back)
		}
		term := ParseTermReq(b[:min(len(b), MaxTermSize)])
		pdu := AppendTermReq(nil, TypeH2CTermReq, term, b)
		if err := ParseHeader(pdu).Check(Digests{}, 0); err != nil {
			t.Error(err)
		}
		if back := ParseTermReq(pdu); back.Status != term.Status || back.Info != term.Info {
			t.Errorf("%+v became %+v", term, back)
		}
	})
}

// FuzzCommand: entries of the queues, and what a command's words hold.
func FuzzCommand(f *testing.F) {
	seed(f, "SQE", "SQE, Connect", "SQE, Property Set", "SQE, Get Log Page", "CQE", "Range")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < SQESize {
			b = append(bytes.Clone(b), make([]byte, SQESize-len(b))...)
		}
		var s, back SQE
		s.Parse(b)
		again := make([]byte, SQESize)
		s.Put(again)
		if back.Parse(again); back != s {
			t.Errorf("%+v became %+v", s, back)
		}
		if n := s.Blocks(); n == 0 || n > 1<<16 {
			t.Errorf("%d blocks", n)
		}
		r := s.LogRequest()
		if r.Length == 0 || r.Length%4 != 0 || r.Length > 1<<34 {
			t.Errorf("a log of %d bytes", r.Length)
		}
		var l SQE
		if l.SetLogRequest(r); l.LogRequest() != r {
			t.Errorf("%+v became %+v", r, l.LogRequest())
		}
		c := s.Connect()
		if l.SetConnect(c); l.Connect() != c {
			t.Errorf("%+v became %+v", c, l.Connect())
		}
		p := s.Property()
		if l.SetProperty(FCPropertySet, p); l.Property() != p {
			t.Errorf("%+v became %+v", p, l.Property())
		}
		for _, op := range []Opcode{OpResvRegister, OpResvAcquire, OpResvRelease} {
			s.Opcode = op
			if r, err := s.Reservation(b[SQESize:]); err == nil {
				data := l.SetReservation(op, r)
				if back, err := l.Reservation(data); err != nil || back != r {
					t.Errorf("%+v became %+v, %v", r, back, err)
				}
			}
		}
		q := ParseCQE(b)
		if q.Put(again); ParseCQE(again) != q {
			t.Errorf("%+v became %+v", q, ParseCQE(again))
		}
		_ = q.Status.String()
		d := ParseRange(b)
		if d.Put(again); ParseRange(again) != d {
			t.Errorf("%+v became %+v", d, ParseRange(again))
		}
	})
}

func FuzzConnectData(f *testing.F) {
	seed(f, "Connect data")
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseConnectData(b)
		if err != nil {
			return
		}
		if back, err := ParseConnectData(d.Append(nil)); err != nil || back != d {
			t.Errorf("%+v became %+v, %v", d, back, err)
		}
	})
}

// FuzzIdentify: pages of any content are read without a panic, and what was read
// comes back the same.
func FuzzIdentify(f *testing.F) {
	seed(f, "Identify Controller", "Identify Namespace", "Identify, common", "Identify, descriptors", "Identify, list", "Identify, controllers")
	f.Fuzz(func(t *testing.T, b []byte) {
		short := b
		if len(b) < IdentifySize {
			b = append(bytes.Clone(b), make([]byte, IdentifySize-len(b))...)
		}
		same(t, ParseIdentifyController(b), func(c IdentifyController) IdentifyController { return ParseIdentifyController(c.Page()) })
		same(t, ParseIdentifyNamespace(b), func(n IdentifyNamespace) IdentifyNamespace { return ParseIdentifyNamespace(n.Page()) })
		same(t, ParseNamespaceCommon(b), func(n NamespaceCommon) NamespaceCommon { return ParseNamespaceCommon(n.Page()) })
		same(t, ParseNamespaceID(short), func(n NamespaceID) NamespaceID { return ParseNamespaceID(n.Page()) })
		same(t, ParseIDList(b[:IdentifySize]), func(l []uint32) []uint32 { return ParseIDList(IDList(l)) })
		same(t, ParseControllerList(b[:IdentifySize]), func(l []uint16) []uint16 { return ParseControllerList(ControllerList(l)) })
		ParseIDList(short)
		ParseControllerList(short)
	})
}

func FuzzLogs(f *testing.F) {
	seed(f, "error log", "SMART log", "ANA log", "discovery log", "reservation status", "reservation notice")
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseANALog(b); err == nil {
			same(t, a, func(a ANALog) ANALog { a, _ = ParseANALog(a.Append(nil)); return a })
		}
		if d, err := ParseDiscoveryLog(b); err == nil {
			same(t, d, func(d DiscoveryLog) DiscoveryLog { d, _ = ParseDiscoveryLog(d.Append(nil)); return d })
		}
		if r, err := ParseReservationStatus(b); err == nil {
			same(t, r, func(r ReservationStatus) ReservationStatus { r, _ = ParseReservationStatus(r.Append(nil)); return r })
		}
		if len(b) >= ErrorEntrySize {
			same(t, ParseReservationNotice(b), func(n ReservationNotice) ReservationNotice { return ParseReservationNotice(n.Append(nil)) })
			same(t, ParseErrorEntry(b), func(e ErrorEntry) ErrorEntry { return ParseErrorEntry(e.Append(nil)) })
		}
		if len(b) >= SMARTSize {
			same(t, ParseSMART(b), func(s SMART) SMART { return ParseSMART(s.Append(nil)) })
		}
	})
}

func same[T any](t *testing.T, v T, again func(T) T) {
	t.Helper()
	if diff := cmp.Diff(v, again(v)); diff != "" {
		t.Errorf("came back another (-was +is):\n%s", diff)
	}
}
