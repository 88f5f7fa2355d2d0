package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"syscall"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// damages are the ways in which an object goes bad.
var damages = []struct {
	name string
	do   func(b []byte, at int) []byte
}{
	{"a flipped bit", func(b []byte, at int) []byte { b[at] ^= 0x10; return b }},
	{"cut short", func(b []byte, at int) []byte { return b[:at] }},
	{"a zeroed sector", func(b []byte, at int) []byte { clear(b[at:min(at+512, len(b))]); return b }},
	{"rubbish at the end", func(b []byte, at int) []byte { return append(b, b[at]) }},
	{"gone", func(b []byte, at int) []byte { return nil }},
}

// Whatever is damaged, nothing wrong is ever restored as right: either the restore
// gives the exact content, or an error; and the ranges that the error does not
// list are exact, the listed ones zero.
func TestDamageIsNeverRestored(t *testing.T) {
	long(t)
	r, good := memRepo(t)
	content := image(1, 24)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	listed := 0
	for _, name := range good.Names("") {
		for _, d := range damages {
			size := len(good.Object(name))
			for _, at := range []int{0, 9, size / 3, size / 2, size - 70, size - 1} {
				m := good.Clone()
				m.SetObject(name, d.do(m.Object(name), at))
				what := fmt.Sprintf("%s at %d of %d of %s", d.name, at, size, name)
				n, err := restoreDamaged(t, what, m, b.ID, content)
				listed += n
				if strings.HasPrefix(name, "config") || strings.HasPrefix(name, "backups") {
					want := ErrDamaged
					if d.name == "gone" {
						want = map[bool]error{true: ErrNotRepository, false: ErrNotFound}[name == "config"]
					}
					// What no longer begins like ours is not ours.
					if name == "config" && at < 9 && (d.name == "a zeroed sector" || d.name == "a flipped bit") {
						want = ErrNotRepository
					}
					if name == "config" && d.name == "cut short" && at < 9 {
						want = ErrNotRepository
					}
					wantErr(t, what, err, want, "")
				} else if strings.HasPrefix(name, "keys") {
					want := "keys/"
					if d.name == "gone" {
						want = "no key"
					}
					wantErr(t, what, err, ErrDamaged, want)
				} else if d.name == "gone" {
					wantErr(t, what, err, ErrDamaged, name)
				}
			}
		}
	}
	if listed < 50 {
		t.Errorf("only %d bad ranges were seen", listed)
	}
}

// restoreDamaged restores from a damaged repository and checks the promise. It
// returns how many bad ranges there were.
func restoreDamaged(t *testing.T, what string, m *storetest.Mem, id string, content []byte) (int, error) {
	t.Helper()
	r, err := openStore(t.Context(), m, secretOf(m))
	if err != nil {
		return 0, err
	}
	target := dirty(t, len(content))
	res, err := r.Restore(t.Context(), RestoreOptions{Backup: id, Target: target, Parallel: 2, VerifyAfter: true})
	var de *DamagedError
	want := bytes.Clone(content)
	switch {
	case err == nil:
		if len(res.Bad) != 0 || !res.Verified {
			t.Errorf("%s: no error, but %+v", what, res)
		}
	case errors.As(err, &de):
		if len(res.Bad) == 0 || len(de.Ranges) != len(res.Bad) || res.Verified || de.Backup != id || de.Volume != "tank/a" {
			t.Errorf("%s: %+v with %+v", what, de, res)
		}
		for _, bad := range res.Bad {
			clear(want[bad.Offset:][:bad.Length])
			if !strings.HasPrefix(bad.Object, "packs/") || bad.Reason == "" || strings.Contains(bad.Reason, "not exist") {
				t.Errorf("%s: range %+v", what, bad)
			}
		}
	default:
		return 0, err
	}
	wantContent(t, what, target, want)
	rep, verr := r.Verify(t.Context(), VerifyOptions{Parallel: 2}, id)
	if (err != nil) && verr == nil {
		t.Errorf("%s: verify found nothing (%+v), restore %v", what, rep, err)
	}
	return len(res.Bad), err
}

