package backup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// cancelledCreate begins a backup and cancels it when so many packs are durable.
func cancelledCreate(t *testing.T, m *storetest.Mem, r *Repository, packs int, src Source) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	m.After = func(op storetest.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind == "commit" && strings.HasPrefix(op.Name, "packs/") {
			if packs--; packs == 0 {
				cancel()
			}
		}
		return nil
	}
	if _, err := r.Create(ctx, []Source{src}, CreateOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled backup: %v", err)
	}
	m.After = nil
}

// A cancelled backup leaves a good repository and its packs, which stay when
// garbage is removed; the next backup takes them, and the note goes with it.
func TestNextBackupGoesOn(t *testing.T) {
	r, m := memRepo(t)
	first, second := image(1, 10), image(2, 60)
	b1 := create(t, r, CreateOptions{}, source(t, "a", first))
	before := m.Names("packs")
	src := source(t, "a", second)
	cancelledCreate(t, m, r, 3, src)
	fullCheck(t, m, images{b1.ID: {"a": first}})
	left := len(m.Names("packs")) - len(before)
	if left < 3 || len(m.Names(interruptedDir)) != 1 || m.Temps() != 0 {
		t.Fatalf("left are %v, %d temporaries", m.Names(""), m.Temps())
	}
	for _, dry := range []bool{true, false} {
		if rep, err := r.Prune(t.Context(), PruneOptions{DryRun: dry}); err != nil || rep.Packs != 0 {
			t.Errorf("prune: %+v, %v", rep, err)
		}
	}

	// Another volume may use the chunks too, but leaves the note to the first.
	other := source(t, "b", second[:20*testChunk])
	b2 := create(t, view(t, m.Open(), 2), CreateOptions{}, other)
	if len(m.Names(interruptedDir)) != 1 || b2.Volumes[0].ReusedBytes == 0 {
		t.Errorf("notes are %v, %d bytes were used again", m.Names(interruptedDir), b2.Volumes[0].ReusedBytes)
	}
	// It may be interrupted once more.
	cancelledCreate(t, m, r, 2, src)
	if n := len(m.Names(interruptedDir)); n != 2 {
		t.Errorf("%d notes", n)
	}
	fresh := create(t, view(t, m.Clone(), 5), CreateOptions{Reuse: ReuseNone}, src).Volumes[0]
	b3 := create(t, view(t, m.Open(), 3), CreateOptions{}, src)
	if v := b3.Volumes[0]; v.ReusedBytes < int64(5*testPack) || v.StoredBytes > fresh.StoredBytes/2 {
		t.Errorf("%d of %d bytes were used again, %d stored; without the notes %d", v.ReusedBytes, v.DataBytes, v.StoredBytes, fresh.StoredBytes)
	}
	if notes := m.Names(interruptedDir); len(notes) != 0 {
		t.Errorf("notes are left: %v", notes)
	}
	want := images{b1.ID: {"a": first}, b2.ID: {"b": second[:20*testChunk]}, b3.ID: {"a": second}}
	fullCheck(t, m, want)
	if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	fullCheck(t, m, want)
}

// What failed for want of room or for the repository is not kept.
func TestFailedBackupIsNotKept(t *testing.T) {
	r, m := memRepo(t)
	r.noteEvery = 1 // so that there is a note before it fails
	before := m.Names("")
	var n int
	var mu sync.Mutex
	m.Before = func(op storetest.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind == "commit" && strings.HasPrefix(op.Name, "packs/") {
			if n++; n > 4 {
				return fmt.Errorf("disk: %w", syscall.ENOSPC)
			}
		}
		return nil
	}
	_, err := r.Create(t.Context(), []Source{source(t, "a", image(1, 60))}, CreateOptions{})
	wantErr(t, "create", err, ErrNoSpace, "")
	m.Before = nil
	if after := m.Names(""); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("left are %v", after)
	}
}

