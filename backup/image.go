package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/swapback/swapback/backup/internal/cache"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// Defaults of [ImageOptions].
const (
	DefaultImageCache     = 128 << 20
	DefaultImageReadAhead = 32 << 20
	defaultFetches        = 8
)

// ErrImageClosed is what a read of an [Image] gets after Close.
var ErrImageClosed = errors.New("image is closed")

// ImageOptions say how an image is read. The zero value of a field is its default.
type ImageOptions struct {
	// CacheBytes bounds the memory for chunks and table nodes. Default 128 MiB.
	// What fetches need comes on top: up to 5 MiB for each, or a chunk if that is
	// more.
	CacheBytes int64
	// ReadAhead is how many bytes are fetched ahead of a sequential reader at most;
	// it begins with two chunks and doubles. Default 32 MiB, at most a quarter of
	// the cache; negative: nothing is fetched ahead.
	ReadAhead int64
	// Parallel is how many fetches run at once. Default 8.
	Parallel int
	// Lease hears when the image's lease is lost, so that prune and delete may
	// remove what the backup needs, once the backup has been deleted; and, with nil,
	// when there is one again. It is called from one goroutine and must not call
	// Close.
	Lease  func(err error)
	Logger *slog.Logger
}

// Image is a volume of a backup that is read at random. Chunks and the nodes of
// its table are fetched when they are needed, checked, and kept in a bounded
// cache; what several readers want is fetched once. A chunk that is damaged is an
// error for its own bytes and no others, each time that they are read, until it is
// healed.
//
// Its methods may be called concurrently. While it is open prune and delete keep
// what it needs. Close it before the repository.
type Image struct {
	r      *Repository
	b      Backup
	v      BackupVolume
	op     string // "read volume db of backup 2026…"
	shape  format.Shape
	root   atomic.Pointer[format.Ref]
	o      ImageOptions
	log    *slog.Logger
	nodes  *cache.Cache[nodeKey]
	chunks *cache.Cache[int64] // by offset

	ctx    context.Context // of the fetches; ends with Close
	cancel context.CancelFunc
	ended  sync.WaitGroup // fetches, and the one who looks after the lease

	lease imageLease

	// Lock order: mu before those of the caches.
	mu      sync.Mutex
	fetches fetches
	streams []stream // the last used in front
	bad     map[int64]BadRange
	wasted  int64 // as of the last look
	stats   ImageStats
}

// nodeKey is a node of the table: where in the tree, and where in the repository.
type nodeKey struct {
	level int
	off   int64
	place place
}

func keyOf(level int, off int64, ref format.Ref) nodeKey {
	return nodeKey{level, off, place{ref.Pack, ref.Offset}}
}

// ImageStats count what an [Image] has done.
type ImageStats struct {
	Chunks    int64 `json:"chunks"`     // fetched, and found good
	Ahead     int64 `json:"ahead"`      // of Chunks: before anybody asked for them
	Wasted    int64 `json:"wasted"`     // of Ahead: dropped before anybody asked
	Nodes     int64 `json:"nodes"`      // of the table, fetched
	Fetches   int64 `json:"fetches"`    // reads of the repository
	ReadBytes int64 `json:"read_bytes"` // from the repository
}

// OpenImage opens a volume of a backup; both are named as in [RestoreOptions]. The
// time it takes does not depend on the volume's size.
func (r *Repository) OpenImage(ctx context.Context, id, volume string, o ImageOptions) (*Image, error) {
	op := fmt.Sprintf("open an image of backup %q in %s", id, r.Location())
	log := logger(o.Logger)
	s, err := r.beginReading(ctx, "image", log)
	if err != nil {
		return nil, wrap(op, err)
	}
	im, err := r.openImage(ctx, op, id, volume, o)
	if err != nil {
		s.end()
		return nil, err
	}
	im.log = log
	im.lease.session = s
	im.ended.Go(im.keepLease)
	return im, nil
}

