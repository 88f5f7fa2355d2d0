package backup

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
)

// However ranges come, the list has all of them, sorted and apart, and nothing else
// while it is short.
func TestBadList(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		const size = 300
		owner := make([]byte, size)
		for i := range owner {
			owner[i] = "ab-"[rnd.IntN(3)]
		}
		var l badList
		var bytes int64
		for _, i := range rnd.Perm(size) {
			if owner[i] != '-' {
				l.add(BadRange{Offset: int64(i), Length: 1, Object: string(owner[i])})
				bytes++
			}
		}
		if l.bytes != bytes {
			t.Fatalf("%d bytes, want %d", l.bytes, bytes)
		}
		got := make([]byte, size)
		for i := range got {
			got[i] = '-'
			if l.has(int64(i)) != (owner[i] != '-') {
				t.Fatalf("has(%d) is %v in %q", i, l.has(int64(i)), owner)
			}
		}
		for i, b := range l.ranges {
			if i > 0 && (l.ranges[i-1].end() > b.Offset || l.ranges[i-1].end() == b.Offset && l.ranges[i-1].Object == b.Object) {
				t.Fatalf("%+v and %+v are not joined, or overlap", l.ranges[i-1], b)
			}
			for k := b.Offset; k < b.end(); k++ {
				got[k] = b.Object[0]
			}
		}
		if string(got) != string(owner) {
			t.Fatalf("list says\n%s, want\n%s", got, owner)
		}
	}
}

// Very much damage costs a bounded list, in which every damaged byte is.
func TestBadListStaysShort(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 2))
	var l badList
	perm := rnd.Perm(5 * maxBad)
	for _, i := range perm {
		l.add(BadRange{Offset: int64(i) << 20, Length: 1 << 16, Object: fmt.Sprint(i % 3), Reason: "lost"})
		if len(l.ranges) >= maxBad {
			t.Fatalf("%d ranges", len(l.ranges))
		}
	}
	for i, b := range l.ranges {
		if i > 0 && l.ranges[i-1].end() >= b.Offset || len(b.Object) > 40 || len(b.Reason) > 100 {
			t.Fatalf("%+v after %+v", b, l.ranges[i-1])
		}
	}
	for _, i := range perm {
		if off := int64(i) << 20; !l.has(off) || !l.has(off+1<<16-1) {
			t.Fatalf("byte %d is not listed", off)
		}
	}
	if l.bytes != 5*maxBad<<16 {
		t.Errorf("%d bytes", l.bytes)
	}
}

// More damaged ranges than can be listed do not end a restore.
func TestVeryMuchDamage(t *testing.T) {
	h := newHostile(t)
	lost := format.Ref{Pack: format.ID{0xcc}, Offset: format.PackHeaderSize, Stored: testChunk, Length: testChunk, Kind: format.KindChunk}
	// There are zeroes between any two chunks, all of which are lost.
	var leaf []byte
	for i := range format.Fanout {
		leaf = format.AppendEntry(leaf, []format.Ref{lost, {}}[i%2])
	}
	below := h.pack(0xdd, format.KindNode, h.rawBlob(leaf))[0]
	const leaves = 2*maxBad/format.Fanout + 3
	var root []byte
	for range leaves {
		root = format.AppendEntry(root, below)
	}
	const size = leaves * format.Fanout * testChunk
	h.volume(size, h.pack(0xee, format.KindNode, h.rawBlob(root))[0])
	r, err := Open(t.Context(), h.dir, Secret{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	target := t.TempDir() + "/new"
	res, err := r.Restore(t.Context(), RestoreOptions{Backup: h.b.ID, Target: target, CreateTarget: true, VerifyAfter: true})
	wantErr(t, "restore", err, ErrDamaged, "everything else was restored")
	if res.MissingBytes != size/2 || res.ZeroBytes != size/2 || len(res.Bad) >= maxBad || res.Incomplete {
		t.Errorf("%d missing, %d zeroed, %d ranges", res.MissingBytes, res.ZeroBytes, len(res.Bad))
	}
	if len(err.Error()) > 4096 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}
