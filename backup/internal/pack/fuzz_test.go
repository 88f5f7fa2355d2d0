package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// FuzzPack reads a pack as all do who read one: its header, its footer, its
// directory in parts, and the blobs that this lists.
func FuzzPack(f *testing.F) {
	m := storetest.NewMem()
	refs, _ := fill(f, m, 2)
	f.Add(m.Object(Name(refs[0].Pack)))
	f.Add(format.AppendDirectory(format.AppendPackHeader(nil, format.PackHeader{Kind: format.KindNode}), format.ID{}, format.PackHeaderSize, nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		readPack(t, p)
		readPack(t, resealed(p))
	})
}

// resealed makes the checksums of a pack right, of its first blob too, and the places
// that its footer names: they would keep the fuzzer out.
func resealed(p []byte) []byte {
	le, table := binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
	crc := func(parts ...[]byte) uint32 { return crc32.Checksum(slices.Concat(parts...), table) }
	p = bytes.Clone(p)
	if len(p) < format.PackHeaderSize+format.FooterSize {
		return p
	}
	copy(p, "SWBKPACK")
	le.PutUint32(p[76:], crc(p[:76]))

	foot := p[len(p)-format.FooterSize:]
	copy(foot, "SWBKTAIL")
	copy(foot[24:40], p[16:]) // the pack's id
	le.PutUint32(foot[20:], uint32(len(p)))
	at := int64(len(p)-format.FooterSize) - int64(le.Uint32(foot[12:]))*format.DirEntrySize
	if at >= 0 {
		le.PutUint32(foot[16:], uint32(at))
		le.PutUint32(foot[56:], crc(p[at:len(p)-format.FooterSize]))
	}
	le.PutUint32(foot[60:], crc(foot[:60]))

	if blob := p[format.PackHeaderSize:]; len(blob) >= format.BlobHeaderSize {
		copy(blob, "BLOB")
		if end := format.BlobHeaderSize + int64(le.Uint32(blob[8:])); end <= int64(len(blob)) {
			le.PutUint32(blob[60:], crc(blob[:60], blob[format.BlobHeaderSize:end]))
		}
	}
	return p
}

func readPack(t *testing.T, p []byte) {
	check := func(err error) bool {
		if err != nil && !IsDamage(err) && !errors.Is(err, format.ErrVersion) {
			t.Errorf("error is %v", err)
		}
		return err == nil
	}
	if r, err := format.DecodeBlobHeader(p[min(len(p), format.PackHeaderSize):]); check(err) {
		if r.Length > format.MaxChunk || r.Stored > format.MaxChunk {
			t.Errorf("blob header %+v is out of bounds", r)
		}
	}
	id := format.ID{1}
	if h, err := format.DecodePackHeader(p); check(err) {
		id = h.Pack
	}
	m := storetest.NewMem()
	list := func(p []byte) (refs []format.Ref, err error) {
		m.SetObject(Name(id), p)
		_, err = ReadDirectory(t.Context(), m, id, func(n int, r format.Ref) {
			if refs = append(refs, r); len(refs) > n || n*format.DirEntrySize > len(p) {
				t.Fatalf("blob %d of %d in a pack of %d bytes", len(refs), n, len(p))
			}
		})
		return refs, err
	}
	refs, err := list(p)
	if !check(err) {
		return
	}
	dirs, end := NewDirectories(m), uint32(format.PackHeaderSize)
	for _, r := range refs {
		if uint64(r.Offset)+format.BlobHeaderSize+uint64(r.Stored) > uint64(len(p)) {
			t.Fatalf("blob %+v is outside the pack", r)
		}
		if payload, err := format.CheckBlob(p[r.Offset:], r); check(err) && len(payload) != int(r.Stored) {
			t.Errorf("blob %+v has %d bytes", r, len(payload))
		}
		if listed, err := dirs.Lists(t.Context(), r); !listed || err != nil {
			t.Errorf("blob %+v is listed: %v, %v", r, listed, err)
		}
		other := r
		other.Hash[0]++
		if listed, err := dirs.Lists(t.Context(), other); listed || err != nil {
			t.Errorf("another than blob %+v is listed: %v, %v", r, listed, err)
		}
		end = r.Offset + format.BlobHeaderSize + r.Stored
	}
	// The directory can be written again, and lists the same.
	again, err := list(format.AppendDirectory(bytes.Clone(p[:end]), id, end, refs))
	if err != nil || !slices.Equal(again, refs) {
		t.Errorf("%+v\ncome back as\n%+v\n%v", refs, again, err)
	}
}