func (r *Repository) openImage(ctx context.Context, op, id, volume string, o ImageOptions) (*Image, error) {
	b, err := r.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	v, err := b.volume(op, volume)
	if err != nil {
		return nil, err
	}
	im := &Image{r: r, b: b, v: v, o: o, bad: make(map[int64]BadRange),
		op: fmt.Sprintf("read volume %s of backup %s", v.name(), b.ID)}
	var root format.Ref
	if im.shape, root, err = v.table(); err != nil {
		return nil, wrap(op, err)
	}
	im.root.Store(&root)
	if err := im.divide(op); err != nil {
		return nil, err
	}
	// Fetches are for all who wait for them, whoever came first.
	im.ctx, im.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return im, nil
}

// divide divides the cache. A node stands for 1024 chunks, so few are enough; there
// must be one for each level and fetch, and some chunks for reading ahead.
func (im *Image) divide(op string) error {
	o := &im.o
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultImageCache
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = DefaultImageReadAhead
	}
	if o.Parallel <= 0 {
		o.Parallel = defaultFetches
	}
	const leastChunks = 4
	nodes := max(o.CacheBytes/8/format.MaxNode, int64(im.shape.Levels)+4)
	chunks := (o.CacheBytes - nodes*format.MaxNode) / im.shape.ChunkSize
	if chunks < leastChunks {
		least := leastChunks*im.shape.ChunkSize*8/7 + int64(im.shape.Levels+4)*format.MaxNode
		return &Error{Kind: ErrInvalid, Op: op, Detail: fmt.Sprintf("a cache of %d bytes is too small for chunks of %d", o.CacheBytes, im.shape.ChunkSize),
			Remedy: fmt.Sprintf("give it at least %d MiB", (least+1<<20-1)>>20)}
	}
	im.nodes = cache.New[nodeKey](int(nodes), format.MaxNode)
	im.chunks = cache.New[int64](int(chunks), int(im.shape.ChunkSize))
	o.ReadAhead = min(o.ReadAhead, chunks/4*im.shape.ChunkSize)
	return nil
}

// Size is the volume's size in bytes.
func (im *Image) Size() int64 { return im.shape.Size }

// ChunkSize is how many bytes are fetched, and can be damaged, as one.
func (im *Image) ChunkSize() int64 { return im.shape.ChunkSize }

// Backup is the backup that the image is of.
func (im *Image) Backup() Backup { return im.b }

// Volume is the volume that the image shows.
func (im *Image) Volume() BackupVolume { return im.v }

// Stats returns what the image has done so far.
func (im *Image) Stats() ImageStats {
	im.mu.Lock()
	defer im.mu.Unlock()
	s := im.stats
	s.Wasted = im.chunks.Wasted()
	return s
}

// Damage lists what could not be read back so far, and has not been since.
func (im *Image) Damage() []BadRange {
	im.mu.Lock()
	defer im.mu.Unlock()
	var list []BadRange
	for _, b := range im.bad {
		list = append(list, b)
	}
	return mergeBad(list)
}

// Close ends what is being fetched, and the lease. Reads that wait get an error.
// It may be called more than once.
func (im *Image) Close() error {
	im.mu.Lock()
	im.fetches.closed = true
	im.mu.Unlock()
	im.cancel()
	im.ended.Wait()
	im.closeReaders()
	im.lease.end()
	return nil
}

