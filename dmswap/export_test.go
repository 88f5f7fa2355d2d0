package dmswap

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// TestExportsStayWithTheName: an export is there after the pool was opened again, and a
// swap takes it nowhere.
func TestExportsStayWithTheName(t *testing.T) {
	p, w := testPool(t, 16, 16)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	mustCreate(t, p, VolumeSpec{Name: "b", Size: 4 << 20})
	e := &Export{Hosts: []string{"nqn.2026-01.org.example:one", "nqn.2026-01.org.example:two"}, Authenticate: true}
	if err := p.SetExport(ctx, "a", e); err != nil {
		t.Fatal(err)
	}
	before := p.Info().Generation
	if err := p.SetExport(ctx, "a", e); err != nil || p.Info().Generation != before {
		t.Errorf("the same again: %v, generation %d after %d", err, p.Info().Generation, before)
	}
	e.Hosts[0] = "changed by its owner"
	if err := swapNow(p, SwapPair{A: "a", B: "b"}); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	again := w.open(t)
	a, err := again.Volume("a")
	if err != nil || a.Export == nil || a.Export.Hosts[0] != "nqn.2026-01.org.example:one" || !a.Export.Authenticate {
		t.Errorf("opened again: %+v, %v", a.Export, err)
	}
	if b, err := again.Volume("b"); err != nil || b.Export != nil {
		t.Errorf("the other volume: %+v, %v", b.Export, err)
	}
	if err := p.SetExport(ctx, "a", nil); err != nil {
		t.Fatal(err)
	}
	if a, err := p.Volume("a"); err != nil || a.Export != nil {
		t.Errorf("taken back: %+v, %v", a.Export, err)
	}
}

func TestExportsThatAreRefused(t *testing.T) {
	p, _ := testPool(t, 16)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	const host = "nqn.2026-01.org.example:one"
	for name, hosts := range map[string][]string{
		"nobody":        nil,
		"no name":       {""},
		"twice":         {host, host},
		"a long name":   {strings.Repeat("n", 224)},
		"no text":       {"nqn\xff"},
		"a new line":    {"nqn\n"},
		"too many":      make([]string, 257),
		"one of no use": {host, "\x00"},
	} {
		if err := p.SetExport(ctx, "a", &Export{Hosts: hosts}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		m := goldenMetadata()
		m.Volumes[0].Export = &Export{Hosts: hosts}
		body, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeMetadata(body); err == nil && name != "no text" { // JSON makes it text
			t.Errorf("%s: metadata with it was read", name)
		}
	}
	if err := p.SetExport(ctx, "nix", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("of no volume: %v", err)
	}
}

func TestGoldenExport(t *testing.T) {
	m := goldenMetadata()
	m.Volumes[0].Export = &Export{Hosts: []string{"nqn.2014-08.org.nvmexpress:uuid:33333333-3333-4333-8333-333333333333"}}
	m.Volumes[1].Export = &Export{Hosts: []string{"nqn.2026-01.org.example:<one>", "nqn.2026-01.org.example:two"}, Authenticate: true}
	m.Volumes[1].Reservations = &Reservations{Type: 3, Registrants: []Registrant{
		{"11111111-2222-3333-4444-555555555555", 1<<64 - 1, true}, {"66666666-2222-3333-4444-555555555555", 2, false},
	}}
	body, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "export.json", body)
	if got, err := decodeMetadata(body); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("decoded %+v, %v", got, err)
	}
}

// TestReservationsAreKept: with the name, until its export ends; also while another
// operation is under way.
func TestReservationsAreKept(t *testing.T) {
	p, w := testPool(t, 16, 16)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	mustCreate(t, p, VolumeSpec{Name: "b", Size: 4 << 20})
	const one, two = "11111111-2222-3333-4444-555555555555", "66666666-2222-3333-4444-555555555555"
	r := &Reservations{Type: 1, Registrants: []Registrant{{one, 7, true}, {two, 8, false}}}
	if err := p.SetReservations(ctx, "a", r); err != nil {
		t.Fatal(err)
	}
	if a, _ := p.Volume("a"); a.Reservations != nil {
		t.Error("a volume that nobody can reach is reserved")
	}
	if err := p.SetExport(ctx, "a", &Export{Hosts: []string{"nqn.2026-01.org.example:one"}}); err != nil {
		t.Fatal(err)
	}
	s, err := p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SetReservations(ctx, "a", r); err != nil {
		t.Errorf("while a swap is prepared: %v", err)
	}
	if err := s.Execute(ctx); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	a, err := w.open(t).Volume("a")
	if err != nil || !reflect.DeepEqual(a.Reservations, r) {
		t.Errorf("opened again: %+v, %v", a.Reservations, err)
	}
	for name, bad := range map[string]*Reservations{
		"nobody":   {Type: 1},
		"a type":   {Type: 7, Registrants: r.Registrants},
		"no host":  {Registrants: []Registrant{{Host: "x"}}},
		"twice":    {Registrants: []Registrant{{Host: one}, {Host: one}}},
		"too many": {Registrants: make([]Registrant, 129)},
	} {
		if err := p.SetReservations(ctx, "a", bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := p.SetExport(ctx, "a", nil); err != nil {
		t.Fatal(err)
	}
	if a, err := p.Volume("a"); err != nil || a.Reservations != nil {
		t.Errorf("the export has ended: %+v, %v", a.Reservations, err)
	}
	mustCheck(t, p)
}

// TestDrain: the device is suspended for a moment, and goes on whatever happens.
func TestDrain(t *testing.T) {
	p, w := testPool(t, 16, 16)
	a := mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	if err := p.Drain(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.Drain(gone, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	for _, d := range w.kernel.devices {
		if d.info.Suspended {
			t.Error("the device is suspended still")
		}
	}
	s, err := p.OpenSnapshot(ctx, a.UUID, SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Drain(ctx, "a"); !errors.Is(err, ErrSnapshot) {
		t.Errorf("with a snapshot open: %v", err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Drain(ctx, "nix"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of no volume: %v", err)
	}
	mustCheck(t, p)
}
