package codec

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
)

func random(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

// text looks like log lines: compressible about 5:1.
func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%08d level=info account=%d amount=%d.%02d state=settled\n", i, r.IntN(1e6), r.IntN(1e4), r.IntN(100))
	}
	return b.Bytes()[:n]
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 17, 31, 32, 33, 4096, 65536 + 7} {
		p := make([]byte, n)
		if !IsZero(p) {
			t.Errorf("%d zeroes are not zero", n)
		}
		for i := range p {
			p[i] = 1
			if IsZero(p) {
				t.Errorf("%d bytes with a one at %d are zero", n, i)
			}
			p[i] = 0
			if n > 100 && i == 40 {
				break
			}
		}
		for i := max(0, n-40); i < n; i++ {
			p[i] = 0x80
			if IsZero(p) {
				t.Errorf("%d bytes with a one at %d are zero", n, i)
			}
			p[i] = 0
		}
	}
	// Every byte equal to the one 16 before, and the head not zero.
	if IsZero(bytes.Repeat([]byte{7}, 64)) {
		t.Error("sevens are zero")
	}
}

func TestRoundTrip(t *testing.T) {
	c, err := NewCompressor(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err := NewDecompressor(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	buf := make([]byte, 0, c.Bound(1<<20))
	for _, tt := range []struct {
		name  string
		plain []byte
		codec format.Codec
	}{
		{"random", random(1 << 20), format.Raw},
		{"half zeroes", half(1 << 20), format.Zstd},
		{"text", text(1 << 20), format.Zstd},
		{"short", []byte("x"), format.Raw},
		{"odd", text(12345), format.Zstd},
		{"zero", make([]byte, 1<<20), format.Zstd},
		{"mixed", mixed(1 << 20), format.Zstd},
		{"mixed, odd", mixed(1<<20 - 4321), format.Zstd},
	} {
		payload, codec := c.Compress(buf, tt.plain)
		if codec != tt.codec {
			t.Errorf("%s: %v, want %v", tt.name, codec, tt.codec)
		}
		if codec == format.Zstd && len(payload) >= len(tt.plain) {
			t.Errorf("%s: zstd payload of %d for %d bytes", tt.name, len(payload), len(tt.plain))
		}
		got := bytes.Repeat([]byte{0xee}, len(tt.plain))
		if err := d.Decompress(got, payload, codec); err != nil || !bytes.Equal(got, tt.plain) {
			t.Errorf("%s: comes back wrong, %v", tt.name, err)
		}
		// One byte more or less than is there.
		for _, n := range []int{len(tt.plain) - 1, len(tt.plain) + 1} {
			if err := d.Decompress(make([]byte, n), payload, codec); !errors.Is(err, format.ErrCorrupt) {
				t.Errorf("%s: %d of %d bytes: %v", tt.name, n, len(tt.plain), err)
			}
		}
	}
	if err := d.Decompress(make([]byte, 1), []byte{1}, 9); !errors.Is(err, format.ErrCorrupt) {
		t.Errorf("unknown codec: %v", err)
	}
}

// half is noise and zeroes by turns, as fio makes data that can be compressed.
func half(n int) []byte {
	p := random(n)
	for at := 256; at < n; at += 512 {
		clear(p[at:min(at+256, n)])
	}
	return p
}

// mixed has stretches of noise, half noise, text and zeroes, which begin at any
// block.
func mixed(n int) []byte {
	noise, words := random(2*n), text(2*n)
	var p []byte
	for i := 0; len(p) < n; i++ {
		part := n/6&^4095 + 4096*(i%3+1)
		switch i % 4 {
		case 0:
			p = append(p, words[:part]...)
			words = words[part:]
		case 1, 2:
			from := len(p)
			p = append(p, noise[:part]...)
			noise = noise[part:]
			for at := from; i%4 == 2 && at < len(p); at += 512 {
				clear(p[at:min(at+256, len(p))])
			}
		case 3:
			p = append(p, make([]byte, part)...)
		}
	}
	return p[:n]
}

// What is noise between repetitions is told from what can be coded in fewer bits.
func TestIsNoise(t *testing.T) {
	mixed := func(share int) []byte {
		p := random(1 << 20)
		copy(p, text(1 << 20)[:share*(1<<20)/100])
		return p
	}
	ascii := random(1 << 20) // no repetitions, but six bits to a byte
	for i := range ascii {
		ascii[i] = ascii[i]&63 + 32
	}
	for _, tt := range []struct {
		name  string
		plain []byte
		want  bool
	}{
		{"noise", random(1 << 20), true},
		{"noise of an odd size", random(123457), true},
		{"half zeroes", half(1 << 20), true},
		{"zeroes", make([]byte, 1<<20), false},
		{"text", text(1 << 20), false},
		{"ascii", ascii, false},
		{"a third text", mixed(33), false},
		{"little", random(4096), false},
		{"nothing", nil, false},
	} {
		if got := isNoise(tt.plain); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// A chunk that is taken for noise, or is so in part, loses nothing that matters.
func TestNoiseIsCompressed(t *testing.T) {
	c, err := NewCompressor(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, plain := range map[string][]byte{
		"half": half(1 << 20), "pages": bytes.Repeat(random(4<<10), 256), "archives": bytes.Repeat(random(64<<10), 16), "two archives": bytes.Repeat(random(1<<19), 2),
		"pages that are not full": bytes.Repeat(append(random(3<<10), make([]byte, 1<<10)...), 256),
		"half zero":               append(random(1<<19), make([]byte, 1<<19)...), "mixed": mixed(1 << 20),
	} {
		fast, codec := c.Compress(nil, plain)
		if all := c.enc.EncodeAll(plain, nil); codec != format.Zstd || len(fast) > len(all)+len(all)/50 {
			t.Errorf("%s: %v, %d bytes, with everything tried %d", name, codec, len(fast), len(all))
		}
	}
}

// Sectors that come again are told from noise, also where they are far apart.
func TestRepeats(t *testing.T) {
	once := func(share int) []byte { // a share of the sectors, in percent, is an earlier one
		p := random(1 << 20)
		n := share * (1 << 20) / 100 / sector * sector
		copy(p[len(p)-n:], p[:n])
		return p
	}
	var s samples
	for _, tt := range []struct {
		name  string
		plain []byte
		want  bool
	}{
		{"noise", random(1 << 20), false},
		{"half zeroes", half(1 << 20), false},
		{"zeroes", make([]byte, 1<<20), false},
		{"archives", bytes.Repeat(random(64<<10), 16), true},
		{"two of them", bytes.Repeat(random(1<<19), 2), true},
		{"a tenth", once(10), true},
		{"a hundredth", once(1), false},
		{"little", random(100), false},
		{"nothing", nil, false},
	} {
		if got := s.repeats(tt.plain); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// Nothing is moved to other memory while there is room in the caller's.
func TestBound(t *testing.T) {
	c, err := NewCompressor(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, n := range []int{1, 4096, maxBlock - 1, maxBlock, maxBlock + 1, 1 << 20} {
		for name, plain := range map[string][]byte{"random": random(n), "text": text(n), "mixed": mixed(1 << 20)[:n]} {
			buf := make([]byte, c.Bound(n))
			got, codec := c.Compress(buf, plain)
			if codec == format.Zstd && &got[0] != &buf[0] {
				t.Errorf("%s: the payload of %d bytes has outgrown a bound of %d", name, n, len(buf))
			}
		}
		if p := appendRuns(nil, random(n)); len(p) > runsBound(n) {
			t.Errorf("%d bytes became %d, more than %d", n, len(p), runsBound(n))
		}
	}
}

// FuzzDecompress holds Decompress to its bound: bytes after dst stay as they are.
func FuzzDecompress(f *testing.F) {
	c, err := NewCompressor(1 << 20)
	if err != nil {
		f.Fatal(err)
	}
	payload, _ := c.Compress(nil, text(3000))
	frames := append(appendRuns(nil, half(1200)), payload...)
	c.Close()
	f.Add(frames, 4200)
	f.Add(appendRuns(frames, make([]byte, 300)), 4500)
	f.Add(payload, 3000)
	f.Add(payload, 2999)
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xff}, 10)
	d, err := NewDecompressor(64 << 10)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(d.Close)
	f.Fuzz(func(t *testing.T, payload []byte, n int) {
		n &= 1<<16 - 1
		const guard = 64
		mem := bytes.Repeat([]byte{0xee}, n+guard)
		err := d.Decompress(mem[:n], payload, format.Zstd)
		if err != nil && !errors.Is(err, format.ErrCorrupt) {
			t.Errorf("error is %v", err)
		}
		if !bytes.Equal(mem[n:], bytes.Repeat([]byte{0xee}, guard)) {
			t.Error("bytes after the destination were written")
		}
		// What the library takes it for.
		want, libErr := d.dec.DecodeAll(payload, make([]byte, 0, n))
		if same := libErr == nil && len(want) == n; same != (err == nil) || same && !bytes.Equal(mem[:n], want) {
			t.Errorf("error is %v, the library's %v for %d bytes of %d", err, libErr, len(want), n)
		}
	})
}

func BenchmarkCompress(b *testing.B) {
	for name, p := range map[string][]byte{"random": random(1 << 20), "half": half(1 << 20), "text": text(1 << 20), "mixed": mixed(1 << 20)} {
		b.Run(name, func(b *testing.B) {
			c, err := NewCompressor(len(p))
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, 0, c.Bound(len(p)))
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				c.Compress(buf, p)
			}
		})
	}
}

func BenchmarkDecompress(b *testing.B) {
	c, err := NewCompressor(1 << 20)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	d, err := NewDecompressor(1 << 20)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	for name, p := range map[string][]byte{"half": half(1 << 20), "text": text(1 << 20), "mixed": mixed(1 << 20)} {
		b.Run(name, func(b *testing.B) {
			payload, codec := c.Compress(nil, p)
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if err := d.Decompress(p, payload, codec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkIsZero(b *testing.B) {
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		IsZero(p)
	}
}
