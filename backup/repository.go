package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/seal"
	"github.com/swapback/swapback/backup/internal/store"
)

// Repository is an open repository. Its methods may be called concurrently, also
// by several processes on the same location. Close it when done.
type Repository struct {
	store  store.Store
	config config
	id     format.ID
	hash   pack.Hash
	master *seal.Key    // nil when the repository is not encrypted
	sealer *seal.Sealer // likewise

	// Tests make these predictable.
	now       func() time.Time
	newID     func() format.ID
	packSize  int64
	noteEvery time.Duration
}

// Init makes a repository at location: a path, a file:// URL or an s3:// URL, see
// docs/operations.md. The folder may be there already when it is empty; a repository is never overwritten.
func Init(ctx context.Context, location string, o InitOptions) (*Repository, error) {
	op := "initialise repository " + location
	st, err := store.Make(location)
	if err != nil {
		return nil, wrapLocation(op, err)
	}
	r, err := initStore(ctx, st, o)
	if err != nil {
		st.Close()
		return nil, err
	}
	return r, nil
}

// Open opens the repository at location, as [Init] names it, with the secret
// that it is encrypted by. A secret for a repository that is not encrypted is an
// error: it may be another one than was meant.
func Open(ctx context.Context, location string, secret Secret) (*Repository, error) {
	op := "open repository " + location
	st, err := store.Open(location)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notRepository(op, location, err)
	}
	if err != nil {
		return nil, wrapLocation(op, err)
	}
	r, err := openStore(ctx, st, secret)
	if err != nil {
		st.Close()
		return nil, err
	}
	return r, nil
}

func wrapLocation(op string, err error) error {
	if errors.Is(err, store.ErrScheme) {
		return &Error{Kind: ErrUnsupported, Op: op, Err: err,
			Remedy: "name a folder, as a path or as file:///path, or s3://bucket/prefix"}
	}
	return wrap(op, err)
}

func notRepository(op, location string, err error) error {
	return &Error{Kind: ErrNotRepository, Op: op, Err: err,
		Remedy: "check the path, or make a repository there with: swapback repo init " + location}
}

func initStore(ctx context.Context, st store.Store, o InitOptions) (*Repository, error) {
	op := "initialise repository " + st.Location()
	if o.ChunkSize == 0 {
		o.ChunkSize = DefaultChunkSize
	}
	if _, err := format.ShapeOf(1, o.ChunkSize); err != nil {
		return nil, &Error{Kind: ErrInvalid, Op: op, Err: err, Remedy: "the default of 1 MiB is right for most volumes"}
	}
	foreign, err := st.Foreign(ctx)
	if err != nil {
		return nil, wrap(op, err)
	}
	if slices.Contains(foreign, configName) {
		if _, err := readConfig(ctx, st); err == nil || errors.Is(err, format.ErrVersion) {
			return nil, &Error{Kind: ErrExists, Op: op, Remedy: "use it as it is, or choose another folder"}
		}
	}
	if len(foreign) > 0 {
		return nil, &Error{Kind: ErrNotEmpty, Op: op, Detail: "it has " + some(foreign),
			Remedy: "choose an empty folder or a new one"}
	}
	return initialise(ctx, op, st, o)
}

func openStore(ctx context.Context, st store.Store, secret Secret) (*Repository, error) {
	op := "open repository " + st.Location()
	c, err := readConfig(ctx, st)
	if errors.Is(err, store.ErrNotExist) {
		return nil, notRepository(op, st.Location(), err)
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	r, err := newRepository(st, c)
	if err != nil {
		return nil, err
	}
	return r, r.unlock(ctx, op, secret)
}

// Close releases the repository. Operations must have ended.
func (r *Repository) Close() error { return r.store.Close() }

// ID is the repository's UUID.
func (r *Repository) ID() string { return r.config.ID }

// Location is where the repository lies.
func (r *Repository) Location() string { return r.store.Location() }

// ChunkSize is the size in bytes of the chunks that volumes are cut into.
func (r *Repository) ChunkSize() int64 { return r.config.ChunkSize }

// Encrypted tells whether what is stored is encrypted.
func (r *Repository) Encrypted() bool { return r.sealer != nil }

// seal is how the blobs of the repository are sealed.
func (r *Repository) seal() format.Seal {
	if r.sealer == nil {
		return format.Open
	}
	return format.AESGCM
}

// newReader returns a reader of chunks and nodes for one goroutine.
func (r *Repository) newReader() (*pack.Reader, error) {
	return pack.NewReader(r.store, r.hash, r.sealer, int(max(r.config.ChunkSize, format.MaxNode)))
}

// readText reads a whole text object within bounds.
func readText(ctx context.Context, st store.Store, name string) ([]byte, error) {
	size, err := st.Size(ctx, name)
	if err != nil {
		return nil, err
	}
	if size > format.MaxText+1024 {
		return nil, fmt.Errorf("%w: %s has %d bytes", format.ErrCorrupt, name, size)
	}
	body := make([]byte, size)
	return body, st.ReadAt(ctx, name, body, 0)
}

func putText(ctx context.Context, st store.Store, name string, mode store.Mode, kind string, v any) error {
	body, err := format.EncodeText(kind, v)
	if err != nil {
		return err
	}
	return putObject(ctx, st, name, mode, body)
}

func putObject(ctx context.Context, st store.Store, name string, mode store.Mode, body []byte) error {
	w, err := st.Create(ctx, name, mode)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(body); err != nil {
		return err
	}
	return w.Commit(ctx)
}

// sealedText is the body of a text object that is encrypted.
type sealedText struct {
	Sealed []byte `json:"sealed"`
}

// putSealed makes a new text object, encrypted where the repository is.
func (r *Repository) putSealed(ctx context.Context, name, kind string, v any) error {
	return r.putSealedAs(ctx, store.Exclusive, name, kind, v)
}

func (r *Repository) putSealedAs(ctx context.Context, mode store.Mode, name, kind string, v any) error {
	if r.sealer != nil {
		body, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("encode %s: %w", kind, err)
		}
		v = sealedText{r.sealer.SealText(kind, name, body)}
	}
	return putText(ctx, r.store, name, mode, kind, v)
}

// decodeSealed decodes a text object of this name into v.
func (r *Repository) decodeSealed(object []byte, kind, name string, v any) error {
	if r.sealer == nil {
		return format.DecodeText(object, kind, v)
	}
	var s sealedText
	if err := format.DecodeText(object, kind, &s); err != nil {
		return err
	}
	body, err := r.sealer.OpenText(kind, name, s.Sealed)
	if err != nil {
		return err
	}
	return format.DecodeBody(body, v)
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// some joins the first few of many names.
func some(names []string) string {
	const shown = 3
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}
