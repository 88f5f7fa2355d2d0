package backup

import (
	"cmp"
	"context"
	"slices"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// locate finds where in volumes, and where else in packs, there is what is damaged.
func (h *healing) locate(ctx context.Context) error {
	t, err := h.r.newTables(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	t.chunks = nil
	for _, b := range h.list {
		for _, v := range b.Volumes {
			find := func(in map[format.Hash]*badBlob) func(off int64, ref format.Ref) error {
				return func(off int64, ref format.Ref) error {
					if bad := in[ref.Hash]; bad != nil && bad.length == ref.Length {
						bad.met(spot{b: b, v: v, off: off}, ref)
					}
					return nil
				}
			}
			err := t.volume(b, v, seen{chunk: find(h.chunks), node: find(h.nodes),
				bad: func(off, n int64, ref format.Ref, _ error) error {
					if bad := h.nodes[ref.Hash]; bad != nil {
						bad.met(spot{b: b, v: v, off: off, n: n}, ref)
					}
					return nil
				}})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *badBlob) met(s spot, ref format.Ref) {
	if !slices.Contains(b.refs, ref) && !slices.Contains(b.copies, ref) {
		b.copies = append(b.copies, ref)
	}
	same := func(o spot) bool { return o.off == s.off && o.n == s.n && o.v.UUID == s.v.UUID }
	if len(b.spots) < maxSpots && !slices.ContainsFunc(b.spots, same) {
		b.spots = append(b.spots, s)
	}
}

// inOrder lists blobs in the order of the volumes' bytes.
func inOrder(in map[format.Hash]*badBlob) (list []*badBlob) {
	for _, b := range in {
		list = append(list, b)
	}
	first := func(b *badBlob) int64 {
		if len(b.spots) == 0 {
			return 0
		}
		return b.spots[0].off
	}
	slices.SortFunc(list, func(a, b *badBlob) int {
		return cmp.Or(cmp.Compare(first(a), first(b)), slices.Compare(a.hash[:], b.hash[:]))
	})
	return list
}

// left tells what is still damaged, of which backups.
func (h *healing) left(ctx context.Context) error {
	bad := make(map[format.Ref]bool)
	for _, b := range h.chunks {
		for _, ref := range b.refs {
			bad[ref] = !b.done
		}
	}
	list, err := h.r.list(ctx)
	if err != nil {
		return err
	}
	for _, b := range slices.Backward(list) {
		for _, v := range b.Volumes {
			var ranges []BadRange
			note := func(off, n int64, ref format.Ref, why string) {
				if len(ranges) < maxBad {
					ranges = append(ranges, BadRange{Offset: off, Length: n, Object: pack.Name(ref.Pack), Reason: why})
				}
			}
			// By itself: what it shares with another one is damaged in both.
			t, err := h.r.newTables(ctx)
			if err != nil {
				return err
			}
			t.chunks = nil
			err = t.volume(b, v, seen{
				chunk: func(off int64, ref format.Ref) error {
					if bad[ref] {
						note(off, int64(ref.Length), ref, "chunk is damaged")
					}
					return nil
				},
				bad: func(off, n int64, ref format.Ref, err error) error {
					if b := h.nodes[ref.Hash]; b == nil || !b.done {
						note(off, n, ref, err.Error())
					}
					return nil
				},
			})
			t.close()
			if err != nil {
				return err
			}
			if len(ranges) > 0 {
				h.rep.Left = append(h.rep.Left, &DamagedError{Op: "heal", Backup: b.ID, Volume: v.name(), Ranges: mergeBad(ranges)})
			}
		}
	}
	return nil
}
