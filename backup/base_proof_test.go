package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// Whatever is wrong with a base, the backup is right, is a full one, and says why.
func TestUnprovedBase(t *testing.T) {
	long(t)
	content := image(4, 50)
	type world struct {
		r     *Repository
		m     *storetest.Mem
		base  Backup
		src   *Source
		o     *CreateOptions
		nodes []string // packs of nodes
	}
	for name, c := range map[string]struct {
		do  func(w world)
		why string // none: there is no base to be had, and nobody asks why
	}{
		"no changes are known": {func(w world) { w.src.Changes = nil }, ""},
		"the map says why": {func(w world) {
			w.src.Changes = &Changes{Why: "the daemon was killed\x1b[2J\nand\xff " + strings.Repeat("x", 5000)}
		},
			"the daemon was killed [2J and  xxx"},
		"the map says nothing":      {func(w world) { w.src.Changes = &Changes{} }, "it is not known what changed"},
		"it was asked for":          {func(w world) { w.o.Full = true }, "asked for"},
		"no reuse":                  {func(w world) { w.o.Reuse = ReuseNone }, "nothing of earlier backups"},
		"all reuse verified":        {func(w world) { w.o.Reuse = ReuseVerified }, "read back first"},
		"no ID":                     {func(w world) { w.src.Changes.Base = "../config" }, `"../config"`},
		"not there":                 {func(w world) { w.src.Changes.Base = "20200101T000000Z-00000000" }, "20200101T000000Z-00000000, which it was to be made against, is not in this repository"},
		"deleted":                   {func(w world) { must(t)(w.r.Delete(t.Context(), w.base.ID)) }, "not in this repository"},
		"manifest damaged":          {func(w world) { w.m.SetObject(backupDir+"/"+w.base.ID, []byte("rubbish")) }, "can't be used"},
		"another volume":            {func(w world) { w.src.Volume.UUID, w.src.Volume.PositionID = "other", "pos-other" }, "does not hold this volume"},
		"a volume without a UUID":   {func(w world) { w.src.Volume.UUID, w.src.Volume.PositionID = "", "" }, "does not hold this volume"},
		"another position":          {func(w world) { w.src.Volume.PositionID = "pos-other" }, "at another position"},
		"shrunk":                    {func(w world) { w.src.Path, w.src.Volume.Size = write(t, content[:3*testChunk]), 0 }, "more than its"},
		"ranges out of order":       {func(w world) { w.src.Changes.Ranges = []Range{{10, 5}, {0, 5}} }, "list of changes"},
		"ranges that overlap":       {func(w world) { w.src.Changes.Ranges = []Range{{10, 5}, {14, 5}} }, "list of changes"},
		"ranges beyond the end":     {func(w world) { w.src.Changes.Ranges = []Range{{int64(len(content)) - 1, 2}} }, "list of changes"},
		"ranges of a negative size": {func(w world) { w.src.Changes.Ranges = []Range{{10, -5}} }, "list of changes"},
		"ranges that overflow":      {func(w world) { w.src.Changes.Ranges = []Range{{10, 1<<63 - 1}} }, "list of changes"},
		"a root that is gone":       {func(w world) { w.m.SetObject(w.nodes[0], nil) }, "is damaged"},
		"a root that is damaged": {func(w world) {
			p := w.m.Object(w.nodes[0])
			p[len(p)/2] ^= 1
			w.m.SetObject(w.nodes[0], p)
		}, "is damaged"},
		"chunks that are gone": {func(w world) {
			for _, name := range packNames(w.m) {
				if !slices.Contains(w.nodes, name) {
					w.m.SetObject(name, nil)
				}
			}
		}, "chunk at byte"},
		"figures that lie": {func(w world) {
			b := w.base
			b.Volumes = slices.Clone(b.Volumes)
			v := &b.Volumes[0]
			v.DataBytes, v.ZeroBytes, v.ReusedBytes = 0, v.Size, 0
			w.m.SetObject(backupDir+"/"+b.ID, nil)
			if err := w.r.putSealed(t.Context(), backupDir+"/"+b.ID, format.TextBackup, b); err != nil {
				t.Fatal(err)
			}
		}, "figures do not add up"},
	} {
		t.Run(name, func(t *testing.T) {
			r, m := memRepo(t)
			d := newDisk(t, "v", content)
			b := create(t, r, CreateOptions{}, d.source(""))
			d.scribble(rand.New(rand.NewPCG(1, 1)), 5)
			src, o := d.source(b.ID), CreateOptions{Parallel: 2}
			w := world{r: r, m: m, base: b, src: &src, o: &o, nodes: nodePacks(t, m)}
			c.do(w)
			b2, err := view(t, m, 3).Create(t.Context(), []Source{src}, o)
			if err != nil {
				t.Fatal(err)
			}
			v := b2.Volumes[0]
			if v.Base != "" || v.ReadBytes != v.Size || v.ChangedBytes != 0 || (v.FullBecause == "") != (c.why == "") || !strings.Contains(v.FullBecause, c.why) {
				t.Errorf("made against %q because %q, want %q: %+v", v.Base, v.FullBecause, c.why, v)
			}
			if len(v.FullBecause) > maxBecause {
				t.Errorf("%d bytes say why", len(v.FullBecause))
			}
			want := d.content[:v.Size]
			wantFigures(t, v, want)
			wantRestored(t, view(t, m, 4), b2.ID, want)
		})
	}
}

