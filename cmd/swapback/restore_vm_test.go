//go:build vm

package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
)

const disk = "/dev/nvme1n1"

// A device is written over when that is confirmed, with what it has shown before,
// and not while it is in use.
func TestVMRestoreToDevice(t *testing.T) {
	c, content := withRepo(t)
	c.must(t, "backup", "create", "log")
	tool := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	tool("mkfs.ext4", "-q", "-F", disk, "64M")

	_, errOut, code := c.run("backup", "restore", "latest", "--to-device", disk)
	if code != exitUsage || !strings.Contains(errOut, "ext4") || !strings.Contains(errOut, "--yes") {
		t.Errorf("exit code %d, %s", code, errOut)
	}
	_, errOut, code = c.run("backup", "restore", "latest", "--to-file", disk, "--overwrite")
	if code != exitUsage || !strings.Contains(errOut, "--to-device") {
		t.Errorf("exit code %d, %s", code, errOut)
	}
	_, errOut, code = c.run("backup", "restore", "latest", "--to-device", disk, "--yes")
	if code != exitFailed || !strings.Contains(errOut, "larger") {
		t.Errorf("exit code %d, %s", code, errOut)
	}

	inUse := func(kind string) {
		t.Helper()
		_, errOut, code := c.run("backup", "restore", "latest", "--to-device", disk, "--allow-larger", "--yes", "--json")
		var e errorJSON
		if err := json.Unmarshal([]byte(errOut), &e); err != nil || code != exitInUse || e.Code != api.CodeInUse || len(e.Holders) == 0 || e.Holders[0].Kind != kind {
			t.Errorf("exit code %d, %v, %s", code, err, errOut)
		}
	}
	dir := t.TempDir()
	if err := unix.Mount(disk, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	inUse("mount")
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "1000")
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	sleep.Stdin = f
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	inUse("process")
	if err := sleep.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = sleep.Wait() // killed

	c.must(t, "backup", "restore", "latest", "--to-device", disk, "--allow-larger", "--yes", "--verify")
	f, err = os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(content)+1<<20)
	if _, err := io.ReadFull(f, got); err != nil || string(got) != string(content)+string(make([]byte, 1<<20)) {
		t.Errorf("the device does not hold the volume, %v", err)
	}
}
