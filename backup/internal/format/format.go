// Package format encodes and decodes the objects of a repository. It knows no
// files and starts nothing: bytes in, values out. Every decoder takes hostile
// input; none allocates more than a small multiple of what it was given.
//
// All integers are little-endian. CRC32C is the Castagnoli polynomial.
package format

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
)

// ID names a pack, a repository or a running operation.
type ID [16]byte

// String is the ID in hex, as it stands in object names.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID is the inverse of String.
func ParseID(s string) (id ID, err error) {
	if len(s) != hex.EncodedLen(len(id)) {
		return id, fmt.Errorf("%w: id %.64q has not %d digits", ErrCorrupt, s, hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil || id.String() != s {
		return ID{}, fmt.Errorf("%w: id %q is not lower-case hex", ErrCorrupt, s)
	}
	return id, nil
}

// Hash names a chunk or node by its plaintext, as the repository's config says.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Errors of the decoders, for errors.Is.
var (
	ErrCorrupt = errors.New("object is damaged")
	// ErrTruncated is an ErrCorrupt whose object ends too early.
	ErrTruncated = fmt.Errorf("%w: it ends too early", ErrCorrupt)
	// ErrVersion is a good object that a newer program wrote.
	ErrVersion = errors.New("object has a newer format")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

func truncated(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrTruncated, fmt.Sprintf(format, args...))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc(parts ...[]byte) (sum uint32) {
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
	}
	return sum
}

// Kind tells chunks from table nodes.
type Kind uint8

// Kinds of blobs and of table entries. KindZero is an entry only: the bytes
// below it are all zero and nothing is stored.
const (
	KindZero  Kind = 0
	KindChunk Kind = 1
	KindNode  Kind = 2
)

// Codec tells how a blob's payload was made from its plaintext.
type Codec uint8

// Codecs. The payload of a raw blob is its plaintext.
const (
	Raw  Codec = 0
	Zstd Codec = 1
)

func (c Codec) String() string {
	switch c {
	case Raw:
		return "raw"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// ParseCodec is the inverse of String.
func ParseCodec(s string) (Codec, error) {
	switch s {
	case "raw":
		return Raw, nil
	case "zstd":
		return Zstd, nil
	}
	return 0, corrupt("codec %.32q is unknown", s)
}

// Seal tells how a blob's payload was encrypted.
type Seal uint8

// Seals. What AESGCM makes is package seal's.
const (
	Open   Seal = 0
	AESGCM Seal = 1
)

// SealOverhead is what AESGCM adds to a payload: nonce and tag.
const SealOverhead = 12 + 16

// overhead is what a payload has beside what its codec made.
func (s Seal) overhead() uint32 {
	if s == AESGCM {
		return SealOverhead
	}
	return 0
}

func (s Seal) String() string {
	switch s {
	case Open:
		return "none"
	case AESGCM:
		return "aes-256-gcm"
	}
	return fmt.Sprintf("seal %d", uint8(s))
}

// ParseSeal is the inverse of String. The empty text is Open, too.
func ParseSeal(s string) (Seal, error) {
	switch s {
	case "", "none":
		return Open, nil
	case "aes-256-gcm":
		return AESGCM, nil
	}
	return 0, corrupt("seal %.32q is unknown", s)
}

// checkSeal refuses the seals of newer programs.
func checkSeal(s Seal) error {
	if s != Open && s != AESGCM {
		return fmt.Errorf("%w: %v is unknown", ErrVersion, s)
	}
	return nil
}

// Bounds that readers hold writers to.
const (
	MinChunk = 64 << 10
	MaxChunk = 16 << 20
	// PackSize is where writers close a pack; MaxPack bounds one, with the
	// largest chunk, the directory and much room.
	PackSize = 32 << 20
	MaxPack  = 128 << 20
	// MaxBlobs bounds the blobs of a pack. It is more than any writer has put into
	// one: so many of a single byte make it close the pack.
	MaxBlobs = PackSize/(BlobHeaderSize+1) + 1
	// MaxText bounds the body of a text object.
	MaxText = 16 << 20
)

// Ref is where a chunk or node lies and what it must be. The zero Ref stands
// for zeroes.
type Ref struct {
	Hash   Hash
	Pack   ID
	Offset uint32 // of the blob's header in the pack
	Stored uint32 // bytes of payload after the header
	Length uint32 // bytes of plaintext
	Kind   Kind
	Codec  Codec
	Seal   Seal
}

// IsZero tells whether the Ref stands for zeroes.
func (r Ref) IsZero() bool { return r.Kind == KindZero }

// check bounds the lengths so that a reader can allocate by them.
func (r Ref) check(max uint32) error {
	made := r.Stored - r.Seal.overhead() // by the codec
	switch {
	case r.Kind != KindChunk && r.Kind != KindNode:
		return corrupt("blob kind %d is unknown", r.Kind)
	case r.Codec != Raw && r.Codec != Zstd:
		return corrupt("%v is unknown", r.Codec)
	case r.Length == 0 || r.Length > max:
		return corrupt("length %d is not between 1 and %d", r.Length, max)
	case r.Stored < r.Seal.overhead():
		return corrupt("payload of %d bytes is less than its seal", r.Stored)
	case r.Codec == Raw && made != r.Length:
		return corrupt("raw payload of %d bytes for %d bytes", made, r.Length)
	case r.Codec != Raw && (made == 0 || made >= r.Length):
		return corrupt("%v payload of %d bytes for %d bytes", r.Codec, made, r.Length)
	case uint64(r.Offset)+BlobHeaderSize+uint64(r.Stored) > MaxPack:
		return corrupt("offset %d is outside a pack", r.Offset)
	}
	return nil
}
