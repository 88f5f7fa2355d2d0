package main

import (
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
)

func TestDraw(t *testing.T) {
	pool := api.Pool{ExtentSize: 4 << 20, Members: []api.Member{{Index: 0, Path: "/dev/a", Extents: 10}, {Index: 1, Path: "/dev/b", Extents: 3}}}
	run := func(member int, start, n int64) api.Segment {
		return api.Segment{Extents: n, Stripes: []api.SegmentStripe{{Member: member, Start: start}}}
	}
	volumes := []api.Volume{
		{Name: "x", Device: "/dev/ublkb0", Position: api.Position{ID: "one", Segments: []api.Segment{run(0, 0, 2), run(1, 1, 1)}}},
		{Name: "w", Position: api.Position{ID: "two", Segments: []api.Segment{run(0, 3, 2)}, Quarantine: &api.Quarantine{Reason: "bad"}}},
	}
	got := draw(pool, volumes, false)
	for _, want := range []string{"/dev/a         BB·AA\n", "/dev/b         ·B·\n", "A w ", "B x ", "quarantine: bad"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestDrawOfAnEmptyPool(t *testing.T) {
	got := draw(api.Pool{Members: []api.Member{{Path: "/dev/a", Extents: 5}}}, nil, true)
	if !strings.Contains(got, "/dev/a         ·\n") {
		t.Errorf("got\n%s", got)
	}
}
