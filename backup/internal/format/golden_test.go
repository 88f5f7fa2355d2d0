package format

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// field is a run of bytes of a golden object with what it means.
type field struct {
	n    int
	what string
}

// golden compares an object with testdata/name, a hex dump with a comment for
// each field. The file is the format; with -update it is written from the fields.
func golden(t *testing.T, name string, object []byte, fields []field) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(annotate(object, fields)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	for i, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		_, digits, _ := strings.Cut(line, ":")
		b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(digits), " ", ""))
		if err != nil {
			t.Fatalf("%s:%d: %v", path, i+1, err)
		}
		want = append(want, b...)
	}
	if !bytes.Equal(object, want) {
		t.Errorf("%s: the encoder makes\n%s", path, annotate(object, fields))
	}
}

func annotate(b []byte, fields []field) string {
	var out strings.Builder
	off := 0
	for _, f := range fields {
		what := f.what
		for n := f.n; n > 0; {
			k := min(n, 16)
			line := fmt.Sprintf("%04x: % x", off, b[off:off+k])
			if what != "" {
				line = fmt.Sprintf("%-54s # %s", line, what)
			}
			fmt.Fprintln(&out, line)
			off, n, what = off+k, n-k, ""
		}
	}
	if off != len(b) {
		fmt.Fprintf(&out, "%04x: % x # no field covers this\n", off, b[off:])
	}
	return out.String()
}

func id(b byte) (id ID) {
	for i := range id {
		id[i] = b + byte(i)
	}
	return id
}

// testPack is a pack of two blobs: a raw one and one that says it is zstd.
func testPack() ([]byte, []Ref) {
	plain, payload := []byte("hello, volume"), []byte("pressed")
	p := AppendPackHeader(nil, PackHeader{Kind: KindChunk, Pack: id(0x10), Repository: id(0x30), Session: id(0x50)})
	refs := []Ref{
		{Hash: sha256.Sum256(plain), Length: uint32(len(plain)), Codec: Raw},
		{Hash: sha256.Sum256(bytes.Repeat([]byte("x"), 4096)), Length: 4096, Codec: Zstd},
	}
	for i, payload := range [][]byte{plain, payload} {
		r := &refs[i]
		r.Kind, r.Pack, r.Offset, r.Stored = KindChunk, id(0x10), uint32(len(p)), uint32(len(payload))
		var h [BlobHeaderSize]byte
		PutBlobHeader(h[:], *r, payload)
		p = append(append(p, h[:]...), payload...)
	}
	return AppendDirectory(p, id(0x10), uint32(len(p)), refs), refs
}

func blobFields(codec string, n int) []field {
	return []field{
		{4, "magic BLOB"}, {1, "kind: chunk"}, {1, "codec: " + codec}, {1, "seal: none"}, {1, "zero"},
		{4, "bytes of payload"}, {4, "bytes of plaintext"}, {32, "SHA-256 of the plaintext"}, {12, "zero"},
		{4, "CRC32C of the header and the payload"}, {n, "payload"},
	}
}

func dirFields(codec string) []field {
	return []field{
		{32, "directory: SHA-256 of the plaintext"}, {4, "offset of the blob"}, {4, "bytes of payload"},
		{4, "bytes of plaintext"}, {1, "kind: chunk"}, {1, "codec: " + codec}, {1, "seal: none"}, {1, "zero"},
	}
}

func TestGoldenPack(t *testing.T) {
	fields := []field{
		{8, "magic SWBKPACK"}, {2, "version"}, {1, "kind of blobs: chunks"}, {5, "zero"}, {16, "pack id"},
		{16, "repository id"}, {16, "session id"}, {12, "zero"}, {4, "CRC32C of the pack header"},
	}
	fields = append(fields, blobFields("raw", 13)...)
	fields = append(fields, blobFields("zstd", 7)...)
	fields = append(fields, dirFields("raw")...)
	fields = append(fields, dirFields("zstd")...)
	fields = append(fields,
		field{8, "magic SWBKTAIL"}, field{2, "version"}, field{2, "zero"}, field{4, "directory entries"},
		field{4, "offset of the directory"}, field{4, "bytes of the pack"}, field{16, "pack id"}, field{16, "zero"},
		field{4, "CRC32C of the directory"}, field{4, "CRC32C of the footer"})
	p, refs := testPack()
	golden(t, "pack.hex", p, fields)

	h, err := DecodePackHeader(p)
	if err != nil || h != (PackHeader{Kind: KindChunk, Pack: id(0x10), Repository: id(0x30), Session: id(0x50)}) {
		t.Errorf("header is %+v, %v", h, err)
	}
	f, err := DecodeFooter(p[len(p)-FooterSize:], int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeDirectory(p[f.DirOffset:][:f.DirSize()], f)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(refs) {
		t.Errorf("directory is %v, %v", got, err)
	}
	for i, want := range []string{"hello, volume", "pressed"} {
		payload, err := CheckBlob(p[refs[i].Offset:], refs[i])
		if err != nil || string(payload) != want {
			t.Errorf("blob %d is %q, %v", i, payload, err)
		}
	}
}

func TestGoldenNode(t *testing.T) {
	shape, err := ShapeOf(2*MinChunk+5, MinChunk)
	if err != nil {
		t.Fatal(err)
	}
	refs := []Ref{
		{Hash: sha256.Sum256([]byte("a")), Pack: id(0x10), Offset: 80, Stored: 999, Length: MinChunk, Kind: KindChunk, Codec: Zstd},
		{},
		{Hash: sha256.Sum256([]byte("b")), Pack: id(0x20), Offset: 1 << 20, Stored: 5, Length: 5, Kind: KindChunk},
	}
	entry := func(what, codec string) []field {
		return []field{
			{32, what + ": SHA-256 of the plaintext"}, {16, "pack id"}, {4, "offset of the blob"}, {4, "bytes of payload"},
			{4, "bytes of plaintext"}, {1, "kind: chunk"}, {1, "codec: " + codec}, {1, "seal: none"}, {1, "zero"},
		}
	}
	fields := append(entry("first chunk", "zstd"), field{EntrySize, "second chunk: zeroes"})
	fields = append(fields, entry("third chunk, 5 bytes long", "raw")...)
	var node []byte
	for _, r := range refs {
		node = AppendEntry(node, r)
	}
	golden(t, "node.hex", node, fields)
	i := 0
	err = shape.DecodeNode(node, 1, 0, func(off int64, r Ref) error {
		if off != int64(i)*MinChunk || r != refs[i] {
			t.Errorf("entry %d at %d is %+v", i, off, r)
		}
		i++
		return nil
	})
	if err != nil || i != 3 {
		t.Errorf("%d entries, %v", i, err)
	}
}

func TestGoldenText(t *testing.T) {
	type body struct {
		ID   string `json:"id"`
		Size int64  `json:"size"`
	}
	object, err := EncodeText(TextBackup, body{"20261123T101502Z-3f9a1c07", 4 << 30})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "text.hex", object, []field{
		{9, "swapback-"}, {12, "kind"}, {5, "version"}, {20, "bytes of the body"}, {16, "CRC32C of bytes 0-53 and the body"},
		{2, "space, newline"}, {len(object) - 64, "body, JSON"},
	})
	var got body
	if err := DecodeText(object, TextBackup, &got); err != nil || got.Size != 4<<30 {
		t.Errorf("decoded %+v, %v", got, err)
	}
}
