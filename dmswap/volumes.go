package dmswap

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/failpoint"
)

const (
	defaultStripeSize = 64 << 10
	minStripeSize     = 4 << 10
	// wipeSize is how much of a new volume is zeroed at either end, where
	// filesystems, partition tables and RAID keep what they are recognised by.
	wipeSize = 1 << 20
)

// normalise checks a spec and fills the defaults in.
func (spec *VolumeSpec) normalise(extentSize int64, members int) error {
	if err := checkName("volume", spec.Name); err != nil {
		return err
	}
	if validUUID(spec.Name) {
		return errf(ErrInvalid, "use another name", "volume name %q has the form of a UUID", spec.Name)
	}
	if spec.Size < 1 || spec.Size > math.MaxInt64/2 {
		return errf(ErrInvalid, "use a size from 4 KiB on", "volume %s: size of %d bytes", spec.Name, spec.Size)
	}
	spec.Size = roundUp(spec.Size, blockSize)
	switch {
	case spec.Stripes < 0:
		return errf(ErrInvalid, fmt.Sprintf("use 1 to %d", members), "volume %s: %d stripes", spec.Name, spec.Stripes)
	case spec.Stripes > members:
		return errf(ErrInvalid, fmt.Sprintf("use at most %d", members), "volume %s: %d stripes on a pool of %d members", spec.Name, spec.Stripes, members)
	case spec.Stripes <= 1:
		spec.Stripes, spec.StripeSize = 1, 0
		return nil
	case spec.StripeSize == 0:
		spec.StripeSize = min(defaultStripeSize, extentSize)
	}
	if !isPowerOfTwo(spec.StripeSize) || spec.StripeSize < minStripeSize || spec.StripeSize > extentSize {
		return errf(ErrInvalid, fmt.Sprintf("use a power of two from 4 KiB to the extent size, %s", sizeText(extentSize)),
			"volume %s: stripe size of %d bytes", spec.Name, spec.StripeSize)
	}
	return nil
}

// CreateVolume makes a volume. Its device exists and its ends are zeroed
// before it is committed, so a volume is whole or not there. A pool that has
// not enough free extents is [ErrNoSpace].
func (p *Pool) CreateVolume(ctx context.Context, spec VolumeSpec) (VolumeInfo, error) {
	for {
		info, err := p.createVolume(ctx, spec)
		if err == nil || !isDiskError(err) || !p.leaveOutDead() {
			return info, err
		}
	}
}

func (p *Pool) createVolume(ctx context.Context, spec VolumeSpec) (VolumeInfo, error) {
	if err := spec.normalise(p.place().extentSize, len(p.place().members)); err != nil {
		return VolumeInfo{}, err
	}
	if spec.Export != nil {
		if err := spec.Export.check(); err != nil {
			return VolumeInfo{}, errf(ErrInvalid, "name each host once, by its NQN", "volume %s: %v", spec.Name, err)
		}
	}
	v := volumeRecord{UUID: spec.UUID, Name: spec.Name, Size: spec.Size, Created: time.Now().UTC(), DeviceNumber: -1, Attached: spec.Attached, Export: spec.Export.clone()}
	if v.UUID == "" {
		v.UUID = NewUUID()
	}
	pos := positionRecord{ID: NewUUID(), Generation: 1, StripeSize: spec.StripeSize}
	v.Position = pos.ID

	done, err := p.reserve(&v, &pos, spec.Stripes)
	if err != nil {
		return VolumeInfo{}, err
	}
	defer done()
	failpoint.Hit("create: extents reserved")
	if err := p.wipe(ctx, &pos, v.Size, spec.Zero); err != nil {
		return VolumeInfo{}, fmt.Errorf("volume %s not created: %w", v.Name, err)
	}
	failpoint.Hit("create: wiped")
	ref := p.ref(v.UUID, "")
	info, err := p.createDevice(ctx, v, "", p.place().volumeTable(&v, &pos))
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("volume %s not created: %w", v.Name, err)
	}
	failpoint.Hit("create: device made")

	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pending, pos.ID)
	err = p.commit(func(m *metadata) error {
		m.Volumes = append(m.Volumes, v)
		m.Positions = append(m.Positions, pos)
		return nil
	})
	if err != nil {
		return VolumeInfo{}, errors.Join(fmt.Errorf("volume %s not created: %w", v.Name, err), p.removeDevice(context.WithoutCancel(ctx), ref))
	}
	p.devices[v.UUID] = info.Path()
	return p.volumeInfo(&v), nil
}

