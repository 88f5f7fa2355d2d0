package format

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A pack is a header, blobs, a directory of the blobs, and a footer. Reading one
// blob takes its place from the table and nothing else; the directory serves
// checks and rescue, and blobs can be found without it by walking from header to
// header.
//
// Pack header:
//
//	offset  bytes  field
//	     0      8  "SWBKPACK"
//	     8      2  version, 1
//	    10      1  kind of its blobs: 1 chunks, 2 nodes
//	    11      5  zero
//	    16     16  pack id
//	    32     16  repository id
//	    48     16  id of the operation (lease) that wrote it
//	    64     12  zero
//	    76      4  CRC32C of bytes 0–75
//
// Blob header, followed by the payload:
//
//	offset  bytes  field
//	     0      4  "BLOB"
//	     4      1  kind: 1 chunk, 2 node
//	     5      1  codec: 0 raw, 1 zstd
//	     6      1  seal: 0 none, 1 AES-256-GCM
//	     7      1  zero
//	     8      4  bytes of payload
//	    12      4  bytes of plaintext
//	    16     32  hash of the plaintext
//	    48     12  zero
//	    60      4  CRC32C of bytes 0–59 and the payload
//
// Directory entry, in the order of the blobs:
//
//	offset  bytes  field
//	     0     32  hash
//	    32      4  offset of the blob header in the pack
//	    36      4  bytes of payload
//	    40      4  bytes of plaintext
//	    44      1  kind
//	    45      1  codec
//	    46      1  seal
//	    47      1  zero
//
// Footer, the last 64 bytes of the object:
//
//	offset  bytes  field
//	     0      8  "SWBKTAIL"
//	     8      2  version, 1
//	    10      2  zero
//	    12      4  number of directory entries
//	    16      4  offset of the directory
//	    20      4  bytes of the whole pack
//	    24     16  pack id
//	    40     16  zero
//	    56      4  CRC32C of the directory
//	    60      4  CRC32C of bytes 0–59
const (
	PackHeaderSize = 80
	BlobHeaderSize = 64
	DirEntrySize   = 48
	FooterSize     = 64

	packVersion = 1
	packMagic   = "SWBKPACK"
	blobMagic   = "BLOB"
	tailMagic   = "SWBKTAIL"
)

var le = binary.LittleEndian

// PackHeader begins a pack.
type PackHeader struct {
	Kind       Kind
	Pack       ID
	Repository ID
	Session    ID
}

// AppendPackHeader appends the encoded header to b.
func AppendPackHeader(b []byte, h PackHeader) []byte {
	var p [PackHeaderSize]byte
	copy(p[:], packMagic)
	le.PutUint16(p[8:], packVersion)
	p[10] = byte(h.Kind)
	copy(p[16:], h.Pack[:])
	copy(p[32:], h.Repository[:])
	copy(p[48:], h.Session[:])
	le.PutUint32(p[76:], crc(p[:76]))
	return append(b, p[:]...)
}

// DecodePackHeader decodes the first PackHeaderSize bytes of a pack.
func DecodePackHeader(p []byte) (h PackHeader, err error) {
	if len(p) < PackHeaderSize {
		return h, truncated("%d bytes are less than a pack header", len(p))
	}
	p = p[:PackHeaderSize]
	if string(p[:8]) != packMagic {
		return h, corrupt("it does not begin with %q", packMagic)
	}
	if le.Uint32(p[76:]) != crc(p[:76]) {
		return h, corrupt("checksum of the pack header does not match")
	}
	if err := checkVersion("pack", le.Uint16(p[8:])); err != nil {
		return h, err
	}
	h.Kind = Kind(p[10])
	if h.Kind != KindChunk && h.Kind != KindNode {
		return h, corrupt("pack kind %d is unknown", h.Kind)
	}
	copy(h.Pack[:], p[16:])
	copy(h.Repository[:], p[32:])
	copy(h.Session[:], p[48:])
	return h, nil
}

func checkVersion(what string, v uint16) error {
	switch {
	case v == 0:
		return corrupt("%s version 0", what)
	case v > packVersion:
		return fmt.Errorf("%w: %s version %d, this program reads up to %d", ErrVersion, what, v, packVersion)
	}
	return nil
}

