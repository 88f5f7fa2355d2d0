package wire

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestHeaderCheck(t *testing.T) {
	both := Digests{true, true}
	none := Digests{}
	const all = FlagHeaderDigest | FlagDataDigest
	for _, tt := range []struct {
		name   string
		h      Header
		d      Digests
		fes    FES // 0: fine
		fei    uint32
		end, n int
	}{
		{"ICReq", Header{TypeICReq, 0, 128, 0, 128}, none, 0, 0, 128, 0},
		{"ICReq too long", Header{TypeICReq, 0, 128, 0, 129}, none, FESInvalidHeader, 4, 0, 0},
		{"ICReq hlen", Header{TypeICReq, 0, 127, 0, 128}, none, FESInvalidHeader, 2, 0, 0},
		{"no such type", Header{8, 0, 24, 0, 24}, none, FESInvalidHeader, 0, 0, 0},
		{"no such type either", Header{200, 0, 24, 0, 24}, none, FESInvalidHeader, 0, 0, 0},
		{"TermReq", Header{TypeH2CTermReq, 0, 24, 0, 152}, both, 0, 0, 24, 0},
		{"TermReq short", Header{TypeH2CTermReq, 0, 24, 0, 23}, both, FESInvalidHeader, 4, 0, 0},
		{"TermReq long", Header{TypeH2CTermReq, 0, 24, 0, 153}, both, FESInvalidHeader, 4, 0, 0},
		{"command", Header{TypeCapsuleCmd, 0, 72, 0, 72}, none, 0, 0, 72, 0},
		{"command, digests", Header{TypeCapsuleCmd, FlagHeaderDigest, 72, 0, 76}, both, 0, 0, 76, 0},
		{"command, no digest", Header{TypeCapsuleCmd, 0, 72, 0, 72}, both, FESInvalidHeader, 1, 0, 0},
		{"command, one digest too many", Header{TypeCapsuleCmd, FlagHeaderDigest, 72, 0, 76}, none, FESInvalidHeader, 1, 0, 0},
		{"data in capsule", Header{TypeCapsuleCmd, 0, 72, 72, 72 + 512}, none, 0, 0, 72, 512},
		{"data in capsule, padded", Header{TypeCapsuleCmd, 0, 72, 128, 128 + 512}, none, 0, 0, 128, 512},
		{"data in capsule, digests", Header{TypeCapsuleCmd, all, 72, 76, 76 + 512 + 4}, both, 0, 0, 76, 512},
		{"data inside the header", Header{TypeCapsuleCmd, 0, 72, 68, 72 + 512}, none, FESInvalidHeader, 3, 0, 0},
		{"data at an odd place", Header{TypeCapsuleCmd, 0, 72, 74, 72 + 512}, none, FESInvalidHeader, 3, 0, 0},
		{"data behind the end", Header{TypeCapsuleCmd, 0, 72, 128, 128}, none, FESInvalidHeader, 4, 0, 0},
		{"shorter than its header", Header{TypeCapsuleCmd, 0, 72, 72, 16}, none, FESInvalidHeader, 4, 0, 0},
		{"nothing but a digest", Header{TypeCapsuleCmd, all, 72, 76, 80}, both, FESInvalidHeader, 4, 0, 0},
		{"too much data", Header{TypeH2CData, 0, 24, 24, 24 + 8192 + 1}, none, FESLimitExceeded, 0, 0, 0},
		{"data", Header{TypeH2CData, FlagLast, 24, 24, 24 + 8192}, none, 0, 0, 24, 8192},
		{"data without data", Header{TypeH2CData, FlagLast, 24, 24, 24}, none, FESInvalidHeader, 4, 0, 0},
		{"endless data", Header{TypeH2CData, 0, 24, 24, 1<<32 - 1}, none, FESLimitExceeded, 0, 0, 0},
		{"response", Header{TypeCapsuleResp, FlagHeaderDigest, 24, 0, 28}, both, 0, 0, 28, 0},
		{"R2T", Header{TypeR2T, 0, 24, 0, 28}, none, FESInvalidHeader, 4, 0, 0},
	} {
		err := tt.h.Check(tt.d, 8192)
		var f *Fault
		if tt.fes != 0 {
			if !errors.As(err, &f) || f.Status != tt.fes || f.Info != tt.fei {
				t.Errorf("%s: got %v, want status %d, information %d", tt.name, err, tt.fes, tt.fei)
			}
			continue
		}
		if err != nil || tt.h.HeaderEnd(tt.d) != tt.end || int(tt.h.DataLen(tt.d)) != tt.n {
			t.Errorf("%s: %v, header of %d bytes, data of %d", tt.name, err, tt.h.HeaderEnd(tt.d), tt.h.DataLen(tt.d))
		}
	}
}

