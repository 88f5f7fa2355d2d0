package model

import (
	"fmt"
	"slices"

	"github.com/swapback/swapback/api"
)

// Differences tells in what the daemon's picture of the pool is another than
// the model's.
func (p *Pool) Differences(pool api.Pool, volumes []api.Volume) (list []string) {
	add := func(same bool, format string, args ...any) {
		if !same {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	add(pool.Volumes == len(p.Volumes) && len(volumes) == len(p.Volumes),
		"the pool says %d volumes and lists %d, want %d", pool.Volumes, len(volumes), len(p.Volumes))
	add(pool.Extents == p.Extents && pool.FreeExtents == p.Free(), "%d of %d extents are free, want %d of %d",
		pool.FreeExtents, pool.Extents, p.Free(), p.Extents)
	for _, v := range volumes {
		m := p.Find(v.UUID)
		if m == nil {
			add(false, "volume %s (%s) should not be there", v.Name, v.UUID)
			continue
		}
		list = append(list, m.differences(v, p.ExtentSize)...)
	}
	for _, m := range p.Volumes {
		add(slices.ContainsFunc(volumes, func(v api.Volume) bool { return v.UUID == m.UUID }), "volume %s is not there", m.Name)
	}
	return list
}

func (v *Volume) differences(got api.Volume, extentSize int64) (list []string) {
	same := func(what string, got, want any) {
		if got != want {
			list = append(list, fmt.Sprintf("volume %s: %s is %v, want %v", v.Name, what, got, want))
		}
	}
	same("name", got.Name, v.Name)
	same("size", got.Size, v.Size)
	same("attached", got.Attached, v.Attached)
	same("state", got.State, map[bool]string{true: api.StateServing, false: api.StateDetached}[v.Attached])
	same("read-only", got.ReadOnly, v.ReadOnly || v.Position.Quarantined)
	same("device number", got.DeviceNumber, v.Device)
	same("snapshot", got.Snapshot, v.Snapshot > 0)
	pos := got.Position
	same("generation", pos.Generation, v.Position.Generation)
	same("descends from", pos.DescendsFrom, v.Position.Descends)
	same("quarantine", pos.Quarantine != nil, v.Position.Quarantined)
	same("stripes", pos.Stripes, v.Position.Stripes)
	var extents int64
	for _, s := range pos.Segments {
		extents += s.Extents * int64(len(s.Stripes))
	}
	same("extents", extents, v.Position.Extents)
	return list
}
