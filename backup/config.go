package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/keyslot"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/seal"
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
	// HashKey is what chunks are named with where nothing is encrypted, in hex.
	HashKey string `json:"hash_key,omitempty"`
	// Features lists what a reader must know beyond the version. A reader
	// refuses a repository with a feature that it does not know.
	Features bounded[string] `json:"features"`
}

// Values of Hash and Encryption.
const (
	hashSHA256 = "sha256" // of repositories that the first version made
	hashBLAKE3 = "blake3-keyed"

	encryptionNone = "none"
	encryptionAES  = "aes-256-gcm"
)

// vouched is what a key vouches for, see package keyslot.
func (c config) vouched() (keyslot.Config, error) {
	return json.Marshal(struct {
		ID         string   `json:"id"`
		ChunkSize  int64    `json:"chunk_size"`
		Hash       string   `json:"hash"`
		Encryption string   `json:"encryption"`
		Features   []string `json:"features"`
	}{c.ID, c.ChunkSize, c.Hash, c.Encryption, append([]string{}, c.Features...)}) // an empty list is not null
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

// initialise makes the store a repository. The keys come before the config, which
// makes it one: what a crash leaves between the two is no repository.
func initialise(ctx context.Context, op string, st store.Store, o InitOptions) (*Repository, error) {
	c := config{ID: uuid.NewString(), Created: moment{time.Now().UTC()}, ChunkSize: o.ChunkSize,
		Hash: hashBLAKE3, Encryption: encryptionNone, Features: bounded[string]{}}
	encrypted := !o.Secret.empty() || o.Secret.Ask != nil || len(o.Recipients) > 0
	master := seal.NewKey()
	if encrypted {
		c.Encryption = encryptionAES
	} else {
		c.HashKey = hex.EncodeToString(master[:])
	}
	r, err := newRepository(st, c)
	if err != nil {
		return nil, err
	}
	if encrypted {
		if err := r.setMaster(master); err != nil {
			return nil, wrap(op, err)
		}
		if err := r.firstKeys(ctx, op, o); err != nil {
			return nil, wrap(op, err)
		}
	}
	err = putText(ctx, st, configName, store.Exclusive, format.TextConfig, c)
	if errors.Is(err, store.ErrExist) {
		return nil, &Error{Kind: ErrExists, Op: op, Remedy: "use it as it is, or choose another folder"}
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	return r, nil
}

// newRepository makes a repository of what its config says. One that is encrypted
// has no key yet.
func newRepository(st store.Store, c config) (*Repository, error) {
	op := "open repository " + st.Location()
	known := c.Hash == hashSHA256 && c.Encryption == encryptionNone ||
		c.Hash == hashBLAKE3 && (c.Encryption == encryptionNone || c.Encryption == encryptionAES)
	if !known || len(c.Features) > 0 {
		return nil, &Error{Kind: ErrVersion, Op: op, Remedy: "open it with a newer swapback",
			Detail: fmt.Sprintf("it uses encryption %.80q, hash %.80q, features %.200q", c.Encryption, c.Hash, some(c.Features))}
	}
	damaged := func(err error) error { return &Error{Kind: ErrDamaged, Op: op, Object: configName, Err: err} }
	id, err := uuid.Parse(c.ID)
	if err != nil {
		return nil, damaged(err)
	}
	c.ID = id.String() // of the forms that can be read, the one to show
	if _, err := format.ShapeOf(1, c.ChunkSize); err != nil {
		return nil, damaged(err)
	}
	r := &Repository{store: st, config: c, id: format.ID(id),
		now: time.Now, newID: pack.NewID, packSize: format.PackSize}
	switch {
	case c.Hash == hashSHA256:
		r.hash = func(p []byte) format.Hash { return sha256.Sum256(p) }
	case c.Encryption == encryptionNone:
		b, err := hex.DecodeString(c.HashKey)
		if err != nil {
			return nil, damaged(fmt.Errorf("hash key %.80q: %w", c.HashKey, err))
		}
		k, err := seal.ParseKey(b)
		if err != nil {
			return nil, damaged(fmt.Errorf("hash key %.80q: %w", c.HashKey, err))
		}
		r.hash = seal.NewNamer(k).Name
	}
	return r, nil
}

// setMaster gives an encrypted repository its key.
func (r *Repository) setMaster(master seal.Key) error {
	s, name, err := seal.Derive(master)
	if err != nil {
		return err
	}
	r.master, r.sealer, r.hash = &master, s, seal.NewNamer(name).Name
	return nil
}