// must returns a check of a call's results.
func must(t testing.TB) func([]string, PruneReport, error) {
	return func(_ []string, _ PruneReport, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// nodePacks returns the names of the packs of nodes.
func nodePacks(t testing.TB, m *storetest.Mem) (names []string) {
	t.Helper()
	for _, name := range packNames(m) {
		id, err := format.ParseID(name[strings.LastIndexByte(name, '/')+1:])
		if err != nil {
			t.Fatal(err)
		}
		h, err := pack.ReadHeader(t.Context(), m, id)
		if err != nil {
			t.Fatal(err)
		}
		if h.Kind == format.KindNode {
			names = append(names, name)
		}
	}
	return names
}

// A node that turns out to be damaged on the way to a change makes a full backup of
// its volume, and of that only.
func TestDamagedNodeOnTheWay(t *testing.T) {
	r, m := memRepo(t)
	d, e := newDisk(t, "v", image(5, 2100)), newDisk(t, "w", image(6, 20))
	b := create(t, r, CreateOptions{}, d.source(""), e.source(""))
	d.write(2099*testChunk, []byte("changed"))
	e.write(5*testChunk, []byte("changed"))
	// The third node of the first volume's table.
	_, root, err := b.Volumes[0].table()
	if err != nil {
		t.Fatal(err)
	}
	node := make([]byte, root.Length)
	reader, err := r.newReader()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := reader.Read(t.Context(), root, node); err != nil {
		t.Fatal(err)
	}
	shape, _ := format.ShapeOf(b.Volumes[0].Size, testChunk)
	i := 0
	err = shape.DecodeNode(node, 2, 0, func(_ int64, ref format.Ref) error {
		if i++; i == 3 {
			p := m.Object(pack.Name(ref.Pack))
			p[ref.Offset+100] ^= 1
			m.SetObject(pack.Name(ref.Pack), p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var seen []Progress
	srcs := []Source{d.source(b.ID), e.source(b.ID)}
	b2 := create(t, view(t, m, 3), CreateOptions{Progress: func(p Progress) { seen = append(seen, p) }}, srcs...)
	v, w := b2.Volumes[0], b2.Volumes[1]
	if v.Base != "" || !strings.Contains(v.FullBecause, "damaged") || v.ReadBytes != v.Size {
		t.Errorf("%+v", v)
	}
	if w.Base != b.ID || w.ReadBytes != testChunk {
		t.Errorf("%+v", w)
	}
	if last := seen[len(seen)-1]; last.Done != last.Total || last.Done < v.Size+w.ReadBytes {
		t.Errorf("progress ends at %+v", last)
	}
	r = view(t, m, 4)
	if _, err := r.Verify(t.Context(), VerifyOptions{Parallel: 2}, b2.ID); err != nil {
		t.Error(err)
	}
	for _, x := range []*disk{d, e} {
		target := dirty(t, len(x.content))
		restore(t, r, RestoreOptions{Backup: b2.ID, Volume: x.name, Target: target})
		wantContent(t, x.name, target, x.content)
	}
}

// A pack that turns out to be damaged when something of it has been used again
// begins the backup anew, without its base.
func TestPoisonedBase(t *testing.T) {
	r, m := memRepo(t)
	r.packSize = 64 << 20
	d := newDisk(t, "v", image(5, 300))
	b := create(t, r, CreateOptions{}, d.source(""))
	// All is written anew with what was there, so that all is used again.
	d.write(0, bytes.Clone(d.content))
	src := d.source(b.ID)
	var chunks string
	for _, name := range packNames(m) {
		if !slices.Contains(nodePacks(t, m), name) {
			chunks = name
		}
	}
	other := m.Open()
	n := 0
	other.Before = func(op storetest.Op) error {
		if op.Kind == "read" && op.Name == chunks {
			if n++; n == 6 { // size, ends and directory, and a first chunk are good
				p := m.Object(chunks)
				clear(p[200 : len(p)-100_000])
				m.SetObject(chunks, p)
			}
		}
		return nil
	}
	b2 := create(t, view(t, other, 3), CreateOptions{Parallel: 1}, src)
	if v := b2.Volumes[0]; v.Base != "" || !strings.Contains(v.FullBecause, "damaged") {
		t.Errorf("%+v", v)
	}
	wantRestored(t, view(t, m, 4), b2.ID, d.content)
}

// The content belongs to the position: after a swap each volume's next backup is
// made against the image of the position that it shows now.
func TestIncrementalAfterASwap(t *testing.T) {
	r, m := memRepo(t)
	one, two := newDisk(t, "one", image(7, 30)), newDisk(t, "two", image(8, 30))
	b := create(t, r, CreateOptions{}, one.source(""), two.source(""))
	one.write(3*testChunk, []byte("in one"))
	two.write(9*testChunk, []byte("in two"))
	s1, s2 := one.source(b.ID), two.source(b.ID)
	s1.Volume, s2.Volume = s2.Volume, s1.Volume
	s1.Volume.PositionID, s2.Volume.PositionID = s2.Volume.PositionID, s1.Volume.PositionID
	b2 := create(t, r, CreateOptions{}, s1, s2)
	wantBase(t, b2, b.ID)
	fullCheck(t, m, images{b.ID: {"one": image(7, 30), "two": image(8, 30)}, b2.ID: {"two": one.content, "one": two.content}})
}

// What a list of changes lacks is found when all is read, named, and in the backup.
func TestVerifyUnchanged(t *testing.T) {
	r, _ := memRepo(t)
	d := newDisk(t, "v", image(9, 1200))
	b := create(t, r, CreateOptions{}, d.source(""))
	d.write(4*testChunk, []byte("told"))
	src := d.source(b.ID)
	for _, i := range []int64{7, 8, 100, 1100} {
		d.write(i*testChunk+77, []byte("not told"))
	}
	d.write(50*testChunk, d.content[50*testChunk:][:testChunk]) // the same
	b2, err := r.Create(t.Context(), []Source{src}, CreateOptions{VerifyUnchanged: true})
	var missed *MissedError
	if !errors.As(err, &missed) || !errors.Is(err, ErrMissed) || missed.Backup != b2.ID || len(missed.Volumes) != 1 {
		t.Fatalf("%+v, %v", missed, err)
	}
	want := Missed{Volume: "v", Base: b.ID, Bytes: 4 * testChunk,
		Ranges: []Range{{7 * testChunk, 2 * testChunk}, {100 * testChunk, testChunk}, {1100 * testChunk, testChunk}}}
	if got := missed.Volumes[0]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("missed is %+v, want %+v", got, want)
	}
	for _, text := range []string{b.ID, b2.ID, "volume v", fmt.Sprintf("bytes %d-%d", 7*testChunk, 9*testChunk-1)} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in:\n%v", text, err)
		}
	}
	if v := b2.Volumes[0]; v.Base != b.ID || v.ReadBytes != v.Size || v.ChangedBytes != 5*testChunk || v.StoredBytes > 10*testChunk {
		t.Errorf("%+v", v)
	}
	wantRestored(t, r, b2.ID, d.content)
	if b3, err := r.Create(t.Context(), []Source{d.source(b2.ID)}, CreateOptions{VerifyUnchanged: true}); err != nil || b3.Volumes[0].StoredBytes != 0 {
		t.Errorf("with a right list: %+v, %v", b3, err)
	}
}

func TestMissedIsBounded(t *testing.T) {
	var m Missed
	for i := range int64(3 * maxMissed) {
		m.add(i*10, 5)
	}
	if len(m.Ranges) != maxMissed || !m.More || m.Bytes != 15*maxMissed {
		t.Errorf("%d ranges, %d bytes, more: %v", len(m.Ranges), m.Bytes, m.More)
	}
	text := (&MissedError{Volumes: []Missed{m}}).Error()
	if len(text) > 1000 || !strings.Contains(text, "and more") {
		t.Errorf("%d bytes are said:\n%s", len(text), text)
	}
}

// A base that is deleted while a backup is made against it stays as long as that
// needs it, with every pack below the entries that are taken over unread.
func TestDeleteBaseWhileWriting(t *testing.T) {
	for _, stage := range []string{"hold leases", "read packs", "create packs", "commit backups"} {
		t.Run(stage, func(t *testing.T) {
			_, m := memRepo(t)
			other := view(t, m.Open(), 2)
			d := newDisk(t, "v", image(1, 60))
			b := create(t, other, CreateOptions{}, d.source(""))
			d.write(30*testChunk, []byte("changed"))
			src := d.source(b.ID)
			writer := m.Open()
			w := view(t, writer, 3)
			var once sync.Once
			hook := func(op storetest.Op) error {
				if kind, dir, _ := strings.Cut(stage, " "); op.Kind == kind && strings.HasPrefix(op.Name, dir) {
					once.Do(func() {
						if _, rep, err := other.Delete(context.Background(), b.ID); err != nil || rep.Packs != 0 || rep.Waiting == 0 || rep.Leases != 1 {
							t.Errorf("delete: %+v, %v", rep, err)
						}
						if rep, err := other.Prune(context.Background(), PruneOptions{}); err != nil || rep.Packs != 0 {
							t.Errorf("prune: %+v, %v", rep, err)
						}
					})
				}
				return nil
			}
			writer.After = hook
			if strings.HasPrefix(stage, "commit") {
				writer.After, writer.Before = nil, hook
			}
			b2 := create(t, w, CreateOptions{}, src)
			writer.Before, writer.After = nil, nil
			base := b.ID
			if strings.HasPrefix(stage, "hold") {
				base = "" // it had gone before it was looked for
			}
			wantBase(t, b2, base)
			want := images{b2.ID: {"v": d.content}}
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

// A base whose packs are left for others while a backup is made against it: what is
// taken over keeps them.
func TestRepackBaseWhileWriting(t *testing.T) {
	for _, stage := range []string{"read packs", "create packs", "commit backups"} {
		t.Run(stage, func(t *testing.T) {
			_, m := memRepo(t)
			other := view(t, m.Open(), 2)
			d := newDisk(t, "v", image(1, 60))
			old := create(t, other, CreateOptions{}, d.source(""))
			for i := int64(0); i < 60; i += 2 {
				d.write(i*testChunk, fmt.Appendf(nil, "changed %d", i))
			}
			b := create(t, other, CreateOptions{}, d.source(old.ID))
			first := bytes.Clone(d.content)
			if _, _, err := other.Delete(t.Context(), old.ID); err != nil {
				t.Fatal(err)
			}
			d.write(30*testChunk, []byte("changed again"))
			src := d.source(b.ID)
			writer := m.Open()
			var once sync.Once
			hook := func(op storetest.Op) error {
				if kind, dir, _ := strings.Cut(stage, " "); op.Kind == kind && strings.HasPrefix(op.Name, dir) {
					once.Do(func() {
						rep, err := other.Prune(context.Background(), PruneOptions{Repack: true})
						if err != nil || rep.Repacked == 0 {
							t.Errorf("prune: %+v, %v", rep, err)
						}
					})
				}
				return nil
			}
			writer.Before = hook
			b2 := create(t, view(t, writer, 3), CreateOptions{}, src)
			wantBase(t, b2, b.ID)
			want := images{b.ID: {"v": first}, b2.ID: {"v": d.content}}
			for range 2 {
				fullCheck(t, m.Open(), want)
				if _, err := other.Prune(t.Context(), PruneOptions{Repack: true}); err != nil {
					t.Fatal(err)
				}
			}
			fullCheck(t, m.Open(), want)
		})
	}
}

// After a crash at any operation of an incremental backup its base is whole, and the
// new one is whole or not there.
func TestCrashDuringIncremental(t *testing.T) {
	long(t)
	r, m := memRepo(t)
	d := newDisk(t, "a", image(1, 16))
	first := bytes.Clone(d.content)
	b1 := create(t, r, CreateOptions{}, d.source(""))
	before := m.Names("")
	d.scribble(rand.New(rand.NewPCG(1, 9)), 6)
	src := d.source(b1.ID)
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
				wantBase(t, b, b1.ID)
				want[b.ID] = map[string][]byte{"a": d.content}
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
	})
	if there < 2 {
		t.Errorf("the new backup was there %d times", there)
	}
}

// A chain over the chunk size of another repository has no base there.
func TestBaseOfAnotherRepository(t *testing.T) {
	r, _ := memRepo(t)
	d := newDisk(t, "v", image(1, 40))
	b := create(t, r, CreateOptions{}, d.source(""))
	other, err := Init(t.Context(), filepath.Join(t.TempDir(), "repo"), InitOptions{ChunkSize: 4 * testChunk})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	d.write(5, []byte("changed"))
	b2 := create(t, other, CreateOptions{}, d.source(b.ID))
	wantBase(t, b2, "")
	wantRestored(t, other, b2.ID, d.content)
	d.write(9*testChunk, []byte("changed"))
	b3 := create(t, other, CreateOptions{}, d.source(b2.ID))
	wantBase(t, b3, b2.ID)
	if b3.Volumes[0].ReadBytes != 4*testChunk {
		t.Errorf("%+v", b3.Volumes[0])
	}
	wantRestored(t, other, b3.ID, d.content)
}

// A manifest whose figures contradict each other is damaged.
func TestManifestOfABase(t *testing.T) {
	r, _ := memRepo(t)
	good := create(t, r, CreateOptions{}, source(t, "v", image(1, 5)))
	for name, c := range map[string]struct {
		change func(v *BackupVolume)
		good   bool
	}{
		"as it is":                 {func(v *BackupVolume) {}, true},
		"of an earlier version":    {func(v *BackupVolume) { v.ReadBytes = 0 }, true},
		"incremental":              {func(v *BackupVolume) { v.Base, v.ReadBytes, v.ChangedBytes = good.ID, 7, 7 }, true},
		"a reason":                 {func(v *BackupVolume) { v.FullBecause = strings.Repeat("x", maxBecause) }, true},
		"a base that is a path":    {func(v *BackupVolume) { v.Base = "../../config" }, false},
		"a base and a reason":      {func(v *BackupVolume) { v.Base, v.FullBecause = good.ID, "x" }, false},
		"a long reason":            {func(v *BackupVolume) { v.FullBecause = strings.Repeat("x", maxBecause+1) }, false},
		"a reason for terminals":   {func(v *BackupVolume) { v.FullBecause = "\x1b[2J" }, false},
		"more read than there is":  {func(v *BackupVolume) { v.ReadBytes = v.Size + 1 }, false},
		"less than nothing read":   {func(v *BackupVolume) { v.ReadBytes = -1 }, false},
		"more changed than read":   {func(v *BackupVolume) { v.Base, v.ReadBytes, v.ChangedBytes = good.ID, 7, 8 }, false},
		"less than nothing change": {func(v *BackupVolume) { v.Base, v.ChangedBytes = good.ID, -1 }, false},
		"changed since nothing":    {func(v *BackupVolume) { v.ChangedBytes = 1 }, false},
	} {
		b := good
		b.Volumes = slices.Clone(b.Volumes)
		c.change(&b.Volumes[0])
		if err := r.checkManifest(b, b.ID); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
