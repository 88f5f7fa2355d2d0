package backup

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/swapback/swapback/backup/internal/codec"
	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/seal"
	"github.com/swapback/swapback/backup/internal/table"
)

// batchBytes is how much a worker reads at once; chunks that are larger are read
// one by one.
const batchBytes = 1 << 20

// chunk is what a worker found out about a chunk.
type chunk struct {
	off     int64 // in the volume
	before  before
	plain   []byte
	zero    bool
	reused  bool       // ref is where it lies already
	ref     format.Ref // otherwise with Hash, Length and Codec only
	payload []byte     // when it is to be stored
}

// batch is a run of chunks on its way from the device to the collector. All
// memory of the pipeline is in the batches.
type batch struct {
	off    int64
	before []before // of each chunk; empty without a base
	plain  []byte   // what was read; part of mem
	mem    []byte   // aligned
	chunks []chunk  // of plain
	out    [][]byte // memory for the payload of each chunk
	err    error
	done   chan struct{}
}

// readChunks reads what the plan says of f and calls collect for every chunk in
// order, one at a time. No call is under way when it returns.
//
//	feeder ──► work ──► workers (read, zero test, hash, look up, compress)
//	   └─────► order ─────────────► collector ──► free ──► feeder
//
// A batch is in both queues at once: workers take it from work, the collector
// takes it from order and waits until its worker is done. Memory is bounded by
// the number of batches.
func (c *creation) readChunks(ctx context.Context, f origin, p *plan, collect func(*chunk) error) error {
	workers := c.r.workers(c.o.Parallel)
	chunkSize := c.r.config.ChunkSize
	size := max(chunkSize, batchBytes)
	n := 2 * workers
	if batches := (f.Size() + size - 1) / size; int64(n) > batches {
		n = int(batches)
	}
	free, work, order := make(chan *batch, n), make(chan *batch, n), make(chan *batch, n)
	for range n {
		free <- &batch{mem: device.Buffer(int(size)), done: make(chan struct{}, 1), out: make([][]byte, size/chunkSize)}
	}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { // feeder
		defer close(work)
		defer close(order)
		runs := chunkRuns(p.read, f.Size(), chunkSize)
		scout, stop := newScout(p, runs, g.Go)
		defer stop()
		cursor := p.cursor()
		for run := range runs {
			for end := run.Offset + run.Length; run.Offset < end; run.Offset += size {
				select {
				case b := <-free:
					b.off, b.plain = run.Offset, b.mem[:min(size, end-run.Offset)]
					if err := scout.ahead(b.off); err != nil {
						return err
					}
					if err := b.lookBack(p, cursor, chunkSize); err != nil {
						return err
					}
					order <- b
					work <- b
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range min(workers, n) {
		g.Go(func() error {
			w, err := c.newWorker()
			if err != nil {
				return err
			}
			defer w.close()
			for b := range work {
				if ctx.Err() == nil {
					b.err = w.process(ctx, f, b)
				}
				b.done <- struct{}{}
			}
			return nil
		})
	}
	g.Go(func() error { // collector
		for b := range order {
			select {
			case <-b.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if b.err != nil {
				return b.err
			}
			for i := range b.chunks {
				if err := collect(&b.chunks[i]); err != nil {
					return err
				}
			}
			free <- b
		}
		return nil
	})
	return g.Wait()
}

// lookBack finds what the base has in the place of each of the batch's chunks.
func (b *batch) lookBack(p *plan, cursor *table.Cursor, chunkSize int64) error {
	b.before = b.before[:0]
	for n := int64(len(b.plain)); cursor != nil && n > 0; n -= chunkSize {
		was, err := p.before(cursor, b.off+int64(len(b.plain))-n, min(n, chunkSize))
		if err != nil {
			return err
		}
		b.before = append(b.before, was)
	}
	return nil
}

// worker turns what was read into chunks; it is for one goroutine.
type worker struct {
	c       *creation
	comp    *codec.Compressor
	reader  *pack.Reader
	scratch []byte // for samples of what is used again
}

func (c *creation) newWorker() (*worker, error) {
	comp, err := codec.NewCompressor(int(c.r.config.ChunkSize))
	if err != nil {
		return nil, err
	}
	reader, err := c.r.newReader()
	if err != nil {
		comp.Close()
		return nil, err
	}
	return &worker{c: c, comp: comp, reader: reader}, nil
}

func (w *worker) close() {
	w.comp.Close()
	w.reader.Close()
}

func (w *worker) process(ctx context.Context, f origin, b *batch) error {
	zero, err := knownZero(f, b.off, int64(len(b.plain)))
	if err == nil && !zero {
		if err := w.c.pace.Wait(ctx, len(b.plain)); err != nil {
			return err
		}
		_, err = f.ReadAt(b.plain, b.off)
	}
	if err != nil {
		return wrapSource(fmt.Sprintf("read %d bytes at %d", len(b.plain), b.off), f.Path(), err)
	}
	b.chunks = b.chunks[:0]
	size := int(w.c.r.config.ChunkSize)
	for off := 0; off < len(b.plain); off += size {
		plain := b.plain[off:min(off+size, len(b.plain))]
		ck := chunk{off: b.off + int64(off), plain: plain, zero: zero || codec.IsZero(plain)}
		if len(b.before) > 0 {
			ck.before = b.before[len(b.chunks)]
		}
		if !ck.zero {
			if err := w.look(ctx, &ck, &b.out[len(b.chunks)]); err != nil {
				return err
			}
		}
		b.chunks = append(b.chunks, ck)
	}
	return nil
}

// look finds out whether the chunk is there already and compresses it if not.
func (w *worker) look(ctx context.Context, ck *chunk, out *[]byte) (err error) {
	hash := w.c.r.hash(ck.plain)
	if w.scratch == nil {
		w.scratch = make([]byte, w.c.r.config.ChunkSize)
	}
	if was := ck.before; was.there && was.ref.Hash == hash && !was.ref.IsZero() {
		// Written anew with what was there already, most likely.
		ck.ref = was.ref
		if ck.reused, err = w.c.reuse.usable(ctx, w.reader, was.ref, w.scratch); err != nil || ck.reused {
			return err
		}
	}
	ck.ref, ck.reused, err = w.c.reuse.find(ctx, w.reader, hash, format.KindChunk, len(ck.plain), w.scratch)
	if err != nil || ck.reused {
		return err
	}
	if *out == nil {
		*out = make([]byte, w.c.room(w.comp, len(ck.plain)))
	}
	ck.ref = format.Ref{Hash: hash, Kind: format.KindChunk, Length: uint32(len(ck.plain))}
	ck.payload, err = w.c.payload(w.comp, *out, &ck.ref, ck.plain)
	return err
}

// room is how much memory payload wants in out for n bytes.
func (c *creation) room(comp *codec.Compressor, n int) int {
	return comp.Bound(n) + seal.Overhead
}

// payload compresses and seals plain, in out's memory, and fills in the ref's
// Codec and Seal. It may be called concurrently with different compressors.
func (c *creation) payload(comp *codec.Compressor, out []byte, ref *format.Ref, plain []byte) (p []byte, err error) {
	ref.Seal = c.r.seal()
	if ref.Seal == format.Open {
		p, ref.Codec = comp.Compress(out, plain)
		return p, nil
	}
	p, ref.Codec = comp.Compress(seal.Room(out), plain)
	return c.r.sealer.Seal(out, *ref, p)
}
