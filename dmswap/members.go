package dmswap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// foundMember is a disk that was recognised as a member.
type foundMember struct {
	disk     *blockDevice
	label    label
	labelErr error // what is wrong with the label on the disk, or nil
}

// openMembers opens and locks disks of one pool and returns those that are
// members by their index, nil for the missing ones. A disk that answers with I/O
// errors, or whose label is damaged and whose metadata does not say what it is
// either, is as good as missing. The reasons are in unusable.
func openMembers(ctx context.Context, paths []string) (found []*foundMember, unusable []error, err error) {
	var opened []*blockDevice
	defer func() {
		for _, d := range opened {
			if err != nil || !slices.ContainsFunc(found, func(f *foundMember) bool { return f != nil && f.disk == d }) {
				d.Close()
			}
		}
	}()
	var list, damaged []*foundMember
	for _, path := range paths {
		d, err := openBlockDevice(path, true, 0)
		if isDiskError(err) {
			unusable = append(unusable, fmt.Errorf("disk %s: %w", path, err))
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("disk %s: %w", path, err)
		}
		opened = append(opened, d)
		f := &foundMember{disk: d}
		f.label, f.labelErr = readLabel(d)
		switch {
		case f.labelErr == nil:
			list = append(list, f)
		case isDiskError(f.labelErr):
			unusable = append(unusable, fmt.Errorf("disk %s: reading its label: %w", path, f.labelErr))
		case errors.Is(f.labelErr, errNewer):
			return nil, nil, labelError(path, f.labelErr)
		default:
			damaged = append(damaged, f)
		}
	}
	hint := int64(0)
	if len(list) > 0 {
		hint = list[0].label.SlotSize
	}
	for _, f := range damaged {
		l, ok := recognise(f.disk, f.disk.size, hint)
		switch {
		case ok:
			f.label = l
			list = append(list, f)
		case errors.Is(f.labelErr, errNoLabel) || len(list) == 0:
			return nil, nil, labelError(f.disk.path, f.labelErr)
		default:
			unusable = append(unusable, labelError(f.disk.path, f.labelErr))
		}
	}
	if len(list) == 0 {
		return nil, nil, &Error{Kind: ErrDamaged, Message: "none of the disks can be read", Err: join(unusable), Remedy: "look at the kernel's log for what is wrong with them"}
	}
	if found, err = sortMembers(list); err != nil {
		return nil, nil, err
	}
	for _, f := range found {
		if f == nil {
			continue
		}
		if err := f.disk.lock(ctx); err != nil {
			return nil, nil, fmt.Errorf("pool %s: %w", list[0].label.PoolName, err)
		}
	}
	return found, unusable, nil
}

// sortMembers puts members of one pool in their order.
func sortMembers(list []*foundMember) ([]*foundMember, error) {
	first := &list[0].label
	byIndex := map[int]*blockDevice{}
	found := make([]*foundMember, first.Count)
	for _, f := range list {
		if err := fits(f.disk, f.label, first, byIndex); err != nil {
			return nil, err
		}
		byIndex[f.label.Index], found[f.label.Index] = f.disk, f
	}
	return found, nil
}

// isDiskError tells whether the disk is to blame for an error, and not whoever
// named it.
func isDiskError(err error) bool {
	for _, errno := range []error{unix.EIO, unix.ENXIO, unix.ENODEV, unix.ENOMEDIUM, unix.ETIMEDOUT, unix.EREMOTEIO, unix.ENODATA, unix.EILSEQ, unix.ENOLINK, unix.EBADE} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
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

// recognise makes the label of a disk anew from the metadata behind it, when
// that is whole. A label that is all zeroes was wiped on purpose. slotSize is
// what other members of the pool have, or 0 when no other is known.
func recognise(d disk, size, slotSize int64) (label, bool) {
	b := alignedBuffer(labelSize)
	if _, err := d.ReadAt(b, labelOffset); err != nil || len(bytes.TrimLeft(b, "\x00")) == 0 {
		return label{}, false
	}
	sizes := []int64{slotSize}
	if slotSize == 0 {
		// The second slot tells how long the first is.
		sizes = nil
		for s := int64(minSlotSize); s <= maxSlotSize; s += minSlotSize {
			sizes = append(sizes, s)
		}
	}
	for _, s := range sizes {
		slots := [2]int64{slotsOffset, slotsOffset + s}
		for _, at := range slotOrder(slots, slotSize == 0) {
			if l, ok := labelFromSlot(d, size, slots, s, at); ok {
				return l, true
			}
		}
	}
	return label{}, false
}

// slotOrder is where a header is looked for: where the slot size is only a guess
// the first slot proves nothing.
func slotOrder(slots [2]int64, guessed bool) []int {
	if guessed {
		return []int{1}
	}
	return []int{0, 1}
}

func labelFromSlot(d disk, size int64, slots [2]int64, slotSize int64, index int) (label, bool) {
	b := alignedBuffer(blockSize)
	if slots[index]+slotSize > size {
		return label{}, false
	}
	if _, err := d.ReadAt(b, slots[index]); err != nil {
		return label{}, false
	}
	h, err := decodeSlotHeader(b, slotSize)
	if err != nil {
		return label{}, false
	}
	l := label{Pool: h.Pool, Member: h.Member, Slots: slots, SlotSize: slotSize}
	st := readSlot(d, &l, index)
	if st.err != nil {
		return label{}, false
	}
	i := slices.IndexFunc(st.meta.Members, func(m memberRecord) bool { return m.UUID == h.Member })
	if i < 0 {
		return label{}, false
	}
	l = st.meta.labelOf(i, slotSize, size)
	return l, l.check() == nil
}

// labelOf makes the label of a member.
func (m *metadata) labelOf(i int, slotSize, diskSize int64) label {
	r := m.Members[i]
	return label{
		Pool: m.Pool.UUID, Member: r.UUID, PoolName: m.Pool.Name, Index: i, Count: len(m.Members),
		ExtentSize: m.Pool.ExtentSize, DataOffset: r.DataOffset, Extents: r.Extents,
		Slots: [2]int64{slotsOffset, slotsOffset + slotSize}, SlotSize: slotSize, DiskSize: diskSize, Created: m.Pool.Created,
	}
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

// missingText says which members are not there, for people.
func missingText(indexes []int, count int) string {
	var list []string
	for _, i := range indexes {
		list = append(list, fmt.Sprint(i))
	}
	return fmt.Sprintf("member %s of %d is missing", strings.Join(list, ", "), count)
}
