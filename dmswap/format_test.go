package dmswap

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

var goldenTime = time.Date(2026, 8, 9, 10, 11, 12, 131415161, time.UTC)

const (
	goldenPool   = "00112233-4455-6677-8899-aabbccddeeff"
	goldenMember = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
)

// goldenLabel has a different value in every field.
func goldenLabel() label {
	return label{
		Pool: goldenPool, Member: goldenMember, PoolName: "tank-1", Index: 2, Count: 5,
		ExtentSize: 4 << 20, DataOffset: 8 << 20, Extents: 1021, Slots: [2]int64{8192, 8192 + 1<<20}, SlotSize: 1 << 20,
		DiskSize: 4 << 30, Created: goldenTime,
	}
}

func goldenMetadata() *metadata {
	const v1, v2, p1, p2, m2 = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222",
		"aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb", "33333333-3333-4333-8333-333333333333"
	at := func(m int, start int64) SegmentStripe { return SegmentStripe{m, start} }
	return &metadata{
		Version: 1, Generation: 42, Previous: 40,
		Pool: poolRecord{goldenPool, "tank-1", goldenTime, 4 << 20},
		Members: []memberRecord{
			{goldenMember, 0, 1021, 8 << 20, "/dev/nvme0n1"}, {m2, 1, 1021, 8 << 20, "/dev/nvme1n1"},
		},
		Volumes: []volumeRecord{
			{v1, "db", 1 << 30, goldenTime, p2, 3, true, false, nil, nil}, {v2, "db-spare", 1 << 30, goldenTime, p1, -1, false, true, nil, nil},
		},
		Positions: []positionRecord{
			{ID: p1, Generation: 7, Segments: []Segment{{200, []SegmentStripe{at(0, 0)}}, {56, []SegmentStripe{at(1, 300)}}}, Quarantine: &Quarantine{
				Reason: "step 2 <failed>", Time: goldenTime, Volume: "db", Job: "nightly", Step: "load", ExitCode: 3, Backup: "b-1",
			}},
			{ID: p2, Generation: 8, StripeSize: 64 << 10, Segments: []Segment{{128, []SegmentStripe{at(0, 200), at(1, 0)}}}, DescendsFrom: "b-1"},
		},
		Snapshots: []snapshotRecord{{v1, goldenTime, []Segment{{4, []SegmentStripe{at(1, 400)}}}}},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, got, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has changed: disks written by earlier versions could not be read\n got:\n%s\nwant:\n%s", path, got, want)
	}
}

// dump writes a block as hexadecimal with the name of every field; what
// follows the last field has to be zero.
func dump(t *testing.T, b []byte, fields []string) []byte {
	t.Helper()
	var out strings.Builder
	at := 0
	for _, f := range fields {
		var n int
		var name string
		if _, err := fmt.Sscanf(f, "%d %s", &n, &name); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%4d %-14s %s\n", at, name, hex.EncodeToString(b[at:at+n]))
		at += n
	}
	if rest := b[at:]; len(bytes.Trim(rest, "\x00")) != 0 {
		t.Errorf("bytes from %d on are not zero", at)
	}
	fmt.Fprintf(&out, "%4d %d zeroes\n", at, len(b)-at)
	return []byte(out.String())
}

func TestGoldenLabel(t *testing.T) {
	b := goldenLabel().encode()
	golden(t, "label.txt", dump(t, b, []string{
		"8 magic", "4 version", "4 crc32c", "16 pool", "16 member", "4 index", "4 count", "8 extent_size", "8 data_offset",
		"8 extents", "8 slot_a", "8 slot_b", "8 slot_size", "8 disk_size", "8 created", "64 name", "4 state",
	}))
	got, err := decodeLabel(b)
	if err != nil || !reflect.DeepEqual(got, goldenLabel()) {
		t.Errorf("decoded %+v, %v", got, err)
	}
	l := goldenLabel()
	l.Unfinished = true
	if got, err := decodeLabel(l.encode()); err != nil || !reflect.DeepEqual(got, l) {
		t.Errorf("decoded %+v, %v", got, err)
	}
}

// TestGoldenLineage: the body of a pool that lacks a member. The one of a pool
// that never did is body.json, which is the form before there were epochs.
func TestGoldenLineage(t *testing.T) {
	m := goldenMetadata()
	m.Missing = []missingRecord{{Member: 1, Holds: 35}}
	m.Epochs = []epoch{{3, goldenPool, 30}, {4, goldenMember, 38}}
	body, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "lineage.json", body)
	if got, err := decodeMetadata(body); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("decoded %+v, %v", got, err)
	}
}

