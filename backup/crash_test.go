package backup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// crashAt makes the view crash at its n-th changing operation: before it, or
// after it took effect but nobody heard of it.
func crashAt(m *storetest.Mem, n int, after bool) {
	hook := func(op storetest.Op) error {
		if op.N == n {
			m.Crash()
			return storetest.ErrCrash
		}
		return nil
	}
	if after {
		m.After = hook
	} else {
		m.Before = hook
	}
}

// everyCrash runs f on a copy of m once for every operation that f makes, with a
// crash there, and once without. check gets what is left.
func everyCrash(t *testing.T, m *storetest.Mem, f func(r *Repository) error, check func(left *storetest.Mem, err error)) {
	t.Helper()
	for n := 1; ; n++ {
		for _, after := range []bool{false, true} {
			disk := m.Clone()
			v := disk.Open()
			r := view(t, v, 9)
			crashAt(v, n, after)
			err := f(r)
			if v.Ops() < n {
				if err != nil {
					t.Fatalf("without a crash: %v", err)
				}
				if n < 3 {
					t.Fatalf("only %d operations", n)
				}
				check(disk.Open(), nil)
				return
			}
			if err == nil {
				err = errors.New("crash went unnoticed")
			}
			check(disk.Open(), fmt.Errorf("crash at %d, after=%v: %w", n, after, err))
			if t.Failed() {
				t.Fatalf("crash at %d, after=%v", n, after)
			}
		}
	}
}

// After a crash at any operation of a backup, the earlier backup is whole, the new
// one is whole or not there, and once pruned nothing else is left.
func TestCrashDuringCreate(t *testing.T) {
	long(t)
	r, m := memRepo(t)
	first := image(1, 16)
	second := change(image(1, 16), 3)
	b1 := create(t, r, CreateOptions{}, source(t, "a", first))
	before := m.Names("")
	src := source(t, "a", second)
	there := 0
	everyCrash(t, m, func(r *Repository) error {
		_, err := r.Create(context.Background(), []Source{src}, CreateOptions{Parallel: 2})
		return err
	}, func(left *storetest.Mem, err error) {
		want := images{b1.ID: {"a": first}}
		r := view(t, left, 10)
		list, lerr := r.List(t.Context())
		if lerr != nil {
			t.Fatal(lerr)
		}
		for _, b := range list {
			if b.ID != b1.ID {
				want[b.ID] = map[string][]byte{"a": second}
				there++
			}
		}
		fullCheck(t, left, want)
		if _, perr := r.Prune(t.Context(), PruneOptions{}); perr != nil {
			t.Fatal(perr)
		}
		fullCheck(t, left, want)
		if len(want) == 1 && fmt.Sprint(left.Names("")) != fmt.Sprint(before) {
			t.Errorf("%v: left are %v, before were %v", err, left.Names(""), before)
		}
		if left.Temps() != 0 {
			t.Errorf("%v: %d temporaries", err, left.Temps())
		}
	})
	if there < 2 {
		t.Errorf("the new backup was there %d times", there)
	}
}

// After a crash at any operation of a deletion, the other backups are whole, and
// deleting again or pruning frees everything.
func TestCrashDuringDelete(t *testing.T) {
	r, m := memRepo(t)
	first := image(1, 16)
	second := change(first, 3)
	b1 := create(t, r, CreateOptions{}, source(t, "a", first))
	b2 := create(t, r, CreateOptions{}, source(t, "a", second))
	clean := m.Clone()
	if _, _, err := view(t, clean, 5).Delete(t.Context(), b1.ID); err != nil {
		t.Fatal(err)
	}
	// A crashed backup's packs and a note are there too.
	m.SetObject("packs/00/00000000000000000000000000000000", []byte("rubbish"))
	m.SetObject("leases/dead", []byte("x"))
	everyCrash(t, m, func(r *Repository) error {
		_, _, err := r.Delete(context.Background(), b1.ID)
		return err
	}, func(left *storetest.Mem, err error) {
		r := view(t, left, 11)
		want := images{b2.ID: {"a": second}}
		if _, gerr := r.Get(t.Context(), b1.ID); gerr == nil {
			want[b1.ID] = map[string][]byte{"a": first}
			fullCheck(t, left, want)
			if _, _, derr := r.Delete(t.Context(), b1.ID); derr != nil {
				t.Fatal(derr)
			}
			delete(want, b1.ID)
		} else if _, perr := r.Prune(t.Context(), PruneOptions{}); perr != nil {
			t.Fatal(perr)
		}
		fullCheck(t, left, want)
		if fmt.Sprint(left.Names("")) != fmt.Sprint(clean.Names("")) {
			t.Errorf("%v: left are %v, want %v", err, left.Names(""), clean.Names(""))
		}
	})
}

