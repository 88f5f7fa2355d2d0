package backup

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

func check(t *testing.T, m *storetest.Mem) CheckReport {
	t.Helper()
	before := m.Names("")
	rep, err := view(t, m, 60).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after := m.Names(""); !slices.Equal(before, after) {
		t.Errorf("the check changed something: %v, then %v", before, after)
	}
	return rep
}

func TestCheckOfAGoodRepository(t *testing.T) {
	r, m := memRepo(t)
	create(t, r, CreateOptions{}, source(t, "a", image(1, 24)))
	create(t, r, CreateOptions{}, source(t, "a", change(image(1, 24), 2)))
	rep := check(t, m)
	if len(rep.Problems) != 0 || len(rep.Notes) != 0 {
		t.Errorf("findings: %+v", rep)
	}
	if rep.Backups != 2 || rep.Packs != len(packNames(m)) || rep.Keys != 1 || rep.Chunks == 0 || rep.Nodes != 2 || rep.Operations != 0 || rep.Unused != 0 {
		t.Errorf("counts: %+v", rep)
	}
}

// Everything that is wrong is named, with its object and what to do; what is only
// left over is a note.
func TestCheckFinds(t *testing.T) {
	r, good := memRepo(t)
	content := image(1, 24)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	other := create(t, r, CreateOptions{}, source(t, "b", image(2, 8)))
	chunks, key := packNames(good)[0], good.Names("keys")[0]
	_, root, err := b.Volumes[0].table()
	if err != nil {
		t.Fatal(err)
	}
	nodes := pack.Name(root.Pack)
	edit := func(name string, f func(p []byte) []byte) func(m *storetest.Mem) {
		return func(m *storetest.Mem) { m.SetObject(name, f(m.Object(name))) }
	}
	put := func(name string, body string) func(m *storetest.Mem) {
		return func(m *storetest.Mem) { m.SetObject(name, []byte(body)) }
	}
	flip := func(at int) func(p []byte) []byte {
		return func(p []byte) []byte {
			if at < 0 {
				at += len(p)
			}
			p[at] ^= 1
			return p
		}
	}
	for name, c := range map[string]struct {
		do             func(m *storetest.Mem)
		problem        string // its object; empty for none
		detail, remedy string
		note           string // the object of a note
	}{
		"a pack is gone":           {edit(chunks, func([]byte) []byte { return nil }), chunks, "not exist", "repo heal", ""},
		"a pack is cut":            {edit(chunks, func(p []byte) []byte { return p[:len(p)/2] }), chunks, "ends too early", "repo heal", ""},
		"a pack's header":          {edit(chunks, flip(20)), chunks, "checksum of the pack header", "repo heal", ""},
		"a pack's directory":       {edit(chunks, flip(-70)), chunks, "checksum of the directory", "repo heal", ""},
		"a node":                   {edit(nodes, flip(int(root.Offset)+70)), nodes, "tank/a of backup " + b.ID, "repo heal", ""},
		"a manifest":               {edit("backups/"+other.ID, flip(80)), "backups/" + other.ID, "checksum", "backup delete " + other.ID, "packs"},
		"a key":                    {edit(key, flip(80)), key, "checksum", "repo key remove", ""},
		"a dead lease":             {put("leases/dead", "x"), "", "", "", "leases/dead"},
		"a note":                   {put("gc/pending", "x"), "", "", "", "gc/pending"},
		"a pack that nobody needs": {put("packs/00/00000000000000000000000000000000", "x"), "", "", "", "packs"},
		"a foreign object":         {put("readme.txt", "x"), "", "", "", "readme.txt"},
		"a foreign pack":           {put("packs/readme", "x"), "", "", "", "packs/readme"},
		"a foreign manifest":       {put("backups/notes", "x"), "", "", "", "backups/notes"},
	} {
		t.Run(name, func(t *testing.T) {
			m := good.Clone()
			if name == "a key" { // of two
				if _, err := view(t, m, 7).AddKey(t.Context(), KeyOptions{Recipient: recipient}); err != nil {
					t.Fatal(err)
				}
			}
			c.do(m)
			rep := check(t, m)
			found := slices.ContainsFunc(rep.Problems, func(f Finding) bool {
				return f.Object == c.problem && strings.Contains(f.Detail, c.detail) && strings.Contains(f.Remedy, c.remedy)
			})
			if found != (c.problem != "") || c.problem == "" && len(rep.Problems) > 0 {
				t.Errorf("problems: %+v", rep.Problems)
			}
			if noted := slices.ContainsFunc(rep.Notes, func(f Finding) bool { return f.Object == c.note }); noted != (c.note != "") {
				t.Errorf("notes: %+v", rep.Notes)
			}
		})
	}
}

// A check says who is there, and that what waits for them is not lost.
func TestCheckBesideAnOperation(t *testing.T) {
	r, m := memRepo(t)
	b := create(t, r, CreateOptions{}, source(t, "a", image(1, 10)))
	s, err := r.begin(t.Context(), "backup", logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer s.end()
	if _, _, err := r.Delete(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	rep := check(t, m)
	if rep.Operations != 1 || rep.Unused == 0 || rep.UnusedBytes == 0 || len(rep.Problems) != 0 || len(rep.Notes) != 1 || rep.Notes[0].Object != "gc/pending" {
		t.Errorf("report: %+v", rep)
	}
}

func TestCheckBoundsItsFindings(t *testing.T) {
	r, m := memRepo(t)
	create(t, r, CreateOptions{}, source(t, "a", image(1, 3)))
	for i := range maxFindings + 10 {
		m.SetObject(fmt.Sprintf("leases/%d", i), []byte("x"))
	}
	if rep := check(t, m); len(rep.Notes) != maxFindings+1 {
		t.Errorf("%d notes", len(rep.Notes))
	}
}

// On a folder, too, what is the repository's own is not taken for foreign.
func TestCheckOfAFolder(t *testing.T) {
	r, err := Init(t.Context(), t.TempDir(), InitOptions{ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := create(t, r, CreateOptions{}, source(t, "a", image(1, 10)))
	create(t, r, CreateOptions{}, source(t, "a", image(2, 10)))
	if _, _, err := r.Delete(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	rep, err := r.Check(t.Context())
	if err != nil || len(rep.Problems) != 0 || len(rep.Notes) != 0 || rep.Backups != 1 || rep.Keys != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}
