package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/swapback/swapback/backup/internal/codec"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/seal"
	"github.com/swapback/swapback/backup/internal/store"
)

// moving makes backups name blobs at other places than before: to heal what is
// damaged where it lies, and to leave packs of which little is needed.
//
// Packs stay as they are. Blobs are written to new packs, the nodes above them too,
// up to the roots, and at last the manifests are exchanged, each in one step. So a
// crash leaves each backup as it was or as it shall be, and packs that nobody needs.
//
// To the removal of packs, exchanging a manifest is deleting one and making another:
// it is done under the lock of removals, by an operation that holds a lease, and it
// throws gc/pending away, see gc.go. Whoever has read the manifest before goes on
// with the old places, which stay as long as its lease. A running backup may take
// chunks from there again: then they are needed, and stay.
//
// It is for one goroutine.
type moving struct {
	r       *Repository
	session *session
	log     *slog.Logger
	reader  *pack.Reader
	comp    *codec.Compressor
	buf     []byte
	chunks  *pack.Writer
	nodes   *pack.Writer

	moved map[format.Ref]format.Ref // from where a blob was to where it is
	leave map[format.ID]bool        // packs in which no node is to stay
	// damaged says that nodes may be unreadable: they stay as they are.
	damaged bool

	done    map[format.Ref]format.Ref  // nodes that it has been through, and where they are now
	written map[format.Hash]format.Ref // nodes that it has written
	named   map[format.ID]bool         // packs that tables name anew
	changes []exchange
	levels  []movingLevel
}

// exchange is a backup with new tables.
type exchange struct {
	id       string
	old, new []Table // of its volumes
}

// movingLevel is the memory for a node of one level.
type movingLevel struct {
	node, out []byte
	refs      []format.Ref
	offs      []int64
}

func (r *Repository) newMoving(s *session, log *slog.Logger) (*moving, error) {
	reader, err := r.newReader()
	if err != nil {
		return nil, err
	}
	size := int(max(r.config.ChunkSize, format.MaxNode))
	comp, err := codec.NewCompressor(size)
	if err != nil {
		reader.Close()
		return nil, err
	}
	m := &moving{r: r, session: s, log: log, reader: reader, comp: comp, buf: make([]byte, comp.Bound(size)+seal.Overhead),
		moved: make(map[format.Ref]format.Ref), leave: make(map[format.ID]bool),
		done: make(map[format.Ref]format.Ref), written: make(map[format.Hash]format.Ref), named: make(map[format.ID]bool)}
	m.chunks, m.nodes = r.newWriter(s, format.KindChunk), r.newWriter(s, format.KindNode)
	return m, nil
}

func (r *Repository) newWriter(s *session, kind format.Kind) *pack.Writer {
	return pack.NewWriter(r.store, pack.WriterOptions{Kind: kind, Repository: r.id, Session: s.id, Size: r.packSize, NewID: r.newID})
}

func (m *moving) close() {
	m.reader.Close()
	m.comp.Close()
}

// write stores a blob and returns where it lies.
func (m *moving) write(ctx context.Context, kind format.Kind, hash format.Hash, plain []byte) (ref format.Ref, err error) {
	ref = format.Ref{Hash: hash, Kind: kind, Length: uint32(len(plain)), Seal: m.r.seal()}
	var payload []byte
	if ref.Seal == format.Open {
		payload, ref.Codec = m.comp.Compress(m.buf, plain)
	} else {
		payload, ref.Codec = m.comp.Compress(seal.Room(m.buf), plain)
		if payload, err = m.r.sealer.Seal(m.buf, ref, payload); err != nil {
			return ref, err
		}
	}
	return m.add(ctx, ref, payload)
}

// copy stores a blob as it is stored elsewhere in the repository.
func (m *moving) copy(ctx context.Context, ref format.Ref) (format.Ref, error) {
	payload, err := m.reader.Verbatim(ctx, ref)
	if err != nil {
		return ref, err
	}
	return m.add(ctx, ref, payload)
}

