//go:build vm

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A device that is mounted is refused by name, and taken when that is said or when it
// is no longer.
func TestBackupOfDevice(t *testing.T) {
	disks := strings.Fields(os.Getenv("SWAPBACK_TEST_DISKS"))
	if len(disks) == 0 {
		t.Fatal("no disks")
	}
	disk := disks[0]
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", disk, "64M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c, _ := withRepo(t)
	mount := filepath.Join(t.TempDir(), "mounted")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(disk, mount, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) }) // it is unmounted below
	create := []string{"backup", "create", "--source", "old=" + disk, "--limit", "2GiB"}
	_, errOut, code := c.run(create...)
	if code != exitInUse || !strings.Contains(errOut, mount) || !strings.Contains(errOut, "--allow-in-use") {
		t.Errorf("a mounted device: exit code %d, %s", code, errOut)
	}
	c.must(t, append(create, "--allow-in-use")...)
	if err := unix.Unmount(mount, 0); err != nil {
		t.Fatal(err)
	}
	c.must(t, create...)
	c.must(t, "backup", "verify", "latest", "--all")
}
