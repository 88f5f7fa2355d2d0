package backup

import (
	"context"
	"errors"
	"testing"

	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// After a crash at any operation of a heal every backup is as good as before, and the
// next heal completes it.
func TestCrashDuringHeal(t *testing.T) {
	long(t)
	r, m, want, from := sick(t)
	bad := distinct(t, r, 2)
	damage(t, m, bad...)
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, root, err := list[2].Volumes[0].table()
	if err != nil {
		t.Fatal(err)
	}
	damage(t, m, root)
	everyCrash(t, m, func(r *Repository) error {
		_, err := r.Heal(context.Background(), HealOptions{From: from, Parallel: 2})
		return err
	}, func(left *storetest.Mem, err error) {
		rep := heal(t, left, HealOptions{From: from})
		wantHealed(t, left, rep, want, bad...)
		if left.Temps() != 0 {
			t.Errorf("%v: %d temporaries", err, left.Temps())
		}
	})
}

// A full disk ends a heal, and what is healed by then stays so.
func TestFullDiskDuringHeal(t *testing.T) {
	long(t)
	r, m, want, from := sick(t)
	bad := distinct(t, r, 2)
	damage(t, m, bad...)
	fullDisk(t, m, func(r *Repository) error {
		_, err := r.Heal(context.Background(), HealOptions{From: from, Parallel: 2})
		return err
	}, func(left *storetest.Mem) {
		if c := check(t, left); len(c.Problems) != 0 {
			t.Errorf("check: %+v", c)
		}
		wantHealed(t, left, heal(t, left, HealOptions{From: from}), want, bad...)
	})
}

// A backup that was under way takes a chunk that is being healed; it is healed as
// well.
func TestHealBesideABackup(t *testing.T) {
	r, m, want, from := sick(t)
	bad := distinct(t, r, 3)
	content := chunksOf(t, from[0])
	src := source(t, "a", content)
	v := m.Open()
	once(v, "commit", "packs", func() {
		b, err := view(t, m.Open(), 50).Create(context.Background(), []Source{src}, CreateOptions{Parallel: 1})
		if err != nil {
			t.Error(err)
		}
		want[b.ID] = map[string][]byte{"a": content}
	})
	damage(t, m, bad...)
	rep, err := view(t, v, 80).Heal(t.Context(), HealOptions{From: from, Parallel: 2})
	if err != nil {
		t.Fatal(err)
	}
	if len(want) != 4 {
		t.Fatal("there was no backup")
	}
	wantHealed(t, m, rep, want, bad...)
}

// A restore that began before the heal goes on with what it knows; one that begins
// after it is whole.
func TestHealBesideARestore(t *testing.T) {
	r, m, want, from := sick(t)
	bad := distinct(t, r, 1)
	damage(t, m, bad...)
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	last := list[2]
	v := m.Open()
	once(v, "read", "packs", func() { heal(t, m.Open(), HealOptions{From: from}) })
	target := dirty(t, int(last.Volumes[0].Size))
	_, err = view(t, v, 30).Restore(t.Context(), RestoreOptions{Backup: last.ID, Volume: "a", Target: target})
	var de *DamagedError
	if err != nil && !errors.As(err, &de) {
		t.Errorf("restore: %v", err)
	}
	restore(t, view(t, m, 31), RestoreOptions{Backup: last.ID, Volume: "a", Target: target})
	wantContent(t, "after", target, want[last.ID]["a"])
	fullCheck(t, m, want)
}

// A manifest is never exchanged for one that was deleted meanwhile, and a lease that
// is gone ends it.
func TestHealWithoutALease(t *testing.T) {
	r, m, want, from := sick(t)
	bad := distinct(t, r, 1)
	damage(t, m, bad...)
	v := m.Open()
	once(v, "commit", "packs", func() {
		for _, name := range m.Names("leases") {
			m.SetObject(name, nil)
		}
	})
	if _, err := view(t, v, 80).Heal(t.Context(), HealOptions{From: from}); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("without its lease: %v", err)
	}
	if n := len(check(t, m).Problems); n != 0 {
		t.Errorf("%d problems", n)
	}
	wantHealed(t, m, heal(t, m, HealOptions{From: from}), want, bad...)
}

// A node is made again also when the pack of its chunks lists them no more; that takes
// two rounds.
func TestHealOfPacksAndNodes(t *testing.T) {
	r, m, want, from := sick(t)
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, root, err := list[2].Volumes[0].table()
	if err != nil {
		t.Fatal(err)
	}
	victim := pack.Name(distinct(t, r, 1)[0].Pack)
	damage(t, m, root)
	p := m.Object(victim)
	p[len(p)-70] ^= 1
	m.SetObject(victim, p)
	rep := heal(t, m, HealOptions{From: from})
	if rep.Bad != (HealCount{Nodes: 1, Packs: 1}) {
		t.Errorf("report: %+v", rep)
	}
	wantHealed(t, m, rep, want)
}
