package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// other makes a repository in memory with keys of its own.
func other(t *testing.T, chunk int64, seed uint32) (*Repository, *storetest.Mem) {
	t.Helper()
	m := storetest.NewMem()
	r, err := initStore(t.Context(), m, InitOptions{ChunkSize: chunk, Recipients: []string{recipient}})
	if err != nil {
		t.Fatal(err)
	}
	return predictable(r, seed), m
}

func copyTo(t *testing.T, from, to *Repository, ids ...string) CopyReport {
	t.Helper()
	rep, err := from.CopyTo(context.Background(), to, CopyOptions{Backups: ids, Parallel: 2})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// copiesOf is what a repository must hold after everything that want has was copied.
func copiesOf(t *testing.T, to *Repository, want images) images {
	t.Helper()
	list, err := to.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	copies := images{}
	for _, b := range list {
		if b.CopiedFrom == nil {
			t.Errorf("backup %s is no copy", b.ID)
			continue
		}
		copies[b.ID] = want[b.CopiedFrom.Backup]
	}
	return copies
}

// Copies are the same whatever the size of the chunks, and keep what is said of the
// backups.
func TestCopy(t *testing.T) {
	from, m := memRepo(t)
	want := images{}
	a, b := image(1, 40), image(2, 9)
	for i, o := range []CreateOptions{{Comment: "first", Tags: []string{"x", "y"}}, {Job: "night", Step: "load"}} {
		a = change(a, uint64(i))
		bk := create(t, from, o, source(t, "a", a), source(t, "b", b))
		want[bk.ID] = map[string][]byte{"a": a, "b": b}
	}
	list, err := from.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, chunk := range []int64{testChunk, 4 * testChunk, 32 * testChunk} {
		t.Run(fmt.Sprint(chunk), func(t *testing.T) {
			to, tm := other(t, chunk, 5)
			var told []string
			rep, err := from.CopyTo(t.Context(), to, CopyOptions{Parallel: 2, Copied: func(from, _ Backup) { told = append(told, from.ID) }})
			if err != nil || len(rep.Copied) != 2 || len(rep.Skipped) != 0 || rep.Size != 2*int64(len(a)+len(b)) || rep.Stored == 0 || len(told) != 2 {
				t.Fatalf("%+v, %v", rep, err)
			}
			for i, c := range rep.Copied {
				if c.CopiedFrom == nil || *c.CopiedFrom != (CopyOf{from.ID(), list[i].ID}) || !c.Created.Equal(list[i].Created) ||
					c.Comment != list[i].Comment || !slices.Equal(c.Tags, list[i].Tags) || c.Job != list[i].Job || c.Step != list[i].Step ||
					c.Volumes[0].VolumeRef != list[i].Volumes[0].VolumeRef {
					t.Errorf("copy: %+v\nof: %+v", c, list[i])
				}
			}
			fullCheck(t, tm, copiesOf(t, to, want))
			// The second copy reads what differs from the first, in whole chunks.
			if second := rep.Copied[1].Volumes; second[0].Base != rep.Copied[0].ID || second[1].ReadBytes != 0 || second[0].ReadBytes > 6*max(chunk, testChunk) {
				t.Errorf("the second copy: %+v", second)
			}
			// Again: nothing is left to do. Back: nor there.
			if again := copyTo(t, from, to); len(again.Copied) != 0 || len(again.Skipped) != 2 {
				t.Errorf("again: %+v", again)
			}
			if back := copyTo(t, to, from); len(back.Copied) != 0 || len(back.Skipped) != 2 {
				t.Errorf("back: %+v", back)
			}
			// A copy of a copy with smaller chunks is one of the first.
			third, m3 := other(t, testChunk, 6)
			if rep := copyTo(t, to, third, "latest"); len(rep.Copied) != 1 || *rep.Copied[0].CopiedFrom != (CopyOf{from.ID(), list[1].ID}) {
				t.Errorf("on: %+v", rep)
			}
			if rep := copyTo(t, from, third); len(rep.Copied) != 1 || len(rep.Skipped) != 1 {
				t.Errorf("the rest: %+v", rep)
			}
			fullCheck(t, m3, copiesOf(t, third, want))
		})
	}
	fullCheck(t, m, want)
}

// Images of files have no identity but their name, and a swapped volume is at another
// position: what they share with an earlier one need not be read all the same.
func TestCopyOfNamedImages(t *testing.T) {
	from, _ := memRepo(t)
	to, tm := other(t, testChunk, 5)
	want := images{}
	a := image(1, 40)
	for i := range 3 {
		s := source(t, "a", a)
		s.Volume.UUID, s.Volume.PositionID = "", fmt.Sprint(i)
		b := create(t, from, CreateOptions{}, s)
		want[b.ID] = map[string][]byte{"a": a}
		rep := copyTo(t, from, to)
		if len(rep.Copied) != 1 || i > 0 && (rep.Read == 0 || rep.Read > 6*testChunk || rep.Copied[0].Volumes[0].Base == "") {
			t.Errorf("copy %d: %+v", i, rep)
		}
		a = append(change(a, uint64(i)), 1) // and grown
	}
	fullCheck(t, tm, copiesOf(t, to, want))
}

// A large volume of which little is there is not read as zeroes: they are known.
func TestCopyOfASparseVolume(t *testing.T) {
	from, _ := memRepo(t)
	to, tm := other(t, 4*testChunk, 5)
	content := make([]byte, 200*testChunk+5)
	copy(content[70*testChunk+9:], image(3, 2))
	content[70*testChunk+9] = 1
	b := create(t, from, CreateOptions{}, source(t, "a", content))
	vr, err := from.newVolumeReader(t.Context(), b, b.Volumes[0])
	if err != nil {
		t.Fatal(err)
	}
	defer vr.free()
	for _, r := range []struct {
		off, n int64
		zero   bool
	}{{0, 70 * testChunk, true}, {0, 70*testChunk + 1, false}, {70*testChunk + 8, 1, false}, {100 * testChunk, 100*testChunk + 5, true}, {200 * testChunk, 5, true}} {
		if zero, err := vr.zero(r.off, r.n); err != nil || zero != r.zero {
			t.Errorf("%+v: %v, %v", r, zero, err)
		}
	}
	rep := copyTo(t, from, to)
	if v := rep.Copied[0].Volumes[0]; v.DataBytes > 8*testChunk || v.DataBytes+v.ZeroBytes != int64(len(content)) {
		t.Errorf("%+v", v)
	}
	fullCheck(t, tm, copiesOf(t, to, images{b.ID: {"a": content}}))
}

func TestCopyRefuses(t *testing.T) {
	from, m := memRepo(t)
	b := create(t, from, CreateOptions{}, source(t, "a", image(1, 20)))
	to, tm := other(t, testChunk, 5)
	_, err := from.CopyTo(t.Context(), view(t, m.Clone(), 7), CopyOptions{})
	wantErr(t, "itself", err, ErrInvalid, "one repository")
	_, err = from.CopyTo(t.Context(), to, CopyOptions{Backups: []string{"20200101T000000Z-00000000"}})
	wantErr(t, "unknown", err, ErrNotFound, "")
	// What is damaged is not copied, and nothing of it is left.
	ref := chunkRefs(t, from)[3]
	damage(t, m, ref)
	before := tm.Names("")
	_, err = from.CopyTo(t.Context(), to, CopyOptions{Backups: []string{b.ID}, Parallel: 2})
	wantErr(t, "damaged", err, ErrDamaged, "repo heal")
	if list, lerr := to.List(t.Context()); lerr != nil || len(list) != 0 {
		t.Errorf("%d backups, %v", len(list), lerr)
	}
	if _, err := to.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Error(err)
	}
	if check := check(t, tm); len(check.Problems) != 0 || len(before) == 0 {
		t.Errorf("check: %+v", check)
	}
	m.SetObject(backupDir+"/"+b.ID, []byte("rubbish"))
	_, err = from.CopyTo(t.Context(), to, CopyOptions{})
	wantErr(t, "manifest", err, ErrDamaged, b.ID)
}

