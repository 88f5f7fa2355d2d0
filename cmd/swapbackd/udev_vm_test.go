//go:build vm

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// askUdev has udev's rules run for a block device as on an event, and returns
// the properties that the device has then.
func askUdev(t *testing.T, action, device string) map[string]string {
	t.Helper()
	cmd := exec.Command("/usr/bin/udevadm", "test", "--action="+action, "/sys/block/"+filepath.Base(device))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, &said)
	}
	properties := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			properties[key] = value
		}
	}
	if properties["ACTION"] != action || properties["DEVNAME"] != device {
		t.Fatalf("%s: no properties of %s in\n%s%s", cmd, device, out, &said)
	}
	return properties
}

// TestUdevKeepsOff has the rules of dist/udev run beside udev's own. They keep it
// off failed content and the devices under a volume, and off nothing else.
func TestUdevKeepsOff(t *testing.T) {
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
	d := startDaemon(t, "--run-dir", "/run/swapback") // where the rules look
	d.Pool()
	failed, good := d.Volume("failed", 16*MiB), d.Volume("good", 16*MiB)
	for _, v := range []api.Volume{failed, good} {
		rig.Tool(t, "mkfs.ext4", "-q", v.Device)
	}

	off := map[string]string{"UDISKS_IGNORE": "1", "SYSTEMD_READY": "0"}
	volume := map[string]string{"UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG": "1"}
	mapper := map[string]string{
		"DM_UDEV_DISABLE_DISK_RULES_FLAG": "1", "DM_UDEV_DISABLE_OTHER_RULES_FLAG": "1", "DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG": "1",
	}
	keptOff := func(device string, more map[string]string) {
		t.Helper()
		for _, action := range []string{"add", "change"} {
			got := askUdev(t, action, device)
			for _, want := range []map[string]string{off, more} {
				for key, value := range want {
					if got[key] != value {
						t.Errorf("%s of %s: %s is %q, not %q", action, device, key, got[key], value)
					}
				}
			}
			for key := range got {
				if strings.HasPrefix(key, "ID_FS_") {
					t.Errorf("%s of %s: it was probed: %s=%s", action, device, key, got[key])
				}
			}
		}
	}
	leftAlone := func(device string, more map[string]string) {
		t.Helper()
		for _, action := range []string{"add", "change"} {
			got := askUdev(t, action, device)
			for _, not := range []map[string]string{off, more} {
				for key := range not {
					if value, ok := got[key]; ok {
						t.Errorf("%s of %s: %s is %q", action, device, key, value)
					}
				}
			}
		}
	}
	leftAlone(failed.Device, volume)
	if _, err := d.Client.Quarantine(t.Context(), "failed", api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "test", Time: time.Now()}}); err != nil {
		t.Fatal(err)
	}
	keptOff(d.Show("failed").Device, volume)
	leftAlone(good.Device, volume)
	for _, v := range []string{"failed", "good"} {
		keptOff(d.Show(v).Backend, mapper)
	}
	// udev's own rules leave it alone too, but it is not ours to hide from udisks.
	rig.Tool(t, "dmsetup", "create", "foreign", "--table", "0 8 error")
	t.Cleanup(func() { rig.Tool(t, "dmsetup", "remove", "foreign") })
	foreign := strings.TrimSpace(rig.Tool(t, "dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", "foreign"))
	if value, ok := askUdev(t, "change", "/dev/"+foreign)["UDISKS_IGNORE"]; ok {
		t.Errorf("UDISKS_IGNORE of a device that is not swapback's is %q", value)
	}
	if _, err := d.Client.ReleaseQuarantine(t.Context(), "failed"); err != nil {
		t.Fatal(err)
	}
	leftAlone(d.Show("failed").Device, volume)
}
