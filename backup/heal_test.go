package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// sick makes a repository with three backups, of which the last two share most, and
// the images of its volumes as they are now.
func sick(t *testing.T) (r *Repository, m *storetest.Mem, want images, from []string) {
	t.Helper()
	r, m = memRepo(t)
	want = images{}
	a, b := image(1, 30), image(2, 12)
	add := func(a, b []byte) {
		bk := create(t, r, CreateOptions{}, source(t, "a", a), source(t, "b", b))
		want[bk.ID] = map[string][]byte{"a": a, "b": b}
	}
	add(image(7, 30), b)
	add(a, b)
	a = change(a, 5)
	add(a, b)
	return r, m, want, []string{write(t, a), write(t, b)}
}

// distinct returns so many chunks of different names, those that the newest backup has
// first.
func distinct(t *testing.T, r *Repository, n int) (refs []format.Ref) {
	t.Helper()
	for _, ref := range chunkRefs(t, r) {
		if !slices.ContainsFunc(refs, func(o format.Ref) bool { return o.Hash == ref.Hash }) {
			refs = append(refs, ref)
		}
	}
	if len(refs) < n {
		t.Fatalf("only %d chunks", len(refs))
	}
	return refs[:n]
}

// healSeed makes the IDs of each heal its own.
var healSeed atomic.Uint32

