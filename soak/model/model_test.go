package model

import (
	"errors"
	"slices"
	"testing"

	"github.com/swapback/swapback/api"
)

const mib = 1 << 20

// pool is a pool of 100 extents of 4 MiB with the volumes a, b and c; c is
// striped and another size.
func pool() *Pool {
	p := &Pool{Name: "tank", ExtentSize: 4 * mib, Members: 2, Extents: 100}
	for _, r := range []api.CreateVolumeRequest{
		{Name: "a", Size: 8 * mib}, {Name: "b", Size: 8 * mib}, {Name: "c", Size: 12 * mib, Stripes: 2, Detached: true},
	} {
		if c := p.Create(r); len(c) > 0 {
			panic(c)
		}
		p.Created(r, api.Volume{UUID: "uuid-" + r.Name, DeviceNumber: len(p.Volumes)})
	}
	return p
}

func pair(a, b string) api.SwapRequest { return api.SwapRequest{Pairs: []api.SwapPair{{A: a, B: b}}} }

func TestRefusals(t *testing.T) {
	three := 1
	for name, tt := range map[string]struct {
		do   func(p *Pool) Codes
		want Codes
	}{
		"create":           {func(p *Pool) Codes { return p.Create(api.CreateVolumeRequest{Name: "d", Size: 5000}) }, nil},
		"create again":     {func(p *Pool) Codes { return p.Create(api.CreateVolumeRequest{Name: "a", Size: 5000}) }, Codes{api.CodeExists}},
		"create elsewhere": {func(p *Pool) Codes { return p.Create(api.CreateVolumeRequest{Pool: "x", Name: "d", Size: 5000}) }, Codes{api.CodeNotFound}},
		"create ../d":      {func(p *Pool) Codes { return p.Create(api.CreateVolumeRequest{Name: "../d", Size: 5000}) }, Codes{api.CodeInvalid}},
		"create too much":  {func(p *Pool) Codes { return p.Create(api.CreateVolumeRequest{Name: "d", Size: 93 * 4 * mib}) }, Codes{api.CodeNoSpace}},
		"create all":       {func(p *Pool) Codes { return p.Create(api.CreateVolumeRequest{Name: "d", Size: 92 * 4 * mib}) }, nil},
		"create striped":   {func(p *Pool) Codes { return p.Create(api.CreateVolumeRequest{Name: "d", Size: 4 * mib, Stripes: 2}) }, nil},
		"create striped somewhere": {func(p *Pool) Codes {
			p.Created(api.CreateVolumeRequest{Name: "e", Size: 60 * 4 * mib}, api.Volume{})
			return p.Create(api.CreateVolumeRequest{Name: "d", Size: 4 * mib, Stripes: 2})
		}, Codes{"", api.CodeNoSpace}},
		"show nobody":          {func(p *Pool) Codes { return p.Show("x/a") }, Codes{api.CodeNotFound}},
		"show":                 {func(p *Pool) Codes { return p.Show("tank/a") }, nil},
		"shrink":               {func(p *Pool) Codes { return p.Grow("a", 8*mib) }, Codes{api.CodeInvalid}},
		"grow":                 {func(p *Pool) Codes { return p.Grow("a", 8*mib+1) }, nil},
		"grow a failed one":    {func(p *Pool) Codes { p.Find("a").Position.Quarantined = true; return p.Grow("a", 9*mib) }, Codes{api.CodeQuarantined}},
		"attach again":         {func(p *Pool) Codes { return p.Attach("a", api.AttachRequest{}) }, Codes{api.CodeExists}},
		"attach as another":    {func(p *Pool) Codes { return p.Attach("c", api.AttachRequest{Device: &three}) }, Codes{api.CodeInUse}},
		"detach a held one":    {func(p *Pool) Codes { return p.Detach("a", true) }, Codes{api.CodeInUse}},
		"delete a failed one":  {func(p *Pool) Codes { p.Find("a").Position.Quarantined = true; return p.Delete("a", false, false) }, Codes{api.CodeQuarantined}},
		"delete it with force": {func(p *Pool) Codes { p.Find("a").Position.Quarantined = true; return p.Delete("a", true, false) }, nil},
		"swap":                 {func(p *Pool) Codes { return p.Swap(pair("a", "uuid-b")) }, nil},
		"swap of sizes":        {func(p *Pool) Codes { return p.Swap(pair("a", "c")) }, Codes{api.CodeInvalid}},
		"swap with itself":     {func(p *Pool) Codes { return p.Swap(pair("a", "tank/a")) }, Codes{api.CodeInvalid}},
		"swap of held":         {func(p *Pool) Codes { return p.Swap(pair("a", "b"), p.Find("b")) }, Codes{api.CodeInUse}},
		"swap of another": {func(p *Pool) Codes {
			return p.Swap(api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "b", ExpectB: 2}}})
		}, Codes{api.CodeGeneration}},
		"snapshot twice": {func(p *Pool) Codes {
			r := api.SnapshotRequest{Volumes: []string{"a"}}
			p.Snapshotted(r)
			return p.Snapshot(r)
		}, Codes{api.CodeBusy}},
		"snapshot after a restart": {func(p *Pool) Codes {
			r := api.SnapshotRequest{Volumes: []string{"a", "b"}}
			p.Snapshotted(r)
			p.Restarted()
			return p.Snapshot(r)
		}, nil},
	} {
		if got := tt.do(pool()); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}

