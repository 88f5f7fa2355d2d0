package dmswap

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Rejoin takes members back that are missing or failed, and returns their
// indexes. disks are where they may be now; disks of members that take part are
// passed over. What was committed while a member was away is written on it, and
// the volumes on it answer again. A member that went its own way is [ErrSplit].
func (p *Pool) Rejoin(ctx context.Context, disks []string) ([]int, error) {
	found, err := p.returning(ctx, disks)
	if err != nil {
		return nil, err
	}
	var back []int
	var errs []error
	for i, f := range found {
		if err := p.rejoin(ctx, i, f); err != nil {
			errs = append(errs, fmt.Errorf("pool %s: member %d on %s does not come back: %w", p.name, i, f.path, err))
			continue
		}
		p.log.Info("member takes part again", "disk", f.path, "member", i)
		back = append(back, i)
	}
	slices.Sort(back)
	return back, errors.Join(errs...)
}

// returning finds the disks of members that take no part. Those that come back
// on the disk that is open already keep it.
func (p *Pool) returning(ctx context.Context, disks []string) (map[int]openMember, error) {
	if err := p.mu.TryLock(); err != nil {
		return nil, err
	}
	defer p.mu.Unlock()
	if p.state != nil {
		return nil, p.state
	}
	found := map[int]openMember{}
	for i, m := range p.store.members {
		if m.out != nil && m.disk != nil {
			found[i] = openMember{p.disks[i], m.label, m.labelErr, m.device, m.path, p.sizes[i]}
		}
	}
	for _, path := range disks {
		var o *openMember
		var err error
		p.mu.Unguarded(func() { o, err = p.openReturning(ctx, path, found) })
		if err != nil {
			for _, o := range found {
				closeNew(p, o)
			}
			return nil, err
		}
		if o != nil {
			found[o.label.Index] = *o
		}
	}
	return found, nil
}

// closeNew closes a disk that the pool does not have.
func closeNew(p *Pool, o openMember) {
	if !slices.Contains(p.disks, o.disk) {
		o.disk.Close()
	}
}

// openReturning opens a disk if it is one of a member that takes no part and is
// not open. The caller keeps others from changing the pool.
func (p *Pool) openReturning(ctx context.Context, path string, found map[int]openMember) (*openMember, error) {
	d, err := openBlockDevice(path, true, 0)
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	disk := patient(d, path, p.diskTimeout)
	l, labelErr := readLabel(disk)
	if errors.Is(labelErr, ErrBusy) {
		d.Close()
		return nil, labelErr
	}
	if labelErr != nil {
		ok := false
		if l, ok = recognise(disk, d.size, 0); !ok {
			d.Close()
			return nil, labelError(path, labelErr)
		}
	}
	first := p.firstLabel()
	if err := fits(d, l, &first, nil); err != nil {
		d.Close()
		return nil, err
	}
	have, taken := found[l.Index]
	if !p.store.out(l.Index) || taken && have.device == d.number {
		d.Close()
		return nil, nil
	}
	if err := d.lock(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return &openMember{disk, l, labelErr, d.number, path, d.size}, nil
}

func (p *Pool) firstLabel() label {
	for _, m := range p.store.members {
		if m.disk != nil {
			return m.label
		}
	}
	panic("dmswap: a pool without disks is open")
}

// rejoin takes one member back.
func (p *Pool) rejoin(ctx context.Context, i int, o openMember) (err error) {
	release, volumes, err := p.claimOn(i)
	if err != nil {
		closeNew(p, o)
		return err
	}
	defer release()
	if err := p.admit(i, o); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	var again []wanted
	for _, w := range p.wantedDevices() {
		if !slices.Contains(volumes, w.volume.UUID) {
			continue
		}
		resume, _, err := p.prepareDevice(ctx, w)
		if err == nil && resume {
			err = p.kernel.Resume(ctx, w.ref)
			again = append(again, w)
		}
		if err != nil {
			return committed(fmt.Sprintf("the member takes part, but the device of volume %s is not as it should be", w.volume.Name), err)
		}
	}
	for _, w := range again {
		p.mu.RLock()
		path := p.devices[w.volume.UUID]
		p.mu.RUnlock()
		if err := p.dropCache(path); err != nil {
			p.log.Warn("cached pages not dropped", "volume", w.volume.Name, "err", err)
		}
	}
	return nil
}

// claimOn claims all volumes that have extents on a member.
func (p *Pool) claimOn(i int) (release func(), uuids []UUID, err error) {
	p.mu.Lock()
	for _, v := range p.meta.Volumes {
		if liesOn(p.meta.position(v.Position).Segments, i) {
			uuids = append(uuids, v.UUID)
		}
	}
	p.mu.Unlock()
	_, release, err = p.claim("a member coming back", uuids...)
	return release, uuids, err
}

// admit brings a member up to date and commits that it takes part.
func (p *Pool) admit(i int, o openMember) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &member{disk: o.disk, device: o.device, path: o.path, label: o.label, newest: -1, labelErr: o.labelErr}
	err := p.examine(m)
	if err == nil {
		err = p.mapReturning(i, o.disk)
	}
	if err != nil {
		closeNew(p, o)
		return err
	}
	before := p.store.members[i]
	p.store.members[i] = m
	if err := p.commit(func(*metadata) error { return nil }); err != nil {
		if m.out == nil {
			m.out = err
		}
	}
	if m.out != nil {
		closeNew(p, o)
		p.store.members[i] = before
		before.out = m.out
		return m.out
	}
	if old := p.disks[i]; old != nil && old != o.disk {
		if err := old.Close(); err != nil {
			p.log.Warn("closing the disk that a member was on", "member", i, "err", err)
		}
	}
	p.disks[i], p.sizes[i] = o.disk, o.size
	place := p.place()
	place.devices = slices.Clone(place.devices)
	place.devices[i] = o.device
	p.placed.Store(&place)
	return nil
}

// examine reads a member's slots and refuses one that can't be brought up to the
// committed metadata. The caller holds mu.
func (p *Pool) examine(m *member) error {
	if err := p.meta.agrees(&m.label); err != nil {
		return &Error{Kind: ErrDamaged, Message: "disk " + m.path, Err: err, Remedy: "check that this is the right disk"}
	}
	body, err := p.meta.encode()
	if err != nil {
		return err
	}
	best := &slotState{header: slotHeader{Generation: p.meta.Generation, BodyLen: int64(len(body)), BodyCRC: crc(body)}, body: body, meta: p.meta}
	var states [2]slotState
	p.mu.Unguarded(func() {
		for j := range states {
			states[j] = readSlot(m.disk, &m.label, j)
		}
	})
	for j := range states {
		if errors.Is(states[j].err, errNewer) {
			return states[j].err
		}
		if h := states[j].header; h.Member == m.label.Member {
			p.store.last = max(p.store.last, h.Generation)
		}
	}
	if newest := m.place(&states, best); newest != nil {
		return best.follows(newest, m)
	}
	return nil
}