// The digest of RFC 3720, B.4, which is the same one.
func TestDigest(t *testing.T) {
	up := make([]byte, 32)
	for i := range up {
		up[i] = byte(i)
	}
	if got := Digest(up); got != 0x46dd794e {
		t.Errorf("digest of 0 to 31 is %#x", got)
	}
	if got := UpdateDigest(Digest(up[:7]), up[7:]); got != Digest(up) {
		t.Errorf("in two parts it is %#x", got)
	}
	if got := Digest(make([]byte, 32)); got != 0x8a9136aa {
		t.Errorf("digest of zeroes is %#x", got)
	}
}

func TestStatus(t *testing.T) {
	s := NamespaceNotReady.WithDelay(2) | DNR
	if s.Code() != NamespaceNotReady || s.Delay() != 2 {
		t.Errorf("%#x has code %#x and delay %d", uint16(s), uint16(s.Code()), s.Delay())
	}
	if want := "namespace not ready (082h), retry delay 2, do not retry"; s.String() != want {
		t.Errorf("got %q, want %q", s.String(), want)
	}
	if want := "status (7ffh)"; Status(0x7ff).String() != want {
		t.Errorf("got %q", Status(0x7ff).String())
	}
}

func TestDataPDO(t *testing.T) {
	for _, tt := range []struct {
		digests bool
		pda     uint8
		want    int
	}{{false, 0, 24}, {true, 0, 28}, {false, 1, 24}, {true, 1, 32}, {false, 31, 128}} {
		if got := DataPDO(DataSize, Digests{Header: tt.digests}, tt.pda); got != tt.want {
			t.Errorf("digest %v, alignment %d: %d, want %d", tt.digests, tt.pda, got, tt.want)
		}
	}
}

func TestNQN(t *testing.T) {
	for nqn, ok := range map[string]bool{
		"nqn.2014-08.org.nvmexpress:uuid:8b7c1c9e-1b2f-4c55-9d0a-000000000000": true,
		DiscoveryNQN:                 true,
		"nqn.2026-01.org.example:é":  true,
		"":                           false,
		"nqn.":                       false,
		"iqn.2026-01.org.example:a":  false,
		"nqn.2026-01.org.example: a": false,
		"nqn.2026-01.org.example:\n": false,
		"nqn.2026-01.org.example:" + strings.Repeat("a", 199): true,
		"nqn.2026-01.org.example:" + strings.Repeat("a", 200): false,
	} {
		if err := CheckNQN(nqn); (err == nil) != ok {
			t.Errorf("%q: %v", nqn, err)
		}
	}
}

func TestListsHoldWhatFits(t *testing.T) {
	ids := make([]uint32, 2000)
	controllers := make([]uint16, 3000)
	for i := range ids {
		ids[i] = uint32(i + 1)
	}
	for i := range controllers {
		controllers[i] = uint16(i + 1)
	}
	if got := ParseIDList(IDList(ids)); !slices.Equal(got, ids[:1024]) {
		t.Errorf("%d namespaces in a page", len(got))
	}
	if got := ParseControllerList(ControllerList(controllers)); !slices.Equal(got, controllers[:2047]) {
		t.Errorf("%d controllers in a page", len(got))
	}
}

// TestHotPathDoesNotAllocate: these run for every command.
func TestHotPathDoesNotAllocate(t *testing.T) {
	b := make([]byte, 128)
	var s SQE
	got := testing.AllocsPerRun(100, func() {
		s.Parse(b)
		s.Put(b)
		CQE{CID: s.CID}.Put(b)
		h := Header{Type: TypeCapsuleCmd, HLen: 72, PLen: 72}
		if err := h.Check(Digests{}, 8192); err != nil {
			t.Error(err)
		}
		h.Put(b)
		h = ParseHeader(b)
		Data{CID: s.CID, Length: h.DataLen(Digests{})}.Put(b)
	})
	if got != 0 {
		t.Errorf("%v allocations", got)
	}
}