func TestAllow(t *testing.T) {
	busy := &api.Error{Code: api.CodeBusy}
	for _, tt := range []struct {
		codes Codes
		err   error
		ok    bool
	}{
		{nil, nil, true}, {nil, busy, false}, {Codes{api.CodeBusy}, nil, false}, {Codes{api.CodeBusy}, busy, true},
		{Codes{api.CodeInvalid, api.CodeBusy}, busy, true}, {Codes{api.CodeInvalid}, busy, false}, {Codes{api.CodeBusy}, errors.New("x"), false},
	} {
		if got := tt.codes.Allow(tt.err); (got == "") != tt.ok {
			t.Errorf("%q and %v: %q", tt.codes, tt.err, got)
		}
	}
}

// Content follows the position, the device stays with the name.
func TestSwapMovesContent(t *testing.T) {
	p := pool()
	a, b := p.Find("a"), p.Find("b")
	a.Position.Blocks[block] = 7
	a.Position.Descends = "x"
	p.Swapped(pair("a", "b"))
	if b.Position.Blocks[block] != 7 || b.Position.Descends != "x" || b.Position.Generation != 2 || a.Position.Generation != 2 || b.Device != 1 || b.Name != "b" {
		t.Errorf("a is %+v of %+v, b is %+v of %+v", a, a.Position, b, b.Position)
	}
}

func TestExtentsAreCounted(t *testing.T) {
	p := pool()
	if p.Free() != 100-2-2-4 {
		t.Errorf("%d free", p.Free())
	}
	p.Grown("c", 16*mib+1)
	if c := p.Find("c"); c.Position.Extents != 6 || c.Size != 16*mib+block || c.Position.Generation != 2 || p.Free() != 90 {
		t.Errorf("%+v of %+v, %d free", c, c.Position, p.Free())
	}
	p.Snapshotted(api.SnapshotRequest{Volumes: []string{"a", "b"}, COWSize: 1})
	if p.Free() != 88 {
		t.Errorf("%d free with snapshots", p.Free())
	}
	p.Restarted()
	p.Deleted("c")
	if p.Free() != 96 || p.Find("c") != nil {
		t.Errorf("%d free at the end", p.Free())
	}
}

func TestDifferences(t *testing.T) {
	p := pool()
	good := func() (api.Pool, []api.Volume) {
		var list []api.Volume
		for _, v := range p.Volumes {
			g := api.Volume{Name: v.Name, UUID: v.UUID, Size: v.Size, State: api.StateServing, Attached: true, DeviceNumber: v.Device}
			if !v.Attached {
				g.State, g.Attached = api.StateDetached, false
			}
			seg := api.Segment{Stripes: make([]api.SegmentStripe, v.Position.Stripes), Extents: v.Position.Extents / int64(v.Position.Stripes)}
			g.Position = api.Position{Generation: 1, Stripes: v.Position.Stripes, Segments: []api.Segment{seg}}
			list = append(list, g)
		}
		return api.Pool{Volumes: 3, Extents: 100, FreeExtents: p.Free()}, list
	}
	if d := p.Differences(good()); d != nil {
		t.Errorf("differences %q", d)
	}
	for name, change := range map[string]func(p *api.Pool, v *api.Volume){
		"free":       func(p *api.Pool, _ *api.Volume) { p.FreeExtents++ },
		"volumes":    func(p *api.Pool, _ *api.Volume) { p.Volumes++ },
		"uuid":       func(_ *api.Pool, v *api.Volume) { v.UUID = "x" },
		"size":       func(_ *api.Pool, v *api.Volume) { v.Size++ },
		"state":      func(_ *api.Pool, v *api.Volume) { v.State = api.StateBusy },
		"read-only":  func(_ *api.Pool, v *api.Volume) { v.ReadOnly = true },
		"generation": func(_ *api.Pool, v *api.Volume) { v.Position.Generation++ },
		"quarantine": func(_ *api.Pool, v *api.Volume) { v.Position.Quarantine = &api.Quarantine{} },
		"extents":    func(_ *api.Pool, v *api.Volume) { v.Position.Segments = nil },
		"snapshot":   func(_ *api.Pool, v *api.Volume) { v.Snapshot = true },
	} {
		pool, list := good()
		change(&pool, &list[1])
		if d := p.Differences(pool, list); len(d) == 0 {
			t.Errorf("%s: no difference", name)
		}
	}
}
