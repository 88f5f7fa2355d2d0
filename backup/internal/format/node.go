package format

import "fmt"

// A volume's table is a tree. A node is up to Fanout entries and is stored as a
// blob; a node of level 1 names chunks, a node of level n+1 names nodes of level
// n. A volume of S bytes has ceil(S / chunk size) chunks, every 1024 of them a
// node of level 1, every 1024 of those a node of level 2, up to one root, which
// the manifest names. All nodes are full except the last of each level. Nothing
// about the shape is stored: it follows from the size.
//
// An entry that is all zero stands for zeroes, at any level. Two backups share a
// subtree by carrying the same entry.
//
// Entry:
//
//	offset  bytes  field
//	     0     32  hash of the plaintext
//	    32     16  pack id
//	    48      4  offset of the blob header in the pack
//	    52      4  bytes of payload
//	    56      4  bytes of plaintext
//	    60      1  kind: 0 zeroes, 1 chunk, 2 node
//	    61      1  codec
//	    62      1  seal: 0 none, 1 AES-256-GCM
//	    63      1  zero
const (
	EntrySize = 64
	Fanout    = 1024
	// MaxNode is the size of a full node.
	MaxNode = Fanout * EntrySize
)

// MaxVolume, 8 PiB, bounds a volume's size so that no span of a shape overflows.
const MaxVolume = 1 << 53

// Shape is the form of a table.
type Shape struct {
	Size      int64
	ChunkSize int64
	// Levels of nodes, at least 1. The root is the only node of the last.
	Levels int
}

// ShapeOf returns the shape of the table of a volume of size bytes.
func ShapeOf(size, chunkSize int64) (Shape, error) {
	if chunkSize < MinChunk || chunkSize > MaxChunk || chunkSize&(chunkSize-1) != 0 {
		return Shape{}, corrupt("chunk size %d is not a power of two between %d and %d", chunkSize, MinChunk, MaxChunk)
	}
	if size <= 0 || size > MaxVolume {
		return Shape{}, corrupt("volume size %d is not between 1 and %d", size, int64(MaxVolume))
	}
	s := Shape{Size: size, ChunkSize: chunkSize, Levels: 1}
	for s.Span(s.Levels) < size {
		s.Levels++
	}
	return s, nil
}

// Span is the number of bytes below a full node of the level; level 0 is a
// chunk. It does not overflow for levels up to the root's.
func (s Shape) Span(level int) int64 {
	span := s.ChunkSize
	for range level {
		span *= Fanout
	}
	return span
}

// Chunks is the number of chunks of the volume.
func (s Shape) Chunks() int64 { return (s.Size + s.ChunkSize - 1) / s.ChunkSize }

// Entries is the number of entries of the node of the level at offset.
func (s Shape) Entries(level int, offset int64) int {
	below := s.Span(level - 1)
	return int(min((s.Size-offset+below-1)/below, Fanout))
}

// Length is the plaintext length that an entry of a node of the level must
// have, where offset is the first byte below the entry.
func (s Shape) Length(level int, offset int64) uint32 {
	if level == 1 {
		return uint32(min(s.Size-offset, s.ChunkSize))
	}
	return uint32(s.Entries(level-1, offset) * EntrySize)
}

// Covers is the number of bytes of the volume below an entry of a node of the
// level at offset.
func (s Shape) Covers(level int, offset int64) int64 {
	return min(s.Size-offset, s.Span(level-1))
}

// AppendEntry appends an encoded entry to b.
func AppendEntry(b []byte, r Ref) []byte {
	var e [EntrySize]byte
	if !r.IsZero() {
		copy(e[:], r.Hash[:])
		copy(e[32:], r.Pack[:])
		le.PutUint32(e[48:], r.Offset)
		le.PutUint32(e[52:], r.Stored)
		le.PutUint32(e[56:], r.Length)
		e[60], e[61], e[62] = byte(r.Kind), byte(r.Codec), byte(r.Seal)
	}
	return append(b, e[:]...)
}

// DecodeNode decodes the node of the level that begins at offset of the volume
// and calls f for every entry with the entry's own offset. The entries that f
// sees have the kind and the length that the shape demands. An error of f ends
// the walk and is returned.
func (s Shape) DecodeNode(node []byte, level int, offset int64, f func(offset int64, r Ref) error) error {
	if want := s.Entries(level, offset) * EntrySize; len(node) != want {
		return corrupt("a table node of %d bytes has %d", want, len(node))
	}
	for i := 0; i < len(node); i += EntrySize {
		r, err := s.decodeEntry(node[i:i+EntrySize], level, offset)
		if err != nil {
			return fmt.Errorf("table entry for byte %d: %w", offset, err)
		}
		if err := f(offset, r); err != nil {
			return err
		}
		offset += s.Span(level - 1)
	}
	return nil
}

// Entry decodes the one entry of a node, as DecodeNode takes it, below which the
// byte at of the volume lies. It returns the entry and its own offset. The node's
// length must have been checked.
func (s Shape) Entry(node []byte, level int, offset, at int64) (r Ref, entry int64, err error) {
	i := (at - offset) / s.Span(level-1)
	entry = offset + i*s.Span(level-1)
	r, err = s.decodeEntry(node[i*EntrySize:][:EntrySize], level, entry)
	return r, entry, err
}

func (s Shape) decodeEntry(e []byte, level int, offset int64) (r Ref, err error) {
	if Kind(e[60]) == KindZero {
		for _, b := range e {
			if b != 0 {
				return r, corrupt("an entry for zeroes is not all zero")
			}
		}
		return r, nil
	}
	copy(r.Hash[:], e)
	copy(r.Pack[:], e[32:])
	r.Offset, r.Stored, r.Length = le.Uint32(e[48:]), le.Uint32(e[52:]), le.Uint32(e[56:])
	r.Kind, r.Codec, r.Seal = Kind(e[60]), Codec(e[61]), Seal(e[62])
	if err := checkSeal(r.Seal); err != nil {
		return r, err
	}
	return r, s.CheckEntry(r, level, offset)
}

// CheckEntry checks that a Ref that is not zero can be the entry at offset of a
// node of the level. The root is the only entry of a node of level Levels+1.
func (s Shape) CheckEntry(r Ref, level int, offset int64) error {
	want := KindNode
	if level == 1 {
		want = KindChunk
	}
	if r.Kind != want {
		return corrupt("kind %d where %d belongs", r.Kind, want)
	}
	if length := s.Length(level, offset); r.Length != length {
		return corrupt("length %d where %d belongs", r.Length, length)
	}
	return r.check(MaxChunk)
}
