package backup

import (
	"math/rand/v2"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// Seeds that follow each other read one part after the other, and each chunk once
// when the parts are equal.
func TestSamplesCoverEverything(t *testing.T) {
	r, _ := memRepo(t)
	create(t, r, CreateOptions{}, source(t, "a", image(1, 60)), source(t, "b", image(2, 60)))
	all, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil || all.ChunksRead != all.Chunks || all.BytesRead != all.ChunkBytes || all.Chunks < 60 || all.Nodes != 2 || all.Sample != 0 {
		t.Fatalf("all: %+v, %v", all, err)
	}
	for _, tt := range []struct {
		share float64
		seed  uint64
		runs  int
	}{{0.25, 0, 4}, {0.05, 7, 20}, {0.5, 1<<64 - 1, 2}} {
		var chunks, bytes int64
		for i := range tt.runs {
			o := VerifyOptions{Sample: tt.share, Seed: tt.seed + uint64(i)}
			rep, err := r.Verify(t.Context(), o)
			again, err2 := r.Verify(t.Context(), o)
			if err != nil || err2 != nil || rep.Chunks != all.Chunks || rep.Nodes != all.Nodes || rep.ChunksRead > all.Chunks*3/4 {
				t.Errorf("%+v: %+v, %v, %v", o, rep, err, err2)
			}
			if again.ChunksRead != rep.ChunksRead || rep.Sample != tt.share || rep.Seed != o.Seed {
				t.Errorf("%+v: %+v, then %+v", o, rep, again)
			}
			chunks, bytes = chunks+rep.ChunksRead, bytes+rep.BytesRead
		}
		if chunks != all.Chunks || bytes != all.ChunkBytes {
			t.Errorf("%+v: %d of %d chunks in all", tt, chunks, all.Chunks)
		}
	}
	for _, share := range []float64{-0.1, 1.1} {
		_, err := r.Verify(t.Context(), VerifyOptions{Sample: share})
		wantErr(t, "share", err, ErrInvalid, "sample")
	}
}

// Every name is in as many samples as there should be, whatever the share.
func TestSampleOf(t *testing.T) {
	rnd := rand.NewChaCha8([32]byte{3})
	for range 1000 {
		var h format.Hash
		rnd.Read(h[:])
		for _, share := range []float64{0.3, 0.7, 0.999999} {
			n := 0
			for seed := range uint64(100) {
				if sampleOf(share, seed).has(h) {
					n++
				}
			}
			if want := 100 * share; float64(n) < want-1 || float64(n) > want+1 {
				t.Errorf("share %v: in %d of 100 samples", share, n)
			}
		}
	}
	if s := sampleOf(1e-30, 5); s.width != 1 || s.all {
		t.Errorf("a tiny share: %+v", s)
	}
	if s := sampleOf(1, 5); !s.all {
		t.Errorf("all: %+v", s)
	}
}

// What is wrong with a chunk is found by the seeds that read it, and what is wrong
// with the structure by every one.
func TestSampleFindsDamage(t *testing.T) {
	r, m := memRepo(t)
	create(t, r, CreateOptions{}, source(t, "a", image(1, 40)))
	good := m.Clone()
	id, err := format.ParseID(packNames(m)[0][len("packs/00/"):])
	if err != nil {
		t.Fatal(err)
	}
	var ref format.Ref
	if _, err := pack.ReadDirectory(t.Context(), m, id, func(_ int, r format.Ref) { ref = r }); err != nil {
		t.Fatal(err)
	}
	object := m.Object(pack.Name(id))
	object[ref.Offset+format.BlobHeaderSize] ^= 1
	m.SetObject(pack.Name(id), object)
	found := 0
	for seed := range uint64(10) {
		rep, err := r.Verify(t.Context(), VerifyOptions{Sample: 0.1, Seed: seed})
		if (err != nil) != (len(rep.Damage) > 0) {
			t.Errorf("seed %d: %+v, %v", seed, rep, err)
		}
		if err != nil {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%d of 10 parts have the chunk", found)
	}
	object = good.Object(pack.Name(id))
	object[len(object)-1] ^= 1
	good.SetObject(pack.Name(id), object)
	for seed := range uint64(10) {
		rep, err := view(t, good, 3).Verify(t.Context(), VerifyOptions{Sample: 0.1, Seed: seed})
		wantErr(t, "directory", err, ErrDamaged, pack.Name(id))
		if len(rep.Other) != 1 {
			t.Errorf("seed %d: %+v", seed, rep)
		}
	}
}