// After a crash at any operation in the other repository it is good, and the next
// copying goes on.
func TestCrashDuringCopy(t *testing.T) {
	long(t)
	from, m := memRepo(t)
	want := images{}
	a := image(1, 14)
	for i := range 2 {
		a = change(a, uint64(i))
		want[create(t, from, CreateOptions{}, source(t, "a", a)).ID] = map[string][]byte{"a": a}
	}
	_, tm := other(t, 2*testChunk, 5)
	everyCrash(t, tm, func(to *Repository) error {
		_, err := from.CopyTo(context.Background(), to, CopyOptions{Parallel: 2})
		return err
	}, func(left *storetest.Mem, _ error) {
		to := view(t, left, 33)
		fullCheck(t, left, copiesOf(t, to, want))
		copyTo(t, from, to)
		copies := copiesOf(t, to, want)
		if len(copies) != 2 {
			t.Errorf("%d copies", len(copies))
		}
		fullCheck(t, left, copies)
		if _, err := to.Prune(t.Context(), PruneOptions{}); err != nil {
			t.Fatal(err)
		}
		if c := check(t, left); len(c.Problems)+len(c.Notes) > 0 {
			t.Errorf("check: %+v", c)
		}
	})
	fullCheck(t, m, want)
}

// So it is when the disk of the other repository is full.
func TestFullDiskDuringCopy(t *testing.T) {
	from, _ := memRepo(t)
	a := image(1, 14)
	b := create(t, from, CreateOptions{}, source(t, "a", a))
	want := images{b.ID: {"a": a}}
	_, tm := other(t, 2*testChunk, 5)
	fullDisk(t, tm, func(to *Repository) error {
		_, err := from.CopyTo(context.Background(), to, CopyOptions{Parallel: 2})
		return err
	}, func(left *storetest.Mem) {
		to := view(t, left, 33)
		fullCheck(t, left, copiesOf(t, to, want))
		copyTo(t, from, to)
		fullCheck(t, left, copiesOf(t, to, want))
	})
}

