package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Any flipped bit in an object is noticed by whoever reads that part.
func TestFlippedBits(t *testing.T) {
	p, refs := testPack()
	read := func(p []byte) error {
		if _, err := DecodePackHeader(p); err != nil {
			return err
		}
		for _, r := range refs {
			if _, err := CheckBlob(p[r.Offset:], r); err != nil {
				return err
			}
		}
		f, err := DecodeFooter(p[len(p)-FooterSize:], int64(len(p)))
		if err != nil {
			return err
		}
		_, err = decodeDirectory(p[f.DirOffset:][:f.DirSize()], f)
		return err
	}
	if err := read(p); err != nil {
		t.Fatal(err)
	}
	for i := range len(p) * 8 {
		p[i/8] ^= 1 << (i % 8)
		if err := read(p); !errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) {
			t.Errorf("bit %d of byte %d: %v", i%8, i/8, err)
		}
		p[i/8] ^= 1 << (i % 8)
	}
	text, err := EncodeText(TextConfig, map[string]int{"a": 1})
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]int
	for i := range len(text) * 8 {
		text[i/8] ^= 1 << (i % 8)
		if err := DecodeText(text, TextConfig, &v); !errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) {
			t.Errorf("text: bit %d of byte %d: %v", i%8, i/8, err)
		}
		text[i/8] ^= 1 << (i % 8)
	}
}

func TestTruncated(t *testing.T) {
	p, refs := testPack()
	for n := range len(p) {
		short := p[:n]
		_, err := DecodeFooter(short[max(0, n-FooterSize):], int64(n))
		if !errors.Is(err, ErrTruncated) {
			t.Errorf("footer of %d bytes: %v", n, err)
		}
		if _, err := DecodePackHeader(short); n < PackHeaderSize && !errors.Is(err, ErrTruncated) {
			t.Errorf("header of %d bytes: %v", n, err)
		}
		if n >= int(refs[0].Offset) && n < int(refs[1].Offset) {
			if _, err := CheckBlob(short[refs[0].Offset:], refs[0]); !errors.Is(err, ErrTruncated) {
				t.Errorf("blob of %d bytes: %v", n, err)
			}
		}
	}
	text, err := EncodeText(TextConfig, map[string]int{"a": 1})
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(text) {
		if err := DecodeText(text[:n], TextConfig, nil); !errors.Is(err, ErrTruncated) {
			t.Errorf("text of %d bytes: %v", n, err)
		}
	}
	if err := DecodeText(append(text, 'x'), TextConfig, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("text with a byte more: %v", err)
	}
}

func TestText(t *testing.T) {
	object, err := EncodeText(TextConfig, 5)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := DecodeText(object, TextBackup, &n); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), `"config"`) {
		t.Errorf("another kind: %v", err)
	}
	var s string
	if err := DecodeText(object, TextConfig, &s); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another type: %v", err)
	}
	for version, want := range map[int]error{0: ErrCorrupt, 2: ErrVersion, 999: ErrVersion} {
		if err := DecodeText(encodeText(TextConfig, version, []byte("5")), TextConfig, &n); !errors.Is(err, want) {
			t.Errorf("version %d: %v", version, err)
		}
	}
	long := strings.Repeat("9", maxDigits)
	for body, good := range map[string]bool{
		`[` + long + `,` + long + `]`: true, `[` + long + `9]`: false, `{"a":` + long + `0}`: false, `["` + long + `\"9",` + long + `]`: true, `["\\",` + long + `9]`: false,
	} {
		var v any
		if err := DecodeText(encodeText(TextConfig, TextVersion, []byte(body)), TextConfig, &v); (err == nil) != good {
			t.Errorf("%s: %v", body, err)
		}
	}
	if _, err := EncodeText(TextConfig, strings.Repeat("x", MaxText)); err == nil {
		t.Error("a body over the bound was encoded")
	}
}

