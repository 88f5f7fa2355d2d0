package changes

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap"
)

var update = flag.Bool("update", false, "write the golden files anew")

func goldenHead() head {
	h := head{Pool: id(testPool), Position: id(testPos), Size: 3 << 30, Block: Block, Generation: 42}
	for i := range h.Session {
		h.Session[i] = byte(i + 1)
	}
	return h
}

func TestGoldenHead(t *testing.T) {
	b := goldenHead().encode()
	var out strings.Builder
	at := 0
	for _, f := range []string{"8 magic", "4 version", "4 crc32c", "16 pool", "16 position", "16 session", "8 size", "8 block", "8 generation"} {
		var n int
		var name string
		if _, err := fmt.Sscanf(f, "%d %s", &n, &name); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%4d %-10s %s\n", at, name, hex.EncodeToString(b[at:at+n]))
		at += n
	}
	if len(bytes.Trim(b[at:], "\x00")) != 0 || len(b) != headSize {
		t.Errorf("%d bytes, not zero from %d on", len(b), at)
	}
	path := filepath.Join("testdata", "head.txt")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(out.String()), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || out.String() != string(want) {
		t.Errorf("%s has changed, %v:\n%s", path, err, out.String())
	}
	if h, err := decodeHead(b); err != nil || h != goldenHead() {
		t.Errorf("decoded %+v, %v", h, err)
	}
	for i := range b {
		damaged := bytes.Clone(b)
		damaged[i] ^= 8
		if _, err := decodeHead(damaged); err == nil {
			t.Fatalf("byte %d does not count", i)
		}
	}
}

// TestFileThatIsAnothers: each field of the head decides.
func TestFileThatIsAnothers(t *testing.T) {
	for name, change := range map[string]func(h *head){
		"pool":               func(h *head) { h.Pool[3]++ },
		"position":           func(h *head) { h.Position[3]++ },
		"session":            func(h *head) { h.Session[3]++ },
		"size":               func(h *head) { h.Size++ },
		"block":              func(h *head) { h.Block *= 2 },
		"a later generation": func(h *head) { h.Generation++ },
	} {
		h := goldenHead()
		change(&h)
		if err := h.fits(goldenHead()); err == nil {
			t.Errorf("a file of another %s fits", name)
		}
	}
	h := goldenHead()
	h.Generation = 1 // has all since then, and so all since 42
	if err := h.fits(goldenHead()); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeHead(f *testing.F) {
	f.Add(goldenHead().encode()[:88], true)
	f.Add([]byte(fileMagic), false)
	f.Fuzz(func(t *testing.T, short []byte, sealed bool) {
		b := make([]byte, headSize)
		n := copy(b, short)
		if sealed { // the checksum would keep the fuzzer out
			clear(b[12:16])
			binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b, castagnoli))
		}
		if _, err := decodeHead(b[:n]); err == nil && n < headSize {
			t.Errorf("a head of %d bytes is good", n)
		}
		h, err := decodeHead(b)
		if err == nil && !bytes.Equal(h.encode()[16:88], b[16:88]) {
			t.Error("another head has the same meaning")
		}
	})
}

// changed lists what Frozen names.
func changed(w *world) (list []int) {
	_, words := w.m.Frozen()
	for b := range w.content {
		if words != nil && words[b/64]>>(b%64)&1 != 0 {
			list = append(list, b)
		}
	}
	return list
}

// mustBackUp makes a backup that counts.
func mustBackUp(w *world) {
	w.t.Helper()
	token, backup := w.cut()
	if !w.confirm(token, backup) {
		w.t.Fatal("the backup was not confirmed")
	}
}

// TestOnlyWhatChangedIsNamed: after a backup the next one names the blocks that
// were written since, also when the daemon was killed, and after a power cut the
// extents that they are in.
func TestOnlyWhatChangedIsNamed(t *testing.T) {
	w := newWorld(t, 7, 6)
	w.write(0, len(w.content))
	mustBackUp(w)
	w.write(5, 2)
	w.write(17, 1)
	token, backup := w.cut()
	if got := changed(w); !slices.Equal(got, []int{5, 6, 17}) {
		t.Fatalf("named are %v", got)
	}
	w.write(9, 1)
	w.confirm(token, backup)
	w.die()
	w.start()
	w.m.Cut(time.Now())
	if got := changed(w); !slices.Equal(got, []int{9}) {
		t.Errorf("after a kill: %v", got)
	}
	if got := w.m.Info(); got.Bytes != Block || !got.Durable || got.Base.Backup != backup || !got.Since.Equal(got.Base.Since) {
		t.Errorf("info %+v", got)
	}
	w.write(10, 1) // its granule is on the disks already
	w.powerCut()
	if got := changed(w); !slices.Equal(got, []int{8, 9, 10, 11}) {
		t.Errorf("after a power cut: %v", got)
	}
	mustBackUp(w)
	w.m.Cut(time.Now())
	if got := changed(w); len(got) != 0 {
		t.Errorf("after a backup: %v", got)
	}
}

