package dmswap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/dmswap/extmap"
	"github.com/swapback/swapback/failpoint"
)

// kernel is what a pool needs of the device-mapper: [dm.Control], or in unit
// tests a model of it that can be made to fail.
type kernel interface {
	Create(name, uuid string) (dm.Info, error)
	Load(ref dm.Ref, table dm.Table, readOnly bool) error
	Clear(ref dm.Ref) error
	Suspend(ctx context.Context, ref dm.Ref, opt dm.SuspendOptions) error
	Resume(ctx context.Context, ref dm.Ref) error
	Remove(ref dm.Ref, deferred bool) error
	Info(ref dm.Ref) (dm.Info, error)
	Table(ref dm.Ref, inactive bool) (dm.Table, error)
	Status(ref dm.Ref) ([]dm.Status, error)
	List() ([]dm.Listed, error)
	Close() error
}

// memberDisk is a disk that a pool has open.
type memberDisk interface {
	disk
	Zero(ctx context.Context, off, length int64) error
	Close() error
}

// Pool is an open pool. Its methods are safe for concurrent use; only Close
// and Destroy have to be the last ones.
type Pool struct {
	name   string
	uuid   UUID
	log    *slog.Logger
	kernel kernel
	placed atomic.Pointer[placement] // replaced, never changed
	disks  []memberDisk              // nil for a missing member
	sizes  []int64                   // of the disks, bytes

	// patience is how long a device that is open is waited for before it is
	// called in use: udev opens devices for a moment to probe them.
	patience time.Duration
	// diskTimeout is for members that come back; those that are there have it.
	diskTimeout time.Duration
	// dropCache drops the page cache of a device of the kernel.
	dropCache func(path string) error

	mu      *poolLock
	store   *store
	meta    *metadata     // committed; replaced, never changed
	maps    []*extmap.Map // of the members; nil for one that has no room for it
	session UUID          // that the maps are kept under; "" until Track
	devices map[UUID]string
	busy    map[UUID]string      // volume → operation under way
	pending map[string][]Segment // extents of operations before their commit, by a name for the operation
	naming  map[string]bool      // names of volumes that are being created
	snaps   map[UUID]*Snapshot   // by volume
	state   error                // why the pool can't be used any more, or nil
}

// place is where the members are now.
func (p *Pool) place() placement { return *p.placed.Load() }

// Info describes the pool.
func (p *Pool) Info() PoolInfo {
	p.mu.RLock()
	defer p.mu.RUnlock()
	info := PoolInfo{
		Name: p.name, UUID: p.uuid, Created: p.meta.Pool.Created,
		ExtentSize: p.meta.Pool.ExtentSize, Generation: p.meta.Generation,
	}
	free, err := p.allocator()
	if err != nil {
		// Every way into the metadata checks this.
		panic(fmt.Sprintf("dmswap: pool %s: %v", info.Name, err))
	}
	for i, m := range p.meta.Members {
		member := MemberInfo{
			Index: m.Index, UUID: m.UUID, Path: p.store.members[i].path, Size: p.sizes[i],
			DataOffset: m.DataOffset, Extents: m.Extents, FreeExtents: free.freeOn(i),
		}
		member.State, member.Problem = p.memberState(i)
		info.Extents += member.Extents
		info.FreeExtents += member.FreeExtents
		info.Members = append(info.Members, member)
	}
	return info
}

