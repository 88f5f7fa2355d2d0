package backup

import (
	"context"
	"fmt"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/table"
)

// Range is a run of bytes of a volume.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// DiffOptions says what to compare.
type DiffOptions struct {
	A, B string // backups, as [Repository.Get] names them
	// Volume names a volume of both, may be left empty when each has only one.
	Volume string
}

// DiffResult tells in what two backups differ.
type DiffResult struct {
	A      string    `json:"a"` // full ids
	B      string    `json:"b"`
	Volume VolumeRef `json:"volume"` // as it is in B
	// Bytes is the sum of the ranges' lengths.
	Bytes  int64 `json:"bytes"`
	Ranges int64 `json:"ranges"`
}

// Diff calls each for every range of a volume in which two backups differ, in
// order, in whole chunks. What one has beyond the end of the other differs. Only
// the parts of the tables that differ are read, and no data: the names of chunks
// tell.
func (r *Repository) Diff(ctx context.Context, o DiffOptions, each func(Range) error) (res DiffResult, err error) {
	op := fmt.Sprintf("compare backups %q and %q in %s", o.A, o.B, r.Location())
	s, err := r.beginReading(ctx, "diff", logger(nil))
	if err != nil {
		return res, wrap(op, err)
	}
	defer s.end()
	reader, err := r.newReader()
	if err != nil {
		return res, wrap(op, err)
	}
	defer reader.Close()
	read := func(ref format.Ref, dst []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return reader.Read(ctx, ref, dst)
	}
	var trees [2]table.Tree
	for i, id := range []string{o.A, o.B} {
		b, err := r.Get(ctx, id)
		if err != nil {
			return res, err
		}
		v, err := b.volume(op, o.Volume)
		if err != nil {
			return res, err
		}
		shape, root, err := v.table()
		if err != nil {
			return res, wrap(op, err)
		}
		trees[i] = table.Tree{Shape: shape, Root: root, Read: read}
		res.A, res.B, res.Volume = res.B, b.ID, v.VolumeRef
	}
	err = table.Diff(trees[0], trees[1], func(off, n int64) error {
		res.Bytes += n
		res.Ranges++
		return each(Range{off, n})
	})
	return res, wrap(op, err)
}
