package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/table"
)

// reuse knows where chunks and nodes lie already, and whether that can be
// trusted.
//
// What this session wrote is trusted. A pack of an earlier one is looked at
// first: its two ends must be whole and list the blob at that very place, and a
// sample of the blobs, the first that is asked for among them, must read back
// right. That a pack exists proves nothing.
//
// Lock order: pack.mu before mu.
type reuse struct {
	store  store.Store
	dirs   *pack.Directories
	policy Reuse
	log    *slog.Logger

	mu    sync.RWMutex
	known map[blobKey]knownBlob
	packs map[format.ID]*reusePack
}

// blobKey keeps chunks and nodes apart: a volume may hold the bytes of a node.
type blobKey struct {
	hash format.Hash
	kind format.Kind
}

type knownBlob struct {
	pack   format.ID
	offset uint32
	stored uint32
	length uint32
	codec  format.Codec
	seal   format.Seal
	own    bool // written by this session
}

func (k blobKey) ref(b knownBlob) format.Ref {
	return format.Ref{Hash: k.hash, Pack: b.pack, Offset: b.offset, Stored: b.stored,
		Length: b.length, Kind: k.kind, Codec: b.codec, Seal: b.seal}
}

type reusePack struct {
	mu     sync.Mutex
	bad    bool
	asked  int          // how many blobs were asked for
	unread []format.Ref // used again without having been read
}

const (
	// reuseSample is how many blobs of a pack are used for one that is read.
	reuseSample = 32
	// reuseBlobs bounds what is remembered, at about 110 bytes each.
	reuseBlobs = 1 << 19
	// reuseImages bounds how many volume images of earlier backups are looked
	// through.
	reuseImages = 32
)

// errPoisoned says that something was used again that turned out to be damaged.
// The backup must be begun anew, without using anything again.
var errPoisoned = errors.New("a chunk that was used again is damaged")

func (r *Repository) newReuse(policy Reuse, log *slog.Logger) *reuse {
	return &reuse{store: r.store, dirs: pack.NewDirectories(r.store), policy: policy, log: log,
		known: make(map[blobKey]knownBlob), packs: make(map[format.ID]*reusePack)}
}

// load remembers the blobs of earlier backups, first of the same volumes, then
// of others, newest first. It must run within the session.
func (u *reuse) load(ctx context.Context, r *Repository, sources []Source) error {
	if u.policy == ReuseNone {
		return nil
	}
	// What a base was looked through for would hide what lies below it.
	maps.DeleteFunc(u.known, func(k blobKey, b knownBlob) bool { return k.kind == format.KindNode && !b.own })
	list, err := r.list(ctx)
	if err != nil {
		return err
	}
	var same, others []BackupVolume
	for _, b := range slices.Backward(list) {
		for _, v := range b.Volumes {
			if slices.ContainsFunc(sources, func(s Source) bool { return sameVolume(v.VolumeRef, s.Volume) }) {
				same = append(same, v)
			} else {
				others = append(others, v)
			}
		}
	}
	reader, err := r.newReader()
	if err != nil {
		return err
	}
	defer reader.Close()
	images := append(same, others...)
	for _, v := range images[:min(len(images), reuseImages)] {
		if err := u.loadTable(ctx, reader, v, math.MaxInt64); errors.Is(err, errEnough) {
			break
		} else if err != nil {
			return err
		}
	}
	return nil
}

const (
	// baseNodesEvery is how many changed chunks there are for one node of the base
	// whose blobs are remembered, at most baseNodes of them.
	baseNodesEvery = 16
	baseNodes      = 64
)

// loadBase remembers some blobs of the image that a volume is backed up against, as
// many as so many changed chunks are worth. Data that moved is found among them; a
// chunk that is what it was is found without.
func (u *reuse) loadBase(ctx context.Context, reader *pack.Reader, v BackupVolume, chunks int64) error {
	err := u.loadTable(ctx, reader, v, min(chunks/baseNodesEvery, baseNodes))
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

var errEnough = errors.New("enough blobs are known")

// loadTable remembers the blobs of an image, of so many nodes of its table at most.
func (u *reuse) loadTable(ctx context.Context, reader *pack.Reader, v BackupVolume, nodes int64) error {
	shape, root, err := v.table()
	if err != nil {
		return err
	}
	read := func(ref format.Ref, dst []byte) error { return reader.Read(ctx, ref, dst) }
	return table.Walk(shape, root, read, pack.IsDamage, table.Visitor{
		Chunk: func(off, n int64, ref format.Ref) error { return u.remember(ref) },
		Zero:  func(off, n int64) error { return nil },
		Node: func(off, n int64, ref format.Ref) (bool, error) {
			k, there := u.known[blobKey{ref.Hash, format.KindNode}]
			if there && k.pack == ref.Pack && k.offset == ref.Offset {
				return false, nil // shared with one that we have been through
			}
			if nodes--; nodes < 0 {
				return false, errEnough
			}
			return true, u.remember(ref)
		},
		Bad: func(off, n int64, ref format.Ref, err error) error {
			u.log.Warn("table of an earlier backup is damaged; nothing below is used again",
				"volume", v.name(), "offset", off, "length", n, "err", err)
			return nil
		},
	})
}

func (u *reuse) remember(ref format.Ref) error {
	if len(u.known) >= reuseBlobs {
		return errEnough
	}
	key := blobKey{ref.Hash, ref.Kind}
	if _, there := u.known[key]; !there {
		u.known[key] = knownBlob{pack: ref.Pack, offset: ref.Offset, stored: ref.Stored, length: ref.Length, codec: ref.Codec, seal: ref.Seal}
	}
	return nil
}

// add remembers a blob that this session wrote.
func (u *reuse) add(ref format.Ref) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := blobKey{ref.Hash, ref.Kind}
	if _, there := u.known[key]; there || len(u.known) < 2*reuseBlobs {
		u.known[key] = knownBlob{pack: ref.Pack, offset: ref.Offset, stored: ref.Stored, length: ref.Length, codec: ref.Codec, seal: ref.Seal, own: true}
	}
}

