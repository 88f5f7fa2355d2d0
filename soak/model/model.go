// Package model is what a pool must be after a sequence of API calls, kept as
// simply as can be: which volumes there are, of which size and generation, and
// what content every position has. Tests do the same to the model and to the
// real daemon and compare.
//
// A model knows nothing of where extents lie, only how many there are, and
// nothing of time: no two of its calls overlap. It is for one goroutine.
package model

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/swapback/swapback/api"
)

const block = 4096

// Pool is the model of a pool.
type Pool struct {
	Name       string
	ExtentSize int64
	Members    int
	Extents    int64 // of all members
	Volumes    []*Volume
}

// Volume is a name with the position that it shows.
type Volume struct {
	Name, UUID         string
	Size               int64
	Attached, ReadOnly bool
	Device             int   // the last N of /dev/ublkbN, -1 before the first
	Snapshot           int64 // extents that its open snapshot keeps; 0 without one
	Position           *Position
}

// Position is content.
type Position struct {
	Generation  uint64
	Stripes     int
	Extents     int64
	Descends    string
	Quarantined bool
	// Blocks are the tags of the blocks whose content is known, by their
	// offset; 0 is a block of zeroes.
	Blocks map[int64]uint64
}

// Codes are the codes of the API that a call may be refused with. A call that
// has none must succeed; one that has some must fail with one of them, and
// change nothing. With [success] among them it may do either.
type Codes []string

// success is how a call may end whose refusal the model can't foresee.
const success = ""

func (c *Codes) when(yes bool, code string) {
	if yes && !slices.Contains(*c, code) {
		*c = append(*c, code)
	}
}

// Allow tells what is wrong with how a call ended, or "".
func (c Codes) Allow(err error) string {
	switch {
	case err == nil && (len(c) == 0 || slices.Contains(c, success)):
		return ""
	case err == nil:
		return fmt.Sprintf("it went well, want one of %q", []string(c))
	case slices.Contains(c, api.CodeOf(err)):
		return ""
	case len(c) == 0:
		return fmt.Sprintf("it failed: %v", err)
	}
	return fmt.Sprintf("it failed with %s, want one of %q: %v", api.CodeOf(err), []string(c), err)
}

// Find finds a volume as the API does: by NAME, POOL/NAME or UUID. It returns
// nil when there is none.
func (p *Pool) Find(ref string) *Volume {
	if pool, name, ok := strings.Cut(ref, "/"); ok {
		if pool != p.Name {
			return nil
		}
		ref = name
	}
	for _, v := range p.Volumes {
		if v.Name == ref || v.UUID == ref {
			return v
		}
	}
	return nil
}

// Free is the number of extents that nobody has.
func (p *Pool) Free() int64 {
	free := p.Extents
	for _, v := range p.Volumes {
		free -= v.Position.Extents + v.Snapshot
	}
	return free
}

var (
	nameForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)
	uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// extents is how many a position of so many stripes takes for more bytes.
func (p *Pool) extents(size int64, stripes int) int64 {
	n := (size + p.ExtentSize - 1) / p.ExtentSize
	return roundUp(n, int64(stripes))
}

const (
	// maxSize is beyond what any pool has; sizes up to it overflow nothing here.
	maxSize = 1 << 50
	// maxNumber and maxStripe are the largest that the API takes for sizes.
	maxNumber = 1 << 60
	maxStripe = 1 << 30
	// maxRef is how long a reference to a volume may be: POOL/NAME.
	maxRef = 129
)

// Create says how a volume may be refused.
func (p *Pool) Create(req api.CreateVolumeRequest) (c Codes) {
	c.when(req.Pool != "" && req.Pool != p.Name, api.CodeNotFound)
	c.when(!nameForm.MatchString(req.Name) || uuidForm.MatchString(req.Name), api.CodeInvalid)
	c.when(req.Size < block || req.Size > maxNumber || req.Stripes < 0 || req.Stripes > p.Members, api.CodeInvalid)
	c.when(req.StripeSize < 0 || req.StripeSize > maxStripe, api.CodeInvalid)
	if req.Stripes > 1 {
		s := req.StripeSize
		c.when(s != 0 && (s < block || s > p.ExtentSize || s&(s-1) != 0), api.CodeInvalid)
	}
	c.when(p.Find(req.Name) != nil && !strings.Contains(req.Name, "/"), api.CodeExists)
	c.when(req.Size > maxSize, api.CodeNoSpace)
	stripes := max(req.Stripes, 1)
	p.room(&c, p.extents(req.Size, stripes), stripes)
	return c
}

