package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

func TestBackupAndRestore(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 40)
	b := create(t, r, CreateOptions{Comment: "before the run", Tags: []string{"nightly"}, Job: "ledger", Step: "2"}, source(t, "db", content))
	if b.Comment != "before the run" || b.Tags[0] != "nightly" || b.Job != "ledger" || b.Step != "2" {
		t.Errorf("labels are lost: %+v", b)
	}
	v := b.Volumes[0]
	if v.Name != "db" || v.Generation != 7 || v.PositionID != "pos-db" || v.Size != int64(len(content)) ||
		v.DataBytes+v.ZeroBytes != v.Size || v.ZeroBytes == 0 || v.ReusedBytes == 0 || v.StoredBytes >= v.DataBytes {
		t.Errorf("volume is %+v", v)
	}
	got, err := r.Get(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%+v", b); fmt.Sprintf("%+v", got) != want {
		t.Errorf("got %+v\nwant %s", got, want)
	}
	target := dirty(t, len(content))
	res := restore(t, r, RestoreOptions{Backup: "latest", Target: target, VerifyAfter: true})
	wantContent(t, "restored", target, content)
	if !res.Verified || res.Backup != b.ID || res.DataBytes != v.DataBytes || res.ZeroBytes != v.ZeroBytes || res.ReadBytes == 0 {
		t.Errorf("result is %+v", res)
	}
	if n := len(packNames(m)); n < 4 {
		t.Errorf("%d packs: the test does not see several", n)
	}
	if n := m.Names("leases"); len(n) != 0 {
		t.Errorf("leases are left: %v", n)
	}
	fullCheck(t, m, images{b.ID: {"db": content}})
}

func TestSizes(t *testing.T) {
	for _, size := range []int{1, 511, 512, 4096, testChunk - 1, testChunk, testChunk + 1, 1<<20 + 512, 3<<20 - 1} {
		r, m := memRepo(t)
		content := image(uint64(size), size/testChunk+1)[:size]
		content[size-1] = 1
		b := create(t, r, CreateOptions{}, source(t, "v", content))
		fullCheck(t, m, images{b.ID: {"v": content}})
	}
}

func TestZeroVolumeStoresNothing(t *testing.T) {
	r, m := memRepo(t)
	content := make([]byte, 3<<20)
	b := create(t, r, CreateOptions{}, source(t, "v", content))
	if v := b.Volumes[0]; v.StoredBytes != 0 || v.DataBytes != 0 || v.Table != (Table{}) {
		t.Errorf("volume is %+v", v)
	}
	if n := packNames(m); len(n) != 0 {
		t.Errorf("packs are %v", n)
	}
	fullCheck(t, m, images{b.ID: {"v": content}})
}

func TestSeveralVolumesAreOneBackup(t *testing.T) {
	r, m := memRepo(t)
	one, two := image(1, 10), image(2, 20)
	b := create(t, r, CreateOptions{}, source(t, "one", one), source(t, "two", two))
	fullCheck(t, m, images{b.ID: {"one": one, "two": two}})
	for _, name := range []string{"", "three", "tank/three"} {
		_, err := r.Restore(t.Context(), RestoreOptions{Backup: b.ID, Volume: name, Target: dirty(t, len(one))})
		if !errors.Is(err, ErrNoVolume) || !strings.Contains(err.Error(), "tank/one, tank/two") {
			t.Errorf("volume %q: %v", name, err)
		}
	}
	target := dirty(t, len(two))
	restore(t, r, RestoreOptions{Backup: b.ID, Volume: "tank/two", Target: target})
	wantContent(t, "two", target, two)
}

