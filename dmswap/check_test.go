package dmswap

import (
	"slices"
	"strings"
	"testing"
)

// forge puts metadata into a slot of a member as a commit would: only what it says
// is wrong.
func (w *world) forge(t *testing.T, p *Pool, i, slot int, generation uint64, change func(m *metadata)) {
	t.Helper()
	meta := p.meta.clone()
	meta.Generation = generation
	if change != nil {
		change(meta)
	}
	body, err := meta.encode()
	if err != nil {
		t.Fatal(err)
	}
	m := p.store.members[i]
	if err := writeBody(m.disk, &m.label, slot, body); err != nil {
		t.Fatal(err)
	}
	if err := m.disk.WriteDurable(m.header(generation, body), m.label.Slots[slot]); err != nil {
		t.Fatal(err)
	}
}

// TestCheckFinds makes damage of which every checksum is right. The check says
// exactly what it is, and a repair mends it where the pool's own metadata is well.
func TestCheckFinds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, p *Pool, w *world)
		want   []string // NEW, OLD: the newest slot and the other; A, B: the volumes' positions
	}{
		{"an extent with two owners", func(_ *testing.T, p *Pool, _ *world) {
			a, b := p.meta.volume("a"), p.meta.volume("b")
			p.busy[b.UUID] = "a test" // leaves its device out
			p.meta = p.meta.clone()
			from := p.meta.position(a.Position).Segments[0].Stripes[0]
			p.meta.position(b.Position).Segments = []Segment{{4, []SegmentStripe{{from.Member, from.Start + 2}}}}
		}, []string{
			"disk disk0: metadata slot NEW differs from what was committed",
			"disk disk1: metadata slot NEW differs from what was committed",
			"metadata: extent 2 of member 0 belongs to position A and to position B",
			"extents: extent 2 of member 0 belongs to position A and to position B",
		}},
		{"an extent that is reserved twice", func(_ *testing.T, p *Pool, _ *world) {
			p.busy["x"] = "a test"
			p.pending["x"] = []Segment{{1, []SegmentStripe{{0, 1}}}}
		}, []string{"extents: extent 1 of member 0 belongs to position A and to x"}},
		{"another generation", func(t *testing.T, p *Pool, w *world) {
			w.forge(t, p, 1, p.store.members[1].newest, p.meta.Generation+1, nil)
		}, []string{"disk disk1: metadata slot NEW has generation 4, not 3"}},
		{"the older generation in both slots", func(t *testing.T, p *Pool, w *world) {
			w.forge(t, p, 0, p.store.members[0].newest, p.meta.Generation-1, func(m *metadata) { m.Previous-- })
		}, []string{"disk disk0: metadata slot NEW has generation 2, not 3"}},
		{"a header of another generation than its body", func(t *testing.T, p *Pool, w *world) {
			m := p.store.members[0]
			w.forge(t, p, 0, m.newest, p.meta.Generation, nil)
			body, err := p.meta.encode()
			if err != nil {
				t.Fatal(err)
			}
			if err := m.disk.WriteDurable(m.header(p.meta.Generation+1, body), m.label.Slots[m.newest]); err != nil {
				t.Fatal(err)
			}
		}, []string{"disk disk0: metadata slot NEW: corrupt: header and body name different generations or pools"}},
		{"another body", func(t *testing.T, p *Pool, w *world) {
			w.forge(t, p, 1, p.store.members[1].newest, p.meta.Generation, func(m *metadata) { m.Volumes[0].DeviceNumber++ })
		}, []string{"disk disk1: metadata slot NEW differs from what was committed"}},
		{"a generation that was never committed", func(t *testing.T, p *Pool, w *world) {
			w.forge(t, p, 0, 1-p.store.members[0].newest, p.meta.Generation+1, nil)
		}, []string{"disk disk0: metadata slot OLD has generation 4, which was never committed"}},
		{"a second slot of the same generation", func(t *testing.T, p *Pool, w *world) {
			w.forge(t, p, 0, 1-p.store.members[0].newest, p.meta.Generation, func(m *metadata) { m.Volumes[0].DeviceNumber++ })
		}, []string{"disk disk0: metadata slot OLD has generation 3, which was never committed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 16, 16)
			p := w.open(t)
			for _, name := range []string{"a", "b"} {
				mustCreate(t, p, VolumeSpec{Name: name, Size: 4 << 20})
			}
			mustCheck(t, p)
			newest := p.store.members[0].newest
			names := strings.NewReplacer("NEW", slotName(newest), "OLD", slotName(1-newest),
				"position A", "position "+p.meta.volume("a").Position, "position B", "position "+p.meta.volume("b").Position)
			tt.damage(t, p, w)
			var want []string
			for _, text := range tt.want {
				want = append(want, names.Replace(text))
			}
			r, err := p.Check(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(r.Problems, want) {
				t.Errorf("found\n%s\nnot\n%s", strings.Join(r.Problems, "\n"), strings.Join(want, "\n"))
			}
			if len(p.busy) > 0 {
				return
			}
			if r, err := p.Repair(ctx, RepairOptions{KeepDir: t.TempDir()}); err != nil || !r.OK() || !slices.Equal(r.Found, want) {
				t.Errorf("repair: %+v, %v", r, err)
			}
			mustCheck(t, w.open(t))
		})
	}
}

// TestCheckCountsExtents: an allocator that has lost extents, or has some free that
// are owned, is told.
func TestCheckCountsExtents(t *testing.T) {
	p, _ := testPool(t, 16, 16)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	mustCreate(t, p, VolumeSpec{Name: "s", Size: 4 << 20, Stripes: 2})
	for name, tt := range map[string]struct {
		damage func(a *allocator)
		want   []string
	}{
		"none": {func(*allocator) {}, nil},
		"lost": {func(a *allocator) { a.take(0, 9, 2) }, []string{"extents: member 0 has 16, but 6 are owned and 8 are free"}},
		"free": {func(a *allocator) { a.free[1] = append(a.free[1], run{start: 0, count: 1}) },
			[]string{"extents: member 1 has 16, but 2 are owned and 15 are free"}},
	} {
		free, err := newAllocator(p.meta, p.pending)
		if err != nil {
			t.Fatal(err)
		}
		tt.damage(free)
		c := &checker{pool: p}
		if c.accounts(free); !slices.Equal(c.report.Problems, tt.want) {
			t.Errorf("%s: found %q, not %q", name, c.report.Problems, tt.want)
		}
	}
}
