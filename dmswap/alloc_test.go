package dmswap

import (
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/dmswap/dm"
)

type dmDevice = dm.Device

// emptyPool is metadata with members of these numbers of extents.
func emptyPool(extents ...int64) *metadata {
	m := &metadata{Version: 1, Generation: 1, Pool: poolRecord{UUID: goldenPool, Name: "tank", Created: goldenTime, ExtentSize: 1 << 20}}
	for i, n := range extents {
		m.Members = append(m.Members, memberRecord{UUID: NewUUID(), Index: i, Extents: n, DataOffset: 4 << 20})
	}
	return m
}

func (m *metadata) give(name string, size int64, segments []Segment, stripeSize int64) {
	p := positionRecord{ID: NewUUID(), Generation: 1, StripeSize: stripeSize, Segments: segments}
	m.Positions = append(m.Positions, p)
	m.Volumes = append(m.Volumes, volumeRecord{UUID: NewUUID(), Name: name, Size: size, Created: goldenTime, Position: p.ID, DeviceNumber: -1})
}

func mustAllocate(t *testing.T, m *metadata, count int64, stripes int, have []Segment) []Segment {
	t.Helper()
	a, err := newAllocator(m, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.allocate(count, stripes, have)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func text(segments []Segment) string {
	var list []string
	for _, s := range segments {
		list = append(list, s.String())
	}
	return strings.Join(list, " ")
}

func TestAllocate(t *testing.T) {
	used := func(extents []int64, runs ...string) *metadata {
		m := emptyPool(extents...)
		for i, r := range runs {
			var s Segment
			if err := s.UnmarshalText([]byte(r)); err != nil {
				t.Fatal(err)
			}
			m.give(fmt.Sprintf("u%d", i), 4096, []Segment{s}, 0)
		}
		return m
	}
	for _, tt := range []struct {
		name    string
		m       *metadata
		count   int64
		stripes int
		have    string
		want    string
	}{
		{"the emptiest member", used([]int64{10, 20}), 5, 1, "", "5@1:0"},
		{"the first of equals", used([]int64{10, 10}), 5, 1, "", "5@0:0"},
		{"one run rather than the emptiest member", used([]int64{10, 20}, "1@1:5", "1@1:11", "1@1:17"), 8, 1, "", "8@0:0"},
		{"a hole of the right size", used([]int64{20}, "5@0:0", "5@0:8"), 3, 1, "", "3@0:5"},
		{"spill over members", used([]int64{10, 10}), 15, 1, "", "10@0:0 5@1:0"},
		{"spill over holes, the longest first", used([]int64{20}, "2@0:3", "2@0:10"), 16, 1, "", "8@0:12 5@0:5 3@0:0"},
		{"growth goes on where it ended", used([]int64{20, 40}, "5@0:0"), 3, 1, "5@0:0", "8@0:0"},
		{"growth with something in the way", used([]int64{20, 40}, "5@0:0", "1@0:7"), 5, 1, "5@0:0", "7@0:0 3@1:0"},
		{"stripes", used([]int64{10, 20, 30}), 8, 2, "", "4@1:0+2:0"},
		{"stripes, rounded up", used([]int64{10, 20, 30}), 7, 3, "", "3@0:0+1:0+2:0"},
		{"stripes around holes", used([]int64{10, 10}, "1@0:4", "1@1:6"), 14, 2, "", "5@0:5+1:0 2@0:0+1:7"},
		{"growth of stripes", used([]int64{10, 10}, "2@0:0", "2@1:0"), 4, 2, "2@0:0+1:0", "4@0:0+1:0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var have []Segment
			for f := range strings.FieldsSeq(tt.have) {
				var s Segment
				if err := s.UnmarshalText([]byte(f)); err != nil {
					t.Fatal(err)
				}
				have = append(have, s)
			}
			got := mustAllocate(t, tt.m, tt.count, tt.stripes, have)
			if text(got) != tt.want {
				t.Errorf("got %s, want %s", text(got), tt.want)
			}
		})
	}
}

func TestAllocateTooMuch(t *testing.T) {
	m := emptyPool(10, 4)
	a, err := newAllocator(m, map[string][]Segment{"pending": {{2, []SegmentStripe{{1, 0}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.allocate(13, 1, nil); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "13 extents are needed, 12 are free") {
		t.Errorf("linear: %v", err)
	}
	if _, err := a.allocate(6, 2, nil); !errors.Is(err, ErrNoSpace) {
		t.Errorf("striped: %v", err)
	}
}

// TestAllocatorProperties creates, grows and deletes at random. The metadata
// has to be valid after every step, capacity exact, nothing lost in the end.
func TestAllocatorProperties(t *testing.T) {
	for seed := range int64(30) {
		rng := rand.New(rand.NewSource(seed))
		m := emptyPool(50+rng.Int63n(50), 50+rng.Int63n(50), 50+rng.Int63n(50))
		var total int64
		for _, d := range m.Members {
			total += d.Extents
		}
		for step := range 300 {
			a, err := newAllocator(m, nil)
			if err != nil {
				t.Fatal(err)
			}
			free := a.freeTotal()
			switch n := len(m.Volumes); {
			case n > 0 && rng.Intn(3) == 0:
				i := rng.Intn(n)
				id := m.Volumes[i].Position
				m.Volumes = slices.Delete(m.Volumes, i, i+1)
				m.Positions = drop(m.Positions, func(p *positionRecord) bool { return p.ID == id })
			case n > 0 && rng.Intn(3) == 0:
				p := &m.Positions[rng.Intn(n)]
				before, count := countExtents(p.Segments), 1+rng.Int63n(12)
				more, err := a.allocate(count, p.stripes(), p.Segments)
				if errors.Is(err, ErrNoSpace) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				added, err := newRuns(p.Segments, more)
				if err != nil {
					t.Fatal(err)
				}
				if got := countExtents(added); got < count || got >= count+int64(p.stripes()) || countExtents(more) != before+got {
					t.Fatalf("seed %d, step %d: grown by %d of %d", seed, step, got, count)
				}
				p.Segments = more
			default:
				count, stripes := 1+rng.Int63n(20), 1+rng.Intn(3)
				s, err := a.allocate(count, stripes, nil)
				if errors.Is(err, ErrNoSpace) {
					if stripes == 1 && free >= count {
						t.Fatalf("seed %d, step %d: %v with %d free", seed, step, err, free)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				stripeSize := int64(0)
				if stripes > 1 {
					stripeSize = 64 << 10
				}
				m.give(fmt.Sprintf("v%d", step), 4096, s, stripeSize)
			}
			if err := m.check(); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
		}
		var used int64
		for _, p := range m.Positions {
			used += countExtents(p.Segments)
		}
		if a, err := newAllocator(m, nil); err != nil || a.freeTotal()+used != total {
			t.Errorf("seed %d: %d used and %d free of %d, %v", seed, used, a.freeTotal(), total, err)
		}
	}
}

// TestTablesAgreeWithMapRange walks random positions block by block: the two
// ways of finding a place have to agree, for the device-mapper's rules written
// down here a third time.
func TestTablesAgreeWithMapRange(t *testing.T) {
	for seed := range int64(40) {
		rng := rand.New(rand.NewSource(seed))
		m := emptyPool(64, 64, 64)
		stripes := 1 + rng.Intn(3)
		stripeSize := int64(0)
		if stripes > 1 {
			stripeSize = 4096 << rng.Intn(5)
		}
		var segments []Segment
		at := int64(rng.Intn(5))
		for range 1 + rng.Intn(3) {
			s := Segment{Extents: 1 + rng.Int63n(3)}
			for i := range stripes {
				s.Stripes = append(s.Stripes, SegmentStripe{i, at})
			}
			segments = append(segments, s)
			at += s.Extents + rng.Int63n(3)
		}
		pos := &positionRecord{ID: NewUUID(), Generation: 1, StripeSize: stripeSize, Segments: segments}
		room := countExtents(segments) << 20
		size := room - rng.Int63n(1<<20)/4096*4096
		p := placement{extentSize: 1 << 20, members: m.Members, devices: []dm.Device{{Major: 8, Minor: 0}, {Major: 8, Minor: 1}, {Major: 8, Minor: 2}}}
		table := p.table(segments, stripeSize, size)
		if err := table.Validate(); err != nil || int64(table.Size())*512 != size {
			t.Fatalf("seed %d: table of %d sectors for %d bytes, %v\n%s", seed, table.Size(), size, err, table)
		}
		covered := int64(0)
		for _, x := range mapRange(m.Members, 1<<20, pos, 0, size) {
			if x.offset != covered {
				t.Fatalf("seed %d: piece at %d follows %d", seed, x.offset, covered)
			}
			covered += x.length
			for off := x.offset; off < x.offset+x.length; off += 4096 {
				dev, sector := lookUp(table, uint64(off)/512)
				if int(dev.Minor) != x.member || int64(sector)*512 != x.at+off-x.offset {
					t.Fatalf("seed %d: offset %d is at %d of %d by the map, at sector %d of %s by the table\n%s",
						seed, off, x.at+off-x.offset, x.member, sector, dev, table)
				}
			}
		}
		if covered != size {
			t.Fatalf("seed %d: %d of %d bytes mapped", seed, covered, size)
		}
	}
}

// lookUp does what the kernel does with a sector.
func lookUp(table dm.Table, sector uint64) (dm.Device, uint64) {
	for _, e := range table {
		if sector < e.Start || sector >= e.Start+e.Length {
			continue
		}
		in := sector - e.Start
		switch x := e.Target.(type) {
		case dm.Linear:
			return x.Device, x.Start + in
		case dm.Striped:
			n := uint64(len(x.Stripes))
			chunk := in / x.Chunk
			s := x.Stripes[chunk%n]
			return s.Device, s.Start + chunk/n*x.Chunk + in%x.Chunk
		}
	}
	return dm.Device{}, 0
}

func TestDeviceNames(t *testing.T) {
	id := "12345678-0000-4000-8000-000000000000"
	for _, tt := range []struct{ pool, volume, suffix, want string }{
		{"tank", "db", "", "swapback-tank-db"},
		{"tank", "db", suffixReal, "swapback-tank-db-real"},
		{"my-tank", "db-1", "", "swapback-my--tank-db--1"},
		{"a", "b-c", "", "swapback-a-b--c"},
		{"a-b", "c", "", "swapback-a--b-c"},
	} {
		if got := dmName(tt.pool, tt.volume, id, tt.suffix); got != tt.want {
			t.Errorf("%s/%s%s: %s", tt.pool, tt.volume, tt.suffix, got)
		}
	}
	long := strings.Repeat("-x", 32)
	seen := map[string]bool{}
	for _, suffix := range []string{"", suffixReal, suffixCOW, suffixSnap} {
		for _, id := range []string{id, "87654321-0000-4000-8000-000000000000"} {
			name := dmName("p"+long[:63], "v"+long[:63], id, suffix)
			if len(name) > dm.MaxName || seen[name] || !strings.HasSuffix(name, suffix) {
				t.Errorf("%q has %d bytes, seen %v", name, len(name), seen[name])
			}
			seen[name] = true
		}
	}
	if n := len(dmUUID(goldenPool, goldenMember, suffixReal)); n > dm.MaxUUID {
		t.Errorf("UUIDs have %d bytes", n)
	}
}
