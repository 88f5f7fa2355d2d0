package backup

import (
	"context"
	"errors"

	"github.com/swapback/swapback/backup/internal/codec"
	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
)

// ownRepository is what the report calls a copy in other packs.
const ownRepository = "this repository"

// mend makes good what it can and gives the backups new tables. It returns how many
// nodes are good again.
func (h *healing) mend(ctx context.Context, m *moving) (nodes int, err error) {
	for _, b := range inOrder(h.nodes) {
		from, err := h.look(ctx, m, b, h.nodeFrom)
		if err != nil {
			return 0, err
		}
		if from != "" {
			nodes++
			h.rep.Healed.Nodes++
		}
	}
	missing := make(map[format.Hash]*badBlob)
	for _, b := range inOrder(h.chunks) {
		from, err := h.look(ctx, m, b, h.chunkFrom)
		switch {
		case err != nil:
			return 0, err
		case from != "":
			h.rep.Healed.Chunks++
		default:
			missing[b.hash] = b
		}
	}
	if h.o.Scan && len(missing) > 0 {
		if err := h.scan(ctx, m, missing); err != nil {
			return 0, err
		}
	}
	h.countPacks()
	if h.o.DryRun {
		return nodes, nil
	}
	if err := m.leavePacks(ctx, h.list, h.packs); err != nil {
		return 0, err
	}
	for _, b := range h.list {
		if err := m.backup(ctx, b); err != nil {
			return 0, err
		}
	}
	return nodes, nil
}

// countPacks counts packs that do not list what tables name. They are left by all that
// is good: what is not keeps them needed.
func (h *healing) countPacks() {
	for id := range h.packs {
		h.knownPacks[id] = true
	}
	for _, b := range h.chunks {
		for _, ref := range b.refs {
			if h.packs[ref.Pack] && !b.done {
				h.knownPacks[ref.Pack] = false
			}
		}
	}
	h.rep.Bad.Packs, h.rep.Healed.Packs = count(h.knownPacks)
}

// look finds a blob's bytes and sees to it that tables name them. It returns where
// they come from, or "" when they are nowhere.
func (h *healing) look(ctx context.Context, m *moving, b *badBlob, from func(ctx context.Context, b *badBlob, dst []byte) (string, error)) (string, error) {
	dst := device.Buffer(int(b.length))
	for _, ref := range b.copies {
		switch err := m.reader.Read(ctx, ref, dst); {
		case err == nil:
			h.good(m, b, ref, ownRepository)
			return ownRepository, nil
		case !pack.IsDamage(err):
			return "", err
		}
	}
	source, err := from(ctx, b, dst)
	if err != nil || source == "" {
		return "", err
	}
	return source, h.put(ctx, m, b, dst, source)
}

// put stores a blob's bytes.
func (h *healing) put(ctx context.Context, m *moving, b *badBlob, plain []byte, source string) error {
	to := format.Ref{}
	if !h.o.DryRun {
		var err error
		if to, err = m.write(ctx, b.refs[0].Kind, b.hash, plain); err != nil {
			return err
		}
	}
	h.good(m, b, to, source)
	return nil
}

// good notes where a blob is now.
func (h *healing) good(m *moving, b *badBlob, to format.Ref, source string) {
	b.done = true
	h.rep.Sources[source]++
	if h.o.DryRun {
		return
	}
	for _, ref := range b.refs {
		m.move(ref, to)
		h.healed[ref] = to
	}
}

// chunkFrom fills dst with the bytes of a chunk out of the first source that has them.
func (h *healing) chunkFrom(ctx context.Context, b *badBlob, dst []byte) (string, error) {
	right := func() bool { return h.r.hash(dst) == b.hash }
	for _, s := range h.sources {
		if ok, err := s.chunk(ctx, b, dst, right); ok || err != nil {
			return s.name(), err
		}
	}
	return "", nil
}

// nodeFrom fills dst with the bytes of a node: those of a copy of the repository, or
// made again out of what a volume holds.
func (h *healing) nodeFrom(ctx context.Context, b *badBlob, dst []byte) (string, error) {
	right := func() bool { return h.r.hash(dst) == b.hash }
	for _, s := range h.sources {
		if t, is := s.(*repositorySource); is {
			if ok, err := t.node(ctx, b, dst, right); ok || err != nil {
				return s.name(), err
			}
		}
	}
	for _, s := range h.sources {
		if f, is := s.(*fileSource); is {
			if ok, err := h.remake(ctx, f, b, dst); ok || err != nil {
				return s.name(), err
			}
		}
	}
	return "", nil
}

// scan looks for chunks anywhere in devices and files.
func (h *healing) scan(ctx context.Context, m *moving, missing map[format.Hash]*badBlob) error {
	for _, s := range h.sources {
		f, is := s.(*fileSource)
		if !is {
			continue
		}
		for off := int64(0); off < f.file.Size() && len(missing) > 0; off += h.r.config.ChunkSize {
			plain := f.buf[:min(h.r.config.ChunkSize, f.file.Size()-off)]
			ok, err := f.read(ctx, plain, off)
			if err != nil {
				return err
			}
			if !ok || codec.IsZero(plain) {
				continue
			}
			hash := h.r.hash(plain)
			if b := missing[hash]; b != nil && int(b.length) == len(plain) {
				if err := h.put(ctx, m, b, plain, f.name()); err != nil {
					return err
				}
				h.rep.Healed.Chunks++
				delete(missing, hash)
			}
		}
	}
	return nil
}

// manifest finds the manifest of a backup in a copy of the repository, and puts it in
// the place of the damaged one.
func (h *healing) manifest(ctx context.Context, id string) (b Backup, from string, err error) {
	name := backupDir + "/" + id
	for _, s := range h.sources {
		t, is := s.(*repositorySource)
		if !is || !t.twin {
			continue
		}
		body, err := readText(ctx, t.r.store, name)
		if err == nil {
			b, err = h.r.decodeManifest(body, id)
		}
		if unreadable(err) {
			continue
		}
		if err != nil {
			return b, "", err
		}
		if h.o.DryRun {
			return b, t.name(), nil
		}
		lock, err := h.r.lock(ctx)
		if err != nil {
			return b, "", err
		}
		defer lock.release()
		// It may have been deleted, and nothing removes a pack while it is there
		// and damaged.
		if _, err := h.r.store.Size(ctx, name); errors.Is(err, store.ErrNotExist) {
			return b, "", nil
		} else if err != nil {
			return b, "", err
		}
		if err := lock.check(); err != nil {
			return b, "", err
		}
		return b, t.name(), putObject(ctx, h.r.store, name, store.Replace, body)
	}
	return b, "", nil
}
