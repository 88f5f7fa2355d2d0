// Package seal names and encrypts what a repository stores.
//
// All keys come from one master key of 32 random bytes, by HKDF-SHA-256 (RFC
// 5869) with the infos that are constants below. A chunk's name is the BLAKE3
// keyed hash of its plaintext: without the key nobody can tell whether a file that
// he knows is in the repository.
//
// Every blob is encrypted with AES-256-GCM under a key of its own, derived from
// its name, and a random nonce. No number of blobs wears a key out: the same key
// is used again only for the same plaintext. What stands around the payload, the
// name among it, is authenticated with it.
//
// A sealed payload:
//
//	bytes  field
//	   12  nonce
//	    …  ciphertext of what the codec made of the plaintext
//	   16  tag
//
// Text objects are sealed the same way under one key, with the object's kind and
// name authenticated: nobody can pass one backup off as another.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/swapback/swapback/backup/internal/format"
)

const (
	nonceSize = 12
	// Overhead is what a sealed payload has more than what was sealed.
	Overhead = format.SealOverhead

	infoHash = "swapback chunk name v1"
	infoBlob = "swapback blob v1"
	infoText = "swapback text v1"
)

// Key is a master key, or a key that chunks are named by.
type Key [32]byte

// NewKey returns a random key.
func NewKey() (k Key) {
	rand.Read(k[:]) // never fails
	return k
}

// ErrSeal says that what was sealed has been changed, or was sealed with another
// key. It is a format.ErrCorrupt.
var ErrSeal = fmt.Errorf("%w: it was changed, or sealed with another key", format.ErrCorrupt)

// Sealer encrypts and decrypts. It is safe for concurrent use.
type Sealer struct {
	blob Key
	text cipher.AEAD
}

// Derive makes a repository's Sealer and the key of its Namer from its master key.
func Derive(master Key) (*Sealer, Key, error) {
	var s Sealer
	var name, text Key
	for _, d := range []struct {
		to   *Key
		info string
	}{{&name, infoHash}, {&s.blob, infoBlob}, {&text, infoText}} {
		k, err := hkdf.Expand(sha256.New, master[:], d.info, len(d.to))
		if err != nil {
			return nil, name, err
		}
		copy(d.to[:], k)
	}
	var err error
	s.text, err = gcm(text[:])
	return &s, name, err
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (s *Sealer) of(ref format.Ref) (cipher.AEAD, error) {
	key, err := hkdf.Expand(sha256.New, s.blob[:], string(ref.Hash[:]), len(s.blob))
	if err != nil {
		return nil, err
	}
	return gcm(key)
}

// Seal encrypts a payload and returns it sealed in dst's memory, which has room
// for Overhead bytes more than the payload. The payload may lie at [Room] of dst.
// Of ref it uses Kind, Codec, Length and Hash.
func (s *Sealer) Seal(dst []byte, ref format.Ref, payload []byte) ([]byte, error) {
	aead, err := s.of(ref)
	if err != nil {
		return nil, err
	}
	dst = dst[:nonceSize]
	rand.Read(dst)
	return aead.Seal(dst, dst, payload, ref.Bound(len(payload)+Overhead)), nil
}

// Room is the part of dst in which a payload is sealed without being moved.
func Room(dst []byte) []byte { return dst[nonceSize:nonceSize] }

// Open decrypts a sealed payload in place and returns what was sealed. An
// [ErrSeal] says that it is not what ref names.
func (s *Sealer) Open(ref format.Ref, payload []byte) ([]byte, error) {
	aead, err := s.of(ref)
	if err != nil {
		return nil, err
	}
	return open(aead, payload, ref.Bound(len(payload)))
}

func open(aead cipher.AEAD, sealed, bound []byte) ([]byte, error) {
	if len(sealed) < Overhead {
		return nil, ErrSeal
	}
	nonce, box := sealed[:nonceSize], sealed[nonceSize:]
	p, err := aead.Open(box[:0], nonce, box, bound)
	if err != nil {
		return nil, ErrSeal
	}
	return p, nil
}

// SealText encrypts the body of the text object of this kind and name.
func (s *Sealer) SealText(kind, name string, body []byte) []byte {
	nonce := make([]byte, nonceSize, len(body)+Overhead)
	rand.Read(nonce)
	return s.text.Seal(nonce, nonce, body, textBound(kind, name))
}

// OpenText is the inverse of SealText.
func (s *Sealer) OpenText(kind, name string, sealed []byte) ([]byte, error) {
	return open(s.text, sealed, textBound(kind, name))
}

func textBound(kind, name string) []byte { return []byte(kind + "\x00" + name) }

// ErrKey says that a key is no master key.
var ErrKey = errors.New("not a key of 32 bytes")

// ParseKey makes a Key of its bytes.
func ParseKey(p []byte) (k Key, err error) {
	if len(p) != len(k) {
		return k, ErrKey
	}
	return Key(p), nil
}
