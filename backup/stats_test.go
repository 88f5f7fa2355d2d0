package backup

import (
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// What stats tell adds up to what is there.
func TestStats(t *testing.T) {
	r, m := memRepo(t)
	one, two := image(1, 24), image(2, 24)
	create(t, r, CreateOptions{}, source(t, "a", one), source(t, "b", two))
	create(t, r, CreateOptions{}, source(t, "a", one))
	st, err := r.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantWhole(t, m, st)
	if st.Backups != 2 || st.Damaged != 0 || len(st.Volumes) != 2 || st.UnusedPacks != 0 || st.UnusedBytes != 0 || st.Nodes != 2 {
		t.Errorf("stats: %+v", st)
	}
	a, b := st.Volumes[0], st.Volumes[1]
	if a.Name != "a" || a.Backups != 2 || a.Usage.Size != 2*int64(len(one)) || b.Name != "b" || b.Backups != 1 || b.Usage.Size != int64(len(two)) {
		t.Errorf("volumes: %+v", st.Volumes)
	}
	if n := a.Usage.Chunks + b.Usage.Chunks; n != st.Total.Chunks || st.Total.Size != a.Usage.Size+b.Usage.Size {
		t.Errorf("%d chunks of volumes, %d in all", n, st.Total.Chunks)
	}
	if d := a.Usage.Dedup(); d < 2 || d != float64(a.Usage.Data)/float64(a.Usage.Distinct) {
		t.Errorf("dedup of a: %v", d)
	}
	if c := st.Total.Compression(); c <= 1 {
		t.Errorf("compression: %v", c)
	}
	all, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil || all.Chunks != st.Total.Chunks || all.ChunkBytes != st.Total.Distinct || all.Nodes != st.Nodes {
		t.Errorf("verify counts %+v, %v, stats %+v", all, err, st.Total)
	}

	// A volume's chunks that nothing names any more are unused, and so is a pack
	// that a dead writer left.
	c := create(t, r, CreateOptions{}, source(t, "a", change(one, 3)))
	w, err := r.begin(t.Context(), "backup", logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer w.end()
	if _, _, err := r.Delete(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if st, err = r.Stats(t.Context()); err != nil || st.UnusedPacks == 0 || st.UnusedPackBytes == 0 {
		t.Errorf("with garbage: %+v, %v", st, err)
	}
	wantWhole(t, m, st)
}

// wantWhole checks that the parts of the stats are all there is in the store.
func wantWhole(t *testing.T, m *storetest.Mem, st Stats) {
	t.Helper()
	var sum int64
	for _, name := range m.Names("") {
		sum += int64(len(m.Object(name)))
	}
	// The lease of the stats themselves was there when they were made.
	if st.StoredBytes < sum || st.StoredBytes > sum+1000 {
		t.Errorf("%d bytes, there are %d", st.StoredBytes, sum)
	}
	if parts := st.PackBytes + st.ManifestBytes + st.OtherBytes; parts != st.StoredBytes {
		t.Errorf("parts of the whole are %d of %d", parts, st.StoredBytes)
	}
	if parts := st.Total.Stored + st.NodeBytes + st.IndexBytes + st.UnusedBytes + st.UnusedPackBytes + st.InterruptedBytes; parts != st.PackBytes {
		t.Errorf("parts of packs are %d of %d", parts, st.PackBytes)
	}
}

// What an interrupted backup left for the next one is neither unused nor foreign.
func TestStatsOfAnInterruptedBackup(t *testing.T) {
	r, m := memRepo(t)
	create(t, r, CreateOptions{}, source(t, "a", image(1, 10)))
	cancelledCreate(t, m, r, 3, source(t, "b", image(2, 60)))
	st, err := r.Stats(t.Context())
	if err != nil || st.InterruptedBytes == 0 || st.UnusedPacks != 0 || st.UnusedBytes != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	wantWhole(t, m, st)
	if c := check(t, m); len(c.Problems)+len(c.Notes) != 0 || c.Unused != 0 {
		t.Errorf("check: %+v", c)
	}
	if rep, err := r.Prune(t.Context(), repackAll); err != nil || rep.Packs+rep.Repacked != 0 {
		t.Errorf("prune: %+v, %v", rep, err)
	}
}

func TestStatsOfDamage(t *testing.T) {
	r, m := memRepo(t)
	create(t, r, CreateOptions{}, source(t, "a", image(1, 10)))
	b := create(t, r, CreateOptions{}, source(t, "b", image(2, 10)))
	_, root, err := b.Volumes[0].table()
	if err != nil {
		t.Fatal(err)
	}
	damage(t, m, root)
	st, err := r.Stats(t.Context())
	if err != nil || st.Damaged != 1 || st.Backups != 2 || st.Total.Chunks == 0 {
		t.Errorf("a damaged table: %+v, %v", st, err)
	}
	m.SetObject("backups/"+b.ID, []byte("rubbish"))
	if st, err = r.Stats(t.Context()); err != nil || st.Damaged != 1 || st.Backups != 1 || len(st.Volumes) != 1 {
		t.Errorf("a damaged manifest: %+v, %v", st, err)
	}
}

// damage flips a bit in the payloads of blobs.
func damage(t testing.TB, m *storetest.Mem, refs ...format.Ref) {
	t.Helper()
	for _, ref := range refs {
		name := "packs/" + ref.Pack.String()[:2] + "/" + ref.Pack.String()
		object := m.Object(name)
		object[ref.Offset+format.BlobHeaderSize+ref.Stored/2] ^= 1
		m.SetObject(name, object)
	}
}
