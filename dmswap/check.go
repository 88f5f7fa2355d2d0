package dmswap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/swapback/swapback/dmswap/dm"
)

// Check compares what is on the members with what is in memory, and the
// kernel's devices with the committed map. It changes nothing. Volumes on
// which an operation is under way are left out; the error is about the check
// itself, what it finds is in the report.
func (p *Pool) Check(ctx context.Context) (Report, error) {
	if err := p.mu.TryLockChanges(); err != nil {
		return Report{}, fmt.Errorf("checking pool %s: %w", p.name, err)
	}
	defer p.mu.UnlockChanges()
	if p.disks == nil {
		return Report{}, p.state
	}
	c := &checker{pool: p}
	for _, step := range []func() error{c.members, c.metadata, c.volumes, c.others} {
		if err := ctx.Err(); err != nil {
			return Report{}, err
		}
		if err := step(); err != nil {
			return Report{}, fmt.Errorf("checking pool %s: %w", p.name, err)
		}
	}
	return c.report, nil
}

// checker collects a report. The pool's lock is held.
type checker struct {
	pool   *Pool
	report Report
}

func (c *checker) checked(format string, args ...any) {
	c.report.Checked = append(c.report.Checked, fmt.Sprintf(format, args...))
}

func (c *checker) problem(format string, args ...any) {
	c.report.Problems = append(c.report.Problems, fmt.Sprintf(format, args...))
}

// members reads labels and slots again.
func (c *checker) members() error {
	p := c.pool
	body, err := p.meta.encode()
	if err != nil {
		return err
	}
	for i, m := range p.store.members {
		if state, problem := p.memberState(i); state != MemberOK {
			c.problem("disk %s: member %d is %s: %s", m.path, i, state, problem)
			continue
		}
		l, err := readLabel(m.disk)
		switch {
		case err != nil:
			c.problem("disk %s: %v", m.path, err)
		case !bytes.Equal(l.encode(), m.label.encode()):
			c.problem("disk %s: its label has changed since the pool was opened", m.path)
		}
		c.slots(m, body)
	}
	c.checked("labels, both metadata slots and the generation of %d members", len(p.store.members))
	return nil
}

// slots wants the committed generation in the newest slot of a member, and
// none above it in the other.
func (c *checker) slots(m *member, body []byte) {
	if m.newest < 0 {
		c.problem("disk %s: it does not have the newest metadata, because writing it failed", m.path)
		return
	}
	s := readSlot(m.disk, &m.label, m.newest)
	switch {
	case s.err != nil:
		c.problem("disk %s: metadata slot %s: %v", m.path, slotName(m.newest), s.err)
	case s.header.Generation != c.pool.meta.Generation:
		c.problem("disk %s: metadata slot %s has generation %d, not %d", m.path, slotName(m.newest), s.header.Generation, c.pool.meta.Generation)
	case !bytes.Equal(s.body, body):
		c.problem("disk %s: metadata slot %s differs from what was committed", m.path, slotName(m.newest))
	}
	o := readSlot(m.disk, &m.label, 1-m.newest)
	if errors.Is(o.err, errUnreadable) {
		c.problem("disk %s: metadata slot %s: %v", m.path, slotName(1-m.newest), o.err)
	}
	// One that does not count otherwise is the place of the next commit.
	if o.err == nil && o.header.Generation >= c.pool.meta.Generation {
		c.problem("disk %s: metadata slot %s has generation %d, which was never committed", m.path, slotName(1-m.newest), o.header.Generation)
	}
}

// metadata checks that every extent has one owner, and the other invariants.
func (c *checker) metadata() error {
	p := c.pool
	if err := p.meta.check(); err != nil {
		c.problem("metadata: %v", err)
	}
	if _, err := p.meta.owners(p.pending); err != nil {
		c.problem("extents: %v", err)
	}
	if free, err := newAllocator(p.meta, p.pending); err == nil { // reported already
		c.accounts(free)
	}
	for _, s := range p.meta.Snapshots {
		if p.snaps[s.Volume] == nil && p.busyWith(s.Volume) == "" {
			c.problem("extents are reserved for a snapshot of volume %s, which is not open", s.Volume)
		}
	}
	c.checked("owners of all extents, %d volumes, generation %d", len(p.meta.Volumes), p.meta.Generation)
	return nil
}