// Volumes lists the volumes by name.
func (p *Pool) Volumes() []VolumeInfo {
	p.mu.RLock()
	defer p.mu.RUnlock()
	list := make([]VolumeInfo, len(p.meta.Volumes))
	for i := range p.meta.Volumes {
		list[i] = p.volumeInfo(&p.meta.Volumes[i])
	}
	slices.SortFunc(list, func(a, b VolumeInfo) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Volume finds a volume by name or UUID.
func (p *Pool) Volume(ref string) (VolumeInfo, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := p.find(ref)
	if err != nil {
		return VolumeInfo{}, err
	}
	return p.volumeInfo(v), nil
}

// find looks a volume up. The caller holds mu.
func (p *Pool) find(ref string) (*volumeRecord, error) {
	if v := p.meta.volume(ref); v != nil {
		return v, nil
	}
	return nil, errf(ErrNotFound, "list the volumes to see the right name", "pool %s has no volume %q", p.name, ref)
}

// volumeInfo describes a volume. The caller holds mu.
func (p *Pool) volumeInfo(v *volumeRecord) VolumeInfo {
	pos := p.meta.position(v.Position)
	info := VolumeInfo{
		Name: v.Name, UUID: v.UUID, Size: v.Size, Created: v.Created, Device: p.devices[v.UUID],
		DeviceNumber: v.DeviceNumber, Attached: v.Attached, ReadOnly: v.ReadOnly, Export: v.Export.clone(), Reservations: v.Reservations.clone(),
		Busy: p.busy[v.UUID], Snapshot: p.snaps[v.UUID] != nil || p.busy[v.UUID] == closingSnapshot, Degraded: p.lacks(pos),
		Position: Position{
			ID: pos.ID, Generation: pos.Generation, Stripes: pos.stripes(), StripeSize: pos.StripeSize,
			DescendsFrom: pos.DescendsFrom,
		},
	}
	if pos.Base != nil {
		info.Position.Base = *pos.Base
	}
	for _, s := range pos.Segments {
		info.Position.Segments = append(info.Position.Segments, Segment{s.Extents, slices.Clone(s.Stripes)})
	}
	if pos.Quarantine != nil {
		q := *pos.Quarantine
		info.Position.Quarantine = &q
	}
	return info
}

// claim marks volumes as busy for one operation and returns copies of their
// records as they stay until release is called. A volume with a snapshot open
// is refused.
func (p *Pool) claim(operation string, refs ...string) (list []volumeRecord, release func(), err error) {
	if err := p.mu.TryLock(); err != nil {
		return nil, nil, err
	}
	defer p.mu.Unlock()
	if p.state != nil {
		return nil, nil, p.state
	}
	for _, ref := range refs {
		v, err := p.find(ref)
		if err != nil {
			return nil, nil, err
		}
		if slices.ContainsFunc(list, func(o volumeRecord) bool { return o.UUID == v.UUID }) {
			return nil, nil, errf(ErrInvalid, "name each volume once", "volume %s is named twice", v.Name)
		}
		if err := p.mustBeIdle(v); err != nil {
			return nil, nil, err
		}
		if s := p.snaps[v.UUID]; s != nil {
			return nil, nil, &SnapshotOpenError{Volume: v.Name, Device: s.Device()}
		}
		list = append(list, *v)
	}
	for _, v := range list {
		p.busy[v.UUID] = operation
	}
	return list, func() {
		// Not with Lock: a swap ends, and its volumes go on, while somebody else's
		// commit waits for a disk.
		p.mu.RLock()
		defer p.mu.RUnlock()
		for _, v := range list {
			delete(p.busy, v.UUID)
		}
	}, nil
}

// busyWith tells which operation has a volume claimed. A claim is given back at any
// time, also while the caller keeps others from changing the pool.
func (p *Pool) busyWith(volume UUID) string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.busy[volume]
}

// mustBeIdle refuses a volume that another operation has claimed. The caller
// holds mu.
func (p *Pool) mustBeIdle(v *volumeRecord) error {
	if op := p.busy[v.UUID]; op != "" {
		return errf(ErrBusy, "try again when it has ended", "volume %s is busy: %s is under way", v.Name, op)
	}
	return nil
}

// commit changes the metadata. change works on a copy; when it or the commit
// fails nothing has changed. The caller holds mu.
func (p *Pool) commit(change func(m *metadata) error) error {
	st, err := p.stage(change)
	if err != nil {
		return err
	}
	return p.publish(st)
}

// stage does what of a commit can be done before its point of no return. Until
// publish nothing has changed, and it may be left at that. The caller holds mu.
func (p *Pool) stage(change func(m *metadata) error) (*staged, error) {
	if p.state != nil {
		return nil, p.state
	}
	next := p.meta.clone()
	if err := change(next); err != nil {
		return nil, err
	}
	for i, m := range p.store.members {
		if m.out == nil {
			next.Members[i].Path = m.path
		}
	}
	st, err := p.store.stage(next)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", p.name, err)
	}
	return st, nil
}

