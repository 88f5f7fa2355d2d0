package backup

import (
	"os"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// tinyBlob is what a blob of one byte takes of a pack, beside its entry.
const tinyBlob = format.BlobHeaderSize + 1

// crowded writes a pack of a good chunk and more blobs of one byte, of which only
// the directory is there: the rest is a hole in the file. It returns the chunk.
func (h *hostile) crowded(id byte, plain []byte, more int) format.Ref {
	h.t.Helper()
	first := h.pack(id, format.KindChunk, h.rawBlob(plain))[0]
	at := first.Offset + format.BlobHeaderSize + first.Stored
	refs := []format.Ref{first}
	for range more {
		refs = append(refs, format.Ref{Pack: first.Pack, Offset: at, Stored: 1, Length: 1, Kind: format.KindChunk})
		at += tinyBlob
	}
	f, err := os.OpenFile(h.path(pack.Name(first.Pack)), os.O_WRONLY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(format.AppendDirectory(nil, first.Pack, at, refs), int64(at)); err != nil {
		h.t.Fatal(err)
	}
	return first
}

// restoreOnto gives the volume another size, and a target that is a volume of it:
// a backup of what was restored there uses the packs again.
func (h *hostile) restoreOnto(size int) {
	h.target = dirty(h.t, size)
	h.b.Volumes[0].VolumeRef.Size = int64(size)
}

// Entries of a directory cost memory, the blobs that they name need not be there.
// A pack has no more than some writer could have put into it.
func TestHostilePackWithManyBlobs(t *testing.T) {
	h := newHostile(t)
	plain := image(5, 1)[:testChunk]
	room := format.MaxPack - format.PackHeaderSize - format.FooterSize - (format.BlobHeaderSize + testChunk + format.DirEntrySize)
	h.table(testChunk, h.crowded(0xbb, plain, room/(tinyBlob+format.DirEntrySize)))
	h.restoreOnto(testChunk)
	h.harmless("packs/bb/")
}

// What is known of one pack must not stay for all of them.
func TestHostilePacksWithManyBlobs(t *testing.T) {
	long(t)
	const packs, blobs = 6, (format.PackSize - testChunk) / tinyBlob
	h := newHostile(t)
	var chunks []format.Ref
	for i := range packs {
		chunks = append(chunks, h.crowded(0xb0+byte(i), image(uint64(5+i), 1)[:testChunk], blobs))
	}
	h.table(packs*testChunk, chunks...)
	h.restoreOnto(packs * testChunk)
	h.harmless("")
}
