package hostagent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
)

func TestBackup(t *testing.T) {
	w := newWorld(t, 100, "a", "bb")
	w.svc.SnapshotLingers = 3
	b, err := Backup(t.Context(), BackupOptions{
		Service: w.svc, Repo: w.repo, Volumes: []string{"a", "tank/bb"}, Comment: "c", Tags: []string{"t"}, Job: "j", Step: "s",
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Volumes) != 2 || b.Comment != "c" || b.Tags[0] != "t" || b.Job != "j" || b.Step != "s" {
		t.Errorf("%+v", b)
	}
	for i, name := range []string{"a", "bb"} {
		v := w.show(name)
		if v.Snapshot {
			t.Errorf("volume %s has its snapshot still", name)
		}
		if v.Position.DescendsFrom != b.ID || b.Volumes[i].UUID != v.UUID || b.Volumes[i].Generation != 1 || b.Volumes[i].PositionID != v.Position.ID {
			t.Errorf("%+v against %+v", v, b.Volumes[i])
		}
	}
}

// TestBackupOfASwappedVolume: content that came by a swap while the backup ran
// does not descend from it.
func TestBackupOfASwappedVolume(t *testing.T) {
	w := newWorld(t, 100, "a", "bb")
	_, end, err := w.svc.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	defer end(t.Context())
	w.svc.Before = func(method, _ string) error {
		if method == "SetDescendsFrom" {
			w.svc.Before = nil
			_, err := w.svc.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "bb"}}})
			return err
		}
		return nil
	}
	if b := w.backup("a"); w.show("a").Position.DescendsFrom == b.ID {
		t.Error("the swapped content is said to descend from the backup")
	}
}

func TestBackupFailures(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name    string
		volumes []string
		prepare func(*world)
		want    string
	}{
		{"no volume", nil, nil, "no volume is named"},
		{"unknown volume", []string{"x"}, nil, `no volume "x"`},
		{"a volume twice", []string{"a", "tank/a"}, nil, "named twice"},
		{"no snapshot", []string{"a"}, func(w *world) {
			w.svc.Before = func(m, _ string) error { return when(m == "OpenSnapshot", boom) }
		}, "boom"},
		{"no repository any more", []string{"a"}, func(w *world) { must(w.t, os.RemoveAll(w.path)) }, "back up tank/a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 100, "a")
			if c.prepare != nil {
				c.prepare(w)
			}
			b, err := Backup(t.Context(), BackupOptions{Service: w.svc, Repo: w.repo, Volumes: c.volumes})
			if err == nil || b.ID != "" {
				t.Fatalf("got %+v, %v", b, err)
			}
			says(t, err.Error(), c.want)
		})
	}
}

// TestBackupOfASnapshotThatRanFull: the error names volume, room and remedy when
// the daemon says so of a snapshot that can't be read, and only then.
func TestBackupOfASnapshotThatRanFull(t *testing.T) {
	for _, c := range []struct {
		name             string
		unreadable, full []string
		cow              int64
		want             []string // nil: it succeeds
		not              string
	}{
		{"full", []string{"a"}, []string{"a"}, 3 << 20, []string{
			"back up tank/a, tank/bb: the snapshot of volume tank/a ran full: there was room for 3 MiB", "larger --cow-size", "kernel log",
		}, "tank/bb ran full"},
		{"both", []string{"a", "bb"}, []string{"a", "bb"}, 64 << 10, []string{
			"of volume tank/a ran full: there was room for 64 KiB", "of volume tank/bb ran full: there was room for 64 KiB",
		}, "  \n"},
		{"the daemon's choice of room", []string{"a"}, []string{"a"}, 0, []string{"room for 4 MiB", "free space in pool tank", "--cow-size"}, "larger"},
		{"not full", []string{"a"}, nil, 1 << 20, []string{"source can't be read"}, "ran full"},
		{"full when it had been read", nil, []string{"a"}, 1 << 20, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 100, "a", "bb")
			w.svc.Unreadable, w.svc.Full = c.unreadable, c.full
			b, err := Backup(t.Context(), BackupOptions{Service: w.svc, Repo: w.repo, Volumes: []string{"a", "bb"}, COWSize: c.cow})
			if c.want == nil {
				if err != nil || b.ID == "" {
					t.Errorf("got %+v, %v", b, err)
				}
				return
			}
			if err == nil || b.ID != "" {
				t.Fatalf("got %+v, %v", b, err)
			}
			says(t, err.Error(), c.want...)
			if strings.Contains(err.Error(), c.not) {
				t.Errorf("%q is said in:\n%v", c.not, err)
			}
			if full := api.CodeOf(err) == api.CodeNoSpace; full != (c.full != nil) {
				t.Errorf("code %s", api.CodeOf(err))
			}
			if list, err := w.repo.List(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("%d backups are listed, %v", len(list), err)
			}
		})
	}
}

