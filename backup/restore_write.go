package backup

import (
	"bytes"
	"context"
	"fmt"

	"github.com/swapback/swapback/backup/internal/codec"
	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/failpoint"
)

const (
	// zeroPiece is how much is zeroed at once, so that an end of ctx is seen
	// in between.
	zeroPiece = 128 << 20
	// writeAhead is how many tasks, neighbours on the target, may be written at
	// once. With one the target would be idle between two; of what is this near the
	// device's own queue makes a run.
	writeAhead = 4
	// idleAhead is how far tasks that write nothing may run ahead of those that
	// do.
	idleAhead = 4096
	// deltaGrain is what is compared and written of a chunk that differs. It is
	// also the grain of a volume's map of changes.
	deltaGrain = 64 << 10
)

// write fills the target and syncs it.
func (rs *restoring) write(ctx context.Context) error {
	keep, work := everything, rs.v.DataBytes
	if rs.o.Delta {
		keep.zeroes, work = taskBytes, -1 // zeroes are read, too
	}
	rs.t = track(PhaseRestore, rs.v.Size, work, rs.o.Progress)
	defer rs.t.finish()
	if err := rs.r.eachTask(ctx, rs.v, rs.o.Parallel, keep, rs.writeTask); err != nil {
		return err
	}
	if err := rs.writeTail(ctx); err != nil {
		return err
	}
	if err := rs.target.Sync(); err != nil {
		return rs.targetError("sync", err)
	}
	failpoint.Hit("restore: synced")
	return nil
}

// writeTask brings one task onto the target. It runs on several goroutines.
func (rs *restoring) writeTask(ctx context.Context, w *taskWorker, t task) error {
	runs, err := rs.prepare(ctx, w, t)
	if err != nil {
		return err
	}
	ahead := int64(writeAhead)
	if len(runs) == 0 {
		ahead = idleAhead
	}
	if err := rs.order.enter(ctx, t.seq, ahead); err != nil {
		return err
	}
	if err := rs.apply(ctx, runs); err != nil {
		return err
	}
	rs.order.leave(t.seq)
	if t.refs == nil && t.err == nil {
		rs.t.zero.Add(t.n)
	}
	rs.t.done.Add(t.n)
	return nil
}

// run is a part of the target that has to be written.
type run struct {
	off, n int64
	data   []byte // nil for zeroes
	bad    bool   // in place of what is damaged
}

// runs are in order. Neighbours of a kind are one.
type runs []run

// add appends a run. The data of one task lies in one buffer, in order, so that
// runs that touch on the target touch in memory.
func (rs runs) add(r run) runs {
	if n := len(rs) - 1; n >= 0 {
		if last := &rs[n]; last.off+last.n == r.off && last.bad == r.bad && (last.data == nil) == (r.data == nil) {
			last.n += r.n
			if last.data != nil {
				last.data = last.data[:last.n]
			}
			return rs
		}
	}
	return append(rs, r)
}

// prepare finds out what of a task has to be written and reads it. What it returns
// is valid until the worker's next task.
func (rs *restoring) prepare(ctx context.Context, w *taskWorker, t task) (runs, error) {
	out := runs(w.runs[:0])
	defer func() { w.runs = out }()
	switch {
	case t.err != nil:
		if err := rs.damaged(t.off, t.n, t.object, t.err); err != nil {
			return nil, err
		}
		if !rs.o.Delta {
			out = out.add(run{off: t.off, n: t.n, bad: true})
		}
		return out, nil
	case t.refs != nil:
		var err error
		out, err = rs.prepareChunks(ctx, w, t, out)
		return out, err
	case rs.o.Delta:
		var same int64
		out, same = rs.prepareZeroes(w, t.off, t.n, out)
		rs.unchanged(same)
	case rs.target.Created():
		rs.count(0, t.n, 0, 0) // a hole in a new file
	default:
		out = out.add(run{off: t.off, n: t.n})
	}
	return out, nil
}

func (rs *restoring) prepareChunks(ctx context.Context, w *taskWorker, t task, out runs) (runs, error) {
	var have []byte
	var need []bool
	if rs.o.Delta {
		have, need = rs.compare(w, t)
	}
	before := w.reader.Bytes()
	plain, good, err := w.readSome(ctx, t, need, rs.damaged)
	read := w.reader.Bytes() - before
	rs.t.stored.Add(read)
	rs.count(0, 0, 0, read)
	if err != nil {
		return out, err
	}
	at := int64(0)
	for i, ref := range t.refs {
		off, n := at, int64(ref.Length)
		at += n
		switch {
		case need != nil && !need[i]:
		case good[i] && have != nil:
			var same int64
			out, same = differing(t.off+off, have[off:at], plain[off:at], out)
			rs.unchanged(same)
		case good[i]:
			out = out.add(run{off: t.off + off, n: n, data: plain[off:at:len(plain)]})
		case !rs.o.Delta:
			out = out.add(run{off: t.off + off, n: n, bad: true})
		}
	}
	return out, nil
}

