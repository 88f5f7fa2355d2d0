package dmswap

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/failpoint"
)

// snapshotChunk is the unit in which old data is copied, in bytes: large enough
// that a sequential overwrite costs few copies, small enough that a random
// write does not copy much.
const snapshotChunk = 64 << 10

// Snapshot is one instant of a volume, readable as a block device until Close.
// While it is open the volume's device is
//
//	swapback-POOL-VOLUME        snapshot-origin over …-real
//	swapback-POOL-VOLUME-real   the volume's extents
//	swapback-POOL-VOLUME-cow    extents that are reserved for old data
//	swapback-POOL-VOLUME-snap   snapshot of …-real with …-cow: the instant
//
// The table of what was copied is in the kernel's memory only ("N"), so a
// snapshot ends with the machine, and by the next Open with the process.
// A volume does not take discards while it has a snapshot: snapshot-origin
// does not pass them on.
type Snapshot struct {
	pool    *Pool
	volume  volumeRecord
	device  string
	cowSize int64
	taken   time.Time

	mu     sync.Mutex // of Close
	closed atomic.Bool
}

// Device is the snapshot's read-only block device, /dev/dm-N.
func (s *Snapshot) Device() string { return s.device }

// COWSize is how many bytes of old data the snapshot can keep.
func (s *Snapshot) COWSize() int64 { return s.cowSize }

// Time is the instant that the snapshot shows.
func (s *Snapshot) Time() time.Time { return s.taken }

