package pack

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store"
)

// ReadDirectory checks that a pack is whole, as far as that can be seen from its
// two ends, and returns its header. It calls each for every one of its n blobs,
// which are to be believed when there is no error.
func ReadDirectory(ctx context.Context, st store.Store, id format.ID, each func(n int, r format.Ref)) (h format.PackHeader, err error) {
	name := Name(id)
	size, err := st.Size(ctx, name)
	if err != nil {
		return h, err
	}
	h, err = ReadHeader(ctx, st, id)
	if err != nil {
		return h, err
	}
	if size < format.PackHeaderSize+format.FooterSize || size > format.MaxPack {
		return h, fmt.Errorf("%w: %s has %d bytes", format.ErrTruncated, name, size)
	}
	tail := make([]byte, format.FooterSize)
	if err := st.ReadAt(ctx, name, tail, size-format.FooterSize); err != nil {
		return h, err
	}
	f, err := format.DecodeFooter(tail, size)
	if err != nil {
		return h, fmt.Errorf("%s: %w", name, err)
	}
	if f.Pack != id {
		return h, fmt.Errorf("%w: %s ends as pack %v", format.ErrCorrupt, name, f.Pack)
	}
	const part = 1024 * format.DirEntrySize
	buf := make([]byte, min(part, f.DirSize()))
	dir := f.Directory()
	for at := 0; at < f.DirSize(); at += len(buf) {
		buf = buf[:min(part, f.DirSize()-at)]
		if err := st.ReadAt(ctx, name, buf, int64(f.DirOffset)+int64(at)); err != nil {
			return h, err
		}
		dir.Decode(buf, func(r format.Ref) { each(int(f.Entries), r) })
	}
	if err := dir.End(); err != nil {
		return h, fmt.Errorf("%s: %w", name, err)
	}
	return h, nil
}

// ReadHeader reads the header of a pack.
func ReadHeader(ctx context.Context, st store.Store, id format.ID) (h format.PackHeader, err error) {
	p := make([]byte, format.PackHeaderSize)
	if err := st.ReadAt(ctx, Name(id), p, 0); err != nil {
		return h, err
	}
	if h, err = format.DecodePackHeader(p); err != nil {
		return h, fmt.Errorf("%s: %w", Name(id), err)
	}
	if h.Pack != id {
		return h, fmt.Errorf("%w: %s begins as pack %v", format.ErrCorrupt, Name(id), h.Pack)
	}
	return h, nil
}

// Directories says whether packs list blobs. It remembers what it has read within
// a bound, whatever the packs say. It is safe for concurrent use; one directory is
// read at a time.
type Directories struct {
	store store.Store
	seed  maphash.Seed

	mu    sync.Mutex
	packs map[format.ID]listing
	cost  int // of packs
}

// listing is what a pack lists: the offsets of its blobs, in order, and a sum over
// all that is said of each, by a seed that nobody knows. 12 bytes for a blob.
type listing struct {
	offsets []uint32
	sums    []uint64
	err     error // why the pack lists nothing
}

const (
	// maxListed bounds the listings that are remembered, in blobs: twice what a
	// pack can have.
	maxListed = 2 * format.MaxBlobs
	// listingCost is what a listing takes beside its blobs, in blobs.
	listingCost = 64
)

// NewDirectories returns one that has read nothing yet.
func NewDirectories(st store.Store) *Directories {
	return &Directories{store: st, seed: maphash.MakeSeed(), packs: make(map[format.ID]listing)}
}

// Lists tells whether the ref's pack is whole, as [ReadDirectory] sees it, and
// lists the blob just so. The error says what is wrong with the pack.
func (d *Directories) Lists(ctx context.Context, ref format.Ref) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, there := d.packs[ref.Pack]
	if !there {
		l = d.read(ctx, ref.Pack)
		if ctx.Err() == nil { // else the error may not be the pack's
			d.remember(ref.Pack, l)
		}
	}
	i, found := slices.BinarySearch(l.offsets, ref.Offset)
	return found && l.sums[i] == maphash.Comparable(d.seed, ref), l.err
}

func (d *Directories) read(ctx context.Context, id format.ID) listing {
	var l listing
	_, err := ReadDirectory(ctx, d.store, id, func(n int, r format.Ref) {
		if l.offsets == nil {
			l.offsets, l.sums = make([]uint32, 0, n), make([]uint64, 0, n)
		}
		l.offsets = append(l.offsets, r.Offset)
		l.sums = append(l.sums, maphash.Comparable(d.seed, r))
	})
	if err != nil {
		return listing{err: err}
	}
	return l
}

// remember begins anew when there is no room: an order of use would save few
// reads, as the directories of honest writers are small.
func (d *Directories) remember(id format.ID, l listing) {
	cost := listingCost + len(l.offsets)
	if d.cost+cost > maxListed {
		clear(d.packs)
		d.cost = 0
	}
	d.packs[id] = l
	d.cost += cost
}
