package seal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/swapback/swapback/backup/internal/format"
)

func sealer(t testing.TB, b byte) *Sealer {
	t.Helper()
	s, _, err := Derive(Key{b})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func blob(plain string) format.Ref {
	return format.Ref{Hash: format.Hash{7, 1}, Kind: format.KindChunk, Codec: format.Raw, Seal: format.AESGCM, Length: uint32(len(plain))}
}

func TestSealAndOpen(t *testing.T) {
	s := sealer(t, 1)
	const plain = "what nobody else may read"
	ref := blob(plain)
	buf := make([]byte, len(plain)+Overhead)
	sealed, err := s.Seal(buf, ref, []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	if &sealed[0] != &buf[0] || len(sealed) != len(plain)+Overhead {
		t.Errorf("%d bytes, not in the memory that was given", len(sealed))
	}
	// A payload that lies where it is sealed is not moved.
	room := append(Room(make([]byte, len(buf))), plain...)
	in := room[:0][:len(plain)]
	whole := make([]byte, len(buf))
	copy(Room(whole)[:len(plain)], in)
	again, err := s.Seal(whole, ref, Room(whole)[:len(plain)])
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(sealed, again) {
		t.Error("a nonce was used twice")
	}
	for _, x := range [][]byte{sealed, again} {
		if bytes.Contains(x, []byte("nobody")) {
			t.Error("the plaintext shows")
		}
		if got, err := s.Open(ref, bytes.Clone(x)); err != nil || string(got) != plain {
			t.Errorf("opened: %q, %v", got, err)
		}
	}
}

// Whatever is changed, of the payload or of what stands around it, does not open.
func TestOpenRefuses(t *testing.T) {
	s := sealer(t, 1)
	const plain = "payload"
	ref := blob(plain)
	sealed, err := s.Seal(make([]byte, len(plain)+Overhead), ref, []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, s *Sealer, ref format.Ref, p []byte) {
		t.Helper()
		if _, err := s.Open(ref, bytes.Clone(p)); !errors.Is(err, ErrSeal) || !errors.Is(err, format.ErrCorrupt) {
			t.Errorf("%s: error is %v", what, err)
		}
	}
	for i := range sealed {
		p := bytes.Clone(sealed)
		p[i] ^= 1
		refuse("a changed byte", s, ref, p)
		refuse("cut short", s, ref, sealed[:i])
	}
	refuse("longer", s, ref, append(bytes.Clone(sealed), 0))
	refuse("another repository's key", sealer(t, 2), ref, sealed)
	for what, change := range map[string]func(r *format.Ref){
		"name":   func(r *format.Ref) { r.Hash[31] ^= 1 },
		"kind":   func(r *format.Ref) { r.Kind = format.KindNode },
		"codec":  func(r *format.Ref) { r.Codec = format.Zstd },
		"length": func(r *format.Ref) { r.Length++ },
	} {
		other := ref
		change(&other)
		refuse("another "+what, s, other, sealed)
	}
}

func TestText(t *testing.T) {
	s := sealer(t, 1)
	body := []byte(`{"comment":"secret"}`)
	sealed := s.SealText("backup", "backups/a", body)
	if got, err := s.OpenText("backup", "backups/a", bytes.Clone(sealed)); err != nil || !bytes.Equal(got, body) {
		t.Errorf("opened: %q, %v", got, err)
	}
	for _, as := range [][2]string{{"backup", "backups/b"}, {"lease", "backups/a"}, {"backupb", "ackups/a"}} {
		if _, err := s.OpenText(as[0], as[1], bytes.Clone(sealed)); !errors.Is(err, ErrSeal) {
			t.Errorf("as %q: %v", as, err)
		}
	}
}

// The names are those of BLAKE3's keyed mode, by another implementation, whatever a
// Namer has named before.
func TestNames(t *testing.T) {
	key := NewKey()
	n := NewNamer(key)
	for _, size := range []int{0, 1, 63, 64, 65, 1023, 1024, 1025, leaf - 1, leaf, leaf + 1, 3*leaf - 1, 3 * leaf, 64 << 10, 1 << 20, 1<<20 + 5} {
		p := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(size)}).Read(p)
		h, err := blake3.NewKeyed(key[:])
		if err != nil {
			t.Fatal(err)
		}
		h.Write(p)
		if got := n.Name(p); !bytes.Equal(got[:], h.Sum(nil)) {
			t.Errorf("name of %d bytes is %v", size, got)
		}
	}
	if n.Name(nil) == NewNamer(NewKey()).Name(nil) {
		t.Error("two keys give one name")
	}
}

// Keys must stay what they are: a golden one for each.
func TestDerivedKeysStay(t *testing.T) {
	s, name, err := Derive(Key{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	text := s.text.Seal(nil, make([]byte, nonceSize), nil, nil)
	for what, c := range map[string][2]string{
		"name": {format.Hash(name).String(), goldenName},
		"blob": {format.Hash(s.blob).String(), goldenBlob},
		"text": {format.ID(text).String(), goldenText},
	} {
		if c[0] != c[1] {
			t.Errorf("%s is %s, was %s", what, c[0], c[1])
		}
	}
}

const (
	goldenName = "f3f041e492877346ad75c2023ed62612cc5e6e63813ee0b15e7da603b6cf0c55"
	goldenBlob = "4bb78f84768a0fad992f7d5d93a01336655e0cdbef6bfd892424447111725023"
	goldenText = "c364224da42c7d5a22f53ac001f8d4d3"
)

func TestParseKey(t *testing.T) {
	for _, n := range []int{0, 31, 33} {
		if _, err := ParseKey(make([]byte, n)); !errors.Is(err, ErrKey) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := sealer(f, 1)
	ref := blob("x")
	sealed, err := s.Seal(make([]byte, 1+Overhead), ref, []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Fuzz(func(t *testing.T, p []byte) {
		if got, err := s.Open(ref, bytes.Clone(p)); err == nil && string(got) != "x" {
			t.Errorf("%q opens to %q", p, got)
		}
		if _, err := s.OpenText("backup", "b", bytes.Clone(p)); err == nil {
			t.Errorf("%q opens as a text", p)
		}
	})
}

func BenchmarkName(b *testing.B) {
	n, p := NewNamer(Key{1}), make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		n.Name(p)
	}
}

func BenchmarkSeal(b *testing.B) {
	s, p := sealer(b, 1), make([]byte, 1<<20)
	ref, out := blob(string(p)), make([]byte, len(p)+Overhead)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := s.Seal(out, ref, p); err != nil {
			b.Fatal(err)
		}
	}
}
