//go:build vm

package main

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/soak/rig"
)

// TestDaemonBesideAMountedBackup: a daemon that starts, and one that is killed and
// starts again, leaves the block device of a "backup mount" and its mark alone; and
// its own volumes get other numbers. The udev rules keep off the device.
func TestDaemonBesideAMountedBackup(t *testing.T) {
	const rules = "/etc/udev/rules.d/11-swapback.rules"
	rig.Tool(t, "install", "-D", "-m", "644", "../../dist/udev/"+filepath.Base(rules), rules)
	left := []string{rules}
	if _, err := os.Stat("/run/udev"); err != nil { // no udev runs: what comes there is this test's
		left = append(left, "/run/udev")
	}
	t.Cleanup(func() {
		for _, path := range left {
			if err := os.RemoveAll(path); err != nil {
				t.Error(err)
			}
		}
	})
	const runDir = "/run/swapback" // where the rules look
	dir := t.TempDir()
	image, repo := filepath.Join(dir, "image"), filepath.Join(dir, "repo")
	rig.Tool(t, "sh", "-c", "truncate -s 32M "+image+" && mkfs.ext4 -q "+image)
	r, err := backup.Init(t.Context(), repo, backup.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(t.Context(), []backup.Source{{Path: image, Volume: backup.VolumeRef{Name: "db"}}}, backup.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.Close()

	cmd := exec.Command("swapback", "backup", "mount", "latest", "--json", "--repo", repo)
	cmd.Env = append(os.Environ(), hostagent.RunDirEnv+"="+runDir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var e struct{ Device string }
	if err := json.Unmarshal(line, &e); err != nil || e.Device == "" {
		t.Fatalf("%s: %v", line, err)
	}
	check := func() {
		t.Helper()
		if _, err := os.Stat(filepath.Join(runDir, "quarantine", filepath.Base(e.Device))); err != nil {
			t.Error(err)
		}
		rig.Tool(t, "cmp", e.Device, image)
	}

	d := startDaemon(t, "--run-dir", runDir)
	check()
	d.Pool()
	if v := d.Volume("db", 16*MiB); v.Device == e.Device {
		t.Errorf("volume and backup are both %s", v.Device)
	}
	d.Kill()
	d.Run()
	check()
	for _, action := range []string{"add", "change"} {
		got := askUdev(t, action, e.Device)
		for key, value := range map[string]string{"UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG": "1", "UDISKS_IGNORE": "1", "SYSTEMD_READY": "0"} {
			if got[key] != value {
				t.Errorf("%s: %s is %q", action, key, got[key])
			}
		}
	}
	stop()
}
