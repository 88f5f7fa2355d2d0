package dmswap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/swapback/swapback/dmswap/dm"
)

// OpenOptions name the disks of a pool.
type OpenOptions struct {
	// Disks are members of one pool, in any order.
	Disks []string
	// DiskTimeout is how long a disk may take for one request of the pool's own
	// before what needs it is refused; 0 is 10 s.
	DiskTimeout time.Duration
	Logger      *slog.Logger
}

// Open opens a pool and makes the kernel's devices agree with its metadata:
// missing ones are made, those that a dead process left suspended or with
// another table are brought to the committed map, remains are removed.
//
// A pool whose members are not all there opens degraded, if it has volumes: what lies on a missing
// member answers I/O with errors, see [VolumeInfo].Degraded. Members that are
// behind are brought up to date. Open refuses members that were used without
// each other ([ErrSplit]), old copies, disks that don't belong here, and a pool
// whose newest metadata is known to be damaged, and changes nothing then. A
// member that missed commits can't know that while those that made them are not
// there.
func Open(ctx context.Context, opt OpenOptions) (*Pool, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if len(opt.Disks) == 0 {
		return nil, errf(ErrInvalid, "name the pool's disks", "no disks to open a pool on")
	}
	found, unusable, err := openMembers(ctx, opt.Disks)
	if err != nil {
		return nil, err
	}
	closeDisks := func() {
		for _, f := range found {
			if f != nil {
				f.disk.Close()
			}
		}
	}
	control, err := dm.Open()
	if err != nil {
		closeDisks()
		return nil, &Error{Kind: ErrUnsupported, Message: "opening a pool", Err: err}
	}
	for _, err := range unusable {
		opt.Logger.Error("disk can't be used", "err", err)
	}
	members := make([]openMember, len(found))
	for i, f := range found {
		if f != nil {
			members[i] = openMember{patient(f.disk, f.disk.path, opt.DiskTimeout), f.label, f.labelErr, f.disk.number, f.disk.path, f.disk.size}
		}
	}
	p, err := openPool(ctx, control, members, opt.Logger, dropCache)
	if err != nil {
		control.Close()
		closeDisks()
		return nil, err
	}
	p.diskTimeout = opt.DiskTimeout
	return p, nil
}

// openMember is a member that a pool is opened on. One without a disk is
// missing.
type openMember struct {
	disk     memberDisk
	label    label
	labelErr error
	device   dm.Device
	path     string
	size     int64 // bytes of the disk
}

// errMissing is why a member without a disk takes no part.
var errMissing = errors.New("its disk is not there")

// openPool opens a pool on its members, in their order.
func openPool(ctx context.Context, k kernel, members []openMember, log *slog.Logger, drop func(string) error) (*Pool, error) {
	name := ""
	s := &store{}
	for i, o := range members {
		m := &member{device: o.device, path: o.path, label: o.label, newest: -1, labelErr: o.labelErr}
		if o.disk == nil {
			m.label, m.out = label{Index: i, Count: len(members)}, errMissing
		} else {
			m.disk, name = o.disk, o.label.PoolName
		}
		s.members = append(s.members, m)
	}
	log = log.With("pool", name)
	s.log = log
	if err := s.settleLabels(); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	meta := s.meta
	if slices.ContainsFunc(s.members, func(m *member) bool { return m.disk == nil }) && len(meta.Volumes) == 0 {
		return nil, errf(ErrDamaged, "connect the missing disks; or make it anew: swapback pool create --force",
			"pool %s has no volumes and members are missing, only %s found: it was being created or deleted, perhaps", name, pathsText(s.members))
	}
	for i, m := range s.members {
		if m.disk == nil {
			m.path = meta.Members[i].Path
			log.Error("member is missing: the pool is degraded", "member", i, "last_seen", m.path)
		} else if m.labelErr != nil {
			log.Error("member has a damaged label and was recognised by its metadata", "disk", m.path, "err", m.labelErr)
		}
	}
	p := &Pool{
		name: name, uuid: meta.Pool.UUID, log: log, kernel: k, dropCache: drop, patience: removePatience,
		store: s, meta: meta,
		devices: map[UUID]string{}, busy: map[UUID]string{}, pending: map[string][]Segment{},
		naming: map[string]bool{}, snaps: map[UUID]*Snapshot{}, mu: newPoolLock(),
	}
	place := placement{extentSize: meta.Pool.ExtentSize, members: meta.Members, devices: make([]dm.Device, len(members))}
	for i, o := range members {
		p.disks, p.sizes = append(p.disks, o.disk), append(p.sizes, o.size)
		place.devices[i] = o.device
		if s.members[i].out != nil {
			place.devices[i] = dm.Device{} // what lies there answers errors
		}
	}
	p.placed.Store(&place)
	p.openMaps()
	s.unguarded, s.stuck = p.mu.Unguarded, p.stuck
	if err := p.reconcile(ctx); err != nil {
		return nil, fmt.Errorf("pool %s: bringing the devices to the committed map: %w", name, err)
	}
	return p, nil
}

func pathsText(members []*member) string {
	var list []string
	for _, m := range members {
		if m.disk != nil {
			list = append(list, m.path)
		}
	}
	return strings.Join(list, ", ")
}

// agrees tells whether the metadata is of the member that a label says.
func (m *metadata) agrees(l *label) error {
	if l.Count != len(m.Members) || m.Pool.ExtentSize != l.ExtentSize {
		return fmt.Errorf("metadata of %d members with extents of %d bytes, label of %d with %d",
			len(m.Members), m.Pool.ExtentSize, l.Count, l.ExtentSize)
	}
	if r := m.Members[l.Index]; r.UUID != l.Member || r.Extents != l.Extents || r.DataOffset != l.DataOffset {
		return fmt.Errorf("metadata and label of member %d do not agree", l.Index)
	}
	return nil
}