// publish is the point of no return of what was staged last. The caller holds
// mu.
func (p *Pool) publish(st *staged) error {
	if p.state != nil {
		return p.state
	}
	err := p.store.publish(st)
	p.meta = p.store.meta
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.name, err)
	}
	return nil
}

// stuck has others refused while a commit waits for a disk, and with nil no more.
func (p *Pool) stuck(why error) {
	if why != nil {
		why = fmt.Errorf("pool %s: another change is under way and waits for a disk: %w", p.name, why)
	}
	p.mu.Stuck(why)
}

// SetVolume changes attributes of a volume, named by name or UUID. set is called
// twice when it changes something, the second time under the pool's lock.
func (p *Pool) SetVolume(ctx context.Context, ref string, set func(*VolumeAttrs)) error {
	// What is so already needs no disk: a device is adopted though one hangs.
	if v, err := p.Volume(ref); err == nil {
		a := VolumeAttrs{DeviceNumber: v.DeviceNumber, Attached: v.Attached, ReadOnly: v.ReadOnly}
		before := a
		if set(&a); a == before {
			return nil
		}
	}
	return p.setRecord(ctx, ref, func(v *volumeRecord, _ *positionRecord) bool {
		a := VolumeAttrs{DeviceNumber: v.DeviceNumber, Attached: v.Attached, ReadOnly: v.ReadOnly}
		before := a
		set(&a)
		v.DeviceNumber, v.Attached, v.ReadOnly = max(a.DeviceNumber, -1), a.Attached, a.ReadOnly
		return a != before
	})
}

// SetPosition changes attributes of the position behind a volume, named by
// name or UUID. set is called once, under the pool's lock.
func (p *Pool) SetPosition(ctx context.Context, ref string, set func(*PositionAttrs)) error {
	return p.setRecord(ctx, ref, func(_ *volumeRecord, pos *positionRecord) bool {
		a := PositionAttrs{DescendsFrom: pos.DescendsFrom}
		if pos.Base != nil {
			a.Base = *pos.Base
		}
		base := a.Base
		if pos.Quarantine != nil {
			q := *pos.Quarantine
			a.Quarantine = &q
		}
		set(&a)
		pos.DescendsFrom = a.DescendsFrom
		if a.Base != base {
			a.Base.Generation = base.Generation + 1
			pos.Base = &a.Base
		}
		pos.Quarantine = nil
		if a.Quarantine != nil {
			q := *a.Quarantine
			pos.Quarantine = &q
		}
		return true
	})
}

// setRecord commits a change of one volume's records, unless change says that
// there is none.
func (p *Pool) setRecord(ctx context.Context, ref string, change func(*volumeRecord, *positionRecord) bool) error {
	return p.changeRecord(ctx, ref, p.mustBeIdle, change)
}

func (p *Pool) changeRecord(ctx context.Context, ref string, may func(*volumeRecord) error, change func(*volumeRecord, *positionRecord) bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.mu.TryLock(); err != nil {
		return err
	}
	defer p.mu.Unlock()
	v, err := p.find(ref)
	if err != nil {
		return err
	}
	if err := may(v); err != nil {
		return err
	}
	errSame := errors.New("nothing to change")
	err = p.commit(func(m *metadata) error {
		v := m.volume(v.UUID)
		if !change(v, m.position(v.Position)) {
			return errSame
		}
		return nil
	})
	if errors.Is(err, errSame) {
		return nil
	}
	return err
}

// ref names a volume's device in the kernel.
func (p *Pool) ref(volume UUID, suffix string) dm.Ref {
	return dm.ByUUID(dmUUID(p.uuid, volume, suffix))
}

