package logwrites

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
)

const block = 512

// writeLog encodes a log as the kernel does; the data of a write is its blocks'
// bytes, each filled with fill.
type written struct {
	first, blocks int64
	flags         uint64
	mark          string
	fill          byte
}

func encode(list ...written) []byte {
	le := binary.LittleEndian
	out := make([]byte, block)
	le.PutUint64(out, magic)
	le.PutUint64(out[8:], version)
	le.PutUint64(out[16:], uint64(len(list)))
	le.PutUint32(out[24:], block)
	for _, w := range list {
		b := make([]byte, block)
		le.PutUint64(b, uint64(w.first))
		le.PutUint64(b[8:], uint64(w.blocks))
		le.PutUint64(b[16:], w.flags)
		le.PutUint64(b[24:], uint64(len(w.mark)))
		copy(b[entrySize:], w.mark)
		out = append(out, b...)
		if w.flags&(Discard|Mark) == 0 {
			out = append(out, bytes.Repeat([]byte{w.fill}, int(w.blocks*block))...)
		}
	}
	return out
}

func read(t *testing.T, raw []byte) *Log {
	t.Helper()
	l, err := Read(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestRead(t *testing.T) {
	raw := encode(
		written{first: 8, blocks: 2, fill: 'a'},
		written{flags: Flush},
		written{flags: Mark, mark: "here"},
		written{first: 4, blocks: 1 << 20, flags: Discard},
		written{first: 2, blocks: 1, flags: FUA | Metadata, fill: 'b'},
	)
	l := read(t, raw)
	if len(l.Entries) != 5 || l.BlockSize != block || l.Size != int64(len(raw)) {
		t.Fatalf("%d entries of blocks of %d in %d of %d bytes", len(l.Entries), l.BlockSize, l.Size, len(raw))
	}
	if e := l.Entries[0]; e.Offset != 4096 || e.Length != 1024 || e.Flags != 0 {
		t.Errorf("write: %+v", e)
	}
	if e := l.Entries[2]; e.Text != "here" || !e.Has(Mark) {
		t.Errorf("mark: %+v", e)
	}
	if e := l.Entries[3]; e.Length != 512<<20 || e.HasData() {
		t.Errorf("discard: %+v", e)
	}
	data, err := l.Data(l.Entries[4])
	if err != nil || !bytes.Equal(data, bytes.Repeat([]byte{'b'}, block)) {
		t.Errorf("data behind a discard: %v, %.8q", err, data)
	}
}

func TestReadRefusesDamage(t *testing.T) {
	whole := func() []byte { return encode(written{first: 8, blocks: 2, fill: 'a'}, written{flags: Mark, mark: "x"}) }
	le := binary.LittleEndian
	for _, tt := range []struct {
		name   string
		change func(b []byte) []byte
		want   string
	}{
		{"magic", func(b []byte) []byte { b[0]++; return b }, "magic"},
		{"version", func(b []byte) []byte { b[8]++; return b }, "version"},
		{"block size", func(b []byte) []byte { le.PutUint32(b[24:], 7); return b }, "blocks of 7 bytes"},
		{"too many entries", func(b []byte) []byte { le.PutUint64(b[16:], 1<<40); return b }, "entries"},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, "behind the log"},
		{"data cut", func(b []byte) []byte { return b[:3*block] }, "behind the log"},
		{"huge write", func(b []byte) []byte { le.PutUint64(b[block+8:], 1<<60); return b }, "blocks from 8"},
		{"long mark", func(b []byte) []byte { le.PutUint64(b[4*block+24:], block); return b }, "mark of 512"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.change(whole())
			_, err := Read(bytes.NewReader(b), int64(len(b)))
			if !errors.Is(err, Error) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// disk is 16 blocks, shown as one letter each.
type disk [16]byte

func (d *disk) put(p Patch) {
	for i := 0; i < len(p.Data); i += block {
		d[(p.Offset+int64(i))/block] = p.Data[i]
	}
}

func (d disk) String() string { return strings.ReplaceAll(string(d[:]), "\x00", ".") }

func (d disk) with(t *testing.T, patches []Patch, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range patches {
		d.put(p)
	}
	return d.String()
}

func TestReplay(t *testing.T) {
	l := read(t, encode(
		written{first: 0, blocks: 3, fill: 'a'},             // 0: waits for the flush
		written{first: 2, blocks: 2, fill: 'b'},             // 1
		written{flags: Flush},                               // 2
		written{first: 5, blocks: 1, flags: FUA, fill: 'c'}, // 3: durable at once
		written{flags: Mark, mark: "m"},                     // 4
		written{first: 5, blocks: 1, fill: 'd'},             // 5: over it
		written{first: 0, blocks: 4, flags: FUA, fill: 'e'}, // 6
		written{first: 1, blocks: 1, flags: Discard},        // 7
		written{flags: Flush},                               // 8
	))
	var now disk
	r := NewReplay(l, 16*block, now.put)
	for i, want := range []struct {
		durable, cached, all string
		volatile             int
	}{
		{"................", "................", "aabb............", 2}, // the first flush is next
		{"................", "aaa.............", "aabb............", 2},
		{"................", "aabb............", "aabb............", 2},
		{"aabb............", "aabb............", "aabb............", 0},
		{"aabb.c..........", "aabb.c..........", "aabb.c..........", 0},
		{"aabb.c..........", "aabb.c..........", "aabb.c..........", 0}, // its flush may be later than the FUA write
		{"aabb.c..........", "aabb.d..........", "aabb.d..........", 1},
		{"eeee.c..........", "eeee.d..........", "e.ee.d..........", 2},
		{"eeee.c..........", "e.ee.d..........", "e.ee.d..........", 2},
		{"e.ee.d..........", "e.ee.d..........", "e.ee.d..........", 0},
	} {
		if err := r.Advance(i); err != nil {
			t.Fatal(err)
		}
		cached, err := r.Cached()
		gotCached := now.with(t, cached, err)
		all, err := r.Survivors(func() bool { return true })
		gotAll := now.with(t, all, err)
		if now.String() != want.durable || gotCached != want.cached || gotAll != want.all || r.Volatile() != want.volatile {
			t.Errorf("after %d entries: durable %s, in order %s, all %s, %d volatile; want %+v", i, now, gotCached, gotAll, r.Volatile(), want)
		}
	}
}

// TestSurvivorsAreTorn: any block of a volatile write may be lost alone.
func TestSurvivorsAreTorn(t *testing.T) {
	l := read(t, encode(written{first: 0, blocks: 4, fill: 'a'}, written{first: 3, blocks: 2, fill: 'b'}, written{flags: Flush}))
	var now disk
	r := NewReplay(l, 16*block, now.put)
	choice := []bool{true, false, true, true, false, true}
	patches, err := r.Survivors(func() bool {
		c := choice[0]
		choice = choice[1:]
		return c
	})
	if got := now.with(t, patches, err); got != "a.aab..........." {
		t.Errorf("got %s", got)
	}
	if now != (disk{}) {
		t.Errorf("what survives by chance was made durable: %s", now)
	}
}

// TestFUAIsNotCovered: a write that stays in the cache while a later one with
// FUA goes past it does not come back over it.
func TestFUAIsNotCovered(t *testing.T) {
	l := read(t, encode(written{first: 0, blocks: 3, fill: 'a'}, written{first: 1, blocks: 1, flags: FUA, fill: 'b'}, written{flags: Flush}))
	var now disk
	r := NewReplay(l, 16*block, now.put)
	for i, want := range []string{"................", "................", ".b..............", "aba............."} {
		if err := r.Advance(i); err != nil {
			t.Fatal(err)
		}
		if now.String() != want {
			t.Errorf("after %d entries: %s, want %s", i, now, want)
		}
	}
}

func TestReplayRefusesWritesBehindTheEnd(t *testing.T) {
	l := read(t, encode(written{first: 15, blocks: 2, fill: 'a'}))
	if err := NewReplay(l, 16*block, func(Patch) {}).Advance(1); err == nil {
		t.Error("no error")
	}
}

func FuzzRead(f *testing.F) {
	f.Add(encode(written{first: 8, blocks: 2, fill: 'a'}, written{flags: Flush}, written{flags: Mark, mark: "m"},
		written{first: 1, blocks: 9, flags: Discard}, written{first: 3, blocks: 1, flags: FUA, fill: 'b'}))
	f.Add(encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := Read(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		const size = 1 << 20
		r := NewReplay(l, size, func(p Patch) {
			if p.Offset < 0 || p.Offset+int64(len(p.Data)) > size {
				t.Errorf("a patch of %d bytes at %d", len(p.Data), p.Offset)
			}
		})
		if r.Advance(len(l.Entries)) == nil {
			_, _ = r.Cached()
		}
		if slices.ContainsFunc(l.Entries, func(e Entry) bool { return e.Offset < 0 || e.Length < 0 }) {
			t.Errorf("negative: %+v", l.Entries)
		}
	})
}