func TestStopAtDamage(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 24)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	for _, name := range packNames(m) {
		m.SetObject(name, m.Object(name)[:200])
	}
	res, err := r.Restore(t.Context(), RestoreOptions{Backup: b.ID, Target: dirty(t, len(content)), StopAtDamage: true, VerifyAfter: true})
	wantErr(t, "restore", err, ErrDamaged, "stopped")
	if res.Verified || len(res.Bad) == 0 {
		t.Errorf("result is %+v", res)
	}
}

// A disk of the repository that can't read a sector is damage like any other.
func TestUnreadableSector(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 24)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	bad := packNames(m)[0]
	m.Before = func(op storetest.Op) error {
		if op.Kind == "read" && op.Name == bad {
			return fmt.Errorf("disk: %w", syscall.EIO)
		}
		return nil
	}
	n, err := restoreDamaged(t, "EIO", m, b.ID, content)
	if n == 0 || !errors.Is(err, ErrDamaged) {
		t.Errorf("%d ranges, %v", n, err)
	}
}

// A damaged manifest does not hide the other backups, is not passed over on the
// way to the latest, keeps packs from being removed, and can be deleted.
func TestDamagedManifest(t *testing.T) {
	r, m := memRepo(t)
	one, two := image(1, 10), image(2, 10)
	b1 := create(t, r, CreateOptions{}, source(t, "a", one))
	b2 := create(t, r, CreateOptions{}, source(t, "a", two))
	name := "backups/" + b2.ID
	m.SetObject(name, m.Object(name)[:100])
	list, err := r.List(t.Context())
	if err != nil || len(list) != 2 || list[0].Damaged != "" || list[1].ID != b2.ID || list[1].Damaged == "" {
		t.Errorf("list is %+v, %v", list, err)
	}
	_, err = r.Get(t.Context(), "latest")
	wantErr(t, "latest", err, ErrDamaged, b2.ID)
	_, err = r.Latest(t.Context(), "uuid-a")
	wantErr(t, "latest of a", err, ErrDamaged, b2.ID)
	_, err = r.Get(t.Context(), b2.ID)
	wantErr(t, "get", err, ErrDamaged, name)
	if _, err := r.Get(t.Context(), b1.ID); err != nil {
		t.Error(err)
	}
	rep, err := r.Verify(t.Context(), VerifyOptions{})
	wantErr(t, "verify", err, ErrDamaged, name)
	if rep.Backups != 1 || len(rep.Other) != 1 {
		t.Errorf("report is %+v", rep)
	}
	b3 := create(t, r, CreateOptions{}, source(t, "a", two))
	_, err = r.Prune(t.Context(), PruneOptions{})
	wantErr(t, "prune", err, ErrDamaged, "no pack is removed")
	packs := len(packNames(m))
	_, _, err = r.Delete(t.Context(), b1.ID)
	wantErr(t, "delete another", err, ErrDamaged, "is deleted; free its space")
	if n := len(packNames(m)); n != packs {
		t.Errorf("%d packs of %d are left", n, packs)
	}
	if _, prep, err := r.Delete(t.Context(), b2.ID); err != nil || prep.Packs == 0 {
		t.Errorf("delete the damaged: %+v, %v", prep, err)
	}
	fullCheck(t, m, images{b3.ID: {"a": two}})
}

func TestNewerManifest(t *testing.T) {
	r, m := memRepo(t)
	b := create(t, r, CreateOptions{}, source(t, "a", image(1, 3)))
	m.SetObject("backups/"+b.ID, renumber(t, m.Object("backups/"+b.ID), 2))
	_, err := r.Get(t.Context(), b.ID)
	wantErr(t, "get", err, ErrVersion, "newer swapback")
	_, err = r.Prune(t.Context(), PruneOptions{})
	wantErr(t, "prune", err, ErrDamaged, "no pack is removed")
	m.SetObject("config", renumber(t, m.Object("config"), 2))
	_, err = openStore(t.Context(), m, secretOf(m))
	wantErr(t, "open", err, ErrVersion, "newer swapback")
}

