package dmswap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ReadDump reads the newest metadata from disks of a pool that is not open. It
// writes nothing. Disks that were used without each other are [ErrSplit]: name
// those of one half.
func ReadDump(ctx context.Context, disks []string) (*Dump, error) {
	if len(disks) == 0 {
		return nil, errf(ErrInvalid, "name the pool's disks", "no disks to read metadata from")
	}
	found, _, err := openMembers(ctx, disks)
	if err != nil {
		return nil, err
	}
	defer closeFound(found)
	var best, newest *slotState
	from := ""
	sizes := make([]int64, len(found))
	var slotSize int64
	for i, f := range found {
		if f == nil {
			continue
		}
		sizes[i], slotSize = f.label.DiskSize, f.label.SlotSize
		if newest = newestSlot(f.disk, &f.label); newest != nil && (best == nil || newest.header.Generation > best.header.Generation) {
			best, from = newest, f.disk.path
		}
	}
	if best == nil {
		return nil, errf(ErrDamaged, "what can be read of the slots' bodies is text (docs/formats.md)", "%s: no valid metadata slot", pathsOf(found))
	}
	for _, f := range found {
		if f == nil {
			continue
		}
		if st := newestSlot(f.disk, &f.label); st != nil {
			if err := best.follows(st, &member{path: f.disk.path, label: f.label}); errors.Is(err, ErrSplit) {
				return nil, err
			}
		}
	}
	return newDump(best.meta, from, slotSize, sizes), nil
}

func closeFound(found []*foundMember) {
	for _, f := range found {
		if f != nil {
			f.disk.Close()
		}
	}
}

func pathsOf(found []*foundMember) string {
	var m []*member
	for _, f := range found {
		if f != nil {
			m = append(m, &member{disk: f.disk, path: f.disk.path})
		}
	}
	return pathsText(m)
}

// newestSlot returns the newest valid slot of a member, or nil.
func newestSlot(d disk, l *label) *slotState {
	var newest *slotState
	for j := range 2 {
		if st := readSlot(d, l, j); st.err == nil && (newest == nil || st.header.Generation > newest.header.Generation) {
			newest = &st
		}
	}
	return newest
}

// RestoreOptions are the options of [PrepareRestore].
type RestoreOptions struct {
	// Disks are the members that are written. Others follow them when they come.
	Disks []string
	// Force takes metadata back to an older generation, or a member off the line
	// that it went, or gives a disk a label that has lost its own.
	Force bool
	// KeepDir is where the old metadata is kept; [DefaultKeepDir] unless set.
	KeepDir string
}

// Restore is a restore that was checked. Its disks are locked until Close.
type Restore struct {
	// Changes says what becomes of each disk, Kept where its old metadata is
	// after Apply.
	Changes []string
	Kept    []string

	dump    *Dump
	opt     RestoreOptions
	members []restoreMember
}

type restoreMember struct {
	disk  memberDisk
	path  string
	label label
	seen  uint64 // highest generation of a header
}