func (m *moving) add(ctx context.Context, ref format.Ref, payload []byte) (format.Ref, error) {
	w := m.chunks
	if ref.Kind == format.KindNode {
		w = m.nodes
	}
	return w.Add(ctx, ref, payload)
}

// move says where a blob lies from now on.
func (m *moving) move(from, to format.Ref) {
	m.moved[from] = to
	m.named[to.Pack] = true
}

// leavePacks copies the chunks that backups have in packs, those that have not moved
// yet, and sees to it that no node stays there.
func (m *moving) leavePacks(ctx context.Context, list []Backup, leave map[format.ID]bool) error {
	m.leave = leave
	t, err := m.r.newTables(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	t.chunks = nil // moved knows them
	s := seen{chunk: func(_ int64, ref format.Ref) error {
		if _, there := m.moved[ref]; there || !leave[ref.Pack] {
			return nil
		}
		to, err := m.copy(ctx, ref)
		if pack.IsDamage(err) {
			m.log.Warn("a damaged chunk stays where it is, and its pack", "pack", pack.Name(ref.Pack), "err", err)
			return nil
		}
		if err == nil {
			m.move(ref, to)
		}
		return err
	}}
	if m.damaged {
		s.bad = func(int64, int64, format.Ref, error) error { return nil }
	}
	for _, b := range list {
		for _, v := range b.Volumes {
			if err := t.volume(b, v, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// backup makes new tables for a backup, where they change.
func (m *moving) backup(ctx context.Context, b Backup) error {
	e := exchange{id: b.ID}
	for _, v := range b.Volumes {
		shape, root, err := v.table()
		if err != nil {
			return err
		}
		if !root.IsZero() {
			for len(m.levels) < shape.Levels {
				m.levels = append(m.levels, movingLevel{})
			}
			if root, err = m.node(ctx, shape, shape.Levels, 0, root); err != nil {
				return fmt.Errorf("table of volume %s of backup %s: %w", v.name(), b.ID, err)
			}
		}
		e.old, e.new = append(e.old, v.Table), append(e.new, tableOf(root))
	}
	if !slices.Equal(e.old, e.new) {
		m.changes = append(m.changes, e)
	}
	return nil
}

// node returns where the node lies from now on, after writing it anew if it, or
// anything below it, has another place.
func (m *moving) node(ctx context.Context, shape format.Shape, level int, off int64, ref format.Ref) (format.Ref, error) {
	if now, there := m.done[ref]; there {
		return now, nil
	}
	at := ref
	if to, there := m.moved[ref]; there {
		at = to
	}
	l := &m.levels[level-1]
	l.node = slices.Grow(l.node[:0], format.MaxNode)[:at.Length]
	err := m.read(ctx, at, l.node)
	if err == nil {
		l.refs, l.offs = l.refs[:0], l.offs[:0]
		err = shape.DecodeNode(l.node, level, off, func(off int64, r format.Ref) error {
			l.refs, l.offs = append(l.refs, r), append(l.offs, off)
			return nil
		})
	}
	if err != nil {
		if m.damaged && pack.IsDamage(err) {
			m.done[ref] = ref
			return ref, nil
		}
		return ref, err
	}
	changed := m.leave[at.Pack]
	for i, r := range l.refs {
		to, there := m.moved[r]
		switch {
		case r.IsZero():
			continue
		case level > 1:
			if to, err = m.node(ctx, shape, level-1, l.offs[i], r); err != nil {
				return ref, err
			}
		case !there:
			continue
		}
		if to != r {
			l.refs[i], changed = to, true
		}
	}
	if changed {
		l.out = l.out[:0]
		for _, r := range l.refs {
			l.out = format.AppendEntry(l.out, r)
		}
		if at, err = m.writeNode(ctx, l.out); err != nil {
			return ref, err
		}
	}
	m.done[ref] = at
	return at, nil
}

func (m *moving) read(ctx context.Context, ref format.Ref, dst []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// What has just been written is not there yet.
	if m.own(ref) {
		if err := m.nodes.Flush(ctx); err != nil {
			return err
		}
	}
	return m.reader.Read(ctx, ref, dst)
}

func (m *moving) own(ref format.Ref) bool {
	return slices.Contains(m.nodes.Packs(), ref.Pack)
}

func (m *moving) writeNode(ctx context.Context, node []byte) (format.Ref, error) {
	hash := m.r.hash(node)
	if ref, there := m.written[hash]; there {
		return ref, nil
	}
	ref, err := m.write(ctx, format.KindNode, hash, node)
	if err == nil {
		m.written[hash] = ref
		m.named[ref.Pack] = true
	}
	return ref, err
}

// commit makes everything durable and then exchanges the manifests. It returns
// the backups that have new tables, also with an error. One that was deleted
// meanwhile stays deleted; others is set when somebody else exchanged one meanwhile,
// which is left as it is.
func (m *moving) commit(ctx context.Context) (changed []string, others bool, err error) {
	for _, w := range []*pack.Writer{m.chunks, m.nodes} {
		if err := w.Flush(ctx); err != nil {
			m.discard(ctx)
			return nil, false, err
		}
	}
	if len(m.changes) == 0 {
		m.discard(ctx)
		return nil, false, nil
	}
	lock, err := m.r.lock(ctx)
	if err != nil {
		m.discard(ctx)
		return nil, false, err
	}
	defer lock.release()
	if err := m.ready(ctx, lock); err != nil {
		m.discard(ctx)
		return nil, false, err
	}
	for _, e := range m.changes {
		done, other, err := m.exchange(ctx, lock, e)
		if err != nil {
			return changed, others, err // the packs stay: somebody may have seen the manifest
		}
		if done {
			changed = append(changed, e.id)
		}
		others = others || other
	}
	return changed, others, nil
}

// ready looks whether everything that tables are about to name is there, while
// nobody else removes anything.
func (m *moving) ready(ctx context.Context, lock *gcHold) error {
	if err := m.session.alive(ctx, m.r.store); err != nil {
		return err
	}
	for id := range m.named {
		if _, err := m.r.store.Size(ctx, pack.Name(id)); err != nil {
			return err
		}
	}
	if err := lock.check(); err != nil {
		return err
	}
	return m.r.store.Delete(ctx, pendingName)
}

func (m *moving) exchange(ctx context.Context, lock *gcHold, e exchange) (done, other bool, err error) {
	b, err := m.r.readManifest(ctx, e.id)
	if errors.Is(err, store.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	same := len(b.Volumes) == len(e.old)
	for i := range b.Volumes {
		same = same && b.Volumes[i].Table == e.old[i]
	}
	if !same {
		m.log.Warn("somebody else has exchanged this backup's tables meanwhile", "backup", e.id)
		return false, true, nil
	}
	for i := range b.Volumes {
		b.Volumes[i].Table = e.new[i]
	}
	if err := m.session.hold.Err(); err != nil {
		return false, false, err
	}
	if err := lock.check(); err != nil {
		return false, false, err
	}
	return true, false, m.r.putSealedAs(ctx, store.Replace, backupDir+"/"+e.id, format.TextBackup, b)
}

// discard removes the packs that nobody knows of.
func (m *moving) discard(ctx context.Context) {
	m.chunks.Abort()
	m.nodes.Abort()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	var names []string
	for _, id := range slices.Concat(m.chunks.Packs(), m.nodes.Packs()) {
		names = append(names, pack.Name(id))
	}
	if err := m.r.store.Delete(ctx, names...); err != nil {
		m.log.Warn("packs that nothing names are left; prune removes them", "err", err)
	}
}