// Ctrl-C: what is copied stays, and the next run does the rest.
func TestInterruptedCopy(t *testing.T) {
	from, _ := memRepo(t)
	want := images{}
	a := image(1, 14)
	for i := range 3 {
		a = change(a, uint64(i))
		want[create(t, from, CreateOptions{}, source(t, "a", a)).ID] = map[string][]byte{"a": a}
	}
	to, tm := other(t, testChunk, 5)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := from.CopyTo(ctx, to, CopyOptions{Copied: func(Backup, Backup) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	fullCheck(t, tm, copiesOf(t, to, want))
	if rep := copyTo(t, from, to); len(rep.Skipped) != 1 || len(rep.Copied) != 2 {
		t.Errorf("%+v", rep)
	}
	fullCheck(t, tm, copiesOf(t, to, want))
}

// What is being copied may be deleted meanwhile: it is copied nevertheless. So may the
// copy that the next one is made against, and then all is read.
func TestDeleteDuringCopy(t *testing.T) {
	from, m := memRepo(t)
	want := images{}
	var ids []string
	a := image(1, 14)
	for i := range 2 {
		a = change(a, uint64(i))
		b := create(t, from, CreateOptions{}, source(t, "a", a))
		want[b.ID], ids = map[string][]byte{"a": a}, append(ids, b.ID)
	}
	to, tm := other(t, testChunk, 5)
	rep, err := from.CopyTo(t.Context(), to, CopyOptions{Copied: func(_, copied Backup) {
		if len(ids) == 0 {
			return
		}
		if _, _, err := view(t, m, 20).Delete(context.Background(), ids...); err != nil {
			t.Error(err)
		}
		if _, _, err := view(t, tm, 21).Delete(context.Background(), copied.ID); err != nil {
			t.Error(err)
		}
		ids = nil
	}})
	if err != nil || len(rep.Copied) != 2 {
		t.Fatalf("%+v, %v", rep, err)
	}
	copies := copiesOf(t, to, want)
	if len(copies) != 1 {
		t.Errorf("%d copies", len(copies))
	}
	fullCheck(t, tm, copies)
}

// A copy that was healed is still known, and a base that is damaged is not built on.
func TestCopyOverADamagedBase(t *testing.T) {
	from, _ := memRepo(t)
	want := images{}
	a := image(1, 30)
	b := create(t, from, CreateOptions{}, source(t, "a", a))
	want[b.ID] = map[string][]byte{"a": a}
	to, tm := other(t, testChunk, 5)
	first := copyTo(t, from, to).Copied[0]
	_, root, err := first.Volumes[0].table()
	if err != nil {
		t.Fatal(err)
	}
	damage(t, tm, root)
	a = change(a, 3)
	b = create(t, from, CreateOptions{}, source(t, "a", a))
	want[b.ID] = map[string][]byte{"a": a}
	rep := copyTo(t, from, to)
	if len(rep.Copied) != 1 || rep.Copied[0].Volumes[0].FullBecause == "" || rep.Read != int64(len(a)) {
		t.Fatalf("%+v", rep)
	}
	healed := heal(t, tm, HealOptions{Repositories: []*Repository{from}})
	if healed.Bad.Nodes != 1 || healed.Healed.Nodes != 0 {
		t.Errorf("a node can't come from there: %+v", healed)
	}
	if _, _, err := to.Delete(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	// A chunk can.
	refs := chunkRefs(t, to)
	damage(t, tm, refs[2], refs[7])
	healed = heal(t, tm, HealOptions{Repositories: []*Repository{from}})
	if healed.Bad.Chunks != 2 || healed.Healed.Chunks != 2 {
		t.Errorf("chunks: %+v", healed)
	}
	fullCheck(t, tm, copiesOf(t, to, want))
	if rep := copyTo(t, from, to); len(rep.Copied) != 1 {
		t.Errorf("the deleted one: %+v", rep)
	}
}

// A table that is damaged ends a copying, as a chunk does.
func TestCopyOfADamagedTable(t *testing.T) {
	from, m := memRepo(t)
	b := create(t, from, CreateOptions{}, source(t, "a", image(1, 20)))
	_, root, err := b.Volumes[0].table()
	if err != nil {
		t.Fatal(err)
	}
	damage(t, m, root)
	to, tm := other(t, testChunk, 5)
	_, err = from.CopyTo(t.Context(), to, CopyOptions{})
	wantErr(t, "damaged", err, ErrDamaged, "repo heal")
	if list, err := to.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%d backups, %v", len(list), err)
	}
	if c := check(t, tm); len(c.Problems) != 0 {
		t.Errorf("check: %+v", c)
	}
}