// renumber returns a copy of a text object that claims another version, with a
// right checksum, as a newer program would write it. The header is drawn in
// internal/format/text.go.
func renumber(t *testing.T, object []byte, version int) []byte {
	t.Helper()
	head, body := fmt.Appendf(nil, "%s v%03d%s", object[:21], version, object[26:54]), object[64:]
	sum := crc32.Update(crc32.Checksum(head, crc32.MakeTable(crc32.Castagnoli)), crc32.MakeTable(crc32.Castagnoli), body)
	out := append(fmt.Appendf(head, "%08x \n", sum), body...)
	if len(out) != len(object) {
		t.Fatalf("%q became %q", object[:64], out[:64])
	}
	return out
}

// Chunks of an earlier backup that have gone bad are stored anew, so that the new
// backup is good.
func TestReuseOfDamagedPacks(t *testing.T) {
	r, good := memRepo(t)
	content := image(1, 24)
	create(t, r, CreateOptions{}, source(t, "a", content))
	src := source(t, "a", content)
	for _, policy := range []Reuse{ReuseSampled, ReuseVerified} {
		for _, name := range packNames(good) {
			for _, d := range damages {
				if policy == ReuseSampled && (d.name == "a flipped bit" || d.name == "a zeroed sector") {
					continue // a sample may miss those, see below
				}
				m := good.Clone()
				m.SetObject(name, d.do(m.Object(name), len(m.Object(name))/2))
				b, err := view(t, m, 3).Create(t.Context(), []Source{src}, CreateOptions{Reuse: policy})
				if err != nil {
					t.Fatal(err)
				}
				if n, err := restoreDamaged(t, d.name+" "+name, m, b.ID, content); n != 0 || err != nil {
					t.Errorf("%s of %s: %d bad ranges, %v", d.name, name, n, err)
				}
			}
		}
	}
}

// A sample that fails after others of the pack were taken on trust makes the
// backup look at those, and begin anew when one of them is bad.
func TestReuseBeginsAnew(t *testing.T) {
	m := storetest.NewMem()
	r, err := initStore(t.Context(), m, InitOptions{ChunkSize: testChunk, Recipients: []string{recipient}})
	if err != nil {
		t.Fatal(err)
	}
	predictable(r, 1).packSize = format.PackSize // all in one pack
	// Distinct chunks that compress well, more than one sample's worth.
	content := make([]byte, 3*reuseSample*testChunk)
	for i := range 3 * reuseSample {
		copy(content[i*testChunk:], bytes.Repeat(fmt.Appendf(nil, "%07d\n", i), testChunk/8))
	}
	create(t, r, CreateOptions{}, source(t, "a", content))
	id, err := format.ParseID(packNames(m)[0][len("packs/00/"):])
	if err != nil {
		t.Fatal(err)
	}
	var refs []format.Ref
	_, err = pack.ReadDirectory(t.Context(), m, id, func(_ int, r format.Ref) { refs = append(refs, r) })
	if err != nil || len(refs) != 3*reuseSample {
		t.Fatalf("%d blobs, %v", len(refs), err)
	}
	object := m.Object(pack.Name(id))
	object[refs[5].Offset+70] ^= 1             // is taken on trust
	object[refs[reuseSample].Offset+70] ^= 1   // is a sample, as workers come in order
	object[refs[2*reuseSample].Offset+70] ^= 1 // would be
	m.SetObject(pack.Name(id), object)
	b, err := r.Create(t.Context(), []Source{source(t, "a", content)}, CreateOptions{Parallel: 1})
	if err != nil {
		t.Fatal(err)
	}
	if b.Volumes[0].StoredBytes == 0 {
		t.Error("nothing was stored anew")
	}
	if n, err := restoreDamaged(t, "begun anew", m, b.ID, content); n != 0 || err != nil {
		t.Errorf("%d bad ranges, %v", n, err)
	}
}