// A backup that is being written keeps every pack that it may have taken chunks
// from, also when all backups that name them are deleted meanwhile. Once it has
// ended they go.
func TestDeleteWhileWriting(t *testing.T) {
	first := image(1, 24)
	for _, stage := range []string{"hold leases", "list backups", "create packs", "commit backups"} {
		t.Run(stage, func(t *testing.T) {
			_, m := memRepo(t)
			other := view(t, m.Open(), 2)
			b1 := create(t, other, CreateOptions{}, source(t, "a", first))
			writer := m.Open()
			w := view(t, writer, 3)
			var once sync.Once
			var rep PruneReport
			hook := func(op storetest.Op) error {
				if kind, dir, _ := strings.Cut(stage, " "); op.Kind == kind && strings.HasPrefix(op.Name, dir) {
					once.Do(func() {
						var err error
						if _, rep, err = other.Delete(context.Background(), b1.ID); err != nil {
							t.Error(err)
						}
						// A second look frees nothing either.
						again, err := other.Prune(context.Background(), PruneOptions{})
						if err != nil || again.Packs != 0 {
							t.Errorf("prune: %+v, %v", again, err)
						}
					})
				}
				return nil
			}
			writer.After = hook
			if strings.HasPrefix(stage, "commit") {
				writer.After, writer.Before = nil, hook
			}
			second := change(first, 7)
			b2 := create(t, w, CreateOptions{}, source(t, "a", second))
			writer.Before, writer.After = nil, nil
			if rep.Packs != 0 || rep.Waiting == 0 || rep.Leases != 1 {
				t.Errorf("deleting beside a writer: %+v", rep)
			}
			want := images{b2.ID: {"a": second}}
			fullCheck(t, m.Open(), want)
			if _, err := other.Prune(t.Context(), PruneOptions{}); err != nil {
				t.Fatal(err)
			}
			fullCheck(t, m.Open(), want)
			if _, _, err := other.Delete(t.Context(), b2.ID); err != nil {
				t.Fatal(err)
			}
			if left := m.Names(""); len(left) != 2 { // config and key
				t.Errorf("left are %v", left)
			}
		})
	}
}

