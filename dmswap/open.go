package dmswap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/swapback/swapback/dmswap/dm"
)

// OpenOptions name the disks of a pool.
type OpenOptions struct {
	// Disks are all members of one pool, in any order.
	Disks  []string
	Logger *slog.Logger
}

// Open opens a pool and makes the kernel's devices agree with its metadata:
// missing ones are made, those that a dead process left suspended or with
// another table are brought to the committed map, remains are removed. It
// refuses a pool with a member missing, and changes nothing then.
func Open(ctx context.Context, opt OpenOptions) (*Pool, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if len(opt.Disks) == 0 {
		return nil, errf(ErrInvalid, "name the pool's disks", "no disks to open a pool on")
	}
	disks, labels, err := openMembers(ctx, opt.Disks)
	if err != nil {
		return nil, err
	}
	closeDisks := func() {
		for _, d := range disks {
			d.Close()
		}
	}
	control, err := dm.Open()
	if err != nil {
		closeDisks()
		return nil, &Error{Kind: ErrUnsupported, Message: "pool " + labels[0].PoolName, Err: err}
	}
	var members []memberDisk
	var devices []dm.Device
	var paths []string
	var sizes []int64
	for _, d := range disks {
		members, devices = append(members, d), append(devices, d.number)
		paths, sizes = append(paths, d.path), append(sizes, d.size)
	}
	p, err := openPool(ctx, control, members, labels, devices, paths, sizes, opt.Logger, dropCache)
	if err != nil {
		control.Close()
		closeDisks()
		return nil, err
	}
	return p, nil
}

// openMembers opens the disks and reads their labels, and returns both in the
// order of the members.
func openMembers(ctx context.Context, paths []string) (disks []*blockDevice, labels []label, err error) {
	var opened []*blockDevice
	defer func() {
		if err != nil {
			for _, d := range opened {
				d.Close()
			}
		}
	}()
	byIndex := map[int]*blockDevice{}
	var first *label
	for _, path := range paths {
		d, err := openBlockDevice(path, true, 0)
		if err != nil {
			return nil, nil, fmt.Errorf("disk %s: %w", path, err)
		}
		opened = append(opened, d)
		l, err := readLabel(d)
		if err != nil {
			return nil, nil, labelError(path, err)
		}
		if first == nil {
			first = &l
			labels = make([]label, l.Count)
		}
		if err := fits(d, l, first, byIndex); err != nil {
			return nil, nil, err
		}
		byIndex[l.Index], labels[l.Index] = d, l
	}
	disks = make([]*blockDevice, first.Count)
	var missing []string
	for i := range disks {
		if disks[i] = byIndex[i]; disks[i] == nil {
			missing = append(missing, fmt.Sprint(i))
		}
	}
	if len(missing) > 0 {
		return nil, nil, errf(ErrDamaged, "connect the missing disks and try again",
			"pool %s: member %s of %d is missing, only %s found", first.PoolName, strings.Join(missing, ", "), first.Count, strings.Join(paths, ", "))
	}
	for _, d := range disks {
		if err := d.lock(ctx); err != nil {
			return nil, nil, fmt.Errorf("pool %s: %w", first.PoolName, err)
		}
	}
	return disks, labels, nil
}

func readLabel(d io.ReaderAt) (label, error) {
	b := alignedBuffer(labelSize)
	if _, err := d.ReadAt(b, labelOffset); errors.Is(err, io.EOF) {
		return label{}, fmt.Errorf("%w: the disk ends before byte %d", errNoLabel, labelOffset+labelSize)
	} else if err != nil {
		return label{}, err
	}
	return decodeLabel(b)
}

func labelError(path string, err error) error {
	e := &Error{Kind: ErrDamaged, Message: "disk " + path, Err: err}
	switch {
	case errors.Is(err, errNoLabel):
		e.Kind, e.Remedy = ErrNoPool, "create a pool on it, or name the right disk"
	case errors.Is(err, errNewer):
		e.Remedy = "use a newer swapback"
	case errors.Is(err, errBadLabel):
		e.Remedy = "the metadata behind the label may be whole (docs/formats.md); don't write to the disk"
	}
	return e
}

