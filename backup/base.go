package backup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"unicode"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/table"
)

// An incremental backup reads what Changes says may differ from its base, and takes
// the entries of the base's table over for everything else; what lies below them it
// does not look at. So it first proves the base, as far as that can be done in time
// that follows the changes and not the volume's size:
//
//   - The manifest is there, and has an image of this very volume: the same position,
//     where both name one, else the same UUID. It is as large, or smaller; what is
//     beyond its end is changed.
//   - The root of its table is whole, and so is every node on the way to a change:
//     each must hash to what the one above says.
//   - Of what is taken over, a sample of chunks is read back, each in a pack that is
//     whole and lists it. Existence is not validity.
//
// Whatever fails makes a full backup, which says why. So do figures that do not add
// up with the table, which come out at the end.

// base is the image of an earlier backup that one of a source is made against.
type base struct {
	id     string
	volume BackupVolume
	tree   table.Tree
	fetch  func(format.Ref) // has a node read, for when it is needed
}

// plan says what of a source is read.
type plan struct {
	base *base  // nil: all is read, and taken for changed
	why  string // why there is no base, although Changes were given
	// changed is what may differ from the base, in order and not overlapping.
	changed []Range
	read    []Range // what is read, likewise
	bytes   int64   // of the chunks to read
}

func fullPlan(v VolumeRef, why string) plan {
	return plan{why: plain(why), read: []Range{{0, v.Size}}, bytes: v.Size}
}

// before is what the base has in a chunk's place.
type before struct {
	ref   format.Ref // zero: zeroes, or nothing
	there bool       // it is of the same bytes of the volume
	clean bool       // Changes call it unchanged
}

// before looks up what was in the place of the chunk of n bytes at off.
func (p *plan) before(cursor *table.Cursor, off, n int64) (b before, err error) {
	if s := cursor.Shape(); off < s.Size {
		b.there, b.clean = s.Covers(1, off) == n, !touched(p.changed, off, n)
		b.ref, err = cursor.Entry(1, off)
	}
	return b, err
}

// sameAs tells whether a chunk whose bytes are known is the one before.
func (b before) sameAs(ck *chunk) bool {
	return b.there && ck.zero == b.ref.IsZero() && (ck.zero || ck.ref.Hash == b.ref.Hash)
}

// plain makes a text that a manifest can have, whatever is in it.
func plain(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxBecause {
		text = strings.ToValidUTF8(text[:maxBecause-len("…")], "") + "…"
	}
	return text
}

// plan finds the base of a source and proves it. An error is none of the base's.
func (c *creation) plan(ctx context.Context, s Source) (plan, error) {
	chunk := c.r.config.ChunkSize
	full := func(format string, args ...any) plan {
		return fullPlan(s.Volume, fmt.Sprintf(format, args...))
	}
	ch := s.Changes
	switch {
	case ch == nil:
		return full(""), nil
	case c.o.Full:
		return full("it was asked for"), nil
	case ch.Base == "" && ch.Why == "":
		return full("it is not known what changed since an earlier one"), nil
	case ch.Base == "":
		return full("%s", ch.Why), nil
	case c.o.Reuse == ReuseNone:
		return full("nothing of earlier backups was to be used again"), nil
	case c.o.Reuse == ReuseVerified:
		return full("all that is used again was to be read back first"), nil
	case !validID(ch.Base):
		return full("%.80q, which it was to be made against, is no backup's ID", ch.Base), nil
	}
	b, err := c.r.readManifest(ctx, ch.Base)
	switch {
	case errors.Is(err, store.ErrNotExist):
		return full("backup %s, which it was to be made against, is not in this repository", ch.Base), nil
	case pack.IsDamage(err), errors.Is(err, format.ErrVersion):
		return full("backup %s, which it was to be made against, can't be used: %v", ch.Base, err), nil
	case err != nil:
		return plan{}, err
	}
	v, why := imageOf(b, s.Volume)
	if ch.image != "" {
		v, why = imageNamed(b, ch.image, s.Volume.Size)
	}
	if why != "" {
		return full("backup %s, which it was to be made against, %s", ch.Base, why), nil
	}
	if err := checkRanges(ch.Ranges, s.Volume.Size); err != nil {
		return full("the list of changes since backup %s is damaged: %v", ch.Base, err), nil
	}
	shape, root, err := v.table()
	if err != nil {
		return plan{}, err // readManifest has checked it
	}
	p := plan{base: &base{id: b.ID, volume: v}, changed: ch.Ranges}
	if c.cache == nil {
		if c.cache, err = c.r.newNodeCache(); err != nil {
			return plan{}, err
		}
	}
	p.base.tree = table.Tree{Shape: shape, Root: root, Read: func(ref format.Ref, dst []byte) error { return c.cache.read(ctx, ref, dst) }}
	// Whoever needs the node will see the error.
	p.base.fetch = func(ref format.Ref) { _ = c.cache.read(ctx, ref, nil) }
	if v.Size < s.Volume.Size { // grown
		p.changed = append(clip(p.changed, v.Size), Range{v.Size, s.Volume.Size - v.Size})
	}
	p.read = p.changed
	for run := range chunkRuns(p.read, s.Volume.Size, chunk) {
		p.bytes += run.Length
	}
	if err := c.prove(ctx, p.base, p.changed, p.bytes/chunk); err != nil {
		if !unreadable(err) {
			return plan{}, err
		}
		return full("backup %s, which it was to be made against, is damaged: %v", ch.Base, err), nil
	}
	if c.o.VerifyUnchanged {
		p.read, p.bytes = []Range{{0, s.Volume.Size}}, s.Volume.Size
	}
	return p, nil
}