// Garbage goes when those that were there when it came to be have ended, even if
// somebody else is always there.
func TestGarbageDoesNotWaitForever(t *testing.T) {
	r, m := memRepo(t)
	b1 := create(t, r, CreateOptions{}, source(t, "a", image(1, 10)))
	b2 := create(t, r, CreateOptions{}, source(t, "b", image(2, 10)))
	old, err := r.begin(t.Context(), "backup", logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	_, rep, err := r.Delete(t.Context(), b1.ID)
	if err != nil || rep.Packs != 0 || rep.Waiting == 0 {
		t.Fatalf("delete: %+v, %v", rep, err)
	}
	waiting := rep.Waiting
	young, err := r.begin(t.Context(), "backup", logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	if rep, err = r.Prune(t.Context(), PruneOptions{}); err != nil || rep.Packs != 0 || rep.Waiting != waiting {
		t.Errorf("with both there: %+v, %v", rep, err)
	}
	old.end()
	if rep, err = r.Prune(t.Context(), PruneOptions{}); err != nil || rep.Packs != waiting || rep.Leases != 1 {
		t.Errorf("with the young one there: %+v, %v", rep, err)
	}
	young.end()
	fullCheck(t, m, images{b2.ID: {"b": image(2, 10)}})
}

// What a note can't hold is noted when the noted has gone.
func TestMoreGarbageThanANoteHolds(t *testing.T) {
	r, m := memRepo(t)
	for i := range maxNoted + 10 {
		var id format.ID
		binary.BigEndian.PutUint32(id[:], uint32(i))
		m.SetObject(pack.Name(id), []byte("x"))
	}
	prune := func(packs, waiting int) {
		t.Helper()
		if rep, err := r.Prune(t.Context(), PruneOptions{}); err != nil || rep.Packs != packs || rep.Waiting != waiting {
			t.Errorf("%+v, %v; want %d packs removed and %d waiting", rep, err, packs, waiting)
		}
	}
	old, err := r.begin(t.Context(), "backup", logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	prune(0, maxNoted+10)
	young, err := r.begin(t.Context(), "backup", logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	old.end()
	prune(maxNoted, 10)
	young.end()
	prune(10, 0)
}

// A note from before must not free packs that a backup, which came and went in
// between, lent to somebody who is still there.
func TestDeletionVoidsEarlierNotes(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 20)
	src := source(t, "a", content)
	// lendThenDelete makes a backup that takes all its chunks from the present
	// one, which is deleted as soon as its table has been read.
	lendThenDelete := func(id string, seed uint32, meanwhile func()) Backup {
		disk := m.Open()
		var once sync.Once
		disk.After = func(op storetest.Op) error {
			if op.Kind == "read" && strings.HasPrefix(op.Name, "packs/") {
				once.Do(func() {
					if _, _, err := r.Delete(context.Background(), id); err != nil {
						t.Error(err)
					}
					meanwhile()
				})
			}
			return nil
		}
		b := create(t, view(t, disk, seed), CreateOptions{}, src)
		if b.Volumes[0].StoredBytes != 0 {
			t.Fatal("the test needs a backup that lives on the packs of another")
		}
		return b
	}
	b1 := create(t, r, CreateOptions{}, src)
	bystander, err := r.begin(t.Context(), "verify", logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	// The note names the bystander and the writer of b2.
	b2 := lendThenDelete(b1.ID, 3, func() {})
	// The bystander keeps the note from being used up before b2 is deleted. Once
	// it is gone, the note must not speak for the writer of b3, who saw b2.
	b3 := lendThenDelete(b2.ID, 4, func() {
		bystander.end()
		if _, err := r.Prune(context.Background(), PruneOptions{}); err != nil {
			t.Error(err)
		}
	})
	fullCheck(t, m, images{b3.ID: {"a": content}})
	if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	fullCheck(t, m, images{b3.ID: {"a": content}})
}

// Writers, readers and removers at the same time, each as a process of its own.
func TestConcurrently(t *testing.T) {
	_, m := memRepo(t)
	base := image(1, 12)
	var mu sync.Mutex
	want := images{}
	var wg sync.WaitGroup
	for i := range 4 {
		name := fmt.Sprintf("v%d", i)
		r := view(t, m.Open(), uint32(20+i))
		content := base
		var sources []Source
		var contents [][]byte
		for j := range 4 {
			content = change(content, uint64(i*10+j))
			sources, contents = append(sources, source(t, name, content)), append(contents, content)
		}
		target := dirty(t, len(base))
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 3))
			var mine []string
			for j, s := range sources {
				b, err := r.Create(context.Background(), []Source{s}, CreateOptions{Parallel: 2})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				want[b.ID] = map[string][]byte{name: contents[j]}
				mu.Unlock()
				mine = append(mine, b.ID)
				k := rnd.IntN(len(mine))
				if _, err := r.Restore(context.Background(), RestoreOptions{Backup: mine[k], Target: target, VerifyAfter: true, Parallel: 2}); err != nil {
					t.Error(err)
				}
				if j%2 == 1 {
					mu.Lock()
					delete(want, mine[k])
					mu.Unlock()
					if _, _, err := r.Delete(context.Background(), mine[k]); err != nil {
						t.Error(err)
					}
					mine = append(mine[:k], mine[k+1:]...)
				}
			}
		})
	}
	wg.Wait()
	fullCheck(t, m, want)
	if _, err := view(t, m, 50).Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	fullCheck(t, m, want)
	if left := m.Names("leases"); len(left) != 0 {
		t.Errorf("leases left are %v", left)
	}
}

// A manifest that became visible although its writing failed is taken back, and
// its packs stay for whoever may have seen it.
func TestManifestVisibleAfterError(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 10)
	m.After = func(op storetest.Op) error {
		if op.Kind == "commit" && strings.HasPrefix(op.Name, "backups/") {
			return errors.New("cable pulled")
		}
		return nil
	}
	if _, err := r.Create(t.Context(), []Source{source(t, "a", content)}, CreateOptions{}); err == nil {
		t.Error("error was lost")
	}
	m.After = nil
	if n := m.Names("backups"); len(n) != 0 {
		t.Errorf("backups are %v", n)
	}
	if n := packNames(m); len(n) == 0 {
		t.Error("packs are gone")
	}
	if rep, err := r.Prune(t.Context(), PruneOptions{}); err != nil || rep.Packs == 0 {
		t.Errorf("prune: %+v, %v", rep, err)
	}
	if n := m.Names(""); len(n) != 2 { // config and key
		t.Errorf("left are %v", n)
	}
}