// ReadAt fills p from offset off, and waits for what has to be fetched. As for an
// [io.ReaderAt], it returns how many bytes in front of p are good; beyond the end
// of the volume it is io.EOF. What can't be read back is an [*Error].
func (im *Image) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, &Error{Kind: ErrInvalid, Op: im.op, Detail: fmt.Sprintf("offset %d", off)}
	}
	for n < len(p) {
		at := off + int64(n)
		if at >= im.shape.Size {
			return n, io.EOF
		}
		part := p[n:][:min(int64(len(p)-n), im.rest(at))]
		if err := im.readPart(ctx, part, at); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// rest is how many bytes a chunk has from a byte in it on.
func (im *Image) rest(at int64) int64 {
	chunk := im.shape.ChunkSize
	return min(chunk-at%chunk, im.shape.Size-at)
}

// readPart fills p, which lies in one chunk.
func (im *Image) readPart(ctx context.Context, p []byte, at int64) error {
	off := at - at%im.shape.ChunkSize
	im.readAhead(off)
	ref, err := im.lookup(at, func(key nodeKey, ref format.Ref) (*cache.Block[nodeKey], error) {
		return im.node(ctx, key, ref)
	})
	if err != nil {
		return im.readError(off, ref, err)
	}
	if ref.IsZero() {
		clear(p)
		return nil
	}
	b, fresh, err := im.chunks.Get(ctx, off)
	if err != nil {
		return im.readError(off, ref, err)
	}
	defer b.Release()
	if fresh || !b.Ready() {
		im.want(chunkJob(off, ref, b), fresh)
	}
	if err := b.Wait(ctx); err != nil {
		return im.readError(off, ref, err)
	}
	copy(p, b.Data()[at-off:])
	return nil
}

// TryReadAt is ReadAt for what is in memory: it tells whether it was, and does not
// wait. When it was not, p's contents are undefined.
func (im *Image) TryReadAt(p []byte, off int64) bool {
	if off < 0 || off > im.shape.Size-int64(len(p)) {
		return false
	}
	for len(p) > 0 {
		n := min(int64(len(p)), im.rest(off))
		if !im.tryPart(p[:n], off) {
			return false
		}
		p, off = p[n:], off+n
	}
	return true
}

func (im *Image) tryPart(p []byte, at int64) bool {
	off := at - at%im.shape.ChunkSize
	ref, err := im.lookup(at, im.cachedNode)
	if err != nil {
		return false
	}
	if ref.IsZero() {
		im.readAhead(off)
		clear(p)
		return true
	}
	b := im.chunks.Peek(off)
	if b == nil {
		return false
	}
	defer b.Release()
	im.readAhead(off)
	copy(p, b.Data()[at-off:])
	return true
}

// lookup goes down the table to the entry of the chunk that the byte at is in. The
// nodes come from get, and are released. After an error the entry is that of the
// node that could not be read.
func (im *Image) lookup(at int64, get func(nodeKey, format.Ref) (*cache.Block[nodeKey], error)) (format.Ref, error) {
	ref, off := *im.root.Load(), int64(0)
	for level := im.shape.Levels; level > 0 && !ref.IsZero(); level-- {
		b, err := get(keyOf(level, off, ref), ref)
		if err != nil {
			return ref, err
		}
		entry, below, err := im.shape.Entry(b.Data(), level, off, at)
		b.Release()
		if err != nil {
			return ref, err
		}
		ref, off = entry, below
	}
	return ref, nil
}

// node returns a node of the table, which it fetches if need be.
func (im *Image) node(ctx context.Context, key nodeKey, ref format.Ref) (*cache.Block[nodeKey], error) {
	b, fresh, err := im.nodes.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	if fresh || !b.Ready() {
		im.want(nodeJob(key, ref, b), fresh)
	}
	if err := b.Wait(ctx); err != nil {
		b.Release()
		return nil, err
	}
	return b, nil
}

// errNotCached: a node is not in memory.
var errNotCached = errors.New("not in memory")

func (im *Image) cachedNode(key nodeKey, _ format.Ref) (*cache.Block[nodeKey], error) {
	if b := im.nodes.Peek(key); b != nil {
		return b, nil
	}
	return nil, errNotCached
}

// readError says which bytes could not be read, and why: the chunk at off, whose
// entry, or that of a node above it, is ref.
func (im *Image) readError(off int64, ref format.Ref, err error) error {
	n := im.rest(off)
	op := fmt.Sprintf("%s: bytes %d-%d", im.op, off, off+n-1)
	if !pack.IsDamage(err) {
		return wrap(op, err)
	}
	return &Error{Kind: ErrDamaged, Op: op, Object: pack.Name(ref.Pack), Err: err,
		Remedy: healRemedy + "; else restore an earlier backup"}
}

// noteRead takes note of what a fetch of a chunk has come to. mu is held.
func (im *Image) noteRead(off int64, ref format.Ref, err error) {
	switch {
	case err == nil && len(im.bad) > 0:
		delete(im.bad, off)
	case err != nil && pack.IsDamage(err) && len(im.bad) < maxBad:
		if _, known := im.bad[off]; !known {
			im.log.Error("bytes of a backup can't be read back", "backup", im.b.ID, "volume", im.v.name(),
				"offset", off, "length", im.rest(off), "object", pack.Name(ref.Pack), "err", err)
		}
		im.bad[off] = BadRange{Offset: off, Length: im.rest(off), Object: pack.Name(ref.Pack), Reason: err.Error()}
	}
}