// imageOf finds a volume's image in a backup, or says why there is none that a
// backup of the volume can be made against.
func imageOf(b Backup, now VolumeRef) (v BackupVolume, why string) {
	// The position is the content: a swap gives it to another volume.
	i := slices.IndexFunc(b.Volumes, func(v BackupVolume) bool { return now.PositionID != "" && v.PositionID == now.PositionID })
	if i < 0 {
		i = slices.IndexFunc(b.Volumes, func(v BackupVolume) bool { return now.UUID != "" && v.UUID == now.UUID })
		if i < 0 {
			return v, "does not hold this volume"
		}
		if b.Volumes[i].PositionID != "" && now.PositionID != "" {
			return v, "shows the volume at another position"
		}
	}
	v = b.Volumes[i]
	if v.Size > now.Size {
		return v, fmt.Sprintf("shows it with %d bytes, more than its %d now", v.Size, now.Size)
	}
	return v, ""
}

// imageNamed is imageOf for a volume that is named as the backup names it.
func imageNamed(b Backup, name string, size int64) (v BackupVolume, why string) {
	i := slices.IndexFunc(b.Volumes, func(v BackupVolume) bool { return v.name() == name })
	if i < 0 {
		return v, "does not hold this volume"
	}
	if v = b.Volumes[i]; v.Size > size {
		return v, fmt.Sprintf("shows it with %d bytes, more than its %d now", v.Size, size)
	}
	return v, ""
}

func checkRanges(ranges []Range, size int64) error {
	end := int64(0)
	for i, r := range ranges {
		if r.Offset < end || r.Length < 0 || r.Length > size-r.Offset {
			return fmt.Errorf("range %d, %d bytes at %d, does not follow one that ends at %d of %d", i, r.Length, r.Offset, end, size)
		}
		end = r.Offset + r.Length
	}
	return nil
}

// clip returns the ranges as far as they lie before size, in memory of its own.
func clip(ranges []Range, size int64) (in []Range) {
	for _, r := range ranges {
		if n := min(r.Length, size-r.Offset); n > 0 {
			in = append(in, Range{r.Offset, n})
		}
	}
	return in
}

// touched tells whether a range touches the n bytes at off.
func touched(ranges []Range, off, n int64) bool {
	i, _ := slices.BinarySearchFunc(ranges, off, func(r Range, off int64) int {
		if r.Offset+r.Length <= off {
			return -1
		}
		return 1
	})
	for ; i < len(ranges) && ranges[i].Length == 0; i++ {
	}
	return i < len(ranges) && ranges[i].Offset < off+n
}

const (
	// proofEvery is how many changed chunks there are for one that is read back of
	// what is taken over; at least one and at most proofMost are.
	proofEvery = 64
	proofMost  = 16
)

// prove reads the root of the base, and a sample of the chunks that are to be taken
// over. chunks is how many may have changed.
func (c *creation) prove(ctx context.Context, b *base, changed []Range, chunks int64) error {
	s, cursor := b.tree.Shape, table.NewCursor(b.tree)
	if _, err := cursor.Node(s.Levels, 0); err != nil || b.tree.Root.IsZero() {
		return err
	}
	// Another place each time, and one that the repository's content has no say in.
	id := c.session.id
	rnd := rand.New(rand.NewPCG(binary.LittleEndian.Uint64(id[:8]), binary.LittleEndian.Uint64(id[8:])))
	for range min(1+chunks/proofEvery, proofMost) {
		off, ref, err := pickChunk(cursor, changed, rnd)
		if err != nil {
			return err
		}
		if ref.IsZero() {
			continue // all that is there may have changed
		}
		if err := c.reuse.readBack(ctx, c.reader, ref, make([]byte, ref.Length)); err != nil {
			return fmt.Errorf("chunk at byte %d: %w", off, err)
		}
	}
	return nil
}

// pickChunk goes down a table by chance to a chunk that no range touches. It returns
// the zero Ref when its way ends where there is none.
func pickChunk(cursor *table.Cursor, changed []Range, rnd *rand.Rand) (off int64, ref format.Ref, err error) {
	s := cursor.Shape()
	for level := s.Levels; level >= 1; level-- {
		refs, err := cursor.Node(level, off)
		if err != nil {
			return off, ref, err
		}
		var ways []int
		for i, r := range refs {
			at := off + int64(i)*s.Span(level-1)
			if !r.IsZero() && (level > 1 || !touched(changed, at, s.Covers(1, at))) {
				ways = append(ways, i)
			}
		}
		if len(ways) == 0 {
			return off, format.Ref{}, nil
		}
		i := ways[rnd.IntN(len(ways))]
		off, ref = off+int64(i)*s.Span(level-1), refs[i]
	}
	return off, ref, nil
}

// cursor returns a new cursor over the base's table, nil without a base.
func (p *plan) cursor() *table.Cursor {
	if p.base == nil {
		return nil
	}
	return table.NewCursor(p.base.tree)
}

// errFigures is a base whose figures and table contradict each other.
var errFigures = errors.New("its figures do not add up")

// notProved returns what is wrong with the base when that is why a source could not
// be stored, else nil.
func notProved(err error) error {
	var node *table.NodeError
	switch {
	case errors.As(err, &node) && unreadable(node.Err):
		return node
	case errors.Is(err, errFigures):
		return err
	}
	return nil
}
