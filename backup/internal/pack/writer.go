// Package pack writes and reads packs in a store.
//
// A Writer's Add is for one goroutine; packs are made durable by goroutines of
// the Writer, which Flush and Abort wait for. A Reader is for one goroutine.
package pack

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store"
)

// Dir is the folder of the packs in a store.
const Dir = "packs"

// Name is the name of a pack's object.
func Name(id format.ID) string {
	s := id.String()
	return Dir + "/" + s[:2] + "/" + s
}

// NewID returns a random ID.
func NewID() (id format.ID) {
	rand.Read(id[:]) // never fails
	return id
}

// WriterOptions describes the packs that a Writer makes.
type WriterOptions struct {
	Kind       format.Kind
	Repository format.ID
	Session    format.ID
	// Size is where a pack is closed. Default format.PackSize.
	Size int64
	// NewID names the packs. Default NewID.
	NewID func() format.ID
}

// commits is how many packs may be on their way to the disk while the next one
// is filled.
const commits = 2

// Writer appends blobs to packs.
type Writer struct {
	store store.Store
	o     WriterOptions

	// The pack that is being filled; w is nil when there is none.
	w    store.Writer
	buf  *bufio.Writer
	id   format.ID
	end  uint32
	refs []format.Ref
	head [format.BlobHeaderSize]byte

	slots chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	err   error // first error of a commit
	bytes int64 // of all packs that are durable
	packs []format.ID
	done  []format.ID // of packs that are durable
}

// NewWriter returns a Writer that has not made a pack yet.
func NewWriter(st store.Store, o WriterOptions) *Writer {
	if o.Size == 0 {
		o.Size = format.PackSize
	}
	if o.NewID == nil {
		o.NewID = NewID
	}
	return &Writer{store: st, o: o, buf: bufio.NewWriterSize(nil, 64<<10), slots: make(chan struct{}, commits)}
}

// Add appends a blob and returns ref with its place filled in. Of ref it uses
// Codec, Seal, Length and Hash. The payload is not kept.
func (w *Writer) Add(ctx context.Context, ref format.Ref, payload []byte) (format.Ref, error) {
	if w.w == nil {
		if err := w.begin(ctx); err != nil {
			return ref, err
		}
	}
	ref.Kind, ref.Pack, ref.Offset, ref.Stored = w.o.Kind, w.id, w.end, uint32(len(payload))
	format.PutBlobHeader(w.head[:], ref, payload)
	if _, err := w.buf.Write(w.head[:]); err != nil {
		return ref, err
	}
	if _, err := w.buf.Write(payload); err != nil {
		return ref, err
	}
	w.end += format.BlobHeaderSize + uint32(len(payload))
	w.refs = append(w.refs, ref)
	if int64(w.end) >= w.o.Size {
		return ref, w.close(ctx)
	}
	return ref, nil
}

func (w *Writer) begin(ctx context.Context) error {
	if err := w.failed(); err != nil {
		return err
	}
	w.id = w.o.NewID()
	out, err := w.store.Create(ctx, Name(w.id), store.Exclusive)
	if err != nil {
		return err
	}
	w.w = out
	w.packs = append(w.packs, w.id)
	w.buf.Reset(out)
	h := format.AppendPackHeader(nil, format.PackHeader{
		Kind: w.o.Kind, Pack: w.id, Repository: w.o.Repository, Session: w.o.Session,
	})
	if _, err := w.buf.Write(h); err != nil {
		return err
	}
	w.end, w.refs = uint32(len(h)), w.refs[:0]
	return nil
}

// close ends the pack and leaves making it durable to a goroutine.
func (w *Writer) close(ctx context.Context) error {
	tail := format.AppendDirectory(nil, w.id, w.end, w.refs)
	if _, err := w.buf.Write(tail); err != nil {
		return err
	}
	if err := w.buf.Flush(); err != nil {
		return err
	}
	select {
	case w.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	out, id, size := w.w, w.id, int64(w.end)+int64(len(tail))
	w.w = nil
	w.wg.Go(func() {
		defer func() { <-w.slots }()
		err := out.Commit(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil {
			w.bytes += size
			w.done = append(w.done, id)
		} else if w.err == nil {
			w.err = fmt.Errorf("write pack: %w", err)
		}
	})
	return w.failed()
}

func (w *Writer) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Flush closes the pack that is being filled and waits until all packs are
// durable. The Writer can be used further.
func (w *Writer) Flush(ctx context.Context) error {
	if w.w != nil {
		if err := w.close(ctx); err != nil {
			return err
		}
	}
	w.wg.Wait()
	return w.failed()
}

// Bytes is the size of all packs that are durable.
func (w *Writer) Bytes() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}

// Durable names the packs that are durable.
func (w *Writer) Durable() []format.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.done)
}

// Packs names all packs that were begun. Those that were aborted are not there.
func (w *Writer) Packs() []format.ID { return w.packs }

// Abort gives up the pack that is being filled, and waits for the others. It
// does nothing after Flush.
func (w *Writer) Abort() {
	if w.w != nil {
		w.w.Abort()
		w.w = nil
	}
	w.wg.Wait()
}