// compare reads what the target has in a task's place and tells which chunks differ
// from it. have is nil when the target can't be read there: then all of them do, and
// writing may mend the disk.
func (rs *restoring) compare(w *taskWorker, t task) (have []byte, need []bool) {
	need = append(w.need[:0], make([]bool, len(t.refs))...)
	w.need = need
	if have = rs.readTarget(w, t.off, t.n); have == nil {
		for i := range need {
			need[i] = true
		}
		return nil, need
	}
	at := int64(0)
	for i, ref := range t.refs {
		n := int64(ref.Length)
		need[i] = rs.r.hash(have[at:at+n]) != ref.Hash
		if !need[i] {
			rs.unchanged(n)
		}
		at += n
	}
	return have, need
}

// readTarget returns what the target has, or nil when it can't be read there.
func (rs *restoring) readTarget(w *taskWorker, off, n int64) []byte {
	if w.have == nil {
		w.have = device.Buffer(len(w.plain))
	}
	have := w.have[:n]
	if _, err := rs.target.ReadAt(have, off); err != nil {
		return nil
	}
	return have
}

// prepareZeroes finds what of a range that is to be zero is not, and how many bytes
// are.
func (rs *restoring) prepareZeroes(w *taskWorker, off, n int64, out runs) (runs, int64) {
	if rs.target.Hole(off, n) {
		return out, n
	}
	have := rs.readTarget(w, off, n)
	if have == nil {
		return out.add(run{off: off, n: n}), 0
	}
	return differing(off, have, nil, out)
}

// differing adds what of have, which lies at off, is not like want, and returns how
// many bytes are. A want of nil is zeroes.
func differing(off int64, have, want []byte, out runs) (_ runs, same int64) {
	for at := 0; at < len(have); at += deltaGrain {
		end := min(at+deltaGrain, len(have))
		r := run{off: off + int64(at), n: int64(end - at)}
		equal := false
		if want == nil {
			equal = codec.IsZero(have[at:end])
		} else {
			r.data = want[at:end:cap(want)]
			equal = bytes.Equal(have[at:end], r.data)
		}
		if equal {
			same += r.n
		} else {
			out = out.add(r)
		}
	}
	return out, same
}

// apply writes runs.
func (rs *restoring) apply(ctx context.Context, runs []run) error {
	for _, r := range runs {
		if err := ctx.Err(); err != nil {
			return err
		}
		rs.wrote.Store(true)
		if r.data == nil {
			if err := rs.zero(ctx, r.off, r.n); err != nil {
				return err
			}
			if !r.bad {
				rs.count(0, r.n, 0, 0)
			}
			failpoint.Hit("restore: zeroes written")
			continue
		}
		if _, err := rs.target.WriteAt(r.data, r.off); err != nil {
			return rs.targetError(fmt.Sprintf("write %d bytes at %d", r.n, r.off), err)
		}
		rs.count(r.n, 0, 0, 0)
		failpoint.Hit("restore: run written")
	}
	return nil
}

func (rs *restoring) zero(ctx context.Context, off, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		piece := min(n, zeroPiece)
		if err := rs.target.Zero(off, piece); err != nil {
			return rs.targetError(fmt.Sprintf("zero %d bytes at %d", piece, off), err)
		}
		off, n = off+piece, n-piece
	}
	return nil
}

// writeTail zeroes what the target has beyond the volume.
func (rs *restoring) writeTail(ctx context.Context) error {
	off, end := rs.v.Size, rs.target.Size()
	if off == end {
		return nil
	}
	rs.wrote.Store(true)
	if !rs.o.Delta {
		return rs.zero(ctx, off, end-off)
	}
	w := &taskWorker{plain: make([]byte, taskBytes)}
	for ; off < end; off += taskBytes {
		out, _ := rs.prepareZeroes(w, off, min(taskBytes, end-off), nil)
		for _, r := range out {
			if err := rs.zero(ctx, r.off, r.n); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (rs *restoring) unchanged(n int64) {
	rs.t.reused.Add(n)
	rs.count(0, 0, n, 0)
}

func (rs *restoring) count(data, zero, unchanged, read int64) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.res.DataBytes += data
	rs.res.ZeroBytes += zero
	rs.res.UnchangedBytes += unchanged
	rs.res.ReadBytes += read
}