// fits tells whether a disk can be the member that its label says.
func fits(d *blockDevice, l label, first *label, byIndex map[int]*blockDevice) error {
	switch o := byIndex[l.Index]; {
	case l.Pool != first.Pool:
		return errf(ErrInvalid, "name the disks of one pool", "disk %s belongs to pool %s (%s), not to pool %s (%s)", d.path, l.PoolName, l.Pool, first.PoolName, first.Pool)
	case l.Count != first.Count || l.ExtentSize != first.ExtentSize || l.SlotSize != first.SlotSize:
		return errf(ErrDamaged, "leave the disk out that does not belong here", "pool %s: the label of %s does not agree with the others", l.PoolName, d.path)
	case o != nil && o.number == d.number:
		return errf(ErrInvalid, "name each disk once", "%s and %s are the same disk", o.path, d.path)
	case o != nil:
		return errf(ErrDamaged, "one is a copy of the other: disconnect the copy, or wipe its label",
			"pool %s: %s and %s both are member %d (%s)", l.PoolName, o.path, d.path, l.Index, l.Member)
	case d.size < l.DiskSize:
		return errf(ErrDamaged, "the disk was cut short or is a partial copy; give it its size back",
			"pool %s: disk %s has %d bytes, but had %d when it became a member", l.PoolName, d.path, d.size, l.DiskSize)
	case d.readOnly:
		return errf(ErrInvalid, "make it writable (blockdev --setrw)", "pool %s: disk %s is read-only", l.PoolName, d.path)
	}
	return nil
}

// openPool opens a pool on members whose labels were read.
func openPool(ctx context.Context, k kernel, disks []memberDisk, labels []label, devices []dm.Device, paths []string, sizes []int64,
	log *slog.Logger, drop func(string) error,
) (*Pool, error) {
	name := labels[0].PoolName
	log = log.With("pool", name)
	s := &store{log: log}
	for i := range labels {
		s.members = append(s.members, &member{disk: disks[i], path: paths[i], label: labels[i], newest: -1})
	}
	meta, err := s.load()
	if err != nil {
		return nil, err
	}
	if err := meta.agrees(labels); err != nil {
		return nil, &Error{Kind: ErrDamaged, Message: "pool " + name, Err: err, Remedy: "check that these are the right disks"}
	}
	if err := s.repair(meta); err != nil {
		return nil, &Error{Kind: ErrDamaged, Message: fmt.Sprintf("pool %s: a member is behind and could not be brought up to date", name), Err: err}
	}
	p := &Pool{
		name: name, uuid: meta.Pool.UUID, log: log, kernel: k, disks: disks, sizes: sizes, dropCache: drop, patience: removePatience,
		place: placement{extentSize: meta.Pool.ExtentSize, members: meta.Members, devices: devices},
		store: s, meta: meta,
		devices: map[UUID]string{}, busy: map[UUID]string{}, pending: map[string][]Segment{},
		naming: map[string]bool{}, snaps: map[UUID]*Snapshot{},
	}
	if err := p.reconcile(ctx); err != nil {
		return nil, fmt.Errorf("pool %s: bringing the devices to the committed map: %w", name, err)
	}
	return p, nil
}

// agrees tells whether the metadata is of the members that the labels say.
func (m *metadata) agrees(labels []label) error {
	if len(labels) != len(m.Members) || m.Pool.ExtentSize != labels[0].ExtentSize {
		return fmt.Errorf("metadata of %d members with extents of %d bytes, labels of %d with %d",
			len(m.Members), m.Pool.ExtentSize, len(labels), labels[0].ExtentSize)
	}
	for i, r := range m.Members {
		if l := labels[i]; r.UUID != l.Member || r.Extents != l.Extents || r.DataOffset != l.DataOffset {
			return fmt.Errorf("metadata and label of member %d do not agree", i)
		}
	}
	return nil
}
