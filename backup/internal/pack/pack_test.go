package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func hash(p []byte) format.Hash { return sha256.Sum256(p) }

func content(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%05d", i), 100+i) }

// fill writes n blobs to packs of about 4 KiB and returns where they lie.
func fill(t testing.TB, m *storetest.Mem, n int) ([]format.Ref, *Writer) {
	t.Helper()
	w := NewWriter(m, WriterOptions{Kind: format.KindChunk, Repository: format.ID{1}, Session: format.ID{2}, Size: 4096})
	defer w.Abort()
	var refs []format.Ref
	for i := range n {
		p := content(i)
		ref, err := w.Add(t.Context(), format.Ref{Hash: hash(p), Length: uint32(len(p))}, p)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return refs, w
}

func reader(t *testing.T, m *storetest.Mem) *Reader {
	t.Helper()
	r, err := NewReader(m, hash, nil, format.MinChunk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func TestWriteAndRead(t *testing.T) {
	m := storetest.NewMem()
	refs, w := fill(t, m, 50)
	names := m.Names(Dir)
	if len(names) < 5 || len(names) != len(w.Packs()) {
		t.Errorf("%d packs, the writer says %d", len(names), len(w.Packs()))
	}
	var size int64
	for _, n := range names {
		size += int64(len(m.Object(n)))
	}
	if size != w.Bytes() {
		t.Errorf("packs have %d bytes, the writer says %d", size, w.Bytes())
	}
	r := reader(t, m)
	for i, ref := range refs {
		got := make([]byte, ref.Length)
		if err := r.Read(t.Context(), ref, got); err != nil || !bytes.Equal(got, content(i)) {
			t.Errorf("blob %d: %v", i, err)
		}
	}
	listed := 0
	for _, id := range w.Packs() {
		var dir []format.Ref
		h, err := ReadDirectory(t.Context(), m, id, func(_ int, r format.Ref) { dir = append(dir, r) })
		if err != nil || h.Session != (format.ID{2}) || h.Repository != (format.ID{1}) {
			t.Errorf("pack %v: %+v, %v", id, h, err)
		}
		for _, ref := range dir {
			if ref != refs[listed] {
				t.Errorf("entry %d is %+v, want %+v", listed, ref, refs[listed])
			}
			listed++
		}
	}
	if listed != len(refs) {
		t.Errorf("%d of %d blobs are listed", listed, len(refs))
	}
}

func TestReadRun(t *testing.T) {
	m := storetest.NewMem()
	refs, _ := fill(t, m, 4)
	for i := 1; i < 4; i++ {
		if !Follows(refs[i-1], refs[i]) {
			t.Fatalf("%d does not follow", i)
		}
	}
	var want []byte
	for i := range refs {
		want = append(want, content(i)...)
	}
	name := Name(refs[0].Pack)
	object := m.Object(name)
	for cut := len(object); cut >= 0; cut -= 100 {
		m.SetObject(name, object[:cut])
		got := make([]byte, len(want))
		bad := map[int]bool{}
		err := reader(t, m).ReadRun(t.Context(), refs, got, func(i int, err error) {
			if !IsDamage(err) || bad[i] {
				t.Errorf("cut %d: blob %d: %v", cut, i, err)
			}
			bad[i] = true
		})
		if err != nil {
			t.Fatal(err)
		}
		off := 0
		for i, ref := range refs {
			end := int(ref.Offset) + format.BlobHeaderSize + int(ref.Stored)
			if bad[i] != (end > cut) {
				t.Errorf("cut %d: blob %d ends at %d, bad is %v", cut, i, end, bad[i])
			}
			if !bad[i] && !bytes.Equal(got[off:off+int(ref.Length)], content(i)) {
				t.Errorf("cut %d: blob %d is wrong", cut, i)
			}
			off += int(ref.Length)
		}
	}
}

// A blob whose checksum is right and whose content is not what it is called was
// written wrong, by bad memory for instance.
func TestReadChecksTheHash(t *testing.T) {
	m := storetest.NewMem()
	refs, _ := fill(t, m, 1)
	object := m.Object(Name(refs[0].Pack))
	payload := object[refs[0].Offset+format.BlobHeaderSize:][:refs[0].Stored]
	payload[7] ^= 1
	format.PutBlobHeader(object[refs[0].Offset:], refs[0], payload)
	m.SetObject(Name(refs[0].Pack), object)
	err := reader(t, m).Read(t.Context(), refs[0], make([]byte, refs[0].Length))
	if !errors.Is(err, format.ErrCorrupt) {
		t.Errorf("error is %v", err)
	}
}

// Every operation of the store that fails is heard of by the end of Flush, and
// nothing is left half-written.
func TestWriterFailures(t *testing.T) {
	for fail := 1; ; fail++ {
		m := storetest.NewMem()
		v := m.Open()
		v.Before = func(op storetest.Op) error {
			if op.N == fail {
				return syscall.ENOSPC
			}
			return nil
		}
		w := NewWriter(v, WriterOptions{Kind: format.KindNode, Size: 4096})
		err := func() error {
			for i := range 20 {
				p := content(i)
				if _, err := w.Add(t.Context(), format.Ref{Hash: hash(p), Length: uint32(len(p))}, p); err != nil {
					return err
				}
			}
			return w.Flush(t.Context())
		}()
		w.Abort()
		if err == nil {
			if v.Ops() >= fail {
				t.Fatalf("failure %d of %d went unheard", fail, v.Ops())
			}
			return
		}
		if !errors.Is(err, syscall.ENOSPC) || m.Temps() != 0 {
			t.Errorf("failure %d: %v, %d temporaries", fail, err, m.Temps())
		}
		for _, id := range w.Packs() {
			if m.Object(Name(id)) != nil {
				if _, err := ReadDirectory(t.Context(), m, id, ignore); err != nil {
					t.Errorf("failure %d: %v", fail, err)
				}
			}
		}
	}
}

func TestWriterCancelled(t *testing.T) {
	m := storetest.NewMem()
	w := NewWriter(m, WriterOptions{Kind: format.KindChunk, Size: 100})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := w.Add(ctx, format.Ref{Length: 5}, []byte("hello"))
	w.Abort()
	if !errors.Is(err, context.Canceled) || m.Temps() != 0 {
		t.Errorf("%v, %d temporaries", err, m.Temps())
	}
}

func ignore(int, format.Ref) {}

func TestReadDirectoryRefuses(t *testing.T) {
	m := storetest.NewMem()
	refs, w := fill(t, m, 3)
	good, name := m.Object(Name(refs[0].Pack)), Name(w.Packs()[0])
	other := NewID()
	m.SetObject(Name(other), good) // a pack under another's name
	if _, err := ReadDirectory(t.Context(), m, other, ignore); !errors.Is(err, format.ErrCorrupt) {
		t.Errorf("another's name: %v", err)
	}
	for _, n := range []int{0, 10, 80, 143, 144, len(good) - 64, len(good) - 1} {
		m.SetObject(name, good[:n])
		if _, err := ReadDirectory(t.Context(), m, refs[0].Pack, ignore); !IsDamage(err) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	m.SetObject(name, nil)
	if _, err := ReadDirectory(t.Context(), m, refs[0].Pack, ignore); !IsDamage(err) {
		t.Errorf("gone: %v", err)
	}
}

// No blobs are so small that a writer makes a pack that readers refuse.
func TestPackOfTheSmallestBlobsIsRead(t *testing.T) {
	m := storetest.NewMem()
	w := NewWriter(m, WriterOptions{Kind: format.KindChunk})
	wrote, payload := 0, []byte{1}
	for first := true; first || w.w != nil; first = false {
		if _, err := w.Add(t.Context(), format.Ref{Length: 1}, payload); err != nil {
			t.Fatal(err)
		}
		wrote++
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	listed := 0
	_, err := ReadDirectory(t.Context(), m, w.Packs()[0], func(int, format.Ref) { listed++ })
	if err != nil || listed != wrote {
		t.Errorf("%d of %d blobs are listed, %v", listed, wrote, err)
	}
	t.Logf("%d blobs", wrote)
}

func TestDirectoriesRememberWithinABound(t *testing.T) {
	m := storetest.NewMem()
	refs, w := fill(t, m, 50)
	d := NewDirectories(m)
	lists := func(ref format.Ref, want bool) {
		t.Helper()
		if got, err := d.Lists(t.Context(), ref); got != want || err != nil {
			t.Errorf("blob %v lists %v, %v", ref, got, err)
		}
	}
	for _, ref := range refs {
		lists(ref, true)
		ref.Length++
		lists(ref, false)
		ref.Length--
		ref.Offset++
		lists(ref, false)
	}
	if len(d.packs) != len(w.Packs()) {
		t.Errorf("%d of %d packs are remembered", len(d.packs), len(w.Packs()))
	}
	d.cost = maxListed // as if others had been read
	gone := refs[0]
	gone.Pack = NewID()
	if _, err := d.Lists(t.Context(), gone); !IsDamage(err) || len(d.packs) != 1 || d.cost != listingCost {
		t.Errorf("%v, %d packs of cost %d", err, len(d.packs), d.cost)
	}
	lists(refs[0], true)
	// What a context broke off is no fault of the pack.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	other := refs[len(refs)-1]
	m.Before = func(storetest.Op) error { return ctx.Err() }
	if _, err := d.Lists(ctx, other); !errors.Is(err, context.Canceled) {
		t.Errorf("broken off: %v", err)
	}
	m.Before = nil
	lists(other, true)
}
