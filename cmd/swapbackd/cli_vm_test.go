//go:build vm

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

func words(list ...string) []string { return list }

// TestCommandLine walks through a life with backups, a bad day and a recovery,
// as a person at a shell does.
func TestCommandLine(t *testing.T) {
	d := startDaemon(t)
	d.CLI(0, words("tank"), append([]string{"pool", "create", "tank"}, d.Disks...)...)
	d.CLI(0, words("/dev/ublkb"), "volume", "create", "db", "--size", "64M")
	d.CLI(0, nil, "volume", "create", "db-spare", "--size", "64M", "--detached")
	db := d.Show("db")
	rig.Tool(t, "mkfs.ext4", "-q", "-F", db.Device)
	dir := rig.Mount(t, db.Device, "ext4")
	rig.WriteFile(t, filepath.Join(dir, "precious"), []byte("value"))

	d.CLI(3, words("swapback repo init"), "backup", "create", "db") // no repository yet
	d.CLI(0, nil, "repo", "init")
	out := d.CLI(0, nil, "backup", "create", "db", "--comment", "before", "--json")
	var last struct {
		Type string `json:"type"`
		ID   string `json:"id"`
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Type != "result" || last.ID == "" {
		t.Fatalf("the stream does not end with a result that has an id: %v\n%s", err, out)
	}
	d.CLI(0, words(last.ID, "before"), "backup", "list")
	d.CLI(0, words("all good"), "backup", "verify", "--all")

	rig.WriteFile(t, filepath.Join(dir, "precious"), []byte("ruined"))
	d.CLI(4, words(dir, db.Device), "recover", "db") // mounted
	rig.Unmount(t, dir)
	d.CLI(0, words(last.ID), "recover", "db", "--reason", "bad day")
	dir = rig.Mount(t, db.Device, "ext4")
	if got, err := os.ReadFile(filepath.Join(dir, "precious")); err != nil || string(got) != "value" {
		t.Errorf("after the recovery the file holds %q, %v", got, err)
	}
	rig.Unmount(t, dir)

	d.CLI(0, words("quarantine", "bad day"), "volume", "list")
	d.CLI(5, words("quarantine"), "swap", "db", "db-spare")
	d.CLI(5, words("--force"), "volume", "delete", "db-spare", "--yes")
	expectNoWrites(t, d.Show("db-spare").Device)
	d.CLI(0, nil, "volume", "release", "db-spare")
	d.CLI(5, words("99"), "swap", "db", "db-spare", "--expect", "99,0")
	d.CLI(0, nil, "swap", "db", "db-spare") // the failed data back under its name
	dir = rig.Mount(t, db.Device, "ext4")
	if got, err := os.ReadFile(filepath.Join(dir, "precious")); err != nil || string(got) != "ruined" {
		t.Errorf("after the undo the file holds %q, %v", got, err)
	}
	rig.Unmount(t, dir)

	d.CLI(0, nil, "volume", "grow", "db", "--size", "96M")
	if got := d.Show("db").Size; got != 96*MiB {
		t.Errorf("after the grow the volume has %d bytes", got)
	}
	rig.Tool(t, "e2fsck", "-f", "-p", db.Device)
	rig.Tool(t, "resize2fs", db.Device)
	d.CLI(0, nil, "volume", "detach", "db")
	if _, err := os.Stat(db.Device); err == nil {
		t.Errorf("%s is there after the detach", db.Device)
	}
	d.CLI(0, nil, "volume", "attach", "db")
	rig.Tool(t, "e2fsck", "-f", "-n", d.Show("db").Device)
	d.CLI(0, nil, "pool", "check", "tank")
	d.CLI(2, words("--yes"), "backup", "delete", last.ID)
	d.CLI(0, nil, "backup", "delete", last.ID, "--yes")
	d.CLI(0, nil, "doctor")
}

// TestBadInput: each gets a clear error with the remedy, exit code ≠ 0, and
// nothing is changed.
func TestBadInput(t *testing.T) {
	d := startDaemon(t)
	d.CLI(3, words("no-such"), "pool", "show", "no-such")
	t.Run("disks that carry something", func(t *testing.T) {
		disk := d.Disks[0]
		for what, put := range map[string]func(){
			"ext4": func() { rig.Tool(t, "mkfs.ext4", "-q", "-F", disk, "64M") },
			"xfs":  func() { rig.Tool(t, "mkfs.xfs", "-q", "-f", disk) },
			"MBR": func() {
				mbr := make([]byte, 512)
				copy(mbr[446:], []byte{0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0})
				mbr[510], mbr[511] = 0x55, 0xaa
				writeCached(t, disk, 0, mbr)
			},
			"LVM": func() {
				label := make([]byte, 512)
				copy(label, "LABELONE")
				label[8] = 1
				copy(label[24:], "LVM2 001")
				writeCached(t, disk, 512, label)
			},
		} {
			wipe(t, disk)
			put()
			before := rig.ReadDevice(t, disk, 0, 1<<20)
			d.CLI(4, words(disk, "--force"), "pool", "create", "tank", d.Disks[0], d.Disks[1])
			if !bytes.Equal(rig.ReadDevice(t, disk, 0, 1<<20), before) {
				t.Errorf("the refused %s disk was changed", what)
			}
		}
		for _, disk := range d.Disks {
			wipe(t, disk)
		}
	})
	d.CLI(2, words("same disk"), "pool", "create", "tank", d.Disks[0], d.Disks[0])
	d.CLI(3, words("/dev/nix"), "pool", "create", "tank", "/dev/nix")
	d.CLI(2, words("/dev/null"), "pool", "create", "tank", "/dev/null")
	d.CLI(2, words("power of two"), "pool", "create", "tank", d.Disks[0], "--extent-size", "3M")
	d.CLI(0, nil, append([]string{"pool", "create", "tank"}, d.Disks...)...)
	d.CLI(4, words(d.Disks[0]), "pool", "create", "tank2", d.Disks[0])

	d.CLI(0, nil, "volume", "create", "db", "--size", "64M")
	d.CLI(1, words("free"), "volume", "create", "huge", "--size", "1T")
	d.CLI(2, words("size"), "volume", "create", "tiny", "--size", "0")
	d.CLI(2, words("name"), "volume", "create", "../etc", "--size", "64M")
	d.CLI(2, words("stripes"), "volume", "create", "wide", "--size", "64M", "--stripes", "99")
	d.CLI(2, words("larger"), "volume", "grow", "db", "--size", "32M")
	d.CLI(3, words("dbb", "db"), "volume", "show", "dbb")
	if list, err := d.Client.Volumes(t.Context(), ""); err != nil || len(list) != 1 {
		t.Errorf("after the refusals the pool has the volumes %v, %v", list, err)
	}

	t.Run("repositories", func(t *testing.T) {
		notRepo := t.TempDir()
		d.CLI(3, words(notRepo, "repo init"), "backup", "create", "db", "--repo", notRepo)
		rig.WriteFile(t, filepath.Join(notRepo, "file"), []byte("x"))
		d.CLI(1, words(notRepo), "repo", "init", notRepo)
		d.CLI(0, nil, "repo", "init")
		data := rig.RandomBytes(50, int(8*MiB))
		rig.WriteDevice(t, d.Show("db").Device, 0, data)
		d.CLI(0, nil, "backup", "create", "db")
		d.CLI(3, words("nix"), "backup", "show", "nix")
		truncateLargest(t, filepath.Join(d.Dir, "repo"))
		d.CLI(1, nil, "backup", "verify", "--all")
		d.CLI(0, nil, "volume", "create", "other", "--size", "64M", "--detached")
		d.CLI(6, words("db"), "backup", "restore", "latest", "--onto", "other", "--yes")
		d.CLI(1, nil, "recover", "db")
		if !bytes.Equal(rig.ReadDevice(t, d.Show("db").Device, 0, len(data)), data) {
			t.Error("the recovery that could not be done has changed the volume")
		}
		// The volume still has what is damaged, and may be in use.
		d.CLI(1, words("repo heal"), "repo", "check")
		d.CLI(0, words("put back", d.Show("db").Device), "repo", "heal")
		d.CLI(0, words("all good"), "backup", "verify", "--all")
		d.CLI(0, nil, "repo", "prune")
		d.CLI(0, words("all good"), "repo", "check")
		d.CLI(0, nil, "backup", "restore", "latest", "--onto", "other", "--yes")
	})
}

// TestBadMembers opens a pool whose second disk is missing, wiped or damaged:
// degraded or mended, and whole again when the disk is.
func TestBadMembers(t *testing.T) {
	d := startDaemon(t)
	d.Pool()
	v := d.Volume("db", 64*MiB)
	data := rig.RandomBytes(60, int(v.Size))
	rig.WriteDevice(t, v.Device, 0, data)
	if _, err := d.Client.Detach(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	whole := func() {
		t.Helper()
		d.Run()
		if _, err := d.Client.Attach(t.Context(), "db", api.AttachRequest{}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(rig.ReadDevice(t, d.Show("db").Device, 0, len(data)), data) {
			t.Fatal("the volume has other data than before")
		}
		if _, err := d.Client.Detach(t.Context(), "db"); err != nil {
			t.Fatal(err)
		}
		d.Signal(syscall.SIGTERM)
	}
	degraded := func() {
		t.Helper()
		d.Run()
		p, err := d.Client.Pool(t.Context(), "tank")
		if err != nil || !p.Degraded || p.Members[1].State == "ok" {
			t.Fatalf("the pool without its second disk: %+v, %v", p, err)
		}
		d.Signal(syscall.SIGTERM)
	}
	d.Signal(syscall.SIGTERM)

	disks := d.Disks
	d.Disks = disks[:1]
	degraded()
	d.Disks = disks
	whole()

	head := rig.ReadDevice(t, disks[1], 0, int(MiB))
	rig.WriteDevice(t, disks[1], 0, make([]byte, MiB))
	degraded()
	rig.WriteDevice(t, disks[1], 0, head)
	whole()

	// The label is whole, the pool's metadata on one member is not: the other
	// member's is the same, and the damaged one is written anew.
	flipped := bytes.Clone(head)
	for i := 64 << 10; i < len(flipped); i++ {
		flipped[i] ^= 0xff
	}
	rig.WriteDevice(t, disks[1], 0, flipped)
	d.Run()
	info, err := d.Client.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Pools) != 1 {
		t.Errorf("the pool was not opened from the other member's metadata: %+v", info.Failed)
	}
	d.Signal(syscall.SIGTERM)
	whole()
	d.Run()
}

// wipe zeroes the ends of a disk, where signatures are.
func wipe(t *testing.T, disk string) {
	t.Helper()
	zero := make([]byte, MiB)
	rig.WriteDevice(t, disk, 0, zero)
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	rig.WriteDevice(t, disk, size-MiB, zero)
}

// writeCached writes less than a block.
func writeCached(t *testing.T, path string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// truncateLargest cuts the largest file below a folder in half.
func truncateLargest(t *testing.T, dir string) {
	t.Helper()
	largest, size := "", int64(0)
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if err == nil && fi.Size() > size {
			largest, size = path, fi.Size()
		}
		return err
	})
	if err != nil || size == 0 {
		t.Fatalf("no file to truncate in %s: %v", dir, err)
	}
	if err := os.Chmod(largest, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(largest, size/2); err != nil {
		t.Fatal(err)
	}
}
