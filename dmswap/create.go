package dmswap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/dmswap/probe"
	"github.com/swapback/swapback/failpoint"
)

// CreateOptions describe a new pool.
type CreateOptions struct {
	Name string
	// Disks are the block devices that become members, in this order.
	Disks []string
	// ExtentSize in bytes, a power of two from 64 KiB to 1 GiB; 0 is 4 MiB.
	ExtentSize int64
	// Force overwrites what the disks carry. Disks in use are refused anyway.
	Force       bool
	DiskTimeout time.Duration // as in [OpenOptions]
	Logger      *slog.Logger
}

// tailWipe is how much is zeroed at the end of a new member, where a second
// partition table, RAID and ZFS keep their magic numbers.
const tailWipe = 1 << 20

func (opt *CreateOptions) normalise() error {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if err := checkName("pool", opt.Name); err != nil {
		return err
	}
	if opt.ExtentSize == 0 {
		opt.ExtentSize = defaultExtentSize
	}
	if !isPowerOfTwo(opt.ExtentSize) || opt.ExtentSize < minExtentSize || opt.ExtentSize > maxExtentSize {
		return errf(ErrInvalid, "use a power of two from 64 KiB to 1 GiB", "extent size of %d bytes", opt.ExtentSize)
	}
	if len(opt.Disks) == 0 || len(opt.Disks) > maxMembers {
		return errf(ErrInvalid, fmt.Sprintf("name 1 to %d disks", maxMembers), "a pool of %d disks", len(opt.Disks))
	}
	return nil
}