// reserve takes a name and extents for a volume that is being created, until
// done is called.
func (p *Pool) reserve(v *volumeRecord, pos *positionRecord, stripes int) (done func(), err error) {
	if err := p.mu.TryLock(); err != nil {
		return nil, err
	}
	defer p.mu.Unlock()
	if p.state != nil {
		return nil, p.state
	}
	if p.meta.volume(v.Name) != nil || p.naming[v.Name] {
		return nil, errf(ErrExists, "use another name", "pool %s has a volume %s already", p.name, v.Name)
	}
	free, err := p.allocator()
	if err != nil {
		return nil, err
	}
	es := p.place().extentSize
	if pos.Segments, err = free.allocate((v.Size+es-1)/es, stripes, nil); err != nil {
		return nil, fmt.Errorf("volume %s of %s: %w", v.Name, sizeText(v.Size), err)
	}
	p.naming[v.Name] = true
	p.pending[pos.ID] = pos.Segments
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.naming, v.Name)
		delete(p.pending, pos.ID)
	}, nil
}

// wipe zeroes the ends of a position, or all of it, on the members themselves.
func (p *Pool) wipe(ctx context.Context, pos *positionRecord, size int64, all bool) error {
	if all || size <= 2*wipeSize {
		return p.zero(ctx, pos, 0, size)
	}
	if err := p.zero(ctx, pos, 0, wipeSize); err != nil {
		return err
	}
	return p.zero(ctx, pos, size-wipeSize, wipeSize)
}

// zero writes zeroes over a stretch of a position. Neighbouring pieces on a
// member go out as one: stripes lie one behind the other there.
func (p *Pool) zero(ctx context.Context, pos *positionRecord, offset, length int64) error {
	// A striped position of any size would make a long list of pieces at once.
	const step = 1 << 30
	for length > 0 {
		n := min(length, step)
		open := map[int]piece{}
		for _, x := range mapRange(p.place().members, p.place().extentSize, pos, offset, n) {
			if o, ok := open[x.member]; ok && o.at+o.length == x.at {
				o.length += x.length
				open[x.member] = o
				continue
			} else if ok {
				if err := p.disks[o.member].Zero(ctx, o.at, o.length); err != nil {
					return err
				}
			}
			open[x.member] = x
		}
		for _, o := range open {
			if err := p.disks[o.member].Zero(ctx, o.at, o.length); err != nil {
				return err
			}
		}
		offset += n
		length -= n
	}
	return nil
}

// GrowVolume gives a volume a larger size in bytes, rounded up to 4096. The
// last MiB of what is new is zeroed. The generation of its position grows: a
// swap that was decided on before has to look again.
func (p *Pool) GrowVolume(ctx context.Context, ref string, size int64) (VolumeInfo, error) {
	list, release, err := p.claim("growing it", ref)
	if err != nil {
		return VolumeInfo{}, err
	}
	defer release()
	if err := p.mustBeWhole(list); err != nil {
		return VolumeInfo{}, err
	}
	v := list[0]
	if size <= v.Size || size > math.MaxInt64/2 {
		return VolumeInfo{}, errf(ErrInvalid, "give a larger size; volumes don't shrink", "volume %s has %s already, and %s were asked for", v.Name, sizeText(v.Size), sizeText(size))
	}
	size = roundUp(size, blockSize)
	pos, done, err := p.extend(&v, size)
	if err != nil {
		return VolumeInfo{}, err
	}
	defer done()
	if n := min(size-v.Size, wipeSize); n > 0 {
		if err := p.zero(ctx, pos, size-n, n); err != nil {
			return VolumeInfo{}, fmt.Errorf("volume %s not grown: %w", v.Name, err)
		}
	}
	v.Size = size
	dev := p.ref(v.UUID, "")
	failpoint.Hit("grow: wiped")
	if err := p.kernel.Load(dev, p.place().volumeTable(&v, pos), false); err != nil {
		return VolumeInfo{}, fmt.Errorf("volume %s not grown: %w", v.Name, err)
	}
	failpoint.Hit("grow: loaded")
	p.mu.Lock()
	err = p.commitGrown(&v, pos)
	info := p.volumeInfo(p.meta.volume(v.UUID))
	info.Busy = "" // over when the caller sees it
	p.mu.Unlock()
	if err != nil {
		return VolumeInfo{}, errors.Join(fmt.Errorf("volume %s not grown: %w", v.Name, err), p.kernel.Clear(dev))
	}
	failpoint.Hit("grow: committed")
	if err := p.resumeAll(context.WithoutCancel(ctx), []dm.Ref{dev}); err != nil {
		return info, committed(fmt.Sprintf("volume %s is grown, but its device does not show it yet", v.Name), err)
	}
	failpoint.Hit("grow: resumed")
	return info, nil
}