func TestBackupWaitsForAnother(t *testing.T) {
	w := newWorld(t, 100, "a")
	tries := 0
	w.svc.Before = func(m, _ string) error {
		if m == "OpenSnapshot" {
			tries++
			return when(tries < 3, &api.Error{Code: api.CodeBusy, Message: "busy"})
		}
		return nil
	}
	if w.backup("a"); tries != 3 {
		t.Errorf("%d tries", tries)
	}
}

func TestBackupCancelled(t *testing.T) {
	w := newWorld(t, 100, "a")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := Backup(ctx, BackupOptions{Service: w.svc, Repo: w.repo, Volumes: []string{"a"}, Progress: func(backup.Progress) { cancel() }})
	// It may have been done before it noticed; either is right, half is not.
	list, lerr := w.repo.List(t.Context())
	if lerr != nil || (err == nil) != (len(list) == 1) {
		t.Errorf("%v, but %d backups (%v)", err, len(list), lerr)
	}
}

func when(is bool, err error) error {
	if is {
		return err
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRestore(t *testing.T) {
	w := newWorld(t, 100, "a", "a-spare", "bb")
	b := w.backup("a")
	for _, o := range []RestoreOptions{
		{Volume: "a-spare"},
		{Volume: "bb", Overwrite: true, From: "tank/a"},
		{Volume: "a", Overwrite: true, VerifyAfter: true},
	} {
		w.write(o.Volume, 77)
		o.Service, o.Repo, o.Backup = w.svc, w.repo, "latest"
		res, err := Restore(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		w.holds(o.Volume, 1)
		if res.Backup != b.ID || w.show(o.Volume).Position.DescendsFrom != b.ID {
			t.Errorf("%+v", res)
		}
	}
}

func TestRestoreOntoDetached(t *testing.T) {
	w := newWorld(t, 100, "a")
	w.backup("a")
	_, err := w.svc.CreateVolume(t.Context(), api.CreateVolumeRequest{Name: "a-spare", Size: size, Detached: true})
	must(t, err)
	_, err = Restore(t.Context(), RestoreOptions{Service: w.svc, Repo: w.repo, Backup: "latest", Volume: "a-spare"})
	must(t, err)
	if w.show("a-spare").Device != "" {
		t.Error("it stays attached")
	}
	_, err = w.svc.Attach(t.Context(), "a-spare", api.AttachRequest{})
	must(t, err)
	w.holds("a-spare", 1)
}

// Damage does not stop a restore unless that is asked for; what a volume holds then
// does not count as the backup. A recovery does not swap such a volume in.
func TestRestoreAroundDamage(t *testing.T) {
	w := newWorld(t, 100, "a", "a-spare")
	b := w.backup("a")
	packs, err := filepath.Glob(filepath.Join(w.path, "packs/*/*"))
	must(t, err)
	for _, path := range packs {
		st, err := os.Stat(path)
		must(t, err)
		if st.Size() > 1<<20 { // not the table
			must(t, os.Truncate(path, st.Size()/2))
		}
	}
	w.write("a-spare", 77)
	o := RestoreOptions{Service: w.svc, Repo: w.repo, Backup: "latest", Volume: "a-spare", VerifyAfter: true}
	res, err := Restore(t.Context(), o)
	var damaged *backup.DamagedError
	if !errors.As(err, &damaged) || damaged.Stopped || res.Incomplete || res.DataBytes == 0 || res.MissingBytes == 0 {
		t.Errorf("%v, %+v", err, res)
	}
	if w.show("a-spare").Position.DescendsFrom == b.ID {
		t.Error("the volume counts as the backup")
	}
	o.StopAtDamage = true
	_, err = Restore(t.Context(), o)
	if !errors.As(err, &damaged) || !damaged.Stopped {
		t.Error(err)
	}
	_, err = Recover(t.Context(), RecoverOptions{Service: w.svc, Repo: w.repo, Volumes: []string{"a"}, From: "latest"})
	if !errors.As(err, &damaged) || !damaged.Stopped {
		t.Error(err)
	}
	w.holds("a", 1)
}

// An older copy is brought up to date by what differs.
func TestRestoreDelta(t *testing.T) {
	w := newWorld(t, 100, "a", "a-spare")
	b := w.backup("a")
	w.write("a-spare", 1)
	res, err := Restore(t.Context(), RestoreOptions{Service: w.svc, Repo: w.repo, Backup: "latest", Volume: "a-spare", Delta: true})
	must(t, err)
	w.holds("a-spare", 1)
	if res.UnchangedBytes != size || w.show("a-spare").Position.DescendsFrom != b.ID {
		t.Errorf("%+v", res)
	}
}

func TestRestoreRefusals(t *testing.T) {
	for _, c := range []struct {
		name    string
		o       RestoreOptions
		prepare func(*world)
		want    []string
	}{
		{"unknown volume", RestoreOptions{Volume: "x", Backup: "latest"}, nil, []string{`no volume "x"`}},
		{"unknown backup", RestoreOptions{Volume: "bb", Backup: "20200101"}, nil, []string{"no such backup"}},
		{"not allowed to overwrite", RestoreOptions{Volume: "bb", Backup: "latest"}, nil, []string{"would be lost", "a-spare"}},
		{"not in the backup", RestoreOptions{Volume: "bb", Backup: "latest", From: "bb", Overwrite: true}, nil, []string{"has no volume bb", "tank/a"}},
		{"held", RestoreOptions{Volume: "bb", Backup: "latest", Overwrite: true}, func(w *world) {
			w.svc.Held["bb"] = []api.Holder{{Kind: "mount", Device: "/dev/x", Detail: "mounted on /y"}}
		}, []string{"in use", "mounted on /y"}},
		{"quarantine", RestoreOptions{Volume: "bb", Backup: "latest", Overwrite: true}, func(w *world) {
			w.svc.Change("bb", func(v *api.Volume) { v.Position.Quarantine = &api.Quarantine{Reason: "bad day"} })
		}, []string{"in quarantine: bad day"}},
		{"read-only", RestoreOptions{Volume: "bb", Backup: "latest", Overwrite: true}, func(w *world) {
			w.svc.Change("bb", func(v *api.Volume) { v.ReadOnly = true })
		}, []string{"read-only"}},
		{"busy", RestoreOptions{Volume: "bb", Backup: "latest", Overwrite: true}, func(w *world) {
			w.svc.Change("bb", func(v *api.Volume) { v.State = api.StateBusy })
		}, []string{"busy"}},
		{"failed", RestoreOptions{Volume: "bb", Backup: "latest", Overwrite: true}, func(w *world) {
			w.svc.Change("bb", func(v *api.Volume) { v.State, v.Error = api.StateFailed, "no memory" })
		}, []string{"no memory"}},
		{"degraded", RestoreOptions{Volume: "bb", Backup: "latest", Overwrite: true}, func(w *world) {
			w.svc.Change("bb", func(v *api.Volume) {
				v.State, v.Degraded, v.Error = api.StateDegraded, true, "member 1 (/dev/x) is missing"
			})
		}, []string{"degraded", "member 1 (/dev/x) is missing", "pool rejoin tank"}},
		{"snapshot", RestoreOptions{Volume: "bb", Backup: "latest", Overwrite: true}, func(w *world) {
			w.svc.Change("bb", func(v *api.Volume) { v.Snapshot = true })
		}, []string{"being backed up"}},
		{"size", RestoreOptions{Volume: "bb", Backup: "latest", Overwrite: true}, func(w *world) {
			w.svc.Change("bb", func(v *api.Volume) { v.Size = 2 * size })
		}, []string{"bytes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 100, "a", "bb")
			w.backup("a")
			if c.prepare != nil {
				c.prepare(w)
			}
			c.o.Service, c.o.Repo = w.svc, w.repo
			_, err := Restore(t.Context(), c.o)
			if err == nil {
				t.Fatal("it was done")
			}
			says(t, err.Error(), c.want...)
			w.holds("bb", 2)
		})
	}
}

func TestImageFor(t *testing.T) {
	image := func(pool, name, uuid string) backup.BackupVolume {
		return backup.BackupVolume{VolumeRef: backup.VolumeRef{Pool: pool, Name: name, UUID: uuid}}
	}
	db := api.Volume{Pool: "tank", Name: "db", UUID: "u1"}
	for _, c := range []struct {
		name   string
		images []backup.BackupVolume
		from   string
		want   string // uuid
	}{
		{"by uuid before name", []backup.BackupVolume{image("tank", "db", "u9"), image("tank", "old", "u1")}, "", "u1"},
		{"by name when it was made anew", []backup.BackupVolume{image("tank", "db", "u9"), image("tank", "x", "u8")}, "", "u9"},
		{"the only one", []backup.BackupVolume{image("p", "x", "u8")}, "", "u8"},
		{"named", []backup.BackupVolume{image("tank", "db", "u1"), image("p", "x", "u8")}, "p/x", "u8"},
		{"ambiguous", []backup.BackupVolume{image("p", "x", "u7"), image("q", "x", "u8")}, "x", ""},
		{"none", []backup.BackupVolume{image("p", "x", "u7"), image("q", "y", "u8")}, "", ""},
	} {
		got, err := imageFor(backup.Backup{ID: "b", Volumes: c.images}, db, c.from)
		if (err == nil) != (c.want != "") || got.UUID != c.want {
			t.Errorf("%s: %q %v", c.name, got.UUID, err)
		}
	}
}