func TestGoldenSlot(t *testing.T) {
	body, err := goldenMetadata().encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "body.json", body)
	h := slotHeader{Generation: 42, BodyLen: int64(len(body)), BodyCRC: crc(body), Pool: goldenPool, Member: goldenMember, Written: goldenTime}
	b := h.encode()
	golden(t, "slot.txt", dump(t, b, []string{
		"8 magic", "4 version", "4 crc32c", "8 generation", "8 body_length", "4 body_crc32c", "4 zero", "16 pool", "16 member", "8 written",
	}))
	got, err := decodeSlotHeader(b, 1<<20)
	if err != nil || got != h {
		t.Errorf("decoded %+v, %v", got, err)
	}
	m, err := decodeMetadata(body)
	if err != nil || !reflect.DeepEqual(m, goldenMetadata()) {
		t.Errorf("decoded %+v, %v", m, err)
	}
}

// TestBodyIsForPeople: the layout promises one record per line, and a body that
// can be cut out of a disk with dd.
func TestBodyIsForPeople(t *testing.T) {
	body, err := goldenMetadata().encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`"volumes":[`, `"segments":["200@0:0","56@1:300"]`, `"segments":["128@0:200+1:0"]`} {
		if !strings.Contains(string(body), line) {
			t.Errorf("the body lacks %s:\n%s", line, body)
		}
	}
	if lines := strings.Count(string(body), "\n"); lines < 12 || body[len(body)-1] != '\n' {
		t.Errorf("%d lines", lines)
	}
}

