package dmswap

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

// TestUnreadableHeader: what a header that can't be read would name may be the
// newest generation. Only a member on which both can be read knows.
func TestUnreadableHeader(t *testing.T) {
	const newest, other = 0, 1
	for name, tt := range map[string]struct {
		members int
		bad     [][2]int // member and which of its headers
		torn    []int    // members whose newest header is torn
		opens   bool
	}{
		"newest of the only member":           {members: 1, bad: [][2]int{{0, newest}}},
		"other one of the only member":        {members: 1, bad: [][2]int{{0, other}}},
		"newest of all":                       {members: 2, bad: [][2]int{{0, newest}, {1, newest}}},
		"one of each":                         {members: 2, bad: [][2]int{{0, newest}, {1, other}}},
		"newest of one":                       {members: 2, bad: [][2]int{{0, newest}}, opens: true},
		"both of one":                         {members: 2, bad: [][2]int{{1, newest}, {1, other}}, opens: true},
		"newest of one, torn on the other":    {members: 2, bad: [][2]int{{0, newest}}, torn: []int{1}, opens: true},
		"torn on the only member, as crashed": {members: 1, torn: []int{0}, opens: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []int64{8, 8}[:tt.members]...)
			p := w.open(t)
			mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
			for i := range 2 {
				if err := p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.DeviceNumber = i }); err != nil {
					t.Fatal(err)
				}
			}
			bad := make([][]int64, tt.members)
			at := func(i, which int) int64 {
				m := p.store.members[i]
				return m.label.Slots[(m.newest+which)%2]
			}
			for _, b := range tt.bad {
				bad[b[0]] = append(bad[b[0]], at(b[0], b[1]))
			}
			for _, i := range tt.torn {
				w.disks[i].bytes[at(i, newest)+1000] ^= 1
			}
			var heads [][]byte
			for i, d := range w.disks {
				d.bad = func(off, _ int64) bool { return slices.Contains(bad[i], off) }
				heads = append(heads, bytes.Clone(d.bytes))
			}
			again, err := w.tryOpen()
			if (err == nil) != tt.opens {
				t.Fatalf("got %v", err)
			}
			if err == nil {
				if v, _ := again.Volume("a"); v.DeviceNumber != 1-len(tt.torn) {
					t.Errorf("number %d", v.DeviceNumber)
				}
				return
			}
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "disk0") || !strings.Contains(Remedy(err), "restore --force") {
				t.Errorf("got %v", err)
			}
			for i, d := range w.disks {
				if !bytes.Equal(d.bytes, heads[i]) {
					t.Errorf("disk%d was written to", i)
				}
			}
			// The remedy.
			st := newestSlot(w.disks[0], &w.labels[0])
			for _, d := range w.disks {
				d.bad = nil
			}
			sizes := make([]int64, tt.members)
			indexes := make([]int, tt.members)
			for i, l := range w.labels {
				sizes[i], indexes[i] = l.DiskSize, i
			}
			w.restoreOn(t, newDump(st.meta, "disk0", w.labels[0].SlotSize, sizes), indexes...)
			mustCheck(t, w.open(t))
		})
	}
}