// own returns where this session wrote a blob.
func (u *reuse) own(hash format.Hash, kind format.Kind) (format.Ref, bool) {
	key := blobKey{hash, kind}
	u.mu.RLock()
	defer u.mu.RUnlock()
	b, there := u.known[key]
	return key.ref(b), there && b.own
}

// find returns where a blob with this plaintext hash and length lies, when that
// place can be trusted. scratch has room for length bytes. It is called by
// several goroutines, each with a reader and scratch of its own.
func (u *reuse) find(ctx context.Context, reader *pack.Reader, hash format.Hash, kind format.Kind, length int, scratch []byte) (format.Ref, bool, error) {
	key := blobKey{hash, kind}
	u.mu.RLock()
	b, there := u.known[key]
	u.mu.RUnlock()
	ref := key.ref(b)
	if !there || int(b.length) != length {
		return ref, false, nil
	}
	if b.own {
		return ref, true, nil
	}
	ok, err := u.usable(ctx, reader, ref, scratch)
	return ref, ok, err
}

// usable tells whether a blob of an earlier session can be used again. It is called
// as find is.
func (u *reuse) usable(ctx context.Context, reader *pack.Reader, ref format.Ref, scratch []byte) (bool, error) {
	if u.policy == ReuseNone {
		return false, nil
	}
	return u.trust(ctx, u.pack(ref.Pack), reader, ref, scratch)
}

func (u *reuse) pack(id format.ID) *reusePack {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.packs[id]
	if p == nil {
		p = new(reusePack)
		u.packs[id] = p
	}
	return p
}

// readBack reads a blob of an earlier session, which its pack must list.
func (u *reuse) readBack(ctx context.Context, reader *pack.Reader, ref format.Ref, scratch []byte) error {
	listed, err := u.dirs.Lists(ctx, ref)
	if err != nil {
		return err
	}
	if !listed {
		return fmt.Errorf("%w: %s does not list the blob at offset %d", format.ErrCorrupt, pack.Name(ref.Pack), ref.Offset)
	}
	p := u.pack(ref.Pack)
	p.mu.Lock()
	p.asked++
	p.mu.Unlock()
	return reader.Read(ctx, ref, scratch[:ref.Length])
}

// trust tells whether a blob of an earlier session's pack can be used again.
func (u *reuse) trust(ctx context.Context, p *reusePack, reader *pack.Reader, ref format.Ref, scratch []byte) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bad {
		return false, nil
	}
	listed, err := u.dirs.Lists(ctx, ref)
	if listed && err == nil {
		p.asked++
		if u.policy != ReuseVerified && (p.asked-1)%reuseSample != 0 {
			p.unread = append(p.unread, ref)
			return true, nil
		}
		err = reader.Read(ctx, ref, scratch[:ref.Length])
	}
	if err := u.judge(p, ref, err); err != nil || !p.bad {
		return listed && err == nil, err
	}
	// What was taken from this pack on trust must be looked at after all.
	for _, r := range p.unread {
		err := reader.Read(ctx, r, make([]byte, r.Length))
		if pack.IsDamage(err) {
			return false, fmt.Errorf("%w: %w", errPoisoned, err)
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// judge marks the pack as bad when err says that it is damaged. Other errors it
// returns.
func (u *reuse) judge(p *reusePack, ref format.Ref, err error) error {
	if err == nil || !pack.IsDamage(err) && !errors.Is(err, format.ErrVersion) {
		return err
	}
	u.log.Warn("pack of an earlier backup is damaged; its chunks are stored anew",
		"pack", pack.Name(ref.Pack), "err", err)
	p.bad = true
	return nil
}

// distrust forgets everything that this session did not write itself.
func (u *reuse) distrust() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.policy = ReuseNone
	clear(u.packs)
}

// stillThere checks that the packs that blobs were taken from have not gone
// since. They are protected by the lease; this finds a hand that ignored it.
func (u *reuse) stillThere(ctx context.Context) error {
	u.mu.RLock()
	defer u.mu.RUnlock()
	for id, p := range u.packs {
		if p.asked == 0 {
			continue
		}
		if _, err := u.store.Size(ctx, pack.Name(id)); err != nil {
			return err
		}
	}
	return nil
}
