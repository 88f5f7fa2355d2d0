package backup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// holes makes a repository whose packs are needed in part: two backups are left of
// four.
func holes(t *testing.T) (*Repository, *storetest.Mem, images) {
	t.Helper()
	r, m := memRepo(t)
	want := images{}
	var ids []string
	for i := range 4 {
		// What i adds to the common part lies between it in the packs.
		content := append(image(9, 6), image(uint64(i), 9)...)
		content = append(content, image(uint64(i/2)+20, 5)...)
		b := create(t, r, CreateOptions{}, source(t, "a", content))
		ids = append(ids, b.ID)
		want[b.ID] = map[string][]byte{"a": content}
	}
	for _, i := range []int{0, 2} {
		if _, _, err := r.Delete(t.Context(), ids[i]); err != nil {
			t.Fatal(err)
		}
		delete(want, ids[i])
	}
	return r, m, want
}

var repackAll = PruneOptions{Repack: true}

func stats(t *testing.T, m *storetest.Mem) Stats {
	t.Helper()
	st, err := view(t, m, 70).Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// Repacking frees all that no backup needs, and the backups stay what they are.
func TestRepack(t *testing.T) {
	r, m, want := holes(t)
	before := stats(t, m)
	if before.UnusedBytes == 0 || before.UnusedPacks != 0 {
		t.Fatalf("the test needs packs that are needed in part: %+v", before)
	}
	if rep, err := r.Prune(t.Context(), PruneOptions{}); err != nil || rep.Packs != 0 {
		t.Errorf("whole packs: %+v, %v", rep, err)
	}
	names := m.Names("")
	dry, err := r.Prune(t.Context(), PruneOptions{Repack: true, DryRun: true})
	if err != nil || !dry.DryRun || dry.Repacked == 0 || dry.Moved == 0 || dry.Unused != 0 || fmt.Sprint(m.Names("")) != fmt.Sprint(names) {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	rep, err := r.Prune(t.Context(), repackAll)
	if err != nil || rep.Repacked < dry.Repacked || rep.Packs < rep.Repacked || rep.Moved == 0 || rep.Unused != 0 || rep.Waiting != 0 {
		t.Errorf("repack: %+v, %v; dry run: %+v", rep, err, dry)
	}
	fullCheck(t, m, want)
	after := stats(t, m)
	if after.UnusedBytes != 0 || after.UnusedPacks != 0 || after.PackBytes >= before.PackBytes || after.Total != before.Total {
		t.Errorf("before: %+v\nafter: %+v", before, after)
	}
	if left := m.Names("leases"); len(left) != 0 {
		t.Errorf("leases are left: %v", left)
	}
	if rep, err := r.Prune(t.Context(), repackAll); err != nil || rep.Repacked != 0 || rep.Packs != 0 {
		t.Errorf("again: %+v, %v", rep, err)
	}
	// New backups share what has moved.
	for id := range want {
		b := create(t, r, CreateOptions{}, source(t, "a", want[id]["a"]))
		if b.StoredBytes() > 20_000 { // a table
			t.Errorf("%d bytes were stored anew", b.StoredBytes())
		}
	}
}

func TestRepackLeavesWhatMayBeUnused(t *testing.T) {
	r, m, want := holes(t)
	before := stats(t, m)
	share := float64(before.UnusedBytes) / float64(before.PackBytes)
	rep, err := r.Prune(t.Context(), PruneOptions{Repack: true, MaxUnused: share * 1.01})
	if err != nil || rep.Repacked != 0 || rep.Unused != before.UnusedBytes {
		t.Errorf("more may be unused than is: %+v, %v", rep, err)
	}
	rep, err = r.Prune(t.Context(), PruneOptions{Repack: true, MaxUnused: share / 2})
	if st := stats(t, m); err != nil || rep.Repacked == 0 || rep.Unused == 0 || float64(st.UnusedBytes) > share/2*float64(st.PackBytes)*1.2 {
		t.Errorf("half of it: %+v, %v, then %+v", rep, err, st)
	}
	fullCheck(t, m, want)
	for _, bad := range []float64{-0.1, 1.1} {
		_, err = r.Prune(t.Context(), PruneOptions{Repack: true, MaxUnused: bad})
		wantErr(t, "share", err, ErrInvalid, "unused")
	}
}

// After a crash at any operation of a repacking prune every backup is whole, and the
// next prune leaves nothing over.
func TestCrashDuringRepack(t *testing.T) {
	long(t)
	_, m, want := holes(t)
	everyCrash(t, m, func(r *Repository) error {
		_, err := r.Prune(context.Background(), repackAll)
		return err
	}, func(left *storetest.Mem, err error) {
		fullCheck(t, left, want)
		if _, perr := view(t, left, 11).Prune(t.Context(), repackAll); perr != nil {
			t.Fatal(perr)
		}
		fullCheck(t, left, want)
		if st := stats(t, left); st.UnusedBytes != 0 || st.UnusedPacks != 0 || left.Temps() != 0 {
			t.Errorf("%v: left are %+v", err, st)
		}
	})
}

// fullDisk runs f on a copy of m once for every write that it makes, with a disk that is
// full from there on, and once without. check gets what is left.
func fullDisk(t *testing.T, m *storetest.Mem, f func(r *Repository) error, check func(left *storetest.Mem)) {
	t.Helper()
	full := fmt.Errorf("disk: %w", syscall.ENOSPC)
	for n := 1; ; n++ {
		disk := m.Clone()
		v := disk.Open()
		failed := false
		v.Before = func(op storetest.Op) error {
			if op.N >= n && (op.Kind == "write" || op.Kind == "commit") {
				failed = true
				return full
			}
			return nil
		}
		err := f(view(t, v, 9))
		v.Before = nil
		check(disk.Open())
		if !failed && err == nil {
			return
		}
		if !errors.Is(err, ErrNoSpace) {
			t.Fatalf("full at %d: %v", n, err)
		}
	}
}

// A full disk at any write of a repacking prune costs nothing but the prune.
func TestFullDiskDuringRepack(t *testing.T) {
	long(t)
	_, m, want := holes(t)
	fullDisk(t, m, func(r *Repository) error {
		_, err := r.Prune(context.Background(), repackAll)
		return err
	}, func(left *storetest.Mem) { fullCheck(t, left, want) })
}

// once runs f at the first operation of a view that matches.
func once(v *storetest.Mem, kind, dir string, f func()) {
	var o sync.Once
	v.After = func(op storetest.Op) error {
		if op.Kind == kind && strings.HasPrefix(op.Name, dir) {
			o.Do(f)
		}
		return nil
	}
}

// A repacking prune in the middle of any operation does no harm to it, and what the
// operation needs stays until it has ended.
func TestRepackBesideOthers(t *testing.T) {
	for _, stage := range []string{"list backups", "read packs", "create packs"} {
		t.Run("backup, "+stage, func(t *testing.T) {
			other, m, want := holes(t)
			v := m.Open()
			w := view(t, v, 30)
			kind, dir, _ := strings.Cut(stage, " ")
			var rep PruneReport
			once(v, kind, dir, func() {
				var err error
				if rep, err = other.Prune(context.Background(), repackAll); err != nil {
					t.Error(err)
				}
			})
			content := image(1, 9) // shares with what is left
			b := create(t, w, CreateOptions{}, source(t, "a", content))
			v.After = nil
			if rep.Repacked == 0 || rep.Leases != 1 || rep.Waiting == 0 || rep.Packs != 0 {
				t.Errorf("prune: %+v", rep)
			}
			want[b.ID] = map[string][]byte{"a": content}
			fullCheck(t, m, want)
			if _, err := other.Prune(t.Context(), repackAll); err != nil {
				t.Fatal(err)
			}
			fullCheck(t, m, want)
			if st := stats(t, m); st.UnusedBytes != 0 || st.UnusedPacks != 0 {
				t.Errorf("unused: %+v", st)
			}
		})
	}
	t.Run("restore", func(t *testing.T) {
		other, m, want := holes(t)
		for id, volumes := range want {
			v := m.Open()
			reader := view(t, v, 30)
			once(v, "read", "packs", func() {
				if _, err := other.Prune(context.Background(), repackAll); err != nil {
					t.Error(err)
				}
			})
			target := dirty(t, len(volumes["a"]))
			restore(t, reader, RestoreOptions{Backup: id, Target: target, VerifyAfter: true})
			wantContent(t, id, target, volumes["a"])
		}
	})
}

// A backup that is deleted while its chunks move stays deleted.
func TestDeleteDuringRepack(t *testing.T) {
	other, m, want := holes(t)
	var gone string
	for id := range want {
		gone = max(gone, id)
	}
	v := m.Open()
	once(v, "commit", "packs", func() {
		if _, _, err := other.Delete(context.Background(), gone); err != nil {
			t.Error(err)
		}
	})
	if _, err := view(t, v, 30).Prune(t.Context(), repackAll); err != nil {
		t.Fatal(err)
	}
	delete(want, gone)
	fullCheck(t, m, want)
	if _, err := other.Prune(t.Context(), repackAll); err != nil {
		t.Fatal(err)
	}
	fullCheck(t, m, want)
}

// Two prunes at once: one of them exchanges the tables, and nothing is lost.
func TestTwoRepacksAtOnce(t *testing.T) {
	other, m, want := holes(t)
	v := m.Open()
	once(v, "commit", "packs", func() {
		if _, err := other.Prune(context.Background(), repackAll); err != nil {
			t.Error(err)
		}
	})
	if _, err := view(t, v, 30).Prune(t.Context(), repackAll); err != nil {
		t.Fatal(err)
	}
	fullCheck(t, m, want)
	if _, err := other.Prune(t.Context(), repackAll); err != nil {
		t.Fatal(err)
	}
	fullCheck(t, m, want)
	if st := stats(t, m); st.UnusedBytes != 0 || st.UnusedPacks != 0 {
		t.Errorf("unused: %+v", st)
	}
}

// What is damaged stays where it is, for whoever can heal it; nothing else does.
func TestRepackOfADamagedChunk(t *testing.T) {
	r, m, want := holes(t)
	rep, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	chunks := chunkRefs(t, r)
	damage(t, m, chunks[0])
	before := stats(t, m)
	if got, err := r.Prune(t.Context(), repackAll); err != nil || got.Packs == 0 {
		t.Errorf("prune: %+v, %v", got, err)
	}
	if st := stats(t, m); st.UnusedBytes == 0 || st.PackBytes >= before.PackBytes || m.Object(pack.Name(chunks[0].Pack)) == nil {
		t.Errorf("before: %+v\nafter: %+v", before, st)
	}
	again, err := r.Verify(t.Context(), VerifyOptions{})
	wantErr(t, "verify", err, ErrDamaged, pack.Name(chunks[0].Pack))
	if again.Chunks != rep.Chunks || len(again.Other) != 0 {
		t.Errorf("verify: %+v, then %+v", rep, again)
	}
	object := m.Object(pack.Name(chunks[0].Pack))
	object[chunks[0].Offset+64+chunks[0].Stored/2] ^= 1
	m.SetObject(pack.Name(chunks[0].Pack), object)
	fullCheck(t, m, want)
}

// A table that can't be read keeps everything.
func TestRepackOfADamagedTable(t *testing.T) {
	r, m, _ := holes(t)
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, root, err := list[0].Volumes[0].table()
	if err != nil {
		t.Fatal(err)
	}
	damage(t, m, root)
	names := m.Names("")
	for _, o := range []PruneOptions{repackAll, {}, {Repack: true, DryRun: true}} {
		_, err := r.Prune(t.Context(), o)
		wantErr(t, "prune", err, ErrDamaged, "repo heal")
	}
	if after := m.Names(""); fmt.Sprint(names) != fmt.Sprint(after) {
		t.Errorf("before: %v\nafter: %v", names, after)
	}
}

// What moves has nodes written anew, which leave others behind in packs that were
// needed as a whole; these are left, too.
func TestRepackOfTheNodesThatItLeaves(t *testing.T) {
	r, m := memRepo(t)
	want := images{}
	// Two tables in one pack of nodes, of which only one has a chunk that moves.
	a, b := image(1, 12), image(2, 12)
	gone := create(t, r, CreateOptions{}, source(t, "a", append(image(3, 8)[:8*testChunk], a...)))
	kept := create(t, r, CreateOptions{}, source(t, "a", a), source(t, "b", b))
	want[kept.ID] = map[string][]byte{"a": a, "b": b}
	if _, _, err := r.Delete(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Prune(t.Context(), repackAll); err != nil {
		t.Fatal(err)
	}
	if st := stats(t, m); st.UnusedBytes != 0 || st.UnusedPacks != 0 {
		t.Errorf("unused: %+v", st)
	}
	fullCheck(t, m, want)
}
