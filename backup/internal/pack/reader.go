package pack

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/backup/internal/codec"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/seal"
	"github.com/swapback/swapback/backup/internal/store"
)

// Hash computes the hash that a repository names its chunks by.
type Hash func(p []byte) format.Hash

// Reader reads blobs and checks them. It is for one goroutine. Close it.
type Reader struct {
	store store.Store
	hash  Hash
	seal  *seal.Sealer // nil where nothing is encrypted
	dec   *codec.Decompressor
	buf   []byte
	kept  []byte // see Verbatim
	plain []byte
	bytes int64
}

// NewReader returns a Reader for plaintexts of up to size bytes. With a Sealer it
// takes sealed blobs and no others, without one the reverse.
func NewReader(st store.Store, hash Hash, sealer *seal.Sealer, size int) (*Reader, error) {
	dec, err := codec.NewDecompressor(size)
	if err != nil {
		return nil, err
	}
	return &Reader{store: st, hash: hash, seal: sealer, dec: dec}, nil
}

// Close frees the Reader.
func (r *Reader) Close() { r.dec.Close() }

// Bytes is how many bytes it has read from the store.
func (r *Reader) Bytes() int64 { return r.bytes }

// Read fills dst, of ref.Length bytes, with the plaintext of the blob. It
// checks place, length, checksum and hash. The ref's lengths must have been
// bounded by a decoder of package format.
func (r *Reader) Read(ctx context.Context, ref format.Ref, dst []byte) error {
	if err := r.load(ctx, ref.Pack, ref.Offset, format.BlobHeaderSize+int(ref.Stored)); err != nil {
		return err
	}
	return r.decode(r.buf, ref, dst)
}

// Verbatim checks the blob as Read does and returns its payload as it is stored,
// which is valid until the next call.
func (r *Reader) Verbatim(ctx context.Context, ref format.Ref) ([]byte, error) {
	if err := r.load(ctx, ref.Pack, ref.Offset, format.BlobHeaderSize+int(ref.Stored)); err != nil {
		return nil, err
	}
	r.kept = append(r.kept[:0], r.buf[format.BlobHeaderSize:]...) // opening a seal writes over it
	r.plain = slices.Grow(r.plain[:0], int(ref.Length))[:ref.Length]
	return r.kept, r.decode(r.buf, ref, r.plain)
}

// ReadRun is Read for several blobs that follow each other in one pack, see
// Follows, with one read of the store. dst holds the plaintexts one after
// another. For every blob that is no good it calls bad, and the bytes in dst are
// undefined there; other errors end it.
func (r *Reader) ReadRun(ctx context.Context, refs []format.Ref, dst []byte, bad func(i int, err error)) error {
	parts := make([][]byte, len(refs))
	for i, ref := range refs {
		parts[i], dst = dst[:ref.Length], dst[ref.Length:]
	}
	return r.ReadRunInto(ctx, refs, parts, bad)
}

// ReadRunInto is ReadRun with a place of its own for each plaintext.
func (r *Reader) ReadRunInto(ctx context.Context, refs []format.Ref, dst [][]byte, bad func(i int, err error)) error {
	first, last := refs[0], refs[len(refs)-1]
	size := int(last.Offset-first.Offset) + format.BlobHeaderSize + int(last.Stored)
	if err := r.load(ctx, first.Pack, first.Offset, size); err != nil {
		if len(refs) > 1 && IsDamage(err) {
			// The pack ends within the run: what is before that is still good.
			for i := range refs {
				if err := r.ReadRunInto(ctx, refs[i:i+1], dst[i:i+1], func(_ int, err error) { bad(i, err) }); err != nil {
					return err
				}
			}
			return nil
		}
		if IsDamage(err) {
			bad(0, err)
			return nil
		}
		return err
	}
	for i, ref := range refs {
		if err := r.decode(r.buf[ref.Offset-first.Offset:], ref, dst[i]); err != nil {
			bad(i, err)
		}
	}
	return nil
}

// Follows tells whether b is the blob after a in the same pack.
func Follows(a, b format.Ref) bool {
	return a.Pack == b.Pack && uint64(a.Offset)+format.BlobHeaderSize+uint64(a.Stored) == uint64(b.Offset)
}

// IsDamage tells whether an error means that an object is lost or not what it
// should be, a disk's EIO among them, as opposed to a store that can't be reached
// or must not be read.
func IsDamage(err error) bool {
	return errors.Is(err, format.ErrCorrupt) || errors.Is(err, store.ErrShort) ||
		errors.Is(err, store.ErrNotExist) || errors.Is(err, unix.EIO)
}

func (r *Reader) load(ctx context.Context, id format.ID, off uint32, n int) error {
	r.buf = slices.Grow(r.buf[:0], n)[:n]
	r.bytes += int64(n)
	return r.store.ReadAt(ctx, Name(id), r.buf, int64(off))
}

func (r *Reader) decode(blob []byte, ref format.Ref, dst []byte) error {
	payload, err := format.CheckBlob(blob, ref)
	if err != nil {
		return err
	}
	if (ref.Seal != format.Open) != (r.seal != nil) {
		return fmt.Errorf("%w: seal %v of the blob at offset %d is not the repository's", format.ErrCorrupt, ref.Seal, ref.Offset)
	}
	if r.seal != nil {
		if payload, err = r.seal.Open(ref, payload); err != nil {
			return fmt.Errorf("blob at offset %d: %w", ref.Offset, err)
		}
	}
	if err := r.dec.Decompress(dst, payload, ref.Codec); err != nil {
		return err
	}
	if r.hash(dst) != ref.Hash {
		return fmt.Errorf("%w: hash of the blob at offset %d does not match", format.ErrCorrupt, ref.Offset)
	}
	return nil
}