// A pack that a hand removed while the backup relied on it.
func TestPackRemovedByHand(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 10)
	create(t, r, CreateOptions{}, source(t, "a", content))
	packs := packNames(m)
	m.Before = func(op storetest.Op) error {
		if op.Kind == "commit" && strings.HasPrefix(op.Name, "packs/") {
			m.SetObject(packs[0], nil)
		}
		return nil
	}
	_, err := r.Create(t.Context(), []Source{source(t, "a", append(content, 1))}, CreateOptions{})
	wantErr(t, "create", err, ErrDamaged, "has gone")
	m.Before = nil
	if n := m.Names("backups"); len(n) != 1 {
		t.Errorf("backups are %v", n)
	}
}

func TestVerifyReadsSharedChunksOnce(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 20)
	b1 := create(t, r, CreateOptions{}, source(t, "a", content))
	first, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b2 := create(t, r, CreateOptions{}, source(t, "a", content))
	both, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil || both.Backups != 2 || both.Chunks != first.Chunks || both.Bytes != 2*first.Bytes {
		t.Errorf("reports are %+v and %+v, %v", first, both, err)
	}
	name := packNames(m)[0]
	object := m.Object(name)
	object[len(object)/2] ^= 1
	m.SetObject(name, object)
	if rep, err := r.Verify(t.Context(), VerifyOptions{StructureOnly: true}); err != nil {
		t.Errorf("structure: %+v, %v", rep, err)
	}
	rep, err := r.Verify(t.Context(), VerifyOptions{})
	wantErr(t, "verify", err, ErrDamaged, name)
	if len(rep.Damage) != 2 {
		t.Errorf("%d damaged volumes, want those of %s and %s", len(rep.Damage), b1.ID, b2.ID)
	}
}

// A hostile manifest can't make a restore write outside the target or allocate by
// its word.
func TestHostileManifest(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 10)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	for name, f := range map[string]func(b *Backup){
		"huge size":       func(b *Backup) { b.Volumes[0].Size = 1 << 62 },
		"negative size":   func(b *Backup) { b.Volumes[0].Size = -1 },
		"smaller size":    func(b *Backup) { b.Volumes[0].Size = testChunk },
		"chunk size":      func(b *Backup) { b.Volumes[0].ChunkSize = 1 << 40 },
		"small chunks":    func(b *Backup) { b.Volumes[0].ChunkSize = 1 },
		"root length":     func(b *Backup) { b.Volumes[0].Table.Length = 1 << 31 },
		"root stored":     func(b *Backup) { b.Volumes[0].Table.Stored = 1 << 31 },
		"root offset":     func(b *Backup) { b.Volumes[0].Table.Offset = 1<<32 - 1 },
		"pack outside":    func(b *Backup) { b.Volumes[0].Table.Pack = "../../../../../../etc/passwd" },
		"codec":           func(b *Backup) { b.Volumes[0].Table.Codec = "lzma" },
		"no volume":       func(b *Backup) { b.Volumes = nil },
		"many volumes":    func(b *Backup) { b.Volumes = make([]BackupVolume, maxVolumes+1) },
		"another ID":      func(b *Backup) { b.ID = "20261123T101501Z-00000000" },
		"another instant": func(b *Backup) { b.Created = b.Created.AddDate(0, 0, 1) },
	} {
		h := b
		h.Volumes = append([]BackupVolume(nil), b.Volumes...)
		f(&h)
		body, err := format.EncodeText(format.TextBackup, h)
		if err != nil {
			t.Fatal(err)
		}
		m.SetObject("backups/"+b.ID, body)
		target := dirty(t, len(content))
		_, err = r.Restore(context.Background(), RestoreOptions{Backup: b.ID, Target: target, AllowLarger: true})
		wantErr(t, name, err, ErrDamaged, "")
		wantContent(t, name, target, bytes.Repeat([]byte{0xd1}, len(content)))
	}
}
