package backup

import (
	"context"

	"github.com/swapback/swapback/backup/internal/codec"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// listing is what all packs list: where each blob lies, and which operation put it
// there.
type listing map[blobKey][]listed

type listed struct {
	ref     format.Ref
	session format.ID
}

// list reads what packs list, once.
func (h *healing) listAll(ctx context.Context) (listing, error) {
	if h.listing != nil {
		return h.listing, nil
	}
	infos, err := h.r.store.List(ctx, pack.Dir)
	if err != nil {
		return nil, err
	}
	l := make(listing)
	for _, i := range infos {
		id, ok := packID(i.Name)
		if !ok {
			continue
		}
		var refs []format.Ref
		head, err := pack.ReadDirectory(ctx, h.r.store, id, func(_ int, ref format.Ref) { refs = append(refs, ref) })
		if unreadable(err) {
			head, refs, err = h.walkPack(ctx, id, i.Size)
		}
		if err != nil {
			return nil, err
		}
		for _, ref := range refs {
			k := blobKey{ref.Hash, ref.Kind}
			l[k] = append(l[k], listed{ref, head.Session})
		}
	}
	h.listing = l
	return l, nil
}

// walkPack finds the blobs of a pack whose directory can't be used, from header to
// header, as far as they are good.
func (h *healing) walkPack(ctx context.Context, id format.ID, size int64) (head format.PackHeader, refs []format.Ref, err error) {
	if head, err = pack.ReadHeader(ctx, h.r.store, id); err != nil {
		if unreadable(err) {
			err = nil
		}
		return head, nil, err
	}
	p := make([]byte, format.BlobHeaderSize)
	for off := int64(format.PackHeaderSize); off+format.BlobHeaderSize < min(size, format.MaxPack) && len(refs) < format.MaxBlobs; {
		if err := h.r.store.ReadAt(ctx, pack.Name(id), p, off); err != nil && !unreadable(err) {
			return head, nil, err
		} else if err != nil {
			break
		}
		ref, err := format.DecodeBlobHeader(p)
		if err != nil {
			break
		}
		ref.Pack, ref.Offset = id, uint32(off)
		refs = append(refs, ref)
		off += format.BlobHeaderSize + int64(ref.Stored)
	}
	return head, refs, nil
}

// remake makes a node again: it cuts what the source holds into chunks, finds where
// the packs have them, and sees whether a table of that is what was lost, to the bit.
func (h *healing) remake(ctx context.Context, f *fileSource, b *badBlob, dst []byte) (bool, error) {
	l, err := h.listAll(ctx)
	if err != nil {
		return false, err
	}
	for _, s := range b.spots {
		shape, _, err := s.v.table()
		if err != nil {
			return false, err
		}
		if s.off+s.n > f.file.Size() {
			continue
		}
		// A small volume's node may be of several levels.
		for level := 1; level <= shape.Levels; level++ {
			if shape.Length(level+1, s.off) != b.length || shape.Covers(level+1, s.off) != s.n {
				continue
			}
			node, err := h.nodeOf(ctx, f, l, shape, level, s.off, func(hash format.Hash) bool { return hash == b.hash })
			if err != nil {
				return false, err
			}
			if node != nil {
				copy(dst, node)
				return true, nil
			}
		}
	}
	return false, nil
}

// nodeOf makes the node of what a source holds, nil when the packs do not have it all
// or no such node has a name that is wanted.
func (h *healing) nodeOf(ctx context.Context, f *fileSource, l listing, shape format.Shape, level int, off int64, want func(format.Hash) bool) ([]byte, error) {
	entries := make([][]listed, 0, shape.Entries(level, off)) // nil for zeroes
	for i := range cap(entries) {
		at := off + int64(i)*shape.Span(level-1)
		key, zero := blobKey{kind: format.KindChunk}, false
		if level == 1 {
			plain := f.buf[:shape.Length(1, at)]
			if ok, err := f.read(ctx, plain, at); !ok || err != nil {
				return nil, err
			}
			key.hash, zero = h.r.hash(plain), codec.IsZero(plain)
		} else {
			key.kind = format.KindNode
			node, err := h.nodeOf(ctx, f, l, shape, level-1, at, func(hash format.Hash) bool {
				return len(l[blobKey{hash, format.KindNode}]) > 0
			})
			if err != nil {
				return nil, err
			}
			key.hash, zero = h.r.hash(node), node != nil && codec.IsZero(node)
		}
		switch found := l[key]; {
		case zero:
			entries = append(entries, nil)
		case len(found) == 0:
			return nil, nil
		default:
			entries = append(entries, found)
		}
	}
	return h.assemble(entries, want), nil
}

// assemble makes a node of its entries, of which some may lie at several places: two
// wrote them at once, or a heal or a prune wrote them anew. In most cases one operation
// is to blame, so each is tried as the one to follow and as the one not to.
func (h *healing) assemble(entries [][]listed, want func(format.Hash) bool) []byte {
	var sessions []format.ID
	known := make(map[format.ID]bool)
	for _, e := range entries {
		for _, at := range e {
			if len(e) > 1 && !known[at.session] {
				known[at.session] = true
				sessions = append(sessions, at.session)
			}
		}
	}
	try := func(prefer func(listed) bool) []byte {
		var node []byte
		for _, e := range entries {
			var ref format.Ref
			for i, at := range e {
				if i == 0 || prefer(at) {
					ref = at.ref
				}
			}
			node = format.AppendEntry(node, ref)
		}
		if codec.IsZero(node) || want(h.r.hash(node)) {
			return node
		}
		return nil
	}
	if node := try(func(listed) bool { return false }); node != nil {
		return node
	}
	for _, s := range sessions {
		for _, follow := range []bool{true, false} {
			if node := try(func(at listed) bool { return (at.session == s) == follow }); node != nil {
				return node
			}
		}
	}
	return nil
}
