package backup

import (
	"context"
	"fmt"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/table"
)

// places is a set of blobs, by where they lie. It takes about 12 bytes for each
// chunk where packs are full.
type places map[format.ID]map[uint32]struct{}

// add adds a blob and tells whether it was new.
func (p places) add(ref format.Ref) bool {
	in := p[ref.Pack]
	if in == nil {
		in = make(map[uint32]struct{})
		p[ref.Pack] = in
	}
	if _, there := in[ref.Offset]; there {
		return false
	}
	in[ref.Offset] = struct{}{}
	return true
}

// tables goes through the tables of volumes and passes over what it has been
// through, so that what backups share is come across once. It is for one goroutine.
type tables struct {
	ctx    context.Context
	reader *pack.Reader
	nodes  places // that it has been through
	chunks places // that it has come across; nil for one that does not care
}

// newTables returns one that has been through nothing. Close it.
func (r *Repository) newTables(ctx context.Context) (*tables, error) {
	reader, err := r.newReader()
	if err != nil {
		return nil, err
	}
	return &tables{ctx: ctx, reader: reader, nodes: make(places), chunks: make(places)}, nil
}

func (t *tables) close() { t.reader.Close() }

// seen is told of what a walk comes across. Any function may be nil. Their errors end
// the walk.
type seen struct {
	chunk func(off int64, ref format.Ref) error // for the first time
	node  func(off int64, ref format.Ref) error // for the first time, before it is read
	again func(off int64, ref format.Ref) error // a chunk that has been come across before
	// bad is a node that can't be used; when nil, that ends the walk.
	bad func(off, n int64, ref format.Ref, err error) error
}

// volume goes through what is new in a volume's table.
func (t *tables) volume(b Backup, v BackupVolume, s seen) error {
	shape, root, err := v.table()
	if err != nil {
		return err
	}
	call := func(f func(int64, format.Ref) error, off int64, ref format.Ref) error {
		if f == nil {
			return nil
		}
		return f(off, ref)
	}
	read := func(ref format.Ref, dst []byte) error {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		return t.reader.Read(t.ctx, ref, dst)
	}
	err = table.Walk(shape, root, read, pack.IsDamage, table.Visitor{
		Chunk: func(off, n int64, ref format.Ref) error {
			if t.chunks != nil && !t.chunks.add(ref) {
				return call(s.again, off, ref)
			}
			return call(s.chunk, off, ref)
		},
		Zero: func(off, n int64) error { return nil },
		Node: func(off, n int64, ref format.Ref) (bool, error) {
			if !t.nodes.add(ref) {
				return false, nil
			}
			return true, call(s.node, off, ref)
		},
		Bad: s.bad,
	})
	if err != nil {
		return fmt.Errorf("table of volume %s of backup %s: %w", v.name(), b.ID, err)
	}
	return nil
}