// PrepareRestore looks at disks and checks that a dump can be written on them.
// It writes nothing. A disk that is in use by an open pool is [ErrBusy].
func PrepareRestore(ctx context.Context, d *Dump, opt RestoreOptions) (*Restore, error) {
	if len(opt.Disks) == 0 {
		return nil, errf(ErrInvalid, "name the disks to write", "no disks to restore metadata on")
	}
	r := &Restore{dump: d, opt: opt}
	if err := r.open(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Restore) open(ctx context.Context) error {
	byIndex := map[int]*blockDevice{}
	var unknown []*blockDevice
	for _, path := range r.opt.Disks {
		b, err := openBlockDevice(path, true, 0)
		if err != nil {
			return fmt.Errorf("disk %s: %w", path, err)
		}
		r.members = append(r.members, restoreMember{disk: b, path: path})
		if err := b.lock(ctx); err != nil {
			return err
		}
		l, err := readLabel(b)
		if err != nil {
			ok := false
			if l, ok = recognise(b, b.size, r.dump.about.SlotSize); !ok {
				unknown = append(unknown, b)
				continue
			}
			r.change("%s: its label is damaged (%v) and is written anew", path, err)
		}
		if err := r.take(len(r.members)-1, b, l, byIndex); err != nil {
			return err
		}
	}
	return r.guess(unknown, byIndex)
}

func (r *Restore) change(format string, args ...any) {
	r.Changes = append(r.Changes, fmt.Sprintf(format, args...))
}

// take makes a disk the member that its label says.
func (r *Restore) take(k int, b *blockDevice, l label, byIndex map[int]*blockDevice) error {
	meta := r.dump.meta
	if l.Pool != meta.Pool.UUID {
		return errf(ErrInvalid, "name the disks of the dump's pool", "disk %s belongs to pool %s (%s), the dump is of pool %s (%s)", b.path, l.PoolName, l.Pool, meta.Pool.Name, meta.Pool.UUID)
	}
	if l.Index >= len(meta.Members) || meta.Members[l.Index].UUID != l.Member {
		return errf(ErrInvalid, "name the disks of the dump's pool", "disk %s is no member that the dump knows", b.path)
	}
	first := r.dump.label(l.Index, l.DiskSize)
	if err := fits(b, l, &first, byIndex); err != nil {
		return err
	}
	byIndex[l.Index] = b
	m := &r.members[k]
	m.label = first
	newest := newestSlot(b, &m.label)
	for j := range 2 {
		if h := readSlot(b, &m.label, j).header; h.Member == m.label.Member {
			m.seen = max(m.seen, h.Generation)
		}
	}
	switch {
	case newest == nil:
		r.change("%s: member %d has no valid metadata, it gets that of generation %d", b.path, l.Index, meta.Generation)
		return nil
	case newest.header.Generation > meta.Generation:
		r.change("%s: member %d goes back from generation %d (written %s) to %d", b.path, l.Index, newest.header.Generation, writtenText(newest), meta.Generation)
	default:
		r.change("%s: member %d has generation %d (written %s), it gets that of generation %d", b.path, l.Index, newest.header.Generation, writtenText(newest), meta.Generation)
	}
	if r.opt.Force {
		return nil
	}
	if newest.header.Generation > meta.Generation {
		return errf(ErrGeneration, "use --force to lose what was committed since", "the dump has generation %d, disk %s has %d", meta.Generation, b.path, newest.header.Generation)
	}
	body, err := meta.encode()
	if err != nil {
		return err
	}
	best := &slotState{header: slotHeader{Generation: meta.Generation, BodyCRC: crc(body), Written: r.dump.Taken}, meta: meta}
	if err := best.follows(newest, &member{path: b.path, label: m.label}); err != nil {
		return &Error{Kind: ErrGeneration, Message: "the dump is not what disk " + b.path + " would follow by itself", Err: err, Remedy: "use --force to lose what only this disk has"}
	}
	return nil
}

// guess takes the one disk that says nothing about itself for the one member
// that no other disk is.
func (r *Restore) guess(unknown []*blockDevice, byIndex map[int]*blockDevice) error {
	if len(unknown) == 0 {
		return nil
	}
	b, meta := unknown[0], r.dump.meta
	if len(unknown) > 1 || len(byIndex) != len(meta.Members)-1 || !r.opt.Force {
		return errf(ErrInvalid, "name all disks of the pool, of which one may have lost its label, and use --force",
			"disk %s has no label, and no metadata that says which member it is", b.path)
	}
	for i := range meta.Members {
		if byIndex[i] != nil {
			continue
		}
		size := r.dump.about.DiskSizes[i]
		if size == 0 {
			size = b.size
		}
		l := r.dump.label(i, size)
		if err := l.check(); err != nil || b.size < size {
			return errf(ErrInvalid, "name the right disk", "disk %s has %d bytes and can't be member %d", b.path, b.size, i)
		}
		k := slices.IndexFunc(r.members, func(m restoreMember) bool { return m.disk == memberDisk(b) })
		r.members[k].label = l
		r.change("%s: it says nothing about itself and becomes member %d, generation %d", b.path, i, meta.Generation)
	}
	return nil
}

// Apply keeps the old metadata and writes the dump's. When it fails half-way it
// can be done again.
func (r *Restore) Apply(context.Context) error {
	for _, m := range r.members {
		path, err := r.keep(m)
		if err != nil {
			return err
		}
		r.Kept = append(r.Kept, path)
	}
	meta := r.meta()
	if err := meta.check(); err != nil {
		return fmt.Errorf("refusing to write inconsistent metadata: %w", err)
	}
	body, err := meta.encode()
	if err != nil {
		return err
	}
	for i, m := range r.members {
		if err := m.write(meta.Generation, body); err != nil {
			return fmt.Errorf("disk %s, %d of %d disks are done: %w", m.path, i, len(r.members), err)
		}
	}
	return nil
}

// meta is the dump's metadata as a new generation of a new epoch, which begins
// right behind the dump: a member that is not written follows when it has no
// more than the dump, and is a split when it has.
func (r *Restore) meta() *metadata {
	meta := r.dump.meta.clone()
	// What was written since the dump, and what the maps counted from then, is not
	// known.
	meta.forgetBases(fmt.Sprintf("the pool's metadata was restored from a dump of generation %d", meta.Generation), func(*positionRecord) bool { return true })
	holds := meta.Previous
	meta.Previous = meta.Generation
	written := map[int]bool{}
	for _, m := range r.members {
		meta.Generation = max(meta.Generation, m.seen)
		written[m.label.Index] = true
	}
	meta.Generation++
	meta.beginEpoch(meta.Previous+1, holds, func(i int) bool { return !written[i] })
	return meta
}

// write puts label and metadata on one disk. The slots are made void first, so
// that there never is a mixture.
func (m restoreMember) write(generation uint64, body []byte) error {
	if int64(len(body)) > m.label.SlotSize-slotBody {
		return errTooLarge(len(body), m.label.SlotSize)
	}
	for j := range 2 {
		if err := m.disk.WriteDurable(alignedBuffer(blockSize), m.label.Slots[j]); err != nil {
			return err
		}
	}
	if err := m.disk.WriteDurable(m.label.encode(), labelOffset); err != nil {
		return fmt.Errorf("label: %w", err)
	}
	if err := writeBody(m.disk, &m.label, 0, body); err != nil {
		return err
	}
	to := &member{label: m.label}
	header := to.header(generation, body)
	stampHeader(header, time.Now())
	return m.disk.WriteDurable(header, m.label.Slots[0])
}

// keep writes what a disk has between its first block and its extents to a
// file, without the zeroes at its end: dd if=FILE of=DISK bs=4096 seek=1 brings
// it back.
func (r *Restore) keep(m restoreMember) (string, error) {
	raw := alignedBuffer(int(m.label.Slots[1] + m.label.SlotSize - labelOffset))
	for at := 0; at < len(raw); at += blockSize {
		// Block by block: what can't be read stays zero.
		_, _ = m.disk.ReadAt(raw[at:at+blockSize], labelOffset+int64(at))
	}
	raw = bytes.TrimRight(raw, "\x00")
	return keepFile(r.opt.KeepDir, fmt.Sprintf("%s-member%d", r.dump.Pool(), m.label.Index), ".raw", raw)
}

// Close gives the disks free.
func (r *Restore) Close() error {
	var errs []error
	for _, m := range r.members {
		errs = append(errs, m.disk.Close())
	}
	return errors.Join(errs...)
}