// TestCutsThatDoNotCount: a backup that is not of the last cut confirms nothing.
func TestCutsThatDoNotCount(t *testing.T) {
	w := newWorld(t, 1, 6)
	first, b1 := w.cut()
	w.write(0, 1)
	second, b2 := w.cut()
	if w.confirm(first, b1) || w.confirm("", b1) || w.base.Backup != "" {
		t.Error("a cut counts that another came after")
	}
	w.m.Void(first) // is not the last
	if !w.confirm(second, b2) || w.confirm(second, b2) {
		t.Error("the last cut has to count, once")
	}
	third, b3 := w.cut()
	w.m.Void(third)
	if w.confirm(third, b3) || w.base.Backup != b2 {
		t.Error("a cut counts that is void")
	}
	fourth, b4 := w.cut()
	w.grow()
	if w.confirm(fourth, b4) {
		t.Error("a cut counts that the volume has grown after")
	}
	w.m.Cut(time.Now())
	w.mustCover("after a grow")
	if got := changed(w); !slices.Equal(got, []int{24, 25, 26, 27}) {
		t.Errorf("named are %v", got)
	}
}

// TestNothingIsWrittenForAVolumeWithoutBackups: its maps cost no write of a disk.
func TestNothingIsWrittenForAVolumeWithoutBackups(t *testing.T) {
	w := newWorld(t, 1, 6)
	before := w.effects
	for b := range w.content {
		w.write(b, 1)
	}
	if w.effects != before {
		t.Errorf("%d effects", w.effects-before)
	}
	if got := w.m.Info(); got.Base.Backup != "" || got.Base.Why != whyNew || got.Bytes != w.size() {
		t.Errorf("info %+v", got)
	}
	mustBackUp(w)
	w.write(0, 1)
	if w.effects == before {
		t.Error("nothing was written after a backup either")
	}
}

// TestPageThatCannotBeWritten: the volume goes on without its map when that is
// durable; when it is not, the write fails, and works when the disk does.
func TestPageThatCannotBeWritten(t *testing.T) {
	w := newWorld(t, 1, 6)
	mustBackUp(w)
	w.bad, w.stuck = true, true
	if e := w.write(0, 1); e != unix.EIO {
		t.Errorf("neither map nor metadata can be written: %v", e)
	}
	w.bad, w.stuck = false, false
	if e := w.write(0, 1); e != 0 {
		t.Errorf("after the disk was mended: %v", e)
	}
	w.m.Cut(time.Now())
	w.mustCover("after an error")
	w.bad = true
	token, backup := w.cut()
	// Two granules on two disks.
	if e := w.write(12, 8); e != 0 {
		t.Errorf("a write whose map is given up: %v", e)
	}
	if w.base.Backup != "" || !strings.Contains(w.base.Why, "could not be written") {
		t.Errorf("base %+v", w.base)
	}
	if w.confirm(token, backup) {
		t.Error("a backup counts though writes since were not tracked")
	}
	if base, words := w.m.Frozen(); base.Backup != "" || words != nil || base.Why != w.base.Why {
		t.Errorf("base %+v", base)
	}
	w.bad = false
	mustBackUp(w)
	w.write(3, 1)
	w.powerCut()
	if got := changed(w); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Errorf("after the next backup and a power cut: %v", got)
	}
}

// TestMapWithoutDisks: in a pool that has no room the map is good until the daemon
// ends.
func TestMapWithoutDisks(t *testing.T) {
	w := newWorld(t, 1, 6)
	opt := w.options()
	opt.Durable, opt.Session = nil, ""
	var err error
	if w.m, err = Open(opt); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(opt.File); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a file: %v", err)
	}
	token, backup := w.cut()
	ok, err := w.m.Confirm(token, backup, func(b dmswap.Base) (dmswap.Base, error) { return b, nil })
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	w.write(2, 1)
	w.m.Cut(time.Now())
	if got := changed(w); !slices.Equal(got, []int{2}) || w.m.Info().Durable {
		t.Errorf("named are %v", got)
	}
	grown, err := w.m.Grow(w.size()+Block, nil)
	if err != nil {
		t.Fatal(err)
	}
	grown.Cut(time.Now())
	if base, words := grown.Frozen(); base.Backup != backup || words[0] != 1<<2|1<<24 {
		t.Errorf("after a grow: %+v, %x", base, words)
	}
	if w.m, err = Open(opt); err != nil {
		t.Fatal(err)
	}
	if base, _ := w.m.Frozen(); base.Backup != "" || base.Why != whyVolatile {
		t.Errorf("the next daemon has base %+v", base)
	}
}

// TestGrownOntoADiskWithoutRoom gives the base up first.
func TestGrownOntoADiskWithoutRoom(t *testing.T) {
	w := newWorld(t, 1, 6)
	mustBackUp(w)
	w.stuck = true
	if _, err := w.m.Grow(w.size()+Block, nil); err == nil {
		t.Error("the map has grown though its base could not be given up")
	}
	w.stuck = false
	m, err := w.m.Grow(w.size()+Block, nil)
	if err != nil {
		t.Fatal(err)
	}
	if w.base.Backup != "" || m.Info().Base.Backup != "" || m.Info().Durable {
		t.Errorf("base %+v, %+v", w.base, m.Info())
	}
}