func TestEveryBitOfALabelCounts(t *testing.T) {
	good := goldenLabel().encode()
	for at := range 200 {
		b := bytes.Clone(good)
		b[at] ^= 0x40
		_, err := decodeLabel(b)
		if want := errBadLabel; at < 8 && !errors.Is(err, errNoLabel) || at >= 8 && !errors.Is(err, want) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
}

func TestLabelsThatLie(t *testing.T) {
	for name, change := range map[string]func(l *label){
		"index":          func(l *label) { l.Index = 5 },
		"count":          func(l *label) { l.Count = 0 },
		"many":           func(l *label) { l.Count = maxMembers + 1 },
		"extent size":    func(l *label) { l.ExtentSize = 3 << 20 },
		"slot size":      func(l *label) { l.SlotSize = 1<<20 + 1 },
		"slots overlap":  func(l *label) { l.Slots[1] = l.Slots[0] },
		"data too early": func(l *label) { l.DataOffset = 1 << 20 },
		"data unaligned": func(l *label) { l.DataOffset = 9 << 20 },
		"extents":        func(l *label) { l.Extents = 1024 },
		"no extents":     func(l *label) { l.Extents = 0 },
		"negative":       func(l *label) { l.Extents = -1 },
		"name":           func(l *label) { l.PoolName = "../etc" },
	} {
		l := goldenLabel()
		change(&l)
		if got, err := decodeLabel(l.encode()); !errors.Is(err, errBadLabel) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestMetadataThatLies(t *testing.T) {
	for name, change := range map[string]func(m *metadata){
		"version":               func(m *metadata) { m.Version = 2 },
		"previous":              func(m *metadata) { m.Previous = 42 },
		"missing without epoch": func(m *metadata) { m.Missing = []missingRecord{{0, 1}} },
		"all missing": func(m *metadata) {
			m.Missing, m.Epochs = []missingRecord{{0, 1}, {1, 1}}, []epoch{{1, goldenPool, 1}}
		},
		"missing twice": func(m *metadata) {
			m.Missing, m.Epochs = []missingRecord{{1, 1}, {1, 1}}, []epoch{{1, goldenPool, 1}}
		},
		"missing nobody": func(m *metadata) {
			m.Missing, m.Epochs = []missingRecord{{2, 1}}, []epoch{{1, goldenPool, 1}}
		},
		"missing holds the future": func(m *metadata) {
			m.Missing, m.Epochs = []missingRecord{{1, 42}}, []epoch{{1, goldenPool, 1}}
		},
		"epochs out of order":    func(m *metadata) { m.Epochs = []epoch{{1, goldenPool, 9}, {2, goldenMember, 9}} },
		"epoch left out":         func(m *metadata) { m.Epochs = []epoch{{1, goldenPool, 9}, {3, goldenMember, 10}} },
		"epoch to come":          func(m *metadata) { m.Epochs = []epoch{{1, goldenPool, 43}} },
		"epoch without id":       func(m *metadata) { m.Epochs = []epoch{{1, "", 42}} },
		"two owners":             func(m *metadata) { m.Positions[0].Segments[1].Stripes[0].Start = 99 },
		"snapshot in the way":    func(m *metadata) { m.Snapshots[0].Segments[0].Stripes[0].Start = 10 },
		"outside the member":     func(m *metadata) { m.Positions[0].Segments[1].Stripes[0].Start = 1000 },
		"no such member":         func(m *metadata) { m.Positions[0].Segments[1].Stripes[0].Member = 2 },
		"stripes on one member":  func(m *metadata) { m.Positions[1].Segments[0].Stripes[1] = SegmentStripe{0, 600} },
		"position twice":         func(m *metadata) { m.Volumes[1].Position = m.Volumes[0].Position },
		"position of nobody":     func(m *metadata) { m.Volumes = m.Volumes[:1] },
		"name twice":             func(m *metadata) { m.Volumes[1].Name = "db" },
		"UUID twice":             func(m *metadata) { m.Volumes[1].UUID = m.Volumes[0].UUID },
		"too large for extents":  func(m *metadata) { m.Volumes[0].Size = 2 << 30 },
		"odd size":               func(m *metadata) { m.Volumes[0].Size = 5000 },
		"no generation":          func(m *metadata) { m.Positions[0].Generation = 0 },
		"no stripe size":         func(m *metadata) { m.Positions[1].StripeSize = 0 },
		"snapshot of nobody":     func(m *metadata) { m.Snapshots[0].Volume = goldenPool },
		"snapshot twice":         func(m *metadata) { m.Snapshots = append(m.Snapshots, m.Snapshots[0]) },
		"members in wrong order": func(m *metadata) { m.Members[0], m.Members[1] = m.Members[1], m.Members[0] },
		"extent size":            func(m *metadata) { m.Pool.ExtentSize = 5 },
		"upper-case UUID":        func(m *metadata) { m.Pool.UUID = strings.ToUpper(m.Pool.UUID) },
		"empty position":         func(m *metadata) { m.Positions[0].Segments = nil },
		"stripes of other number": func(m *metadata) {
			m.Positions[1].Segments = append(m.Positions[1].Segments, Segment{1, []SegmentStripe{{0, 900}}})
		},
	} {
		m := goldenMetadata()
		// Deep enough a copy for the changes above is a fresh one.
		change(m)
		body, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeMetadata(body); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := decodeMetadata([]byte(`{"swapback":1,"surprise":true}`)); err == nil || !strings.Contains(err.Error(), "surprise") {
		t.Errorf("unknown field: %v", err)
	}
}

func TestSegmentText(t *testing.T) {
	for _, text := range []string{"1@0:0", "256@0:12", "128@0:12+1:40+7:9"} {
		var s Segment
		if err := s.UnmarshalText([]byte(text)); err != nil || s.String() != text {
			t.Errorf("%s became %s, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "1", "@0:0", "0@0:0", "1@", "1@0", "1@0:", "1@:0", "-1@0:0", "1@0:-1", "01@0:0", "1@0:0+", "1@2000:0", "9999999999999@0:0", " 1@0:0"} {
		var s Segment
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q became %s", text, s)
		}
	}
}

func TestLayout(t *testing.T) {
	for _, tt := range []struct {
		sizes         []int64
		extent        int64
		slot, data, n int64 // n: extents of the first
	}{
		{[]int64{4 << 30, 4 << 30}, 4 << 20, 1 << 20, 4 << 20, 1023},
		{[]int64{64 << 20}, 1 << 20, 1 << 20, 3 << 20, 61},
		{[]int64{64 << 20}, 64 << 10, 1 << 20, 2<<20 + 64<<10, (64<<20 - 2<<20 - 64<<10) >> 16},
		{[]int64{1 << 40, 1 << 40}, 4 << 20, 16 << 20, 36 << 20, 262144 - 9},
		{[]int64{1 << 46}, 4 << 20, 32 << 20, 68 << 20, 1<<24 - 17},
		{[]int64{1 << 40}, 1 << 30, 1 << 20, 1 << 30, 1023},
		{[]int64{2 << 20}, 4 << 20, 1 << 20, 4 << 20, 0},
	} {
		slot, data, extents := layout(tt.sizes, tt.extent)
		if slot != tt.slot || data != tt.data || extents[0] != tt.n {
			t.Errorf("%v by %d: slots of %d, data at %d, %d extents", tt.sizes, tt.extent, slot, data, extents[0])
		}
	}
}

func TestBodyThatDoesNotFit(t *testing.T) {
	p, _ := testPool(t, 8)
	p.store.members[0].label.SlotSize = 2 * blockSize
	defer func() { p.store.members[0].label.SlotSize = 1 << 20 }()
	long := strings.Repeat("x", blockSize)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
	err := p.SetPosition(ctx, "a", func(a *PositionAttrs) { a.DescendsFrom = long })
	if !errors.Is(err, ErrNoSpace) {
		t.Errorf("got %v", err)
	}
	if v, _ := p.Volume("a"); v.Position.DescendsFrom != "" {
		t.Error("the change is seen")
	}
}

func FuzzDecodeLabel(f *testing.F) {
	f.Add(goldenLabel().encode())
	f.Add([]byte(labelMagic))
	f.Fuzz(func(t *testing.T, short []byte) {
		if _, err := decodeLabel(short); len(short) < labelSize && !errors.Is(err, errNoLabel) {
			t.Errorf("%d bytes: %v", len(short), err)
		}
		// The zeroes at its end and the checksum would keep the fuzzer out.
		b := make([]byte, labelSize)
		copy(b, short)
		copy(b, labelMagic)
		clear(b[12:16])
		binary.LittleEndian.PutUint32(b[12:], crc(b))
		l, err := decodeLabel(b)
		if err != nil {
			return
		}
		again, err := decodeLabel(l.encode())
		if err != nil || !reflect.DeepEqual(l, again) {
			t.Errorf("%+v became %+v, %v", l, again, err)
		}
	})
}

func FuzzDecodeSlot(f *testing.F) {
	body, err := goldenMetadata().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(slotHeader{Generation: 42, BodyLen: int64(len(body)), Pool: goldenPool, Member: goldenMember, Written: goldenTime}.encode(), body)
	f.Add([]byte(slotMagic), []byte("{}"))
	if lineage, err := os.ReadFile("testdata/lineage.json"); err != nil {
		f.Fatal(err)
	} else {
		f.Add([]byte(slotMagic), lineage)
	}
	f.Fuzz(func(t *testing.T, head, body []byte) {
		// The checksum would keep the fuzzer out.
		if len(head) >= blockSize {
			head = bytes.Clone(head[:blockSize])
			copy(head, slotMagic)
			clear(head[12:16])
			binary.LittleEndian.PutUint32(head[12:], crc(head))
		}
		if h, err := decodeSlotHeader(head, 1<<20); err == nil && (h.BodyLen < 1 || h.BodyLen > 1<<20-slotBody) {
			t.Errorf("header accepted: %+v", h)
		}
		m, err := decodeMetadata(body)
		if err != nil {
			return
		}
		out, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeMetadata(out)
		if err != nil {
			t.Fatalf("%s\nis not accepted again: %v", out, err)
		}
		if second, err := again.encode(); err != nil || !bytes.Equal(out, second) {
			t.Errorf("%s\nbecame\n%s\n%v", out, second, err)
		}
		// Whatever was accepted can be turned into tables.
		p := placement{extentSize: m.Pool.ExtentSize, members: m.Members, devices: make([]dmDevice, len(m.Members))}
		for i := range m.Volumes {
			v := &m.Volumes[i]
			table := p.volumeTable(v, m.position(v.Position))
			if err := table.Validate(); err != nil || int64(table.Size())*512 != v.Size {
				t.Errorf("table of %s with %d bytes: %d sectors, %v", v.Name, v.Size, table.Size(), err)
			}
		}
	})
}

func FuzzSegmentText(f *testing.F) {
	f.Add("128@0:12+1:40")
	f.Fuzz(func(t *testing.T, text string) {
		var s Segment
		if s.UnmarshalText([]byte(text)) == nil && s.String() != text {
			t.Errorf("%q became %q", text, s)
		}
	})
}