// room adds how a call that is right may be refused for the extents it needs. The
// free ones may all be on one member, which is as good as none for stripes.
func (p *Pool) room(c *Codes, need int64, stripes int) {
	if len(*c) > 0 {
		return
	}
	c.when(need > p.Free(), api.CodeNoSpace)
	perMember := (p.Extents + int64(p.Members) - 1) / int64(p.Members)
	least := p.Free() - int64(p.Members-1)*perMember
	if len(*c) == 0 && stripes > 1 && need/int64(stripes) > least {
		*c = Codes{success, api.CodeNoSpace}
	}
}

// Created adds a volume that the daemon has made.
func (p *Pool) Created(req api.CreateVolumeRequest, v api.Volume) {
	size := roundUp(req.Size, block)
	stripes := max(req.Stripes, 1)
	p.Volumes = append(p.Volumes, &Volume{
		Name: req.Name, UUID: v.UUID, Size: size, Attached: !req.Detached, Device: v.DeviceNumber,
		Position: &Position{
			Generation: 1, Stripes: stripes, Extents: p.extents(size, stripes),
			Blocks: map[int64]uint64{0: 0, size - block: 0},
		},
	})
}

// with adds the codes of a reference unless there is such a volume, and returns
// it.
func (p *Pool) with(c *Codes, ref string) *Volume {
	v := p.Find(ref)
	c.when(v == nil, api.CodeNotFound)
	c.when(ref == "" || len(ref) > maxRef, api.CodeInvalid)
	return v
}

// Show says how a question about a volume may be refused.
func (p *Pool) Show(ref string) (c Codes) {
	p.with(&c, ref)
	return c
}

// Delete says how the deletion of a volume may be refused. held tells whether
// somebody has its device open.
func (p *Pool) Delete(ref string, force, held bool) (c Codes) {
	if v := p.with(&c, ref); v != nil {
		c.when(v.Position.Quarantined && !force, api.CodeQuarantined)
		c.when(v.Snapshot > 0, api.CodeBusy)
		c.when(held, api.CodeInUse)
	}
	return c
}

// Deleted takes a volume away.
func (p *Pool) Deleted(ref string) {
	v := p.Find(ref)
	p.Volumes = slices.DeleteFunc(p.Volumes, func(x *Volume) bool { return x == v })
}

// Grow says how a new size may be refused.
func (p *Pool) Grow(ref string, size int64) (c Codes) {
	c.when(size < block || size > maxNumber, api.CodeInvalid)
	v := p.with(&c, ref)
	if v == nil {
		return c
	}
	c.when(size <= v.Size, api.CodeInvalid)
	c.when(v.Position.Quarantined, api.CodeQuarantined)
	c.when(v.Snapshot > 0, api.CodeBusy)
	c.when(size > maxSize, api.CodeNoSpace)
	p.room(&c, p.more(v, size), v.Position.Stripes)
	return c
}

// more is how many extents a volume needs for a new size.
func (p *Pool) more(v *Volume, size int64) int64 {
	need := (size+p.ExtentSize-1)/p.ExtentSize - v.Position.Extents
	return roundUp(max(need, 0), int64(v.Position.Stripes))
}

// Grown gives a volume its new size.
func (p *Pool) Grown(ref string, size int64) {
	v := p.Find(ref)
	size = roundUp(size, block)
	v.Position.Extents += p.more(v, size)
	v.Position.Generation++
	v.Position.Blocks[size-block] = 0
	v.Size = size
}

// Attach says how a block device may be refused.
func (p *Pool) Attach(ref string, req api.AttachRequest) (c Codes) {
	c.when(req.Device != nil && (*req.Device < 0 || *req.Device >= 1<<20), api.CodeInvalid)
	v := p.with(&c, ref)
	if v == nil {
		return c
	}
	c.when(v.Attached, api.CodeExists)
	if req.Device != nil {
		for _, other := range p.Volumes {
			c.when(other != v && other.Attached && other.Device == *req.Device, api.CodeInUse)
		}
	}
	return c
}

// Attached notes that a volume has the block device N.
func (p *Pool) Attached(ref string, req api.AttachRequest, n int) {
	v := p.Find(ref)
	v.Attached, v.ReadOnly, v.Device = true, req.ReadOnly, n
}

// Detach says how it may be refused to take a block device away.
func (p *Pool) Detach(ref string, held bool) (c Codes) {
	if v := p.with(&c, ref); v != nil {
		c.when(!v.Attached, api.CodeInvalid)
		c.when(held, api.CodeInUse)
	}
	return c
}

