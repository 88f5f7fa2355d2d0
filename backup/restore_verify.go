package backup

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/swapback/swapback/backup/internal/codec"
	"github.com/swapback/swapback/backup/internal/format"
)

// verify reads the target back and compares it with the table.
func (rs *restoring) verify(ctx context.Context, log *slog.Logger) error {
	if !rs.target.Direct() {
		log.Warn("target has no O_DIRECT; it is read back through the page cache", "target", rs.target.Path())
	}
	rs.t = track(PhaseVerify, rs.v.Size, -1, rs.o.Progress)
	defer rs.t.finish()
	bad := func(off, n int64) error {
		return rs.targetError("read back", fmt.Errorf("bytes %d-%d are not what was written", off, off+n-1))
	}
	err := rs.r.eachTask(ctx, rs.v, rs.o.Parallel, everything, func(ctx context.Context, w *taskWorker, t task) error {
		rs.t.done.Add(t.n)
		if t.err != nil && !rs.bad.has(t.off) {
			return fmt.Errorf("%s was good when the target was written: %w", t.object, t.err)
		}
		if t.err != nil && rs.o.Delta {
			return nil // nobody knows what belongs there
		}
		if t.refs == nil {
			return rs.verifyZero(ctx, w, t.off, t.n, bad)
		}
		plain := w.plain[:t.n]
		if _, err := rs.target.ReadAt(plain, t.off); err != nil {
			return rs.targetError(fmt.Sprintf("read %d bytes at %d", t.n, t.off), err)
		}
		off := t.off
		for _, ref := range t.refs {
			ck := plain[:ref.Length]
			plain = plain[ref.Length:]
			if !rs.right(off, ck, ref) {
				return bad(off, int64(ref.Length))
			}
			off += int64(ref.Length)
		}
		return nil
	})
	if err == nil && len(rs.res.Bad) == 0 {
		rs.res.Verified = true
	}
	return err
}

func (rs *restoring) verifyZero(ctx context.Context, w *taskWorker, off, n int64, bad func(off, n int64) error) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		plain := w.plain[:min(n, int64(len(w.plain)))]
		if _, err := rs.target.ReadAt(plain, off); err != nil {
			return rs.targetError(fmt.Sprintf("read %d bytes at %d", len(plain), off), err)
		}
		if !codec.IsZero(plain) {
			return bad(off, int64(len(plain)))
		}
		off, n = off+int64(len(plain)), n-int64(len(plain))
	}
	return nil
}

// right tells whether the target has what it should in place of a chunk.
func (rs *restoring) right(off int64, have []byte, ref format.Ref) bool {
	switch {
	case !rs.bad.has(off):
		return rs.r.hash(have) == ref.Hash
	case rs.o.Delta:
		return true // left as it was
	case rs.bad.coarse:
		return codec.IsZero(have) || rs.r.hash(have) == ref.Hash
	}
	return codec.IsZero(have)
}