// Close ends the use of the pool by this process. The volumes' devices stay in
// the kernel for the next Open. Snapshots that are still open are ended. It waits
// for a commit under way, however long a disk takes that it depends on.
func (p *Pool) Close() error {
	ctx := context.Background()
	var errs []error
	for _, s := range p.openSnapshots() {
		errs = append(errs, s.Close(ctx))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(p.state, ErrClosed) && p.disks == nil {
		return nil
	}
	p.state = errf(ErrClosed, "open it again", "pool %s is closed", p.name)
	for _, m := range p.maps {
		if m != nil {
			m.Close()
		}
	}
	for _, d := range p.disks {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	p.disks = nil
	return errors.Join(append(errs, p.kernel.Close())...)
}

func (p *Pool) openSnapshots() []*Snapshot {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var list []*Snapshot
	for _, s := range p.snaps {
		list = append(list, s)
	}
	return list
}

// Deactivate removes the volumes' devices from the kernel. When one of them is
// in use the error says so, and all are there as before. After it only Close
// and Destroy are of use.
func (p *Pool) Deactivate(ctx context.Context) error {
	for _, s := range p.openSnapshots() {
		if err := s.Close(ctx); err != nil {
			return err
		}
	}
	var refs []string
	for _, v := range p.Volumes() {
		refs = append(refs, v.UUID)
	}
	list, release, err := p.claim("deactivating the pool", refs...)
	if err != nil {
		return err
	}
	defer release()
	for i, v := range list {
		if err := p.removeDevice(ctx, p.ref(v.UUID, "")); err != nil {
			err = p.inUse(v.Name, err)
			for _, gone := range list[:i] {
				err = errors.Join(err, p.recreate(ctx, gone))
			}
			return err
		}
		failpoint.Hit("deactivate: device removed")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.devices)
	p.state = errf(ErrClosed, "open it again", "pool %s is deactivated", p.name)
	return nil
}

// Destroy removes the volumes' devices, wipes the labels and the metadata from
// the members that are there and can be written to, and closes the pool. What the
// volumes held is lost.
// When a device is in use nothing has changed.
func (p *Pool) Destroy(ctx context.Context) error {
	if err := p.Deactivate(ctx); err != nil && !errors.Is(err, ErrClosed) {
		return err
	}
	failpoint.Hit("pool delete: deactivated")
	p.mu.Lock()
	if p.disks == nil {
		p.mu.Unlock()
		return p.state
	}
	var errs []error
	// From here on there is no pool, whatever a crash leaves of its labels.
	if err := p.store.writeLabels(true); err != nil {
		p.mu.Unlock()
		return errors.Join(err, p.Close())
	}
	failpoint.Hit("pool delete: labels unfinished")
	// The labels go first: without them the rest is only blocks.
	for _, m := range p.store.members {
		const keeps = "a member keeps its label, and brings back what lies on it: wipe it before it is connected again"
		if m.disk == nil {
			p.log.Warn(keeps, "disk", m.path, "err", m.out)
			continue
		}
		_, err := m.disk.WriteAt(alignedBuffer(labelSize), labelOffset)
		if err == nil {
			err = m.disk.Sync()
		}
		switch {
		case err != nil && m.out != nil:
			p.log.Warn(keeps, "disk", m.path, "err", err)
		case err != nil:
			errs = append(errs, fmt.Errorf("wiping the label of %s: %w", m.path, err))
		}
		failpoint.Hit("pool delete: label wiped")
	}
	if len(errs) == 0 {
		for i, m := range p.store.members {
			if m.disk == nil {
				continue
			}
			if err := p.disks[i].Zero(ctx, slotsOffset, 2*m.label.SlotSize); err != nil && m.out == nil {
				errs = append(errs, fmt.Errorf("wiping the metadata of %s: %w", m.path, err))
			}
		}
	}
	p.mu.Unlock()
	failpoint.Hit("pool delete: metadata wiped")
	return errors.Join(append(errs, p.Close())...)
}

// inUse explains why a device could not be removed.
func (p *Pool) inUse(volume string, err error) error {
	if !errors.Is(err, dm.ErrBusy) {
		return err
	}
	return &Error{
		Kind: ErrInUse, Message: fmt.Sprintf("the device of volume %s is open", volume), Err: err,
		Remedy: "stop what uses it: detach the volume, and unmount what is made on the device",
	}
}