// accounts wants an allocator to have every extent free that is not owned, and not
// reserved by an operation that is under way. It counts by itself: the allocator's
// runs are what the sorted runs of the owners leave.
func (c *checker) accounts(free *allocator) {
	p := c.pool
	used := make([]int64, len(p.meta.Members))
	count := func(segments []Segment) {
		for _, s := range segments {
			for _, st := range s.Stripes {
				used[st.Member] += s.Extents
			}
		}
	}
	for _, pos := range p.meta.Positions {
		count(pos.Segments)
	}
	for _, s := range p.meta.Snapshots {
		count(s.Segments)
	}
	for _, segments := range p.pending {
		count(segments)
	}
	for i, m := range p.meta.Members {
		if n := free.freeOn(i); used[i]+n != m.Extents {
			c.problem("extents: member %d has %d, but %d are owned and %d are free", i, m.Extents, used[i], n)
		}
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.lostPending() {
		c.problem("extents are reserved for an operation that is not under way")
	}
}

// volumes compares devices with the map.
func (c *checker) volumes() error {
	p := c.pool
	deactivated := p.state != nil
	checked := 0
	for i := range p.meta.Volumes {
		v := &p.meta.Volumes[i]
		if op := p.busyWith(v.UUID); op != "" {
			c.checked("volume %s is busy (%s): its device was left out", v.Name, op)
			continue
		}
		if deactivated {
			continue
		}
		if err := c.volume(v); err != nil {
			return err
		}
		checked++
	}
	c.checked("device-mapper tables of %d volumes", checked)
	return nil
}

func (c *checker) volume(v *volumeRecord) error {
	p := c.pool
	own := p.place().volumeTable(v, p.meta.position(v.Position))
	if p.snaps[v.UUID] == nil {
		return c.device(v, "", own)
	}
	if err := c.device(v, suffixReal, own); err != nil {
		return err
	}
	cow := p.meta.snapshot(v.UUID)
	if cow == nil {
		c.problem("volume %s: its snapshot has no extents reserved", v.Name)
		return nil
	}
	if err := c.device(v, suffixCOW, p.place().table(cow.Segments, 0, countExtents(cow.Segments)*p.place().extentSize)); err != nil {
		return err
	}
	real, err := p.kernel.Info(p.ref(v.UUID, suffixReal))
	if err != nil {
		return nil // reported above
	}
	store, err := p.kernel.Info(p.ref(v.UUID, suffixCOW))
	if err != nil {
		return nil
	}
	one := func(t dm.Target) dm.Table { return dm.Table{{Start: 0, Length: own.Size(), Target: t}} }
	snap := dm.Snapshot{Origin: real.Device, COW: store.Device, Chunk: snapshotChunk / dm.SectorSize}
	if err := c.device(v, suffixSnap, one(snap)); err != nil {
		return err
	}
	return c.device(v, "", one(dm.SnapshotOrigin{Origin: real.Device}))
}

// device checks one device of a volume.
func (c *checker) device(v *volumeRecord, suffix string, want dm.Table) error {
	p := c.pool
	ref := p.ref(v.UUID, suffix)
	what := "device " + dmName(p.name, v.Name, v.UUID, suffix)
	info, err := p.kernel.Info(ref)
	if errors.Is(err, dm.ErrNotFound) {
		c.problem("%s does not exist", what)
		return nil
	}
	if err != nil {
		return err
	}
	if info.Suspended {
		c.problem("%s is suspended", what)
	}
	if info.Inactive {
		c.problem("%s has a second table loaded", what)
	}
	if suffix == "" && info.Path() != p.devices[v.UUID] {
		c.problem("%s is %s, not %s", what, info.Path(), p.devices[v.UUID])
	}
	table, err := p.kernel.Table(ref, false)
	if err != nil {
		return err
	}
	if !table.Equal(want) {
		c.problem("%s has the table\n%s\nbut should have\n%s", what, table, want)
	}
	return nil
}

// others looks for devices of this pool that nobody knows.
func (c *checker) others() error {
	c.pool.mu.RLock()
	list, err := c.pool.strays()
	c.pool.mu.RUnlock()
	if err != nil {
		return err
	}
	for _, l := range list {
		c.problem("device %s (%s) belongs to no volume", l.Name, l.UUID)
	}
	c.checked("no other device of this pool")
	return nil
}

// strays lists devices of this pool that belong to nothing. The caller holds mu.
func (p *Pool) strays() ([]dm.Listed, error) {
	expected := map[string]bool{}
	for _, v := range p.meta.Volumes {
		expected[dmUUID(p.uuid, v.UUID, "")] = true
		if p.snaps[v.UUID] != nil || p.busy[v.UUID] != "" {
			for _, s := range []string{suffixReal, suffixCOW, suffixSnap} {
				expected[dmUUID(p.uuid, v.UUID, s)] = true
			}
		}
	}
	listed, err := p.kernel.List()
	if err != nil {
		return nil, err
	}
	var list []dm.Listed
	for _, l := range listed {
		if !strings.HasPrefix(l.UUID, dmUUIDPrefix(p.uuid)) || expected[l.UUID] {
			continue
		}
		info, err := p.kernel.Info(dm.ByUUID(l.UUID))
		if err == nil && (info.DeferredRemove || len(p.pending) > 0) {
			continue // on its way out, or of a volume that is being created
		}
		list = append(list, l)
	}
	return list, nil
}
