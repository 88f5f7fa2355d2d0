package backup

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// careChild is what a child can do beside creating and deleting backups, with the path
// that it is given: an image, or another repository.
var careChild = map[string]func(r *Repository, path string) error{
	"prune": func(r *Repository, _ string) error {
		_, err := r.Prune(context.Background(), PruneOptions{Repack: true})
		return err
	},
	"heal": func(r *Repository, path string) error {
		_, err := r.Heal(context.Background(), HealOptions{From: []string{path}})
		return err
	},
	"copy": func(r *Repository, path string) error {
		from, err := Open(context.Background(), path, Secret{})
		if err != nil {
			return err
		}
		defer from.Close()
		_, err = from.CopyTo(context.Background(), r, CopyOptions{})
		return err
	},
}

// careRepo makes a repository on a folder, of which backup 0 is deleted: packs that
// the other two need in part.
func careRepo(t *testing.T) (path, last string, want images) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "repo")
	r, err := Init(t.Context(), path, InitOptions{ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.packSize = testPack
	want = images{}
	var ids []string
	content := image(1, 16)
	for i := range 3 {
		b := create(t, r, CreateOptions{}, source(t, "a", content))
		want[b.ID] = map[string][]byte{"a": content}
		ids = append(ids, b.ID)
		content = change(change(content, uint64(i)), uint64(i+10))
	}
	if _, _, err := r.Delete(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	delete(want, ids[0])
	return path, write(t, want[ids[2]]["a"]), want
}

// killing runs a child on a copy of the folder, once for every step of it that a kill
// comes before, and hands over what each leaves.
func killing(t *testing.T, what, path, with string, step int, check func(r *Repository, path string)) {
	t.Helper()
	killed := 0
	for n := 1; ; n += step {
		left := filepath.Join(t.TempDir(), "repo")
		if err := os.CopyFS(left, os.DirFS(path)); err != nil {
			t.Fatal(err)
		}
		if !child(t, what, left, with, n) {
			break
		}
		killed++
		r, err := Open(t.Context(), left, Secret{})
		if err != nil {
			t.Fatal(err)
		}
		check(r, left)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Fatalf("killed before step %d", n)
		}
	}
	if killed < 5 {
		t.Errorf("only %d children were killed", killed)
	}
}

// A process that is killed while it moves what is needed to other packs leaves all
// backups good, and the next prune does the rest.
func TestKillPrune(t *testing.T) {
	long(t)
	path, _, want := careRepo(t)
	killing(t, "prune", path, "", 1, func(r *Repository, left string) {
		fullCheck(t, r.store, want)
		if _, err := r.Prune(t.Context(), PruneOptions{Repack: true}); err != nil {
			t.Fatal(err)
		}
		fullCheck(t, r.store, want)
		wantTidy(t, left)
		if st, err := r.Stats(t.Context()); err != nil || st.UnusedBytes+st.UnusedPackBytes != 0 {
			t.Errorf("stats: %+v, %v", st, err)
		}
	})
}

func TestKillHeal(t *testing.T) {
	long(t)
	path, last, want := careRepo(t)
	r, err := Open(t.Context(), path, Secret{})
	if err != nil {
		t.Fatal(err)
	}
	ref := chunkRefs(t, r)[0]
	r.Close()
	name := filepath.Join(path, pack.Name(ref.Pack))
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	p[ref.Offset+format.BlobHeaderSize] ^= 1
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
	killing(t, "heal", path, last, 1, func(r *Repository, left string) {
		rep, err := r.Heal(t.Context(), HealOptions{From: []string{last}})
		if err != nil || rep.Bad != rep.Healed {
			t.Fatalf("%+v, %v", rep, err)
		}
		fullCheck(t, r.store, want)
		if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
			t.Fatal(err)
		}
		wantTidy(t, left)
	})
}

func TestKillCopy(t *testing.T) {
	long(t)
	from, _, want := careRepo(t)
	path := filepath.Join(t.TempDir(), "repo")
	to, err := Init(t.Context(), path, InitOptions{ChunkSize: 2 * testChunk})
	if err != nil {
		t.Fatal(err)
	}
	to.Close()
	killing(t, "copy", path, from, 2, func(r *Repository, left string) {
		fullCheck(t, r.store, copiesOf(t, r, want))
		src, err := Open(t.Context(), from, Secret{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		copyTo(t, src, r)
		copies := copiesOf(t, r, want)
		if len(copies) != 2 {
			t.Errorf("%d copies", len(copies))
		}
		fullCheck(t, r.store, copies)
		if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
			t.Fatal(err)
		}
		wantTidy(t, left)
	})
}