// What an earlier backup stored is not stored again, and restoring does not need
// the earlier backup.
func TestReuse(t *testing.T) {
	r, m := memRepo(t)
	first := image(1, 64)
	b1 := create(t, r, CreateOptions{}, source(t, "db", first))
	b2 := create(t, r, CreateOptions{}, source(t, "db", first))
	if v := b2.Volumes[0]; v.StoredBytes != 0 || v.ReusedBytes != v.DataBytes || v.Table != b1.Volumes[0].Table {
		t.Errorf("unchanged volume is %+v", v)
	}
	second := change(first, 1)
	b3 := create(t, r, CreateOptions{}, source(t, "db", second))
	if v := b3.Volumes[0]; v.StoredBytes == 0 || v.StoredBytes > 8*testChunk {
		t.Errorf("changed volume is %+v", v)
	}
	// Another volume with the same data.
	b4 := create(t, r, CreateOptions{Reuse: ReuseVerified}, source(t, "other", second))
	if v := b4.Volumes[0]; v.StoredBytes != 0 {
		t.Errorf("other volume is %+v", v)
	}
	b5 := create(t, r, CreateOptions{Reuse: ReuseNone}, source(t, "db", second))
	if v := b5.Volumes[0]; v.StoredBytes == 0 {
		t.Errorf("volume without reuse is %+v", v)
	}
	want := images{b1.ID: {"db": first}, b2.ID: {"db": first}, b3.ID: {"db": second}, b4.ID: {"other": second}, b5.ID: {"db": second}}
	fullCheck(t, m, want)
	for _, id := range []string{b1.ID, b3.ID, b5.ID, b2.ID} {
		if _, _, err := r.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		delete(want, id)
		fullCheck(t, m, want)
	}
	if _, _, err := r.Delete(t.Context(), b4.ID); err != nil {
		t.Fatal(err)
	}
	if left := m.Names(""); len(left) != 2 { // config and key
		t.Errorf("an empty repository has %v", left)
	}
}

