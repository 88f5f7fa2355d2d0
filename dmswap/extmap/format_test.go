package extmap

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	goldenPool    = ID{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}
	goldenMember  = ID{0x0f, 0x1e, 0x2d, 0x3c, 0x4b, 0x5a, 0x69, 0x78, 0x87, 0x96, 0xa5, 0xb4, 0xc3, 0xd2, 0xe1, 0xf0}
	goldenSession = ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
)

// dump writes a block as hexadecimal with the name of every field; what follows
// the last one has to be zero.
func dump(t *testing.T, b []byte, fields ...string) string {
	t.Helper()
	var out strings.Builder
	at := 0
	for _, f := range fields {
		var n int
		var name string
		if _, err := fmt.Sscanf(f, "%d %s", &n, &name); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%4d %-8s %s\n", at, name, hex.EncodeToString(b[at:at+n]))
		at += n
	}
	if len(bytes.Trim(b[at:], "\x00")) != 0 {
		t.Errorf("bytes from %d on are not zero", at)
	}
	return out.String()
}

func TestGolden(t *testing.T) {
	words := make([]uint64, pageWords)
	words[0], words[1], words[3] = 1<<0|1<<9, 1<<63, 0xff<<8 // extents 0, 9, 127, 200 to 207
	head, page := encodeHead(goldenPool, goldenMember, goldenSession), encodePage(goldenPool, goldenMember, 3, 77, words)
	got := dump(t, head, "8 magic", "4 version", "4 crc32c", "16 pool", "16 member", "16 session") + "\n" +
		dump(t, page, "8 magic", "4 version", "4 crc32c", "16 pool", "16 member", "8 page", "8 number", "32 bits")
	path := filepath.Join("testdata", "area.txt")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s has changed: disks written by earlier versions could not be read\n got:\n%s\nwant:\n%s", path, got, want)
	}
	if session, err := decodeHead(head, goldenPool, goldenMember); err != nil || session != goldenSession {
		t.Errorf("decoded %x, %v", session, err)
	}
	if number, w, err := decodePage(page, goldenPool, goldenMember, 3); err != nil || number != 77 || !reflect.DeepEqual(w, words) {
		t.Errorf("decoded %d, %v", number, err)
	}
}

// TestEveryBitCounts: what is not whole, or of another place, is refused. Were it
// not, it could say "unchanged".
func TestEveryBitCounts(t *testing.T) {
	words := make([]uint64, pageWords)
	page := encodePage(goldenPool, goldenMember, 3, 77, words)
	head := encodeHead(goldenPool, goldenMember, goldenSession)
	for at := range pageSize {
		for _, b := range [][]byte{page, head} {
			damaged := bytes.Clone(b)
			damaged[at] ^= 0x10
			_, err1 := decodeHead(damaged, goldenPool, goldenMember)
			_, _, err2 := decodePage(damaged, goldenPool, goldenMember, 3)
			if !errors.Is(err1, errBad) || !errors.Is(err2, errBad) {
				t.Fatalf("byte %d: %v, %v", at, err1, err2)
			}
		}
	}
	other := goldenMember
	other[0]++
	for name, c := range map[string]struct {
		pool, member ID
		index        uint64
	}{"pool": {other, goldenMember, 3}, "member": {goldenPool, other, 3}, "place": {goldenPool, goldenMember, 2}} {
		if _, _, err := decodePage(page, c.pool, c.member, c.index); !errors.Is(err, errBad) {
			t.Errorf("of another %s: %v", name, err)
		}
	}
	if _, _, err := decodePage(make([]byte, pageSize), goldenPool, goldenMember, 0); !errors.Is(err, errEmpty) {
		t.Errorf("zeroes: %v", err)
	}
	newer := bytes.Clone(page)
	newer[8] = 2
	clear(newer[12:16])
	if _, _, err := decodePage(seal(newer), goldenPool, goldenMember, 3); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("a newer version: %v", err)
	}
}

func TestSizes(t *testing.T) {
	for extents, pages := range map[int64]int64{0: 0, 1: 1, pageBits: 1, pageBits + 1: 2, 1 << 18: 9} {
		if Pages(extents) != pages || Size(extents) != (pages+1)*4096 {
			t.Errorf("%d extents: %d pages, %d bytes", extents, Pages(extents), Size(extents))
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encodeHead(goldenPool, goldenMember, goldenSession))
	f.Add(encodePage(goldenPool, goldenMember, 0, 1, make([]uint64, pageWords)))
	f.Add([]byte(bitsMagic))
	f.Fuzz(func(t *testing.T, short []byte) {
		b := make([]byte, pageSize)
		copy(b, short)
		// The checksum and the IDs would keep the fuzzer out.
		copy(b[16:], goldenPool[:])
		copy(b[32:], goldenMember[:])
		clear(b[12:16])
		seal(b)
		if session, err := decodeHead(b, goldenPool, goldenMember); err == nil {
			want := encodeHead(goldenPool, goldenMember, session)
			if !bytes.Equal(b[:12], want[:12]) || !bytes.Equal(b[16:64], want[16:64]) {
				t.Error("another head has the same meaning")
			}
		}
		for k := range uint64(2) {
			number, words, err := decodePage(b, goldenPool, goldenMember, k)
			if err == nil && !bytes.Equal(b, encodePage(goldenPool, goldenMember, k, number, words)) {
				t.Error("another page has the same meaning")
			}
		}
	})
}
