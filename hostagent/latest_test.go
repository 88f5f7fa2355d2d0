package hostagent

import (
	"errors"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
)

// TestLatestIsOfTheVolumes: the newest backup of the repository is another
// volume's, and "latest" does not mean that one.
func TestLatestIsOfTheVolumes(t *testing.T) {
	for _, from := range []string{"", "latest"} {
		w := newWorld(t, 100, "db", "log", "other")
		b := w.backup("db", "log")
		w.backup("log")
		w.backup("other")
		w.write("db", 66)
		w.write("log", 67)
		res, err := w.recover(func(o *RecoverOptions) { o.From = from }, "db", "log")
		if err != nil || res.Backup != b.ID {
			t.Fatalf("--from %q: backup %s, want %s: %v", from, res.Backup, b.ID, err)
		}
		w.holds("db", 2)
		w.holds("log", 3)
		w.write("db", 68)
		if res, err := w.recover(func(o *RecoverOptions) { o.From = from }, "db"); err != nil || res.Backup != b.ID {
			t.Fatalf("--from %q: backup %s, want %s: %v", from, res.Backup, b.ID, err)
		}
		w.holds("db", 2)
	}
}

// TestRecoverFromAnothersBackup: a backup that holds one volume only is not taken
// for the image of any other.
func TestRecoverFromAnothersBackup(t *testing.T) {
	w := newWorld(t, 100, "db", "log")
	b := w.backup("log")
	w.write("db", 66)
	_, err := w.recover(func(o *RecoverOptions) { o.From = b.ID }, "db")
	var re *RecoverError
	if !errors.As(err, &re) || re.Phase != PhaseChoose || api.CodeOf(err) != api.CodeNotFound {
		t.Fatalf("got %v", err)
	}
	says(t, err.Error(), "backup "+b.ID+" has no volume tank/db", "it holds tank/log", "backup list --volume tank/db", "backup restore", "untouched")
	w.holds("db", 66)

	// A restore names its target and may.
	if _, err := Restore(t.Context(), RestoreOptions{Service: w.svc, Repo: w.repo, Backup: b.ID, Volume: "db", Overwrite: true}); err != nil {
		t.Fatal(err)
	}
	w.holds("db", 3)
}

// TestRecoverInANewPool: the volume was made anew under its old name, and a
// backup of the old one that is named is taken.
func TestRecoverInANewPool(t *testing.T) {
	w := newWorld(t, 100, "db")
	b := w.backup("db")
	w.svc.Change("db", func(v *api.Volume) { v.UUID = "90000000-0000-4000-8000-000000000001" })
	w.write("db", 66)
	_, err := w.recover(func(o *RecoverOptions) { o.From = "latest" }, "db")
	if !errors.Is(err, backup.ErrNotFound) {
		t.Fatalf("latest: %v", err)
	}
	says(t, err.Error(), "tank/db", "name one with --from")
	if _, err := w.recover(func(o *RecoverOptions) { o.From = b.ID }, "db"); err != nil {
		t.Fatal(err)
	}
	w.holds("db", 2)
}

// TestDamagedBackupIsNotPassedOver: which volumes it is of can't be known, and an
// older one in its place would be the wrong data.
func TestDamagedBackupIsNotPassedOver(t *testing.T) {
	w := newWorld(t, 100, "db", "log")
	w.backup("db", "log")
	w.damageManifest(w.backup("db", "log"))
	_, err := w.recover(nil, "db", "log")
	if !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("got %v", err)
	}
}
