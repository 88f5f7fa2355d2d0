package backup

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/table"
)

// taskBytes is how much of a volume a task with chunks covers at most; chunks
// that are larger come one by one.
const taskBytes = 4 << 20

// task is a run of bytes of a volume for one worker.
type task struct {
	seq    int64 // counts the tasks of a volume from 0, in its order
	off, n int64
	// refs are the chunks of the run in order. When nil the run is zeroes, or
	// can't be known:
	err    error  // why the table says nothing about the run
	object string // which object is to blame for that
	refs   []format.Ref
}

// filter chooses what of a table becomes tasks. It is called by one goroutine.
type filter struct {
	chunk  func(r format.Ref) bool
	node   func(r format.Ref) bool // false passes over all below the node
	zeroes int64                   // most bytes of zeroes in one task; 0 for zeroPiece
}

func yes(format.Ref) bool { return true }

var everything = filter{chunk: yes, node: yes}

// readMemory bounds what the workers of one operation hold: each has what it read
// of a pack and, up to twice, the run of a volume that it works on.
const readMemory = 192 << 20

// readers is how many workers read tasks, when n are asked for; 0 for a default.
// A store behind a network is waited for more than anything else.
func (r *Repository) readers(n int) int {
	if n <= 0 && r.remote() {
		n = maxParallel
	}
	each := 3 * max(taskBytes, r.config.ChunkSize)
	return max(1, min(parallel(n), int(readMemory/each)))
}

// remote tells whether the repository lies behind a network, as far as its location
// says.
func (r *Repository) remote() bool { return strings.HasPrefix(r.Location(), "s3:") }

// eachTask walks a volume's table and calls do for every run of it, on several
// goroutines, begun in the order of the volume. The first error ends it. Memory
// is about two tasks per worker.
func (r *Repository) eachTask(ctx context.Context, v BackupVolume, workers int, keep filter, do func(context.Context, *taskWorker, task) error) error {
	shape, root, err := v.table()
	if err != nil {
		return err
	}
	workers = r.readers(workers)
	tasks := make(chan task, workers)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(tasks)
		return r.produce(ctx, shape, root, keep, tasks)
	})
	for range workers {
		g.Go(func() error {
			w, err := r.newTaskWorker()
			if err != nil {
				return err
			}
			defer w.reader.Close()
			for t := range tasks {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := do(ctx, w, t); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// produce makes tasks of a table.
func (r *Repository) produce(ctx context.Context, shape format.Shape, root format.Ref, keep filter, tasks chan<- task) error {
	reader, err := r.newReader()
	if err != nil {
		return err
	}
	defer reader.Close()
	zeroes := keep.zeroes
	if zeroes == 0 {
		zeroes = zeroPiece
	}
	var next task // not sent yet; empty when n is 0
	var seq int64
	flush := func() error {
		if next.n == 0 {
			return nil
		}
		t := next
		t.seq, next = seq, task{}
		seq++
		select {
		case tasks <- t:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	read := func(ref format.Ref, dst []byte) error { return reader.Read(ctx, ref, dst) }
	err = table.Walk(shape, root, read, pack.IsDamage, table.Visitor{
		Chunk: func(off, n int64, ref format.Ref) error {
			if !keep.chunk(ref) {
				return flush()
			}
			if next.refs == nil || next.n+n > max(taskBytes, shape.ChunkSize) {
				if err := flush(); err != nil {
					return err
				}
				next.off = off
			}
			next.refs = append(next.refs, ref)
			next.n += n
			return nil
		},
		Zero: func(off, n int64) error {
			for n > 0 {
				if next.n == 0 || next.refs != nil || next.n >= zeroes {
					if err := flush(); err != nil {
						return err
					}
					next.off = off
				}
				piece := min(n, zeroes-next.n)
				next.n += piece
				off, n = off+piece, n-piece
			}
			return nil
		},
		Node: func(off, n int64, ref format.Ref) (bool, error) { return keep.node(ref), nil },
		Bad: func(off, n int64, ref format.Ref, err error) error {
			if err := flush(); err != nil {
				return err
			}
			next = task{off: off, n: n, err: err, object: pack.Name(ref.Pack)}
			return flush()
		},
	})
	if err != nil {
		return err
	}
	return flush()
}

// taskWorker reads the chunks of tasks; it is for one goroutine.
type taskWorker struct {
	reader *pack.Reader
	plain  []byte // aligned
	good   []bool

	// For restores.
	runs runs
	have []byte // what the target has, aligned
	need []bool
}

func (r *Repository) newTaskWorker() (*taskWorker, error) {
	reader, err := r.newReader()
	if err != nil {
		return nil, err
	}
	return &taskWorker{reader: reader, plain: device.Buffer(int(max(taskBytes, r.config.ChunkSize)))}, nil
}

// read reads a task's chunks and returns their bytes and which of them are good.
// What is damaged is told to bad, whose error ends it. The results are valid
// until the next call.
func (w *taskWorker) read(ctx context.Context, t task, bad func(off, n int64, object string, err error) error) (plain []byte, good []bool, err error) {
	return w.readSome(ctx, t, nil, bad)
}

// readSome is read for the chunks that need names by their index; nil names all.
// The bytes of others are undefined, and they are not good.
func (w *taskWorker) readSome(ctx context.Context, t task, need []bool, bad func(off, n int64, object string, err error) error) (plain []byte, good []bool, err error) {
	plain = w.plain[:t.n]
	w.good = append(w.good[:0], make([]bool, len(t.refs))...)
	needed := func(i int) bool { return need == nil || need[i] }
	rest, off := plain, t.off
	for i := 0; i < len(t.refs); {
		j, n := i+1, int(t.refs[i].Length)
		for j < len(t.refs) && needed(j) == needed(i) && pack.Follows(t.refs[j-1], t.refs[j]) {
			n += int(t.refs[j].Length)
			j++
		}
		if needed(i) {
			if err := w.readRun(ctx, t.refs[i:j], rest[:n], off, w.good[i:j], bad); err != nil {
				return nil, nil, err
			}
		}
		rest, off, i = rest[n:], off+int64(n), j
	}
	return plain, w.good, nil
}

// readRun reads chunks that follow each other in one pack.
func (w *taskWorker) readRun(ctx context.Context, run []format.Ref, dst []byte, off int64, ok []bool, bad func(off, n int64, object string, err error) error) error {
	for k := range ok {
		ok[k] = true
	}
	var stop error
	err := w.reader.ReadRun(ctx, run, dst, func(k int, err error) {
		ok[k] = false
		if stop == nil {
			stop = bad(off+offset(run, k), int64(run[k].Length), pack.Name(run[k].Pack), err)
		}
	})
	return errors.Join(err, stop)
}

// offset is where the k-th of consecutive chunks begins.
func offset(refs []format.Ref, k int) (n int64) {
	for _, r := range refs[:k] {
		n += int64(r.Length)
	}
	return n
}