// Create makes a pool of blank disks and opens it. Until every disk was looked
// at, nothing is written on any.
func Create(ctx context.Context, opt CreateOptions) (*Pool, error) {
	if err := opt.normalise(); err != nil {
		return nil, err
	}
	// A machine that could not open the pool afterwards gets none.
	control, err := dm.Open()
	if err != nil {
		return nil, &Error{Kind: ErrUnsupported, Message: "pool " + opt.Name + " not created", Err: err}
	}
	control.Close()
	disks, err := claimDisks(opt)
	if err != nil {
		return nil, err
	}
	err = format(ctx, opt, disks)
	for _, d := range disks {
		err = errors.Join(err, d.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("pool %s not created: %w", opt.Name, err)
	}
	return Open(ctx, OpenOptions{Disks: opt.Disks, DiskTimeout: opt.DiskTimeout, Logger: opt.Logger})
}

// claimDisks opens all disks exclusively and looks at what they carry.
func claimDisks(opt CreateOptions) (disks []*blockDevice, err error) {
	defer func() {
		if err != nil {
			for _, d := range disks {
				d.Close()
			}
		}
	}()
	var sizes []int64
	for _, path := range opt.Disks {
		d, err := claimDisk(path, disks, opt.Force)
		if err != nil {
			return disks, err
		}
		disks = append(disks, d)
		sizes = append(sizes, d.size)
	}
	_, data, extents := layout(sizes, opt.ExtentSize)
	for i, n := range extents {
		if n < 1 {
			return disks, errf(ErrInvalid, "use a larger disk or smaller extents",
				"disk %s has %s; a member of this pool needs at least %s", opt.Disks[i], sizeText(sizes[i]), sizeText(data+opt.ExtentSize))
		}
	}
	return disks, nil
}

func claimDisk(path string, others []*blockDevice, force bool) (*blockDevice, error) {
	// Twice the same disk would otherwise be "in use", by us.
	if err := mustBeBlockDevice(path); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	for _, o := range others {
		if o.number == dm.DeviceOf(st.Rdev) {
			return nil, errf(ErrInvalid, "name each disk once", "%s and %s are the same disk", o.path, path)
		}
	}
	d, err := openBlockDevice(path, true, unix.O_EXCL)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, &DiskInUseError{Disk: path, Found: usersOf(dm.DeviceOf(st.Rdev)), Held: true}
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, &Error{Kind: ErrInvalid, Message: fmt.Sprintf("disk %s can't be written to", path), Err: err, Remedy: "name another disk, or make it writable (blockdev --setrw)"}
	case err != nil:
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	if err := suitable(d, force); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func suitable(d *blockDevice, force bool) error {
	if d.readOnly {
		return errf(ErrInvalid, "name another disk, or make it writable (blockdev --setrw)", "disk %s is read-only", d.path)
	}
	if d.block > blockSize {
		return errf(ErrInvalid, "name another disk", "disk %s has blocks of %d bytes; up to %d are supported", d.path, d.block, blockSize)
	}
	found, err := probe.Probe(d, d.size)
	if err != nil {
		return fmt.Errorf("disk %s: looking for what it carries: %w", d.path, err)
	}
	d.carries = found
	if len(found) == 0 || force {
		return nil
	}
	e := &DiskInUseError{Disk: d.path}
	for _, f := range found {
		e.Found = append(e.Found, f.Name)
	}
	return e
}

// usersOf names what sysfs and the mount table know of a disk's users.
func usersOf(dev dm.Device) []string {
	var list []string
	dir := filepath.Join("/sys/dev/block", dev.String())
	for _, pattern := range []string{"holders/*", "*/holders/*"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, h := range found {
			name := filepath.Base(h)
			if text, err := os.ReadFile(filepath.Join(h, "dm/name")); err == nil {
				name += " (" + strings.TrimSpace(string(text)) + ")"
			}
			list = append(list, "held by "+name)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil {
		for line := range strings.Lines(string(mounts)) {
			// proc_pid_mountinfo(5): ID, parent, MAJOR:MINOR, root, mount point
			if f := strings.Fields(line); len(f) > 4 && f[2] == dev.String() {
				list = append(list, "mounted on "+f[4])
			}
		}
	}
	if len(list) == 0 {
		list = []string{"somebody has it open exclusively (a mount, swap space, RAID or volume manager, or a pool that is open)"}
	}
	return list
}

// format writes slots and labels. The labels come last: a disk without one is
// no member, whatever else was written.
func format(ctx context.Context, opt CreateOptions, disks []*blockDevice) error {
	var sizes []int64
	for _, d := range disks {
		if err := d.lock(ctx); err != nil {
			return err
		}
		sizes = append(sizes, d.size)
	}
	s, meta := newStore(opt, sizes)
	for i, d := range disks {
		l := &s.members[i].label
		s.members[i].disk, s.members[i].path = d, d.path
		tail := max(roundDown(d.size-tailWipe, blockSize), l.DataOffset)
		if err := d.Zero(ctx, 0, l.DataOffset); err != nil {
			return err
		}
		if err := d.Zero(ctx, tail, roundDown(d.size-tail, int64(d.block))); err != nil {
			return err
		}
		if err := wipeSignatures(ctx, d); err != nil {
			return err
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("disk %s: %w", d.path, err)
		}
		meta.Members[i].Path = d.path
	}
	failpoint.Hit("pool create: wiped")
	if err := s.commit(meta); err != nil {
		return err
	}
	failpoint.Hit("pool create: metadata written")
	if err := s.writeLabels(true); err != nil {
		return err
	}
	failpoint.Hit("pool create: labels unfinished")
	return s.writeLabels(false)
}

// wipeSignatures zeroes the blocks of all magic numbers that were found. Some lie
// where a volume's data is going to be, as btrfs's second superblock.
func wipeSignatures(ctx context.Context, d *blockDevice) error {
	for _, f := range d.carries {
		for _, at := range f.Offsets {
			start := roundDown(at, blockSize)
			if err := d.Zero(ctx, start, min(blockSize, roundDown(d.size-start, int64(d.block)))); err != nil {
				return err
			}
		}
	}
	return nil
}

// newStore lays a pool out on disks of these sizes.
func newStore(opt CreateOptions, sizes []int64) (*store, *metadata) {
	now := time.Now().UTC()
	slotSize, dataOffset, extents := layout(sizes, opt.ExtentSize)
	meta := &metadata{
		Version: metadataVersion,
		Pool:    poolRecord{UUID: NewUUID(), Name: opt.Name, Created: now, ExtentSize: opt.ExtentSize},
	}
	s := &store{log: opt.Logger}
	for i, size := range sizes {
		l := label{
			Pool: meta.Pool.UUID, Member: NewUUID(), PoolName: opt.Name, Index: i, Count: len(sizes),
			ExtentSize: opt.ExtentSize, DataOffset: dataOffset, Extents: extents[i],
			Slots: [2]int64{slotsOffset, slotsOffset + slotSize}, SlotSize: slotSize, DiskSize: size, Created: now,
		}
		s.members = append(s.members, &member{label: l, newest: -1})
		meta.Members = append(meta.Members, memberRecord{UUID: l.Member, Index: i, Extents: extents[i], DataOffset: dataOffset})
	}
	return s, meta
}

// writeLabels puts the members in use or, with unfinished, takes them out of it.
// What counts is the first label that is put in use, and the last that is taken
// out. A pool that is deleted goes without the disks that have died: they can't be
// asked.
func (s *store) writeLabels(unfinished bool) error {
	for i, m := range s.members {
		if m.disk == nil || m.labelErr != nil && !unfinished {
			continue // what is damaged is mended when somebody asks for it
		}
		m.label.Unfinished = unfinished
		_, err := m.disk.WriteAt(m.label.encode(), labelOffset)
		if err == nil {
			err = m.disk.Sync()
		}
		if err != nil {
			err = fmt.Errorf("writing the label of %s: %w", m.path, err)
			if unfinished && m.out == nil && isDiskError(err) && len(s.present()) > 1 {
				s.leaveOut(i, err)
			}
			if unfinished && m.out != nil {
				continue
			}
			return err
		}
		if unfinished {
			failpoint.Hit("label: taken out of use")
		} else {
			failpoint.Hit("label: put in use")
		}
	}
	return nil
}