// PutBlobHeader writes the header of a blob with this payload to p, which has
// BlobHeaderSize bytes. Of r it uses Kind, Codec, Seal, Length and Hash.
func PutBlobHeader(p []byte, r Ref, payload []byte) {
	p = p[:BlobHeaderSize]
	copy(p, r.Bound(len(payload)))
	le.PutUint32(p[60:], crc(p[:60], payload))
}

// Bound is the header of a blob with so many bytes of payload, without the CRC at
// its end: what is authenticated with the payload where that is encrypted.
func (r Ref) Bound(stored int) []byte {
	p := make([]byte, BlobHeaderSize-4)
	copy(p, blobMagic)
	p[4], p[5], p[6] = byte(r.Kind), byte(r.Codec), byte(r.Seal)
	le.PutUint32(p[8:], uint32(stored))
	le.PutUint32(p[12:], r.Length)
	copy(p[16:], r.Hash[:])
	return p
}

// DecodeBlobHeader decodes a blob header. The CRC is not checked: it needs the
// payload, see CheckBlob. The returned Ref has no Pack and no Offset.
func DecodeBlobHeader(p []byte) (r Ref, err error) {
	if len(p) < BlobHeaderSize {
		return r, truncated("%d bytes are less than a blob header", len(p))
	}
	if string(p[:4]) != blobMagic {
		return r, corrupt("no blob begins here")
	}
	r.Kind, r.Codec, r.Seal = Kind(p[4]), Codec(p[5]), Seal(p[6])
	if err := checkSeal(r.Seal); err != nil {
		return r, err
	}
	r.Stored, r.Length = le.Uint32(p[8:]), le.Uint32(p[12:])
	copy(r.Hash[:], p[16:])
	return r, r.check(MaxChunk)
}

// CheckBlob checks that blob, a header and its payload as read from a pack, is
// the blob that want describes, undamaged, and returns the payload.
func CheckBlob(blob []byte, want Ref) (payload []byte, err error) {
	if uint64(len(blob)) < BlobHeaderSize+uint64(want.Stored) {
		return nil, truncated("%d of %d bytes of the blob are there", len(blob), BlobHeaderSize+uint64(want.Stored))
	}
	blob = blob[:BlobHeaderSize+int(want.Stored)]
	payload = blob[BlobHeaderSize:]
	if string(blob[:4]) != blobMagic {
		return nil, corrupt("no blob begins at offset %d", want.Offset)
	}
	if le.Uint32(blob[60:]) != crc(blob[:60], payload) {
		return nil, corrupt("checksum of the blob at offset %d does not match", want.Offset)
	}
	got, err := DecodeBlobHeader(blob)
	if err != nil {
		return nil, err
	}
	got.Pack, got.Offset = want.Pack, want.Offset
	if got != want {
		return nil, corrupt("the blob at offset %d is another one than the table names", want.Offset)
	}
	return payload, nil
}

// AppendDirectory appends the directory and the footer of a pack whose blobs
// end at offset end.
func AppendDirectory(b []byte, id ID, end uint32, refs []Ref) []byte {
	start := len(b)
	for i := range refs {
		var e [DirEntrySize]byte
		r := &refs[i]
		copy(e[:], r.Hash[:])
		le.PutUint32(e[32:], r.Offset)
		le.PutUint32(e[36:], r.Stored)
		le.PutUint32(e[40:], r.Length)
		e[44], e[45], e[46] = byte(r.Kind), byte(r.Codec), byte(r.Seal)
		b = append(b, e[:]...)
	}
	dir := b[start:]
	var f [FooterSize]byte
	copy(f[:], tailMagic)
	le.PutUint16(f[8:], packVersion)
	le.PutUint32(f[12:], uint32(len(refs)))
	le.PutUint32(f[16:], end)
	le.PutUint32(f[20:], end+uint32(len(dir))+FooterSize)
	copy(f[24:], id[:])
	le.PutUint32(f[56:], crc(dir))
	le.PutUint32(f[60:], crc(f[:60]))
	return append(b, f[:]...)
}

