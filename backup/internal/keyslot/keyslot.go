// Package keyslot wraps the master key of a repository: by a passphrase, or for
// the holder of an age identity. A repository has any number of slots, each an
// object; whoever opens one has the master key.
//
// What is wrapped is not the key alone but all that a client believes before it
// has a key: a repository whose config was changed, to one without encryption for
// instance, does not open.
package keyslot

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/argon2"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/seal"
)

// Kinds of slots.
const (
	Passphrase = "passphrase"
	Age        = "age"
)

// Errors, for errors.Is.
var (
	// ErrNoMatch is a secret that does not open the slot.
	ErrNoMatch = errors.New("the secret does not open this key")
	// ErrConfig is a slot that was made for a repository with another config.
	ErrConfig = errors.New("the repository's config is not the one that this key was made for")
)

// Slot is the body of a key's text object.
type Slot struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Created time.Time `json:"created"`
	// Label is a person's word for it. It is not secret.
	Label string `json:"label,omitempty"`
	// Recipient is the age recipient, "age1…".
	Recipient string  `json:"recipient,omitempty"`
	Argon2    *Argon2 `json:"argon2,omitempty"`
	// Box is what is wrapped: for a passphrase nonce, AES-256-GCM ciphertext and
	// tag; for age an age file.
	Box []byte `json:"box"`
}

// Argon2 is how a passphrase becomes a key, by argon2id (RFC 9106).
type Argon2 struct {
	Time    uint32 `json:"time"`
	Memory  uint32 `json:"memory_kib"`
	Threads uint8  `json:"threads"`
	Salt    []byte `json:"salt"`
}

// argon is the second choice of RFC 9106, section 4, for memory that is scarce.
// A machine that has to be recovered should be able to open its backups.
var argon = Argon2{Time: 3, Memory: 64 << 10, Threads: 4}

// Bounds on what a slot may ask for: a repository may have been made by somebody
// who wants to do harm.
const (
	maxTime   = 16
	maxMemory = 256 << 10 // KiB
	maxBox    = 64 << 10
	maxLabel  = 256
)

func (a *Argon2) check() error {
	switch {
	case a == nil:
		return fmt.Errorf("%w: a passphrase's key has no parameters", format.ErrCorrupt)
	case a.Time < 1 || a.Time > maxTime || a.Memory < 8<<10 || a.Memory > maxMemory || a.Threads < 1 || a.Threads > 64:
		return fmt.Errorf("%w: argon2id with time %d, memory %d KiB, %d threads", format.ErrCorrupt, a.Time, a.Memory, a.Threads)
	case len(a.Salt) < 16 || len(a.Salt) > 64:
		return fmt.Errorf("%w: a salt of %d bytes", format.ErrCorrupt, len(a.Salt))
	}
	return nil
}

// Check checks a decoded slot as far as that needs no secret.
func (s *Slot) Check() error {
	if len(s.Box) > maxBox || len(s.Label) > maxLabel || len(s.Recipient) > maxLabel {
		return fmt.Errorf("%w: key %.64q is too large", format.ErrCorrupt, s.ID)
	}
	switch s.Kind {
	case Passphrase:
		return s.Argon2.check()
	case Age:
		return nil
	}
	return fmt.Errorf("%w: key kind %.64q is unknown", format.ErrVersion, s.Kind)
}

// wrapped is what a box holds.
type wrapped struct {
	Master []byte          `json:"master"`
	Config json.RawMessage `json:"config"`
}

// Config is what of a repository's config a slot vouches for, in the encoding
// that is compared.
type Config []byte

func encode(master seal.Key, c Config) ([]byte, error) {
	return json.Marshal(wrapped{master[:], json.RawMessage(c)})
}

func decode(p []byte, c Config) (seal.Key, error) {
	var w wrapped
	if err := json.Unmarshal(p, &w); err != nil {
		return seal.Key{}, fmt.Errorf("%w: what the key wraps can't be decoded", format.ErrCorrupt)
	}
	if !bytes.Equal(w.Config, c) {
		return seal.Key{}, ErrConfig
	}
	return seal.ParseKey(w.Master)
}

// ForPassphrase fills the slot in: it wraps the master key by a passphrase.
func (s *Slot) ForPassphrase(passphrase []byte, master seal.Key, c Config) error {
	a := argon
	a.Salt = make([]byte, 16)
	rand.Read(a.Salt)
	s.Kind, s.Argon2 = Passphrase, &a
	p, err := encode(master, c)
	if err != nil {
		return err
	}
	aead, err := s.passphraseKey(passphrase)
	if err != nil {
		return err
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	s.Box = aead.Seal(nonce, nonce, p, []byte(s.ID))
	return nil
}

func (s *Slot) passphraseKey(passphrase []byte) (cipher.AEAD, error) {
	a := s.Argon2
	block, err := aes.NewCipher(argon2.IDKey(passphrase, a.Salt, a.Time, a.Memory, a.Threads, 32))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// ForRecipient fills the slot in: it wraps the master key for the holder of the
// identity of an age recipient.
func (s *Slot) ForRecipient(recipient string, master seal.Key, c Config) error {
	r, err := age.ParseRecipients(bytes.NewReader([]byte(recipient)))
	if err != nil {
		return fmt.Errorf("age recipient %.80q: %w", recipient, err)
	}
	if len(r) != 1 {
		return fmt.Errorf("age recipient %.80q: %d recipients, want one for a key", recipient, len(r))
	}
	p, err := encode(master, c)
	if err != nil {
		return err
	}
	var box bytes.Buffer
	w, err := age.Encrypt(&box, r...)
	if err != nil {
		return err
	}
	if _, err := w.Write(p); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	s.Kind, s.Recipient, s.Box = Age, recipient, box.Bytes()
	return nil
}

// OpenPassphrase returns the master key. ErrNoMatch says that it is another
// passphrase's. The slot must have passed Check.
func (s *Slot) OpenPassphrase(passphrase []byte, c Config) (master seal.Key, err error) {
	aead, err := s.passphraseKey(passphrase)
	if err != nil {
		return master, err
	}
	n := aead.NonceSize()
	if len(s.Box) < n {
		return master, fmt.Errorf("%w: a box of %d bytes", format.ErrCorrupt, len(s.Box))
	}
	p, err := aead.Open(nil, s.Box[:n], s.Box[n:], []byte(s.ID))
	if err != nil {
		return master, ErrNoMatch
	}
	return decode(p, c)
}

// OpenIdentities is OpenPassphrase for age identities.
func (s *Slot) OpenIdentities(ids []age.Identity, c Config) (master seal.Key, err error) {
	r, err := age.Decrypt(bytes.NewReader(s.Box), ids...)
	if err != nil {
		if none := new(age.NoIdentityMatchError); errors.As(err, &none) {
			return master, ErrNoMatch
		}
		return master, fmt.Errorf("%w: age: %.200v", format.ErrCorrupt, err)
	}
	p, err := io.ReadAll(io.LimitReader(r, maxBox))
	if err != nil {
		return master, fmt.Errorf("%w: age: %.200v", format.ErrCorrupt, err)
	}
	return decode(p, c)
}