// Detached notes that a volume has no block device.
func (p *Pool) Detached(ref string) { p.Find(ref).Attached = false }

// Quarantine says how a label may be refused.
func (p *Pool) Quarantine(ref string, generation uint64) (c Codes) {
	if v := p.with(&c, ref); v != nil {
		c.when(generation != 0 && generation != v.Position.Generation, api.CodeGeneration)
	}
	return c
}

// Release says how it may be refused to take a label away.
func (p *Pool) Release(ref string) (c Codes) {
	if v := p.with(&c, ref); v != nil {
		c.when(!v.Position.Quarantined, api.CodeInvalid)
	}
	return c
}

// Descends says how the note of a backup may be refused.
func (p *Pool) Descends(ref string, req api.DescendsRequest) (c Codes) {
	c.when(req.Backup == "", api.CodeInvalid)
	if v := p.with(&c, ref); v != nil {
		c.when(req.Generation != 0 && req.Generation != v.Position.Generation, api.CodeGeneration)
	}
	return c
}

// Swap says how a swap may be refused. held are volumes whose device somebody
// has open.
func (p *Pool) Swap(req api.SwapRequest, held ...*Volume) (c Codes) {
	c.when(len(req.Pairs) == 0 || req.HoldFor < 0, api.CodeInvalid)
	var seen []*Volume
	for _, pair := range req.Pairs {
		a, b := p.with(&c, pair.A), p.with(&c, pair.B)
		for _, side := range []struct {
			v    *Volume
			want uint64
		}{{a, pair.ExpectA}, {b, pair.ExpectB}} {
			if side.v == nil {
				continue
			}
			c.when(slices.Contains(seen, side.v), api.CodeInvalid)
			c.when(side.want != 0 && side.want != side.v.Position.Generation, api.CodeGeneration)
			c.when(side.v.Position.Quarantined, api.CodeQuarantined)
			c.when(side.v.Snapshot > 0, api.CodeBusy)
			c.when(slices.Contains(held, side.v) && !req.AllowHolders, api.CodeInUse)
			seen = append(seen, side.v)
		}
		c.when(a != nil && b != nil && a.Size != b.Size, api.CodeInvalid)
	}
	return c
}

// Swapped exchanges the positions of all pairs.
func (p *Pool) Swapped(req api.SwapRequest) {
	for _, pair := range req.Pairs {
		a, b := p.Find(pair.A), p.Find(pair.B)
		a.Position, b.Position = b.Position, a.Position
		next := max(a.Position.Generation, b.Position.Generation) + 1
		a.Position.Generation, b.Position.Generation = next, next
	}
}

// Snapshot says how a snapshot may be refused.
func (p *Pool) Snapshot(req api.SnapshotRequest) (c Codes) {
	c.when(len(req.Volumes) == 0 || req.COWSize < 0 || req.COWSize > maxNumber, api.CodeInvalid)
	var seen []*Volume
	var need int64
	for _, ref := range req.Volumes {
		v := p.with(&c, ref)
		if v == nil {
			continue
		}
		c.when(slices.Contains(seen, v), api.CodeInvalid)
		c.when(v.Snapshot > 0, api.CodeBusy)
		seen = append(seen, v)
		need += p.cow(v, req.COWSize, len(req.Volumes))
	}
	if len(c) == 0 {
		c.when(need > p.Free(), api.CodeNoSpace)
	}
	return c
}

// cow is how many extents the old data of a volume gets: room for all of it,
// but no more than was asked for, or than the volume's share of half of what is
// free.
func (p *Pool) cow(v *Volume, size int64, volumes int) int64 {
	all := (v.Size + p.ExtentSize - 1) / p.ExtentSize
	if size > 0 {
		return min(all, (min(size, maxSize)+p.ExtentSize-1)/p.ExtentSize)
	}
	return max(min(all, p.Free()/2/int64(volumes)), 1)
}

// Snapshotted reserves what open snapshots keep old data in.
func (p *Pool) Snapshotted(req api.SnapshotRequest) {
	var list []*Volume
	var cow []int64
	for _, ref := range req.Volumes {
		v := p.Find(ref)
		list, cow = append(list, v), append(cow, p.cow(v, req.COWSize, len(req.Volumes)))
	}
	for i, v := range list {
		v.Snapshot = cow[i]
	}
}

// Restarted notes that the daemon was killed or ended: no snapshot outlives it.
func (p *Pool) Restarted() {
	for _, v := range p.Volumes {
		v.Snapshot = 0
	}
}