func heal(t *testing.T, m *storetest.Mem, o HealOptions) HealReport {
	t.Helper()
	o.Parallel = 2
	rep, err := view(t, m, 1000+healSeed.Add(1)).Heal(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// wantHealed checks that all that was bad is good, that nothing names it where it was,
// and that nothing is left over once pruned.
func wantHealed(t *testing.T, m *storetest.Mem, rep HealReport, want images, bad ...format.Ref) {
	t.Helper()
	if rep.Bad != rep.Healed || len(rep.Left) != 0 || len(rep.Other) != 0 || rep.Bad.Sum() > 0 && len(rep.Changed) == 0 {
		t.Errorf("report: %+v", rep)
	}
	fullCheck(t, m, want)
	for _, ref := range chunkRefs(t, view(t, m, 81)) {
		if slices.Contains(bad, ref) {
			t.Errorf("%v is still named", ref)
		}
	}
	if _, err := view(t, m, 82).Prune(t.Context(), PruneOptions{}); err != nil {
		t.Error(err)
	}
	fullCheck(t, m, want)
	if c := check(t, m); len(c.Problems)+len(c.Notes) != 0 {
		t.Errorf("check: %+v", c)
	}
}

func TestHealOfAGoodRepository(t *testing.T) {
	_, m, want, from := sick(t)
	before := m.Names("")
	rep := heal(t, m, HealOptions{From: from})
	if rep.Bad.Sum() != 0 || rep.Backups != 3 || rep.Chunks == 0 || len(rep.Changed) != 0 || fmt.Sprint(before) != fmt.Sprint(m.Names("")) {
		t.Errorf("report: %+v", rep)
	}
	wantHealed(t, m, rep, want)
}

// Chunks that a volume still has are stored anew, and every backup that has them is
// good again.
func TestHealFromVolumes(t *testing.T) {
	r, m, want, from := sick(t)
	bad := distinct(t, r, 4)
	damage(t, m, bad...)
	if _, err := r.Verify(t.Context(), VerifyOptions{}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("verify: %v", err)
	}
	var asked []VolumeRef
	rep := heal(t, m, HealOptions{Volumes: func(_ context.Context, which []VolumeRef) []string {
		asked = append(asked, which...)
		return append(from, "/nowhere")
	}})
	if rep.Bad.Chunks != 4 || rep.Sources[from[0]]+rep.Sources[from[1]] != 4 || len(rep.Changed) < 2 {
		t.Errorf("report: %+v", rep)
	}
	if len(asked) == 0 || asked[0].UUID == "" {
		t.Errorf("asked for %+v", asked)
	}
	wantHealed(t, m, rep, want, bad...)
	// New backups take what is good.
	for _, ref := range distinct(t, r, 4) {
		if slices.Contains(bad, ref) {
			t.Error("a bad chunk is named")
		}
	}
	a := want[rep.Changed[0]]["a"]
	b := create(t, view(t, m, 90), CreateOptions{}, source(t, "a", a))
	want[b.ID] = map[string][]byte{"a": a}
	fullCheck(t, m, want)
}

// A dry run says the same and changes nothing.
func TestHealDryRun(t *testing.T) {
	r, m, want, from := sick(t)
	bad := distinct(t, r, 3)
	damage(t, m, bad...)
	before := m.Clone()
	dry := heal(t, m, HealOptions{From: from, DryRun: true})
	for _, name := range before.Names("") {
		if !bytes.Equal(before.Object(name), m.Object(name)) {
			t.Errorf("%s was changed", name)
		}
	}
	if len(m.Names("")) != len(before.Names("")) || !dry.DryRun || dry.Bad.Chunks != 3 || dry.Healed != dry.Bad || len(dry.Changed) != 0 {
		t.Errorf("dry run: %+v", dry)
	}
	wantHealed(t, m, heal(t, m, HealOptions{From: from}), want, bad...)
}

// What lies in the repository twice needs nothing else.
func TestHealFromACopyInOtherPacks(t *testing.T) {
	r, m, want, _ := sick(t)
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	last := list[len(list)-1]
	again := create(t, r, CreateOptions{Reuse: ReuseNone}, source(t, "a", want[last.ID]["a"]))
	want[again.ID] = map[string][]byte{"a": want[last.ID]["a"]}
	bad := distinct(t, r, 3)
	damage(t, m, bad...)
	rep := heal(t, m, HealOptions{})
	if rep.Sources[ownRepository] != 3 {
		t.Errorf("report: %+v", rep)
	}
	wantHealed(t, m, rep, want, bad...)
}

// A copy of the repository, object by object, has everything: chunks, nodes and
// manifests.
func TestHealFromACopyOfTheRepository(t *testing.T) {
	r, m, want, _ := sick(t)
	copied := view(t, m.Clone(), 40)
	bad := distinct(t, r, 3)
	damage(t, m, bad...)
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, root, err := list[0].Volumes[0].table()
	if err != nil {
		t.Fatal(err)
	}
	damage(t, m, root)
	for _, id := range []string{list[1].ID, list[2].ID} {
		name := backupDir + "/" + id
		m.SetObject(name, m.Object(name)[:100])
	}
	rep := heal(t, m, HealOptions{Repositories: []*Repository{copied}})
	if rep.Bad != (HealCount{Chunks: 3, Nodes: 1, Manifests: 2}) || rep.Sources["memory"] != 6 {
		t.Errorf("report: %+v", rep)
	}
	wantHealed(t, m, rep, want, bad...)
}

// Another repository, with other keys, has the same volumes of the same instant.
func TestHealFromAnotherRepository(t *testing.T) {
	r, m := memRepo(t)
	other, _ := memRepo(t)
	content := image(1, 20)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	create(t, other, CreateOptions{At: b.Created}, source(t, "a", content))
	bad := distinct(t, r, 3)
	damage(t, m, bad...)
	rep := heal(t, m, HealOptions{Repositories: []*Repository{other}})
	if rep.Healed.Chunks != 3 {
		t.Errorf("report: %+v", rep)
	}
	wantHealed(t, m, rep, images{b.ID: {"a": content}}, bad...)
}

// A table's node is made again out of what the volume holds, and proven by its name;
// then the chunks below it can be healed as well.
func TestHealOfNodes(t *testing.T) {
	r, m, want, from := sick(t)
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bad := distinct(t, r, 2)
	damage(t, m, bad...)
	for _, v := range list[2].Volumes {
		_, root, err := v.table()
		if err != nil {
			t.Fatal(err)
		}
		damage(t, m, root)
	}
	rep := heal(t, m, HealOptions{From: from})
	if rep.Bad != (HealCount{Chunks: 2, Nodes: 2}) {
		t.Errorf("report: %+v", rep)
	}
	wantHealed(t, m, rep, want, bad...)
}

// A volume whose content has moved is looked through when that is asked for.
func TestHealScans(t *testing.T) {
	r, m, want, from := sick(t)
	bad := distinct(t, r, 3)
	damage(t, m, bad...)
	newest := chunksOf(t, from[0])
	moved := []string{write(t, slices.Concat(make([]byte, 5*testChunk), newest))}
	rep := heal(t, m, HealOptions{From: moved})
	if rep.Healed.Chunks == rep.Bad.Chunks || len(rep.Left) == 0 {
		t.Errorf("without a scan: %+v", rep)
	}
	wantHealed(t, m, heal(t, m, HealOptions{From: moved, Scan: true}), want, bad...)
}

func chunksOf(t *testing.T, path string) []byte {
	t.Helper()
	f, err := openFileSource(path, testChunk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	p := make([]byte, f.file.Size())
	if _, err := f.file.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// What nobody has is named, range by range, and everything else is healed.
func TestHealTellsWhatIsLeft(t *testing.T) {
	r, m, _, from := sick(t)
	// The oldest backup's own chunks are in no volume any more.
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.chunkAt(t.Context(), list[0].Volumes[0], 30*testChunk)
	if err != nil {
		t.Fatal(err)
	}
	bad := distinct(t, r, 2)
	damage(t, m, append(bad, ref)...)
	rep := heal(t, m, HealOptions{From: from})
	if rep.Bad.Chunks != 3 || rep.Healed.Chunks != 2 || len(rep.Left) != 1 {
		t.Fatalf("report: %+v", rep)
	}
	left := rep.Left[0]
	if left.Backup != list[0].ID || len(left.Ranges) != 1 || left.Ranges[0].Offset != 30*testChunk || left.Ranges[0].Object != pack.Name(ref.Pack) {
		t.Errorf("left: %+v", left)
	}
	v, err := r.Verify(t.Context(), VerifyOptions{})
	if !errors.Is(err, ErrDamaged) || len(v.Damage) != 1 || v.Damage[0].Backup != left.Backup {
		t.Errorf("verify: %+v, %v", v, err)
	}
}

// distinctOf is how many distinct chunks a backup has.
func distinctOf(t *testing.T, r *Repository, b Backup) (n int) {
	t.Helper()
	tb, err := r.newTables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tb.close()
	for _, v := range b.Volumes {
		err := tb.volume(b, v, seen{chunk: func(int64, format.Ref) error { n++; return nil }})
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// What can't be healed is counted once and told, however often it is looked at
// because something else was healed.
func TestHealTellsWhatIsLeftAfterMoreRounds(t *testing.T) {
	r, m, _, from := sick(t)
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	root := func(i, volume int) format.Ref {
		t.Helper()
		_, root, err := list[i].Volumes[volume].table()
		if err != nil {
			t.Fatal(err)
		}
		return root
	}
	newest := chunkRefs(t, r)[:distinctOf(t, r, list[2])]
	var ref format.Ref // of a chunk that only the second backup has
	for off := int64(0); ref.IsZero() && off < list[1].Volumes[0].Size; off += testChunk {
		if ref, err = r.chunkAt(t.Context(), list[1].Volumes[0], off); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(newest, ref) {
			ref = format.Ref{}
		}
	}
	damage(t, m, ref, root(0, 0), root(2, 0)) // nobody has the first two
	rep := heal(t, m, HealOptions{From: from})
	if rep.Bad != (HealCount{Chunks: 1, Nodes: 2}) || rep.Healed != (HealCount{Nodes: 1}) || len(rep.Left) != 2 {
		t.Fatalf("report: %+v", rep)
	}
	if rep.Left[0].Backup != list[1].ID || rep.Left[1].Backup != list[0].ID {
		t.Errorf("left: %+v", rep.Left)
	}
}

// A pack that can't be trusted as a whole is left by all that is good in it, and what
// was in one that is gone comes from the volumes.
func TestHealOfPacks(t *testing.T) {
	for name, do := range map[string]func(m *storetest.Mem, name string){
		"directory": func(m *storetest.Mem, name string) {
			p := m.Object(name)
			p[len(p)-70] ^= 1
			m.SetObject(name, p)
		},
		"cut": func(m *storetest.Mem, name string) {
			m.SetObject(name, m.Object(name)[:len(m.Object(name))/2])
		},
		"gone": func(m *storetest.Mem, name string) { m.SetObject(name, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			r, m, want, from := sick(t)
			victim := pack.Name(distinct(t, r, 1)[0].Pack)
			do(m, victim)
			rep := heal(t, m, HealOptions{From: from})
			if rep.Bad.Packs != 1 && name != "gone" || (name == "directory") != (rep.Bad.Chunks == 0) {
				t.Errorf("report: %+v", rep)
			}
			wantHealed(t, m, rep, want)
			if m.Object(victim) != nil {
				t.Error("the damaged pack is still there")
			}
		})
	}
}

// Only the packs that are named are read.
func TestHealOfNamedPacks(t *testing.T) {
	r, m, want, from := sick(t)
	refs := distinct(t, r, 12)
	first := refs[0]
	i := slices.IndexFunc(refs, func(ref format.Ref) bool { return ref.Pack != first.Pack })
	damage(t, m, first, refs[i])
	rep := heal(t, m, HealOptions{From: from, Packs: []string{pack.Name(first.Pack)}})
	if rep.Bad.Chunks != 1 || rep.Healed.Chunks != 1 {
		t.Errorf("report: %+v", rep)
	}
	wantHealed(t, m, heal(t, m, HealOptions{From: from}), want, first, refs[i])
	_, err := r.Heal(t.Context(), HealOptions{Packs: []string{"packs/xx"}})
	wantErr(t, "no pack", err, ErrInvalid, "packs/xx")
}