// commitGrown commits what extend has reserved. The caller holds mu.
func (p *Pool) commitGrown(v *volumeRecord, pos *positionRecord) error {
	delete(p.pending, pos.ID)
	return p.commit(func(m *metadata) error {
		m.volume(v.UUID).Size = v.Size
		to := m.position(pos.ID)
		pos.Base = to.Base // it may have been dropped meanwhile
		*to = *pos
		return nil
	})
}

// extend reserves what a position needs for a new size, until done is called.
func (p *Pool) extend(v *volumeRecord, size int64) (pos *positionRecord, done func(), err error) {
	if err := p.mu.TryLock(); err != nil {
		return nil, nil, err
	}
	defer p.mu.Unlock()
	old := p.meta.position(v.Position)
	if old.Quarantine != nil {
		return nil, nil, &QuarantinedError{Volume: v.Name, Quarantine: *old.Quarantine}
	}
	grown := *old
	grown.Generation++
	es := p.place().extentSize
	if need := (size+es-1)/es - countExtents(old.Segments); need > 0 {
		free, err := p.allocator()
		if err != nil {
			return nil, nil, err
		}
		if grown.Segments, err = free.allocate(need, old.stripes(), old.Segments); err != nil {
			return nil, nil, fmt.Errorf("volume %s to %s: %w", v.Name, sizeText(size), err)
		}
		// What is pending is only the new part; the rest has its owner.
		if p.pending[grown.ID], err = newRuns(old.Segments, grown.Segments); err != nil {
			return nil, nil, err
		}
	}
	return &grown, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.pending, grown.ID)
	}, nil
}

// newRuns returns the part of grown that is not in old. grown is old, its last
// segment perhaps longer, and more segments.
func newRuns(old, grown []Segment) ([]Segment, error) {
	last := len(old) - 1
	if len(grown) < len(old) || grown[last].Extents < old[last].Extents {
		return nil, fmt.Errorf("a position of %d segments was grown to %d", len(old), len(grown))
	}
	var out []Segment
	if more := grown[last].Extents - old[last].Extents; more > 0 {
		s := Segment{Extents: more}
		for _, st := range old[last].Stripes {
			s.Stripes = append(s.Stripes, SegmentStripe{st.Member, st.Start + old[last].Extents})
		}
		out = append(out, s)
	}
	return append(out, grown[len(old):]...), nil
}

// DeleteVolume removes a volume and frees its extents. A volume whose device
// is open is [ErrInUse]. Whether a position in quarantine may be deleted is the
// caller's decision.
func (p *Pool) DeleteVolume(ctx context.Context, ref string) error {
	list, release, err := p.claim("deleting it", ref)
	if err != nil {
		return err
	}
	defer release()
	v := list[0]
	if err := p.removeDevice(ctx, p.ref(v.UUID, "")); err != nil {
		return fmt.Errorf("volume %s not deleted: %w", v.Name, p.inUse(v.Name, err))
	}
	failpoint.Hit("delete: mapping removed")
	p.mu.Lock()
	err = p.commit(func(m *metadata) error {
		m.Volumes = drop(m.Volumes, func(x *volumeRecord) bool { return x.UUID == v.UUID })
		m.Positions = drop(m.Positions, func(x *positionRecord) bool { return x.ID == v.Position })
		m.Snapshots = drop(m.Snapshots, func(x *snapshotRecord) bool { return x.Volume == v.UUID })
		return nil
	})
	if err == nil {
		delete(p.devices, v.UUID)
	}
	p.mu.Unlock()
	if err != nil {
		return errors.Join(fmt.Errorf("volume %s not deleted: %w", v.Name, err), p.recreate(ctx, v))
	}
	return nil
}

// recreate makes the device of a claimed volume again that was to go. Nothing else
// is touched: other volumes may be in the middle of something.
func (p *Pool) recreate(ctx context.Context, v volumeRecord) error {
	p.mu.RLock()
	table := p.place().volumeTable(&v, p.meta.position(v.Position))
	p.mu.RUnlock()
	info, err := p.createDevice(context.WithoutCancel(ctx), v, "", table)
	if err != nil {
		return &Error{Kind: ErrDamaged, Message: fmt.Sprintf("the device of volume %s could not be made again", v.Name), Err: err, Remedy: "say swapback pool check " + p.name + " --repair"}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devices[v.UUID] = info.Path()
	return nil
}

// committed says that what comes after a commit went wrong.
func committed(what string, err error) error {
	return &Error{Kind: ErrCommitted, Message: what, Err: err, Remedy: "it will be finished when the pool is opened again: restart the daemon"}
}
