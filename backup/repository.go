package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
)

// DefaultChunkSize is the chunk size of a new repository in bytes.
const DefaultChunkSize = 1 << 20

const configName = "config"

// config is the text object that makes a store a repository.
type config struct {
	ID         string `json:"id"` // UUID
	Created    moment `json:"created"`
	ChunkSize  int64  `json:"chunk_size"`
	Hash       string `json:"hash"`
	Encryption string `json:"encryption"`
	// Features lists what a reader must know beyond the version. A reader
	// refuses a repository with a feature that it does not know.
	Features bounded[string] `json:"features"`
}

// Repository is an open repository. Its methods may be called concurrently, also
// by several processes on the same location. Close it when done.
type Repository struct {
	store  store.Store
	config config
	id     format.ID

	// Tests make these predictable.
	now      func() time.Time
	newID    func() format.ID
	packSize int64
}

// Init makes a repository at location, a path or file:// URL. The folder may be
// there already when it is empty; a repository is never overwritten.
func Init(ctx context.Context, location string, o InitOptions) (*Repository, error) {
	op := "initialise repository " + location
	path, err := folderPath(op, location)
	if err != nil {
		return nil, err
	}
	st, err := store.MakeFolder(path)
	if err != nil {
		return nil, wrap(op, err)
	}
	r, err := initStore(ctx, st, o)
	if err != nil {
		st.Close()
		return nil, err
	}
	return r, nil
}

// Open opens the repository at location, a path or file:// URL.
func Open(ctx context.Context, location string) (*Repository, error) {
	op := "open repository " + location
	path, err := folderPath(op, location)
	if err != nil {
		return nil, err
	}
	st, err := store.OpenFolder(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notRepository(op, location, err)
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	r, err := openStore(ctx, st)
	if err != nil {
		st.Close()
		return nil, err
	}
	return r, nil
}

func folderPath(op, location string) (string, error) {
	path, err := store.FolderPath(location)
	if err != nil {
		return "", &Error{Kind: ErrUnsupported, Op: op, Err: err,
			Remedy: "name a folder, as a path or as file:///path"}
	}
	return path, nil
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
	c := config{ID: uuid.NewString(), Created: moment{time.Now().UTC()}, ChunkSize: o.ChunkSize,
		Hash: "sha256", Encryption: "none", Features: bounded[string]{}}
	err = putText(ctx, st, configName, store.Exclusive, format.TextConfig, c)
	if errors.Is(err, store.ErrExist) {
		return nil, &Error{Kind: ErrExists, Op: op, Remedy: "use it as it is, or choose another folder"}
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	return newRepository(st, c)
}

func openStore(ctx context.Context, st store.Store) (*Repository, error) {
	op := "open repository " + st.Location()
	c, err := readConfig(ctx, st)
	if errors.Is(err, store.ErrNotExist) {
		return nil, notRepository(op, st.Location(), err)
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	if c.Encryption != "none" || c.Hash != "sha256" || len(c.Features) > 0 {
		return nil, &Error{Kind: ErrVersion, Op: op, Remedy: "open it with a newer swapback",
			Detail: fmt.Sprintf("it uses encryption %.80q, hash %.80q, features %.200q", c.Encryption, c.Hash, some(c.Features))}
	}
	return newRepository(st, c)
}

func newRepository(st store.Store, c config) (*Repository, error) {
	op := "open repository " + st.Location()
	id, err := uuid.Parse(c.ID)
	if err != nil {
		return nil, &Error{Kind: ErrDamaged, Op: op, Object: configName, Err: err}
	}
	c.ID = id.String() // of the forms that can be read, the one to show
	if _, err := format.ShapeOf(1, c.ChunkSize); err != nil {
		return nil, &Error{Kind: ErrDamaged, Op: op, Object: configName, Err: err}
	}
	return &Repository{store: st, config: c, id: format.ID(id),
		now: time.Now, newID: pack.NewID, packSize: format.PackSize}, nil
}

// readConfig reads the config. An object in its place that was never one counts
// as not there.
func readConfig(ctx context.Context, st store.Store) (c config, err error) {
	body, err := readText(ctx, st, configName)
	if err != nil {
		return c, err
	}
	if !strings.HasPrefix(string(body), "swapback-") {
		return c, fmt.Errorf("%s is not swapback's: %w", configName, store.ErrNotExist)
	}
	err = format.DecodeText(body, format.TextConfig, &c)
	return c, err
}

// Close releases the repository. Operations must have ended.
func (r *Repository) Close() error { return r.store.Close() }

// ID is the repository's UUID.
func (r *Repository) ID() string { return r.config.ID }

// Location is where the repository lies.
func (r *Repository) Location() string { return r.store.Location() }

// ChunkSize is the size in bytes of the chunks that volumes are cut into.
func (r *Repository) ChunkSize() int64 { return r.config.ChunkSize }

func (r *Repository) hash(p []byte) format.Hash { return sha256.Sum256(p) }

// newReader returns a reader of chunks and nodes for one goroutine.
func (r *Repository) newReader() (*pack.Reader, error) {
	return pack.NewReader(r.store, r.hash, int(max(r.config.ChunkSize, format.MaxNode)))
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
	w, err := st.Create(ctx, name, mode)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := io.Copy(w, strings.NewReader(string(body))); err != nil {
		return err
	}
	return w.Commit(ctx)
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