// A crash at any operation, with a note written whenever there is something to
// note: nothing that was there is harmed, the next backup goes on, and what is
// left can be removed.
func TestCrashWithNotes(t *testing.T) {
	long(t)
	r, m := memRepo(t)
	first := image(1, 12)
	second := image(3, 45)
	b1 := create(t, r, CreateOptions{}, source(t, "a", first))
	before := m.Names("")
	src := source(t, "a", second)
	wentOn := 0
	everyCrash(t, m, func(r *Repository) error {
		r.noteEvery = 1
		_, err := r.Create(context.Background(), []Source{src}, CreateOptions{Parallel: 2})
		return err
	}, func(left *storetest.Mem, err error) {
		r := view(t, left, 10)
		list, lerr := r.List(t.Context())
		if lerr != nil {
			t.Fatal(lerr)
		}
		want := images{b1.ID: {"a": first}}
		for _, b := range list {
			want[b.ID] = map[string][]byte{"a": first}
			if b.ID != b1.ID {
				want[b.ID] = map[string][]byte{"a": second}
			}
		}
		if _, perr := r.Prune(t.Context(), PruneOptions{}); perr != nil {
			t.Fatal(perr)
		}
		fullCheck(t, left, want)
		if len(list) == 1 {
			next := left.Clone()
			b := create(t, view(t, next, 11), CreateOptions{}, src)
			if b.Volumes[0].ReusedBytes > 0 && len(left.Names(interruptedDir)) > 0 {
				wentOn++
			}
			fullCheck(t, next, images{b1.ID: {"a": first}, b.ID: {"a": second}})
			if notes := next.Names(interruptedDir); len(notes) > 0 {
				t.Errorf("notes are left: %v", notes)
			}
		}
		if _, derr := r.DropInterrupted(t.Context(), 0); derr != nil {
			t.Fatal(derr)
		}
		if _, perr := r.Prune(t.Context(), PruneOptions{}); perr != nil {
			t.Fatal(perr)
		}
		fullCheck(t, left, want)
		if len(list) == 1 && fmt.Sprint(left.Names("")) != fmt.Sprint(before) {
			t.Errorf("%v: left are %v, before were %v", err, left.Names(""), before)
		}
	})
	if wentOn == 0 {
		t.Error("no backup went on from a crashed one")
	}
}

// The note of a backup that is running is nobody else's: it may yet fail and
// remove its packs.
func TestRunningBackupsKeepTheirNotes(t *testing.T) {
	r, m := memRepo(t)
	r.noteEvery = 1
	content := image(1, 150)
	other := view(t, m.Open(), 2)
	var once sync.Once
	var b2 Backup
	m.After = func(op storetest.Op) error {
		if op.Kind == "commit" && strings.HasPrefix(op.Name, interruptedDir) {
			once.Do(func() {
				b2 = create(t, other, CreateOptions{}, source(t, "a", content))
				if n, err := other.DropInterrupted(context.Background(), 0); n != 0 || err != nil {
					t.Errorf("%d notes dropped, %v", n, err)
				}
			})
		}
		return nil
	}
	b1 := create(t, r, CreateOptions{}, source(t, "a", content))
	m.After = nil
	own := create(t, view(t, m.Clone(), 4), CreateOptions{Reuse: ReuseNone}, source(t, "a", content)).Volumes[0].ReusedBytes
	if v := b2.Volumes; len(v) != 1 || v[0].ReusedBytes != own {
		t.Errorf("beside the other one %+v", v)
	}
	if notes := m.Names(interruptedDir); len(notes) > 0 {
		t.Errorf("notes are left: %v", notes)
	}
	fullCheck(t, m, images{b1.ID: {"a": content}, b2.ID: {"a": content}})
}