// Footer is the end of a pack.
type Footer struct {
	Pack      ID
	Entries   uint32
	DirOffset uint32
	Size      uint32 // of the whole pack
	dirCRC    uint32
}

// DecodeFooter decodes the last FooterSize bytes of a pack that is size bytes
// long.
func DecodeFooter(p []byte, size int64) (f Footer, err error) {
	if len(p) < FooterSize || size < PackHeaderSize+FooterSize {
		return f, truncated("%d bytes are less than an empty pack", size)
	}
	p = p[:FooterSize]
	if string(p[:8]) != tailMagic {
		return f, truncated("no footer at its end")
	}
	if le.Uint32(p[60:]) != crc(p[:60]) {
		return f, corrupt("checksum of the footer does not match")
	}
	if err := checkVersion("footer", le.Uint16(p[8:])); err != nil {
		return f, err
	}
	f.Entries, f.DirOffset, f.Size = le.Uint32(p[12:]), le.Uint32(p[16:]), le.Uint32(p[20:])
	f.dirCRC = le.Uint32(p[56:])
	copy(f.Pack[:], p[24:])
	if int64(f.Size) != size || size > MaxPack {
		return f, corrupt("its footer states %d bytes, %d are there", f.Size, size)
	}
	if uint64(f.DirOffset)+uint64(f.Entries)*DirEntrySize+FooterSize != uint64(size) || f.DirOffset < PackHeaderSize {
		return f, corrupt("its directory of %d entries at %d does not fit", f.Entries, f.DirOffset)
	}
	if f.Entries > MaxBlobs {
		return f, corrupt("its directory has %d entries, which is more than %d", f.Entries, MaxBlobs)
	}
	return f, nil
}

// DirSize is the number of bytes of the directory, at DirOffset.
func (f Footer) DirSize() int { return int(f.Entries) * DirEntrySize }

// Directory decodes the directory that a footer describes. It takes it in parts:
// the whole of a crowded one is not worth its memory.
type Directory struct {
	f    Footer
	i    uint32 // of the entry that comes next
	next uint64 // offset of its blob
	crc  uint32 // of what came before
	err  error  // what is wrong with that, if its checksum is right
}

// Directory returns a decoder that has seen nothing yet.
func (f Footer) Directory() *Directory { return &Directory{f: f, next: PackHeaderSize} }

// Decode takes the next bytes, which are whole entries, and calls each for every
// blob. The blobs come in order, do not overlap and lie within the pack. They are
// to be believed when End says so.
func (d *Directory) Decode(p []byte, each func(Ref)) {
	d.crc = crc32.Update(d.crc, castagnoli, p)
	for ; len(p) >= DirEntrySize && d.err == nil; p = p[DirEntrySize:] {
		var r Ref
		if r, d.err = d.entry(p); d.err == nil {
			each(r)
		}
	}
}

func (d *Directory) entry(e []byte) (r Ref, err error) {
	copy(r.Hash[:], e)
	r.Pack = d.f.Pack
	r.Offset, r.Stored, r.Length = le.Uint32(e[32:]), le.Uint32(e[36:]), le.Uint32(e[40:])
	r.Kind, r.Codec, r.Seal = Kind(e[44]), Codec(e[45]), Seal(e[46])
	if err := checkSeal(r.Seal); err != nil {
		return r, err
	}
	if err := r.check(MaxChunk); err != nil {
		return r, err
	}
	if uint64(r.Offset) != d.next {
		return r, corrupt("entry %d of its directory is at %d, not at %d", d.i, r.Offset, d.next)
	}
	d.next += BlobHeaderSize + uint64(r.Stored)
	d.i++
	return r, nil
}

// End says what is wrong with the directory. The checksum comes first, so that
// damage is not taken for a newer format.
func (d *Directory) End() error {
	switch {
	case d.crc != d.f.dirCRC:
		return corrupt("checksum of the directory does not match")
	case d.err != nil:
		return d.err
	case d.i != d.f.Entries:
		return truncated("%d of %d entries of the directory are there", d.i, d.f.Entries)
	case d.next != uint64(d.f.DirOffset):
		return corrupt("its blobs end at %d, its directory begins at %d", d.next, d.f.DirOffset)
	}
	return nil
}
