package hostagent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
)

// scribble changes a byte of a volume.
func (w *world) scribble(name string, off int64) {
	w.t.Helper()
	b := w.shown(name)
	b[off]++
	if err := os.WriteFile(w.show(name).Device, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) shown(name string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(w.show(name).Device)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// restored is the content of a backup's only volume.
func (w *world) restored(b backup.Backup) []byte {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "restored")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.repo.Restore(w.t.Context(), backup.RestoreOptions{Backup: b.ID, Target: path}); err != nil {
		w.t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return content
}

// TestBackupsAreIncremental: the first is full and says why, the next reads what
// has changed, and a swap takes that along: the next of both volumes are right.
func TestBackupsAreIncremental(t *testing.T) {
	w := newWorld(t, 100, "a", "bb")
	if first := w.backup("a", "bb").Volumes[0]; first.Base != "" || !strings.Contains(first.FullBecause, "nothing was confirmed") {
		t.Errorf("the first backup: %+v", first)
	}
	base := w.backup("a", "bb")
	for _, v := range base.Volumes {
		if v.Base == "" || v.ReadBytes != 0 {
			t.Errorf("nothing has changed: %+v", v)
		}
	}
	w.scribble("a", 5000)
	if _, err := w.svc.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "bb"}}}); err != nil {
		t.Fatal(err)
	}
	w.scribble("a", 70000) // what was bb's
	for _, name := range []string{"a", "bb"} {
		b := w.backup(name)
		v := b.Volumes[0]
		if v.Base != base.ID || v.ReadBytes == 0 || v.ReadBytes > v.ChunkSize {
			t.Errorf("volume %s after the swap: %+v", name, v)
		}
		if !bytes.Equal(w.restored(b), w.shown(name)) {
			t.Errorf("backup of %s after the swap holds something else", name)
		}
	}
}

// TestBackupThatIsNotRecorded: the next one counts from the last that was.
func TestBackupThatIsNotRecorded(t *testing.T) {
	w := newWorld(t, 100, "a")
	base := w.backup("a")
	w.scribble("a", 5000)
	w.svc.Before = func(m, _ string) error {
		if m == "SetDescendsFrom" {
			return &api.Error{Code: api.CodeInternal, Message: "the daemon is gone"}
		}
		return nil
	}
	w.backup("a")
	w.svc.Before = nil
	w.scribble("a", 70000)
	b := w.backup("a")
	if b.Volumes[0].Base != base.ID || !bytes.Equal(w.restored(b), w.shown("a")) {
		t.Errorf("%+v", b.Volumes[0])
	}
}

// TestChangesThatMakeAFullBackup: what can't be used is a reason, not an error.
func TestChangesThatMakeAFullBackup(t *testing.T) {
	v := api.SnapshotVolume{Volume: api.Volume{Size: 1 << 20}}
	if c := changesOf(v); c != nil {
		t.Errorf("of a daemon without maps: %+v", c)
	}
	v.Changes = api.Changes{Cut: "c", Why: "because"}
	if c := changesOf(v); c.Base != "" || c.Why != "because" {
		t.Errorf("without a base: %+v", c)
	}
	v.Changes = api.Changes{Cut: "c", Base: "b", BlockSize: 4096, Bitmap: []byte("no map")}
	if c := changesOf(v); c.Base != "" || !strings.Contains(c.Why, "can't be used") || c.Ranges != nil {
		t.Errorf("with a map that is none: %+v", c)
	}
	good, err := api.NewChanges(1<<20, 4096, []uint64{6, 0, 0, 1 << 63})
	if err != nil {
		t.Fatal(err)
	}
	v.Changes = good
	v.Changes.Cut, v.Changes.Base = "c", "b"
	want := []backup.Range{{Offset: 4096, Length: 8192}, {Offset: 1<<20 - 4096, Length: 4096}}
	if c := changesOf(v); c.Base != "b" || len(c.Ranges) != 2 || c.Ranges[0] != want[0] || c.Ranges[1] != want[1] {
		t.Errorf("%+v", c)
	}
}

// forgetful is a daemon whose change maps lack everything.
type forgetful struct{ api.Service }

func (f forgetful) OpenSnapshot(ctx context.Context, r api.SnapshotRequest) (api.Snapshot, func(context.Context) error, error) {
	snap, end, err := f.Service.OpenSnapshot(ctx, r)
	for i := range snap.Volumes {
		c := &snap.Volumes[i].Changes
		empty, cerr := api.NewChanges(snap.Volumes[i].Volume.Size, 1<<20, make([]uint64, (snap.Volumes[i].Volume.Size>>20+63)/64))
		if cerr != nil {
			return snap, end, cerr
		}
		c.BlockSize, c.Bitmap = empty.BlockSize, empty.Bitmap
	}
	return snap, end, err
}

// TestBackupVerifiesTheMap: what the map lacks is found when it is asked for. The
// backup is there, is right, and is what the next one counts from.
func TestBackupVerifiesTheMap(t *testing.T) {
	w := newWorld(t, 100, "a")
	w.backup("a")
	w.scribble("a", 5000)
	o := BackupOptions{Service: forgetful{w.svc}, Repo: w.repo, Volumes: []string{"a"}, VerifyUnchanged: true}
	b, err := Backup(t.Context(), o)
	var missed *backup.MissedError
	if !errors.As(err, &missed) || missed.Backup != b.ID || len(missed.Volumes) != 1 || missed.Volumes[0].Bytes == 0 {
		t.Fatalf("%+v, %v", b, err)
	}
	if !bytes.Equal(w.restored(b), w.shown("a")) {
		t.Error("the backup lacks what the map lacked")
	}
	if w.show("a").Position.DescendsFrom != b.ID {
		t.Error("the backup is not recorded")
	}
	if next := w.backup("a").Volumes[0]; next.Base != b.ID || next.ReadBytes != 0 {
		t.Errorf("the next one: %+v", next)
	}
	o.VerifyUnchanged, o.Full = false, true
	if b, err = Backup(t.Context(), o); err != nil || b.Volumes[0].Base != "" || b.Volumes[0].FullBecause != "it was asked for" {
		t.Errorf("a full one: %+v, %v", b, err)
	}
}