// Notes of packs that have gone, damaged ones and old ones.
func TestNotesPromiseNothing(t *testing.T) {
	r, m := memRepo(t)
	content := image(2, 40)
	src := source(t, "a", content)
	cancelledCreate(t, m, r, 3, src)
	note := m.Names(interruptedDir)[0]

	gone := m.Clone()
	packs := gone.Names("packs")
	gone.SetObject(packs[0], nil)
	gone.SetObject(packs[1], gone.Object(packs[1])[:100])
	b := create(t, view(t, gone, 2), CreateOptions{}, src)
	fullCheck(t, gone, images{b.ID: {"a": content}})

	bad := m.Clone()
	bad.SetObject(note, append(bad.Object(note), 'x'))
	v := view(t, bad, 2)
	_, err := v.Prune(t.Context(), PruneOptions{})
	wantErr(t, "prune beside a damaged note", err, ErrDamaged, "interrupted")
	b = create(t, v, CreateOptions{}, src)
	if n, err := v.DropInterrupted(t.Context(), time.Hour); n != 1 || err != nil {
		t.Errorf("%d notes dropped, %v", n, err)
	}
	if rep, err := v.Prune(t.Context(), PruneOptions{}); err != nil || rep.Packs == 0 {
		t.Errorf("prune: %+v, %v", rep, err)
	}
	fullCheck(t, bad, images{b.ID: {"a": content}})

	v = view(t, m, 2)
	written := v.now()
	v.now = func() time.Time { return written.Add(time.Hour) }
	if n, err := v.DropInterrupted(t.Context(), 2*time.Hour); n != 0 || err != nil {
		t.Errorf("%d notes dropped after an hour, %v", n, err)
	}
	if n, err := v.DropInterrupted(t.Context(), time.Minute); n != 1 || err != nil {
		t.Errorf("%d notes dropped, %v", n, err)
	}
	if rep, err := v.Prune(t.Context(), PruneOptions{}); err != nil || rep.Packs != 3 && rep.Packs != 4 && rep.Packs != 5 {
		t.Errorf("prune: %+v, %v", rep, err)
	}
	if left := m.Names("packs"); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}

// A process that is killed leaves what it had noted, in a folder.
func TestNextBackupGoesOnAfterAKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "repo")
	r, err := Init(t.Context(), path, InitOptions{ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.packSize = testPack
	content := image(2, 60)
	src := source(t, "a", content)
	t.Setenv(noteEnv, "1")
	// It is killed shortly before it is done, wherever that is.
	for ops := 100; ; ops -= 5 {
		child(t, "create", path, src.Path, ops)
		list, err := r.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		if _, _, err := r.Delete(t.Context(), list[0].ID); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(path, interruptedDir, "*")); len(left) != 1 {
		t.Fatalf("notes are %v", left)
	}
	b := create(t, r, CreateOptions{}, src)
	if fresh := create(t, r, CreateOptions{Reuse: ReuseNone}, src); b.Volumes[0].StoredBytes > fresh.Volumes[0].StoredBytes*9/10 {
		t.Errorf("%d bytes stored, anew it is %d", b.Volumes[0].StoredBytes, fresh.Volumes[0].StoredBytes)
	} else {
		fullCheck(t, r.store, images{b.ID: {"a": content}, fresh.ID: {"a": content}})
	}
	if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	wantTidy(t, path)
}

// FuzzNote reads a note, removes garbage by it, and drops it.
func FuzzNote(f *testing.F) {
	m := storetest.NewMem()
	if _, err := initStore(f.Context(), m, InitOptions{ChunkSize: testChunk}); err != nil {
		f.Fatal(err)
	}
	id := format.ID{15: 7}
	note := interruptedDir + "/" + id.String()
	m.SetObject(pack.Name(id), []byte("x"))
	f.Add([]byte(`{"id":"","created":"2026-11-23T10:15:02Z","volumes":[{"name":"a"}],"packs":["` + id.String() + `"]}`))
	f.Add([]byte(`{"packs":["../../config","` + strings.Repeat("0", 32) + `"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		m := m.Clone()
		m.SetObject(note, textObject(format.TextInterrupted, body))
		r := view(t, m, 2)
		_, packs, err := r.readNote(t.Context(), note)
		if err != nil && (!unreadable(err) || len(err.Error()) > 2048) || len(packs) > maxNoted {
			t.Errorf("%d packs, error of %d bytes is %.200v", len(packs), len(err.Error()), err)
		}
		rep, perr := r.Prune(t.Context(), PruneOptions{})
		if (err == nil) != (perr == nil) || rep.Packs == 1 && slices.Contains(packs, id) {
			t.Errorf("prune: %+v, %v; the note: %v", rep, perr, err)
		}
		if n, err := r.DropInterrupted(t.Context(), math.MinInt64); n != 1 || err != nil {
			t.Errorf("%d dropped, %v", n, err)
		}
		if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil || len(m.Names("packs")) > 0 {
			t.Errorf("left are %v, %v", m.Names("packs"), err)
		}
	})
}
