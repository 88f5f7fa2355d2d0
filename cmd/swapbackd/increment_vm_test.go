//go:build vm

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/soak/rig"
)

// increments backs volumes up and compares each backup with its volume, which
// nobody writes to meanwhile.
type increments struct {
	*process
	t    *testing.T
	repo *backup.Repository
}

func newIncrements(t *testing.T) *increments {
	t.Helper()
	d := startDaemon(t)
	repo, err := backup.Init(t.Context(), filepath.Join(t.TempDir(), "repo"), backup.InitOptions{ChunkSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := repo.Close(); err != nil {
			t.Error(err)
		}
	})
	return &increments{process: d, t: t, repo: repo}
}

// backUp makes a backup of one volume, which has to read so many bytes. base is ""
// for a full one, which has to say why.
func (i *increments) backUp(when, volume, base, why string, read int64) backup.Backup {
	i.t.Helper()
	b, err := hostagent.Backup(i.t.Context(), hostagent.BackupOptions{Service: i.Client, Repo: i.repo, Volumes: []string{volume}})
	if err != nil {
		i.t.Fatalf("%s: %v", when, err)
	}
	v := b.Volumes[0]
	if v.Base != base || v.ReadBytes != read || !strings.Contains(v.FullBecause, why) {
		i.t.Errorf("%s: backup from %q (%s) has read %d bytes, want %q (%s) and %d", when, v.Base, v.FullBecause, v.ReadBytes, base, why, read)
	}
	path := filepath.Join(i.t.TempDir(), "restored")
	if _, err := i.repo.Restore(i.t.Context(), backup.RestoreOptions{Backup: b.ID, Target: path, CreateTarget: true}); err != nil {
		i.t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		i.t.Fatal(err)
	}
	if now := i.Show(volume); !bytes.Equal(got, rig.ReadDevice(i.t, now.Device, 0, int(now.Size))) {
		i.t.Errorf("%s: backup %s of %s is not what the volume holds", when, b.ID, volume)
	} else if now.Changed == nil || now.Changed.Base != b.ID || now.Changed.Bytes != 0 || !now.Changed.Durable {
		i.t.Errorf("%s: after the backup %s has %+v", when, volume, now.Changed)
	}
	return b
}

func (i *increments) write(volume string, seed uint64, off, n int64) {
	i.t.Helper()
	rig.WriteDevice(i.t, i.Show(volume).Device, off, rig.RandomBytes(seed, int(n)))
}

// reboot has the daemon find what it would after a power cut: no fine map.
func (i *increments) reboot() {
	i.t.Helper()
	i.Kill()
	if err := os.RemoveAll(filepath.Join(i.RunDir(), "changes")); err != nil {
		i.t.Fatal(err)
	}
	i.Run()
}

// TestIncrementsAreRight: what changed since the last backup is read and nothing
// else, after a kill, a swap, a grow and a loss of the fine map, in blocks of 64
// KiB or, after the last, in extents.
func TestIncrementsAreRight(t *testing.T) {
	const k64 = 64 << 10
	i := newIncrements(t)
	i.PoolWith(api.CreatePoolRequest{Name: "tank", ExtentSize: MiB})
	i.Volume("a", 8*MiB)
	i.VolumeWith(api.CreateVolumeRequest{Name: "b", Size: 8 * MiB, Stripes: 2})
	for n, name := range []string{"a", "b"} {
		i.write(name, uint64(n), 0, 8*MiB)
	}
	a := i.backUp("first", "a", "", "no backup of this content", 8*MiB)
	b := i.backUp("first", "b", "", "no backup of this content", 8*MiB)
	a = i.backUp("nothing changed", "a", a.ID, "", 0)
	i.write("a", 10, 3*k64+4096, 4096)
	i.write("a", 11, 5*MiB, 2*k64)
	i.Kill()
	i.Run()
	i.write("a", 12, 6*MiB+8192, 4096)
	a = i.backUp("after a kill", "a", a.ID, "", 4*k64)

	i.write("a", 13, 0, 4096)
	i.write("b", 14, 4*MiB, 4096)
	i.Swap("a", "b")
	i.write("a", 15, 2*MiB, 4096)
	i.write("b", 16, 7*MiB, 4096)
	// What b shows is a's, and the other way round.
	a, b = i.backUp("after a swap", "b", a.ID, "", 2*k64), i.backUp("after a swap", "a", b.ID, "", 2*k64)
	i.Kill()
	i.Run()
	i.write("b", 17, MiB, 4096)
	a = i.backUp("after a swap and a kill", "b", a.ID, "", k64)

	i.write("b", 18, 3*MiB, 4096)
	i.write("a", 19, MiB, 4096) // of two stripes: two extents of each
	i.reboot()
	a = i.backUp("after the fine map is gone", "b", a.ID, "", MiB)
	b = i.backUp("after the fine map is gone", "a", b.ID, "", 2*MiB)

	if _, err := i.Client.GrowVolume(t.Context(), "b", 12*MiB); err != nil {
		t.Fatal(err)
	}
	i.write("b", 20, 11*MiB, 4096)
	i.write("b", 21, 0, 4096)
	a = i.backUp("after a grow", "b", a.ID, "", 4*MiB+k64)
	i.write("b", 22, 10*MiB, 4096)
	i.reboot()
	i.backUp("after a grow and without the fine map", "b", a.ID, "", MiB)
	i.Check()
}

// TestForeignMapIsNotTrusted: what somebody else has written since is in no map of
// ours but that of the extents.
func TestForeignMapIsNotTrusted(t *testing.T) {
	i := newIncrements(t)
	i.PoolWith(api.CreatePoolRequest{Name: "tank", ExtentSize: MiB})
	i.Volume("a", 4*MiB)
	a := i.backUp("first", "a", "", "no backup of this content", 4*MiB)
	i.write("a", 1, 0, 4096)
	i.Kill()
	// Another daemon with a run directory of its own comes in between, as on
	// another machine, and the first one's files are still there.
	kept := i.RunDir() + ".kept"
	if err := os.Rename(i.RunDir(), kept); err != nil {
		t.Fatal(err)
	}
	i.Run()
	i.write("a", 2, 3*64<<10, 4096)
	i.Kill()
	if err := os.RemoveAll(i.RunDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(kept, i.RunDir()); err != nil {
		t.Fatal(err)
	}
	i.Run()
	i.backUp("after another daemon", "a", a.ID, "", MiB)
}