func TestInitAndOpenRefusals(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(t.Context(), dir, Secret{})
	wantErr(t, "open an empty folder", err, ErrNotRepository, "swapback repo init")
	_, err = Open(t.Context(), filepath.Join(dir, "nowhere"), Secret{})
	wantErr(t, "open nothing", err, ErrNotRepository, "swapback repo init")

	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := Init(t.Context(), "file://"+dir, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	_, err = Init(t.Context(), dir, InitOptions{})
	wantErr(t, "init again", err, ErrExists, "another folder")
	if r, err = Open(t.Context(), "file://"+dir, Secret{}); err != nil {
		t.Fatal(err)
	}
	if r.ChunkSize() != DefaultChunkSize || r.Location() != dir || len(r.ID()) != 36 {
		t.Errorf("opened %+v", r)
	}
	r.Close()

	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "holiday.jpg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Init(t.Context(), full, InitOptions{})
	wantErr(t, "init a full folder", err, ErrNotEmpty, "holiday.jpg")
	// Another program's config is not ours.
	if err := os.WriteFile(filepath.Join(full, "config"), []byte(strings.Repeat("{}", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Init(t.Context(), full, InitOptions{})
	wantErr(t, "init a full folder", err, ErrNotEmpty, "config")
	_, err = Open(t.Context(), full, Secret{})
	wantErr(t, "open a full folder", err, ErrNotRepository, "")

	for _, location := range []string{"s3://", "ftp://x", "", "file://host/x"} {
		_, err := Open(t.Context(), location, Secret{})
		wantErr(t, location, err, ErrUnsupported, "name a folder")
	}
	for _, size := range []int64{1, 1000, 3 << 20, 32 << 20, -1} {
		_, err := Init(t.Context(), t.TempDir(), InitOptions{ChunkSize: size})
		wantErr(t, fmt.Sprint(size), err, ErrInvalid, "chunk size")
	}
}

func wantErr(t testing.TB, what string, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: error is %v, want %v with %q", what, err, want, text)
	}
}

func TestNewerRepositoriesAreRefused(t *testing.T) {
	for _, c := range []func(c *config){
		func(c *config) { c.Encryption = "aes-512-gcm" },
		func(c *config) { c.Hash = "blake4" },
		func(c *config) { c.Features = []string{"erasure-coding"} },
	} {
		r, m := memRepo(t)
		conf := r.config
		c(&conf)
		body, err := format.EncodeText(format.TextConfig, conf)
		if err != nil {
			t.Fatal(err)
		}
		m.SetObject("config", body)
		_, err = openStore(t.Context(), m, secretOf(m))
		wantErr(t, "open", err, ErrVersion, "newer swapback")
	}
}

// What passes for an ID can't lead out of a folder: of all that differ from one in
// a byte, only other digits do.
func TestIDs(t *testing.T) {
	const id = "20261123T101502Z-3f9a1c07"
	if !validID(id) {
		t.Fatalf("%q is none", id)
	}
	check := func(s string, good bool) {
		if validID(s) && !good {
			t.Errorf("%q is an ID", s)
		}
	}
	for i := range len(id) + 1 {
		check(id[:i], i == len(id))
		check(id[i:], i == 0)
		for c := range 256 {
			check(id[:i]+string([]byte{byte(c)})+id[i:], false)
			if i < len(id) {
				digit := c >= '0' && c <= '9' || i > len(idTime) && c >= 'a' && c <= 'f'
				check(id[:i]+string([]byte{byte(c)})+id[i+1:], digit || byte(c) == id[i])
			}
		}
	}
	for _, s := range []string{"../../../etc/passwd-00000000", "20261123T101502.5Z-3f9a1c07", "20261123T1:1502Z-3f9a1c07", "20261123T101502Z-3f9a1c07-3f9a1c07"} {
		check(s, false)
	}
}

func TestNames(t *testing.T) {
	r, _ := memRepo(t)
	_, err := r.Get(t.Context(), "latest")
	wantErr(t, "latest of none", err, ErrNotFound, "backup create")
	at := time.Date(2026, 3, 1, 2, 3, 4, 5, time.UTC)
	content := image(1, 2)
	var all []Backup
	for i := range 3 {
		// The first and the second within one second, in the order of their
		// instants and not of their IDs.
		o := CreateOptions{At: at.Add(time.Duration(i*i) * 600 * time.Millisecond)}
		all = append(all, create(t, r, o, source(t, []string{"a", "b", "a"}[i], content)))
	}
	list, err := r.List(t.Context())
	if err != nil || len(list) != 3 {
		t.Fatalf("list is %v, %v", list, err)
	}
	for i := range all {
		if list[i].ID != all[i].ID {
			t.Errorf("%d is %s, want %s", i, list[i].ID, all[i].ID)
		}
		_, random, _ := strings.Cut(all[i].ID, "-")
		for _, id := range []string{all[i].ID, random} {
			if b, err := r.Get(t.Context(), id); err != nil || b.ID != all[i].ID {
				t.Errorf("%s is %s, %v", id, b.ID, err)
			}
		}
		// Predictable IDs differ in the last digits only.
		_, err := r.Get(t.Context(), random[:6])
		wantErr(t, random[:6], err, ErrAmbiguous, "more letters")
	}
	if b, err := r.Get(t.Context(), all[2].ID[:len("20260301T020306")]); err != nil || b.ID != all[2].ID {
		t.Errorf("by its second it is %s, %v", b.ID, err)
	}
	b, err := r.Get(t.Context(), "latest")
	if err != nil || b.ID != all[2].ID {
		t.Errorf("latest is %s, %v", b.ID, err)
	}
	_, err = r.Get(t.Context(), "20260301")
	wantErr(t, "prefix", err, ErrAmbiguous, "more letters")
	for _, id := range []string{"", "x", "2027", "../config", all[0].ID + "0"} {
		_, err = r.Get(t.Context(), id)
		wantErr(t, id, err, ErrNotFound, "backup list")
		_, _, err = r.Delete(t.Context(), id)
		wantErr(t, "delete "+id, err, ErrNotFound, "backup list")
	}
	b, err = r.Latest(t.Context(), "uuid-b")
	if err != nil || b.ID != all[1].ID {
		t.Errorf("latest of b is %s, %v", b.ID, err)
	}
	_, err = r.Latest(t.Context(), "uuid-c")
	wantErr(t, "latest of c", err, ErrNotFound, "backup create")
	_, err = r.Create(t.Context(), []Source{source(t, "a", content)}, CreateOptions{At: time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)})
	wantErr(t, "far future", err, ErrInvalid, "instant")
}

func TestBadSources(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 2)
	good := source(t, "a", content)
	other := source(t, "b", content)
	with := func(f func(s *Source)) Source { s := good; f(&s); return s }
	for _, tt := range []struct {
		name    string
		sources []Source
		kind    error
	}{
		{"none", nil, ErrInvalid},
		{"no name", []Source{{Path: good.Path}}, ErrInvalid},
		{"no path", []Source{{Volume: good.Volume}}, ErrInvalid},
		{"twice the same name", []Source{good, with(func(s *Source) { s.Volume.UUID = "x" })}, ErrInvalid},
		{"twice the same uuid", []Source{good, with(func(s *Source) { s.Volume.Name = "x" })}, ErrInvalid},
		{"not there", []Source{other, with(func(s *Source) { s.Path += "x" })}, ErrSource},
		{"a folder", []Source{other, with(func(s *Source) { s.Path = t.TempDir() })}, ErrSource},
		{"another size", []Source{other, with(func(s *Source) { s.Volume.Size++ })}, ErrSize},
		{"empty", []Source{{Path: write(t, nil), Volume: VolumeRef{Name: "e"}}}, ErrSize},
	} {
		_, err := r.Create(t.Context(), tt.sources, CreateOptions{})
		wantErr(t, tt.name, err, tt.kind, "")
	}
	if n := m.Names(""); len(n) != 2 { // config and key
		t.Errorf("left are %v", n)
	}
}

func TestTargetSizes(t *testing.T) {
	r, _ := memRepo(t)
	content := image(1, 5)
	create(t, r, CreateOptions{}, source(t, "a", content))
	for _, n := range []int{len(content) - 1, len(content) + 1} {
		target := dirty(t, n)
		_, err := r.Restore(t.Context(), RestoreOptions{Backup: "latest", Target: target})
		wantErr(t, fmt.Sprint(n), err, ErrSize, "nothing was written")
		wantContent(t, "refused", target, bytes.Repeat([]byte{0xd1}, n))
	}
	larger := dirty(t, len(content)+12345)
	restore(t, r, RestoreOptions{Backup: "latest", Target: larger, AllowLarger: true, VerifyAfter: true})
	wantContent(t, "larger", larger, append(bytes.Clone(content), make([]byte, 12345)...))
	_, err := r.Restore(t.Context(), RestoreOptions{Backup: "latest", Target: dirty(t, len(content)-1), AllowLarger: true})
	wantErr(t, "smaller", err, ErrSize, "")

	fresh := filepath.Join(t.TempDir(), "new")
	_, err = r.Restore(t.Context(), RestoreOptions{Backup: "latest", Target: fresh})
	wantErr(t, "not there", err, ErrTarget, "existing")
	restore(t, r, RestoreOptions{Backup: "latest", Target: fresh, CreateTarget: true})
	wantContent(t, "new", fresh, content)
	if err := os.WriteFile(fresh, bytes.Repeat([]byte{0xd1}, len(content)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = r.Restore(t.Context(), RestoreOptions{Backup: "latest", Target: fresh, CreateTarget: true})
	wantErr(t, "there already", err, ErrExists, "nothing was written")
	wantContent(t, "there already", fresh, bytes.Repeat([]byte{0xd1}, len(content)))
	_, err = r.Restore(t.Context(), RestoreOptions{Backup: "latest", Target: t.TempDir()})
	wantErr(t, "a folder", err, ErrTarget, "block device")
	_, err = r.Restore(t.Context(), RestoreOptions{Backup: "nothing", Target: fresh})
	wantErr(t, "no backup", err, ErrNotFound, "")
}

func TestCancel(t *testing.T) {
	for _, kind := range []string{"create", "write", "commit"} {
		r, m := memRepo(t)
		first := image(1, 40)
		b := create(t, r, CreateOptions{}, source(t, "a", first))
		before := m.Names("")
		ctx, cancel := context.WithCancel(t.Context())
		var n atomic.Int64
		m.Before = func(op storetest.Op) error {
			if op.Kind == kind && strings.HasPrefix(op.Name, "packs/") {
				if n.Add(1) == 2 {
					cancel()
				}
			}
			return nil
		}
		_, err := r.Create(ctx, []Source{source(t, "a", image(2, 40))}, CreateOptions{})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: error is %v", kind, err)
		}
		m.Before = nil
		// What is left is for the next backup, see interrupted_test.go.
		if _, err := r.DropInterrupted(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
			t.Fatal(err)
		}
		if after := m.Names(""); fmt.Sprint(after) != fmt.Sprint(before) || m.Temps() != 0 {
			t.Errorf("%s: left are %v, %d temporaries", kind, after, m.Temps())
		}
		ctx, cancel = context.WithCancel(t.Context())
		m.Before = func(op storetest.Op) error {
			if op.Kind == "read" && strings.HasPrefix(op.Name, "packs/") {
				cancel()
			}
			return nil
		}
		_, err = r.Restore(ctx, RestoreOptions{Backup: b.ID, Target: dirty(t, len(first))})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("restore: error is %v", err)
		}
		cancel()
		m.Before = nil
		fullCheck(t, m, images{b.ID: {"a": first}})
	}
}

// A disk that fills up at any write gives a clear error and costs nothing that
// was there.
func TestFullDisk(t *testing.T) {
	first, second := image(1, 30), image(2, 30)
	for fail := 1; ; fail++ {
		r, m := memRepo(t)
		b := create(t, r, CreateOptions{}, source(t, "a", first))
		before := m.Names("")
		var n atomic.Int64 // packs are committed beside each other
		m.Before = func(op storetest.Op) error {
			if op.Kind == "write" || op.Kind == "commit" {
				if n.Add(1) >= int64(fail) {
					return fmt.Errorf("disk: %w", syscall.ENOSPC)
				}
			}
			return nil
		}
		_, err := r.Create(t.Context(), []Source{source(t, "a", second)}, CreateOptions{})
		m.Before = nil
		if err == nil {
			if fail < 10 {
				t.Errorf("only %d writes", fail)
			}
			return
		}
		wantErr(t, fmt.Sprint(fail), err, ErrNoSpace, "free space")
		if after := m.Names(""); fmt.Sprint(after) != fmt.Sprint(before) || m.Temps() != 0 {
			t.Errorf("%d: left are %v, %d temporaries", fail, after, m.Temps())
		}
		if fail%5 == 1 {
			fullCheck(t, m, images{b.ID: {"a": first}})
		}
	}
}

func TestPermission(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 5)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	m.Before = func(op storetest.Op) error {
		if op.Kind != "read" && op.Kind != "list" {
			return fmt.Errorf("disk: %w", syscall.EROFS)
		}
		return nil
	}
	_, err := r.Create(t.Context(), []Source{source(t, "a", content)}, CreateOptions{})
	wantErr(t, "create", err, ErrPermission, "writable")
	_, _, err = r.Delete(t.Context(), b.ID)
	wantErr(t, "delete", err, ErrPermission, "")
	// A repository that is mounted read-only can be restored from.
	target := dirty(t, len(content))
	restore(t, r, RestoreOptions{Backup: b.ID, Target: target})
	wantContent(t, "restored", target, content)
	if _, err := r.Verify(t.Context(), VerifyOptions{}); err != nil {
		t.Error(err)
	}
}

func TestJSON(t *testing.T) {
	r, _ := memRepo(t)
	b := create(t, r, CreateOptions{}, source(t, "a", image(1, 3)))
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	v := m["volumes"].([]any)[0].(map[string]any)
	if m["id"] != b.ID || v["name"] != "a" || v["position_id"] != "pos-a" || v["size"] == nil || v["stored_bytes"] == nil {
		t.Errorf("JSON is %s", text)
	}
}

// TestRestoreReady: the target is looked at when it is open, and nothing is
// written to it when it is not as it should be.
func TestRestoreReady(t *testing.T) {
	r, _ := memRepo(t)
	content := image(1, 4)
	create(t, r, CreateOptions{}, source(t, "a", content))
	target := dirty(t, len(content))
	before, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	no := errors.New("it is another disk now")
	o := RestoreOptions{Backup: "latest", Target: target, Ready: func() error { return no }}
	if _, err := r.Restore(t.Context(), o); !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
	if after, err := os.ReadFile(target); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the target was written to: %v", err)
	}
	o.Ready = func() error { return nil }
	restore(t, r, o)
}