// OpenSnapshot takes a snapshot of a volume. The instant is taken while the
// volume's device is suspended: writes that were answered before are in it,
// writes that come after are not.
func (p *Pool) OpenSnapshot(ctx context.Context, ref string, opt SnapshotOptions) (*Snapshot, error) {
	list, err := p.OpenSnapshots(ctx, []string{ref}, opt)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// OpenSnapshots takes snapshots of several volumes, in the order of refs, at
// one instant: all volumes are suspended together. opt applies to each. The
// caller closes every one of them; when an error comes back none is open.
func (p *Pool) OpenSnapshots(ctx context.Context, refs []string, opt SnapshotOptions) ([]*Snapshot, error) {
	if len(refs) == 0 {
		return nil, errf(ErrInvalid, "name a volume", "snapshot of no volumes")
	}
	volumes, release, err := p.claim("opening a snapshot", refs...)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := p.mustBeWhole(volumes); err != nil {
		return nil, err
	}
	group := &snapshotGroup{pool: p, volumes: volumes}
	if err := group.reserve(opt); err != nil {
		return nil, err
	}
	failpoint.Hit("snapshot: reserved")
	list, err := group.open(ctx, opt.Around)
	if err != nil {
		err = errors.Join(err, group.tearDown(context.WithoutCancel(ctx)))
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return list, nil
}

// snapshotGroup is snapshots on their way up or down.
type snapshotGroup struct {
	pool    *Pool
	volumes []volumeRecord
	cow     []int64 // bytes
}

// reserve commits the extents that old data is to go to.
func (g *snapshotGroup) reserve(opt SnapshotOptions) error {
	p := g.pool
	if err := p.mu.TryLock(); err != nil {
		return err
	}
	defer p.mu.Unlock()
	// Of a snapshot that was closed while a disk hung.
	if _, err := p.dropReservations(g.volumes...); err != nil {
		return err
	}
	free, err := p.allocator()
	if err != nil {
		return err
	}
	es := p.place().extentSize
	share := free.freeTotal() / 2 / int64(len(g.volumes))
	var records []snapshotRecord
	for _, v := range g.volumes {
		// Room for every chunk of the volume is always enough.
		count := (roundUp(v.Size, snapshotChunk) + es - 1) / es
		if opt.COWSize >= count*es {
			// All that can be needed; the caller's number may be any.
		} else if opt.COWSize > 0 {
			count = (opt.COWSize + es - 1) / es
		} else {
			count = max(min(count, share), 1)
		}
		segments, err := free.allocate(count, 1, nil)
		if err != nil {
			return fmt.Errorf("snapshot of volume %s: room for old data: %w", v.Name, err)
		}
		records = append(records, snapshotRecord{Volume: v.UUID, Opened: time.Now().UTC(), Segments: segments})
		g.cow = append(g.cow, count*es)
	}
	return p.commit(func(m *metadata) error {
		m.Snapshots = append(m.Snapshots, records...)
		return nil
	})
}

// open makes the devices, suspends the volumes together, starts the snapshots
// and resumes the volumes.
func (g *snapshotGroup) open(ctx context.Context, around func(take func() error) error) ([]*Snapshot, error) {
	p := g.pool
	list := make([]*Snapshot, len(g.volumes))
	for i, v := range g.volumes {
		device, err := g.build(ctx, v)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		list[i] = &Snapshot{pool: p, volume: v, device: device, cowSize: g.cow[i]}
	}
	failpoint.Hit("snapshot: built")
	var taken time.Time
	take := func() (err error) { taken, err = g.take(ctx); return err }
	if around == nil {
		around = func(take func() error) error { return take() }
	}
	if err := around(take); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range list {
		s.taken = taken
		p.snaps[s.volume.UUID] = s
	}
	return list, nil
}

// take stops all volumes, has their snapshots begin, and lets the volumes go on.
func (g *snapshotGroup) take(ctx context.Context) (taken time.Time, err error) {
	p := g.pool
	volumes, snaps := g.refs(""), g.refs(suffixSnap)
	err = parallel(volumes, func(ref dm.Ref) error { return p.kernel.Suspend(ctx, ref, dm.SuspendOptions{}) })
	if err != nil {
		return taken, err
	}
	failpoint.Hit("snapshot: suspended")
	taken = time.Now().UTC()
	// A snapshot copies from its resume on. The volumes wait until all do.
	if err := parallel(snaps, func(ref dm.Ref) error { return p.kernel.Resume(ctx, ref) }); err != nil {
		return taken, err
	}
	failpoint.Hit("snapshot: taken")
	if err := parallel(volumes, func(ref dm.Ref) error { return p.kernel.Resume(ctx, ref) }); err != nil {
		return taken, err
	}
	failpoint.Hit("snapshot: volumes resumed")
	return taken, nil
}

// build makes the three hidden devices of a volume and preloads the volume's
// table. Nothing of it is in the way of I/O yet. It returns the path of the
// snapshot's device.
func (g *snapshotGroup) build(ctx context.Context, v volumeRecord) (string, error) {
	p := g.pool
	p.mu.RLock()
	table := p.place().volumeTable(&v, p.meta.position(v.Position))
	cow := p.meta.snapshot(v.UUID).Segments
	p.mu.RUnlock()

	real, err := p.createDevice(ctx, v, suffixReal, table)
	if err != nil {
		return "", err
	}
	size := countExtents(cow) * p.place().extentSize
	store, err := p.createDevice(ctx, v, suffixCOW, p.place().table(cow, 0, size))
	if err != nil {
		return "", err
	}
	snap := p.ref(v.UUID, suffixSnap)
	info, err := p.createEmpty(v, suffixSnap)
	if errors.Is(err, dm.ErrExists) {
		return "", &Error{
			Kind: ErrBusy, Message: "the device of an earlier snapshot is still open", Err: err,
			Remedy: "end what reads it; the device goes away by itself then",
		}
	}
	if err != nil {
		return "", err
	}
	one := func(t dm.Target) dm.Table { return dm.Table{{Start: 0, Length: table.Size(), Target: t}} }
	err = p.kernel.Load(snap, one(dm.Snapshot{Origin: real.Device, COW: store.Device, Chunk: snapshotChunk / dm.SectorSize}), true)
	if err == nil {
		err = p.kernel.Load(p.ref(v.UUID, ""), one(dm.SnapshotOrigin{Origin: real.Device}), false)
	}
	if err != nil {
		return "", &Error{
			Kind: ErrUnsupported, Message: "the kernel refuses a snapshot", Err: err,
			Remedy: "it needs the device-mapper targets snapshot and snapshot-origin: modprobe dm_snapshot",
		}
	}
	return info.Path(), nil
}

func (g *snapshotGroup) refs(suffix string) []dm.Ref {
	list := make([]dm.Ref, len(g.volumes))
	for i, v := range g.volumes {
		list[i] = g.pool.ref(v.UUID, suffix)
	}
	return list
}

// tearDown ends snapshots however far they came: the snapshot's device is cut
// off first, because from the moment in which the volume is linear again it
// would show a mixture; then the volume; then what is no longer used goes.
func (g *snapshotGroup) tearDown(ctx context.Context) error {
	p := g.pool
	var errs []error
	for _, v := range g.volumes {
		errs = append(errs, g.tearDownOne(ctx, v))
	}
	if err := errors.Join(errs...); err != nil {
		return &Error{Kind: ErrDamaged, Message: "a snapshot could not be taken down", Err: err, Remedy: "restart the daemon: opening the pool mends it"}
	}
	failpoint.Hit("snapshot close: devices removed")
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range g.volumes {
		delete(p.snaps, v.UUID)
	}
	if _, err := p.dropReservations(g.volumes...); err != nil {
		// There is no snapshot any more, whatever the metadata says.
		p.log.Warn("extents stay reserved for a snapshot that is closed, until the next one or pool check --repair", "err", err)
	}
	return nil
}

func (g *snapshotGroup) tearDownOne(ctx context.Context, v volumeRecord) error {
	p := g.pool
	snap := p.ref(v.UUID, suffixSnap)
	info, err := p.kernel.Info(snap)
	switch {
	case errors.Is(err, dm.ErrNotFound):
	case err != nil:
		return err
	case info.DeferredRemove:
		// An earlier snapshot's, which is cut off already.
	default:
		if err := p.cutOff(ctx, dm.Listed{Name: info.Name, UUID: snap.UUID}); err != nil {
			return err
		}
	}
	failpoint.Hit("snapshot close: cut off")
	if err := g.straighten(ctx, v); err != nil {
		return err
	}
	failpoint.Hit("snapshot close: volume straightened")
	for _, suffix := range []string{suffixSnap, suffixCOW, suffixReal} {
		if err := p.discardDevice(ctx, p.ref(v.UUID, suffix)); err != nil {
			return err
		}
	}
	return nil
}

// straighten gives a volume its own table back.
func (g *snapshotGroup) straighten(ctx context.Context, v volumeRecord) error {
	p := g.pool
	p.mu.RLock() // the volume may be suspended
	w := wanted{v, p.ref(v.UUID, ""), p.place().volumeTable(&v, p.meta.position(v.Position))}
	p.mu.RUnlock()
	again, _, err := p.prepareDevice(ctx, w)
	failpoint.Hit("snapshot close: volume suspended")
	if err == nil && again {
		err = p.kernel.Resume(ctx, w.ref)
	}
	if err != nil {
		return fmt.Errorf("device of volume %s: %w", v.Name, err)
	}
	return nil
}

// SnapshotStatus tells how full the open snapshot of a volume is, see
// [Snapshot.Status].
func (p *Pool) SnapshotStatus(ctx context.Context, volume UUID) (SnapshotStatus, error) {
	p.mu.RLock()
	s := p.snaps[volume]
	p.mu.RUnlock()
	if s == nil {
		return SnapshotStatus{}, errf(ErrNotFound, "", "volume %s has no snapshot", volume)
	}
	return s.Status(ctx)
}

// Status tells how full the snapshot is. It does not wait for a Close under way:
// a snapshot that is half-way down is an error.
func (s *Snapshot) Status(ctx context.Context) (SnapshotStatus, error) {
	if err := ctx.Err(); err != nil {
		return SnapshotStatus{}, err
	}
	if s.closed.Load() {
		return SnapshotStatus{}, errf(ErrClosed, "", "the snapshot of volume %s is closed", s.volume.Name)
	}
	lines, err := s.pool.kernel.Status(s.pool.ref(s.volume.UUID, suffixSnap))
	if err != nil {
		return SnapshotStatus{}, err
	}
	if len(lines) != 1 || lines[0].Kind != (dm.Snapshot{}).Kind() {
		return SnapshotStatus{}, errf(ErrDamaged, "end it and take another one", "the device of the snapshot of volume %s is none", s.volume.Name)
	}
	st, err := dm.ParseSnapshotStatus(lines[0].Text)
	if err != nil {
		return SnapshotStatus{}, err
	}
	return SnapshotStatus{Used: int64(st.Used) * dm.SectorSize, Total: s.cowSize, Invalid: st.Invalid}, nil
}

// closingSnapshot is what a volume is busy with while its snapshot is closed.
const closingSnapshot = "closing a snapshot"

// Close ends the snapshot and frees its extents; when that can't be committed they
// are freed later. Somebody who still has its device open gets I/O errors from then
// on. A second Close does nothing; after a failed one it can be tried again.
//
// The volume shows the snapshot until it can be used for anything again.
func (s *Snapshot) Close(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return nil
	}
	p := s.pool
	p.mu.Lock()
	p.busy[s.volume.UUID] = closingSnapshot
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.busy, s.volume.UUID)
	}()
	g := &snapshotGroup{pool: p, volumes: []volumeRecord{s.volume}}
	// Half-way down would be neither a snapshot nor none.
	if err := g.tearDown(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("closing the snapshot of volume %s: %w", s.volume.Name, err)
	}
	s.closed.Store(true)
	return nil
}