func TestNewerPack(t *testing.T) {
	p, _ := testPack()
	p[8] = 2
	le.PutUint32(p[76:], crc(p[:76]))
	if _, err := DecodePackHeader(p); !errors.Is(err, ErrVersion) {
		t.Errorf("header: %v", err)
	}
	f := p[len(p)-FooterSize:]
	f[8] = 2
	le.PutUint32(f[60:], crc(f[:60]))
	if _, err := DecodeFooter(f, int64(len(p))); !errors.Is(err, ErrVersion) {
		t.Errorf("footer: %v", err)
	}
	// One with another seal is one that a newer program encrypted.
	p, refs := testPack()
	blob := p[refs[0].Offset:][:BlobHeaderSize+refs[0].Stored]
	blob[6] = 2
	le.PutUint32(blob[60:], crc(blob[:60], blob[64:]))
	if _, err := CheckBlob(blob, refs[0]); !errors.Is(err, ErrVersion) {
		t.Errorf("blob: %v", err)
	}
}

func TestCheckBlobWantsThisBlob(t *testing.T) {
	p, refs := testPack()
	for name, f := range map[string]func(r *Ref){
		"hash":   func(r *Ref) { r.Hash[3] ^= 1 },
		"length": func(r *Ref) { r.Length++ },
		"codec":  func(r *Ref) { r.Codec = Zstd },
		"kind":   func(r *Ref) { r.Kind = KindNode },
		"stored": func(r *Ref) { r.Stored-- },
		"other":  func(r *Ref) { *r = refs[1] },
	} {
		want := refs[0]
		f(&want)
		if _, err := CheckBlob(p[refs[0].Offset:], want); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestShape(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		size, chunk    int64
		levels         int
		chunks         int64
		root, rootLast int // entries of the root, and of the last node below
	}{
		{1, mib, 1, 1, 1, 1},
		{mib, mib, 1, 1, 1, 1},
		{mib + 1, mib, 1, 2, 2, 1},
		{1 << 30, mib, 1, 1024, 1024, 1},
		{1<<30 + 1, mib, 2, 1025, 2, 1},
		{4 << 30, mib, 2, 4096, 4, 1024},
		{1 << 40, mib, 2, 1 << 20, 1024, 1024},
		{1<<40 + 1, mib, 3, 1<<20 + 1, 2, 1},
		{MaxVolume, MinChunk, 4, MaxVolume / MinChunk, 128, 1024},
		{MaxVolume, MaxChunk, 3, MaxVolume / MaxChunk, 512, 1024},
		{MaxVolume, mib, 4, MaxVolume / mib, 8, 1024},
	} {
		s, err := ShapeOf(tt.size, tt.chunk)
		if err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		if s.Levels != tt.levels || s.Chunks() != tt.chunks || s.Entries(s.Levels, 0) != tt.root {
			t.Errorf("%+v: %+v with %d chunks, root of %d", tt, s, s.Chunks(), s.Entries(s.Levels, 0))
		}
		if s.Span(s.Levels) < tt.size || s.Covers(s.Levels+1, 0) != tt.size {
			t.Errorf("%+v: root spans %d, covers %d", tt, s.Span(s.Levels), s.Covers(s.Levels+1, 0))
		}
		last := int64(tt.root-1) * s.Span(s.Levels-1)
		if s.Levels > 1 && s.Entries(s.Levels-1, last) != tt.rootLast {
			t.Errorf("%+v: last node has %d entries", tt, s.Entries(s.Levels-1, last))
		}
	}
	for _, bad := range [][2]int64{{0, mib}, {-1, mib}, {MaxVolume + 1, mib}, {1, 0}, {1, MinChunk / 2}, {1, MaxChunk * 2}, {1, mib + 1}, {1, -mib}} {
		if _, err := ShapeOf(bad[0], bad[1]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestDecodeNodeRefuses(t *testing.T) {
	shape, err := ShapeOf(2*MinChunk, MinChunk)
	if err != nil {
		t.Fatal(err)
	}
	good := Ref{Offset: 80, Stored: 10, Length: MinChunk, Kind: KindChunk, Codec: Zstd}
	for name, f := range map[string]func(e []byte){
		"zero with a hash":       func(e []byte) { clear(e); e[0] = 1 },
		"zero with a pack":       func(e []byte) { e[60] = 0 },
		"unknown kind":           func(e []byte) { e[60] = 3 },
		"a node below level 1":   func(e []byte) { e[60] = byte(KindNode) },
		"unknown codec":          func(e []byte) { e[61] = 7 },
		"sealed":                 func(e []byte) { e[62] = 1 },
		"short chunk":            func(e []byte) { le.PutUint32(e[56:], 100) },
		"long chunk":             func(e []byte) { le.PutUint32(e[56:], MinChunk+1) },
		"zstd that saves none":   func(e []byte) { le.PutUint32(e[52:], MinChunk) },
		"raw that saves":         func(e []byte) { e[61] = byte(Raw) },
		"no payload":             func(e []byte) { le.PutUint32(e[52:], 0) },
		"offset beyond the pack": func(e []byte) { le.PutUint32(e[48:], MaxPack) },
	} {
		node := AppendEntry(AppendEntry(nil, good), good)
		f(node[EntrySize:])
		err := shape.DecodeNode(node, 1, 0, func(int64, Ref) error { return nil })
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
	node := AppendEntry(nil, good)
	if err := shape.DecodeNode(node, 1, 0, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("one entry of two: %v", err)
	}
}

func decodeDirectory(p []byte, f Footer) (refs []Ref, err error) {
	d := f.Directory()
	d.Decode(p, func(r Ref) { refs = append(refs, r) })
	return refs, d.End()
}

// It may come in parts, and none of them may be missing.
func TestDirectoryInParts(t *testing.T) {
	p, refs := testPack()
	f, err := DecodeFooter(p[len(p)-FooterSize:], int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	d, got := f.Directory(), []Ref(nil)
	if err := d.End(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("nothing of it: %v", err)
	}
	for i := range refs {
		d.Decode(p[int(f.DirOffset)+i*DirEntrySize:][:DirEntrySize], func(r Ref) { got = append(got, r) })
		if err := d.End(); (err == nil) != (i == len(refs)-1) {
			t.Errorf("%d of %d entries: %v", i+1, len(refs), err)
		}
	}
	if !slices.Equal(got, refs) {
		t.Errorf("got %v, want %v", got, refs)
	}
}

func TestFooterBoundsTheBlobs(t *testing.T) {
	for n, ok := range map[int]bool{MaxBlobs: true, MaxBlobs + 1: false} {
		p := AppendDirectory(nil, id(1), PackHeaderSize, make([]Ref, n))
		_, err := DecodeFooter(p[len(p)-FooterSize:], int64(PackHeaderSize+len(p)))
		if ok && err != nil || !ok && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d blobs: %v", n, err)
		}
	}
}

func TestDirectoryRefuses(t *testing.T) {
	_, refs := testPack()
	for name, f := range map[string]func(r []Ref){
		"overlap":     func(r []Ref) { r[1].Offset-- },
		"gap":         func(r []Ref) { r[1].Offset++ },
		"beyond":      func(r []Ref) { r[1].Stored++ },
		"first":       func(r []Ref) { r[0].Offset = 0 },
		"kind":        func(r []Ref) { r[0].Kind = KindZero },
		"huge length": func(r []Ref) { r[1].Length = MaxChunk + 1 },
	} {
		bad := append([]Ref(nil), refs...)
		f(bad)
		end := refs[1].Offset + BlobHeaderSize + refs[1].Stored
		tail := AppendDirectory(nil, id(1), end, bad)
		footer, err := DecodeFooter(tail[len(tail)-FooterSize:], int64(end)+int64(len(tail)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := decodeDirectory(tail[:len(tail)-FooterSize], footer); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseID(t *testing.T) {
	want := id(0xf0)
	if got, err := ParseID(want.String()); err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "00", strings.Repeat("0", 31), strings.Repeat("0", 33), strings.Repeat("A", 32), strings.Repeat("/", 32)} {
		if _, err := ParseID(s); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzText(f *testing.F) {
	object, err := EncodeText(TextBackup, map[string]any{"id": "x", "volumes": []int{1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(object)
	f.Add(encodeText(TextBackup, 2, []byte("{}")))
	f.Add([]byte("swapback-"))
	f.Fuzz(func(t *testing.T, object []byte) {
		decode := func(object []byte) (v any, err error) {
			err = DecodeText(object, TextBackup, &v)
			if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Errorf("error is %v", err)
			}
			return v, err
		}
		_, _ = decode(object)
		// The length and the checksum would keep the fuzzer out.
		if len(object) >= textHeaderSize {
			object = bytes.Clone(object)
			body := object[textHeaderSize:]
			copy(object, "swapback-")
			copy(object[34:], fmt.Sprintf("%012d", len(body)))
			copy(object[textCRC:], fmt.Sprintf("%08x \n", crc(object[:textCRC], body)))
		}
		v, err := decode(object)
		if err != nil {
			return
		}
		// What is taken can be written again and is then the same object, up to
		// the spelling of its JSON.
		body, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decode(encodeText(TextBackup, TextVersion, body)); err != nil || !reflect.DeepEqual(v, again) {
			t.Errorf("%v comes back as %v, %v", v, again, err)
		}
	})
}

func FuzzNode(f *testing.F) {
	good := Ref{Offset: 80, Stored: 10, Length: MinChunk, Kind: KindChunk, Codec: Zstd}
	f.Add(AppendEntry(AppendEntry(nil, good), Ref{}), int64(2*MinChunk), 1)
	f.Add(AppendEntry(nil, good), int64(MinChunk), 1)
	f.Add([]byte{}, int64(MaxVolume), 4)
	f.Fuzz(func(t *testing.T, node []byte, size int64, level int) {
		shape, err := ShapeOf(size, MinChunk)
		if err != nil {
			return
		}
		level = 1 + int(uint(level)%uint(shape.Levels))
		var again []byte
		next := int64(0)
		err = shape.DecodeNode(node, level, 0, func(off int64, r Ref) error {
			if off != next || off >= size {
				t.Errorf("entry at %d, want %d", off, next)
			}
			next += shape.Covers(level, off)
			if !r.IsZero() && r.Length != shape.Length(level, off) {
				t.Errorf("entry at %d is %+v", off, r)
			}
			if one, at, err := shape.Entry(node, level, 0, next-1); err != nil || one != r || at != off {
				t.Errorf("alone the entry at %d is %+v at %d, %v", off, one, at, err)
			}
			again = AppendEntry(again, r)
			return nil
		})
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("error is %v", err)
		}
		if err == nil && !same(again, node) {
			t.Errorf("% x\ncomes back as\n% x", node, again)
		}
	})
}

// same compares nodes but for the byte of each entry that is not looked at.
func same(a, b []byte) bool {
	a, b = bytes.Clone(a), bytes.Clone(b)
	if len(a) != len(b) {
		return false
	}
	for i := 63; i < len(a); i += EntrySize {
		a[i], b[i] = 0, 0
	}
	return bytes.Equal(a, b)
}

func TestStrings(t *testing.T) {
	for _, c := range []Codec{Raw, Zstd} {
		if got, err := ParseCodec(c.String()); got != c || err != nil {
			t.Errorf("%v: %v, %v", c, got, err)
		}
	}
	if _, err := ParseCodec("lzma"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("lzma: %v", err)
	}
	if s := fmt.Sprint(Codec(9), Hash{1}); s != "codec 9 01"+strings.Repeat("0", 62) {
		t.Errorf("strings are %s", s)
	}
}
