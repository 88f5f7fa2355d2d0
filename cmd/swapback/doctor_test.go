package main

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/version"
)

// goodMachine is a machine that has everything, with its files in a temporary
// directory.
func goodMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{
		root: t.TempDir(), root0: true, memlock: unix.RLIM_INFINITY,
		ublkFeatures: func(context.Context) ([]string, error) {
			return []string{"user-recovery", "user-recovery-reissue", "ioctl-encode", "update-size", "auto-buf-reg", "batch-io"}, nil
		},
		dmVersions: func(context.Context) (dmInfo, error) {
			return dmInfo{version: "4.50.0", targets: map[string]string{
				"linear": "1.5.0", "striped": "1.7.0", "error": "1.7.0", "snapshot": "1.16.0", "snapshot-origin": "1.9.0",
			}}, nil
		},
		ioUring: func() error { return nil },
		daemon: func(context.Context) (api.Info, error) {
			return api.Info{Version: version.String(), PID: 812, Pools: []string{"tank"}}, nil
		},
	}
	m.file(t, "proc/sys/kernel/osrelease", "7.3.4+deb13-amd64\n")
	m.file(t, "proc/sys/kernel/io_uring_disabled", "0\n")
	m.file(t, "proc/self/status", "Name:\tswapback\nCapEff:\t000001ffffffffff\n")
	m.file(t, "proc/self/mountinfo", "24 30 0:6 / /dev rw,nosuid - devtmpfs udev rw\n")
	m.file(t, "dev/ublk-control", "")
	m.file(t, "run/udev/control", "")
	m.file(t, "etc/udev/rules.d/"+rulesFile, "")
	m.file(t, "sys/block/nvme0n1/size", "8388608\n")
	m.file(t, "lib/modules/7.3.4+deb13-amd64/modules.dep",
		"kernel/drivers/md/dm-snapshot.ko.xz: kernel/drivers/md/dm-bufio.ko.xz\nkernel/drivers/block/ublk_drv.ko.xz:\nkernel/drivers/md/dm-mod.ko.xz:\n")
	return m
}

func (m *machine) file(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.path(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.path(path), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(m.path(path)); err != nil {
		t.Fatal(err)
	}
}

func TestDoctorOnGoodMachine(t *testing.T) {
	for _, c := range goodMachine(t).examine(t.Context()) {
		if c.Status != checkOK || c.Remedy != "" || c.Detail == "" {
			t.Errorf("%+v", c)
		}
	}
}

func TestDoctorFinds(t *testing.T) {
	const release = "lib/modules/7.3.4+deb13-amd64"
	tests := []struct {
		name   string
		broken func(t *testing.T, m *machine)
		check  string
		status string
		detail string
		remedy string
	}{
		{"old kernel", func(t *testing.T, m *machine) { m.file(t, "proc/sys/kernel/osrelease", "6.1.0-30-amd64\n") },
			"kernel", checkMissing, "too old", "6.12"},
		{"untested kernel", func(t *testing.T, m *machine) { m.file(t, "proc/sys/kernel/osrelease", "6.8.0-45-generic\n") },
			"kernel", checkDegraded, "6.8.0", "6.12"},
		{"no ublk in Debian 12", func(t *testing.T, m *machine) {
			m.file(t, "proc/sys/kernel/osrelease", "6.1.0-30-amd64\n")
			m.remove(t, "dev/ublk-control")
		}, "ublk", checkMissing, "no driver", "linux-image-6.12-amd64"},
		{"ublk not loaded", func(t *testing.T, m *machine) { m.remove(t, "dev/ublk-control") },
			"ublk", checkMissing, "not loaded", "modprobe ublk_drv"},
		{"ublk not built", func(t *testing.T, m *machine) {
			m.remove(t, "dev/ublk-control")
			m.remove(t, release)
		}, "ublk", checkMissing, "no driver", "CONFIG_BLK_DEV_UBLK"},
		{"ublk without recovery", func(_ *testing.T, m *machine) {
			m.ublkFeatures = func(context.Context) ([]string, error) {
				return []string{"ioctl-encode", "user-recovery", "update-size"}, nil
			}
		}, "ublk", checkMissing, "lacks user-recovery-reissue", "6.12"},
		{"ublk without resize", func(_ *testing.T, m *machine) {
			m.ublkFeatures = func(context.Context) ([]string, error) {
				return []string{"ioctl-encode", "user-recovery", "user-recovery-reissue"}, nil
			}
		}, "ublk resize", checkDegraded, "next attach", "6.16"},
		{"ublk asked by a user", func(_ *testing.T, m *machine) {
			m.root0 = false
			m.ublkFeatures = func(context.Context) ([]string, error) { return nil, fs.ErrPermission }
		}, "ublk", checkDegraded, "needs root", "root"},
		{"no root", func(_ *testing.T, m *machine) { m.root0 = false }, "root", checkDegraded, "not root", "as root"},
		{"root in a container", func(t *testing.T, m *machine) { m.file(t, "proc/self/status", "CapEff:\t00000000a80425fb\n") },
			"root", checkMissing, "without CAP_SYS_ADMIN", "CAP_SYS_ADMIN"},
		{"little memory to lock", func(t *testing.T, m *machine) {
			m.file(t, "proc/self/status", "CapEff:\t0000000000200000\n")
			m.memlock = 8 << 20
		}, "memlock", checkDegraded, "8 MiB", "LimitMEMLOCK"},
		{"io_uring switched off", func(t *testing.T, m *machine) { m.file(t, "proc/sys/kernel/io_uring_disabled", "2\n") },
			"io_uring", checkMissing, "switched off", "sysctl kernel.io_uring_disabled=0"},
		{"io_uring filtered", func(_ *testing.T, m *machine) { m.ioUring = func() error { return unix.EPERM } },
			"io_uring", checkMissing, "refused", "seccomp"},
		{"io_uring not built", func(_ *testing.T, m *machine) { m.ioUring = func() error { return unix.ENOSYS } },
			"io_uring", checkMissing, "not in this kernel", "CONFIG_IO_URING"},
		{"dm not loaded", func(_ *testing.T, m *machine) {
			m.dmVersions = func(context.Context) (dmInfo, error) { return dmInfo{}, fs.ErrNotExist }
		}, "device-mapper", checkMissing, "not loaded", "modprobe dm_mod"},
		{"dm not built", func(t *testing.T, m *machine) {
			m.remove(t, release)
			m.dmVersions = func(context.Context) (dmInfo, error) { return dmInfo{}, unix.ENODEV }
		}, "device-mapper", checkMissing, "no driver", "CONFIG_BLK_DEV_DM"},
		{"snapshot on demand", func(_ *testing.T, m *machine) { dropSnapshot(m) },
			"device-mapper", checkOK, "loaded on demand: snapshot, snapshot-origin", ""},
		{"no snapshot", func(t *testing.T, m *machine) {
			m.remove(t, release)
			dropSnapshot(m)
		}, "dm snapshot", checkMissing, "needed for backups", "dm_snapshot"},
		{"own /dev", func(t *testing.T, m *machine) {
			m.file(t, "proc/self/mountinfo", "24 30 0:6 / /dev rw - tmpfs tmpfs rw\n")
		},
			"/dev", checkDegraded, "not a devtmpfs", "devtmpfs"},
		{"udev without rules", func(t *testing.T, m *machine) { m.remove(t, "etc/udev") },
			"udev", checkDegraded, "without swapback's rules", rulesFile},
		{"no udev", func(t *testing.T, m *machine) { m.remove(t, "run/udev"); m.remove(t, "etc/udev") },
			"udev", checkOK, "not running", ""},
		{"no disks", func(t *testing.T, m *machine) { m.remove(t, "sys/block") },
			"disks", checkDegraded, "no NVMe disks", "any block device"},
		{"no daemon", func(_ *testing.T, m *machine) {
			m.daemon = func(context.Context) (api.Info, error) {
				return api.Info{}, &api.Error{Code: api.CodeUnavailable, Message: "no swapbackd", Remedy: "start it"}
			}
		}, "swapbackd", checkDegraded, "no swapbackd", "start it"},
		{"other version", func(_ *testing.T, m *machine) {
			m.daemon = func(context.Context) (api.Info, error) { return api.Info{Version: "v0.0.1"}, nil }
		}, "swapbackd", checkDegraded, "v0.0.1", "restart"},
		{"failed pool", func(_ *testing.T, m *machine) {
			m.daemon = func(context.Context) (api.Info, error) {
				return api.Info{Version: version.String(), Failed: []api.FailedPool{{Name: "old", Disks: []string{"/dev/sdb"}, Error: "member missing"}}}, nil
			}
		}, "pool old", checkDegraded, "member missing", "journalctl"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			m := goodMachine(t)
			tc.broken(t, m)
			for _, c := range m.examine(t.Context()) {
				if c.Name != tc.check {
					continue
				}
				if c.Status != tc.status || !strings.Contains(c.Detail, tc.detail) || !strings.Contains(c.Remedy, tc.remedy) {
					t.Errorf("got %+v, want %s, %q, remedy %q", c, tc.status, tc.detail, tc.remedy)
				}
				if (c.Status == checkOK) != (c.Remedy == "") {
					t.Errorf("%s with the remedy %q", c.Status, c.Remedy)
				}
				return
			}
			t.Errorf("no check %q", tc.check)
		})
	}
}

func dropSnapshot(m *machine) {
	m.dmVersions = func(context.Context) (dmInfo, error) {
		return dmInfo{version: "4.50.0", targets: map[string]string{"linear": "1.5.0", "striped": "1.7.0", "error": "1.7.0"}}, nil
	}
}

func TestDoctorReport(t *testing.T) {
	run := func(m *machine, asJSON bool) (string, error) {
		var out strings.Builder
		err := runDoctor(t.Context(), &app{out: &out, json: asJSON}, m)
		return out.String(), err
	}
	out, err := run(goodMachine(t), false)
	if err != nil || !strings.Contains(out, "can serve volumes") {
		t.Errorf("%v:\n%s", err, out)
	}
	bad := goodMachine(t)
	bad.daemon = func(context.Context) (api.Info, error) {
		return api.Info{}, &api.Error{Message: "no swapbackd at /run/s", Remedy: "start it"}
	}
	bad.remove(t, "dev/ublk-control")
	out, err = run(bad, false)
	if _, exit := classify(t.Context(), err); exit != exitFailed {
		t.Errorf("exit code %d for a machine that lacks ublk", exit)
	}
	golden(t, "doctor-missing", out)
	out, _ = run(bad, true)
	var report doctorReport
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.OK || len(report.Checks) < 8 {
		t.Errorf("%v: %+v", err, report)
	}
}

func thisMachineChecks(t *testing.T) []check {
	t.Helper()
	m := thisMachine()
	m.daemon = func(context.Context) (api.Info, error) { return api.Info{}, fs.ErrNotExist }
	return m.examine(t.Context())
}

// The doctor must come to an end on whatever machine the tests run on.
func TestDoctorHere(t *testing.T) {
	for _, c := range thisMachineChecks(t) {
		if c.Status != checkOK && c.Status != checkDegraded && c.Status != checkMissing {
			t.Errorf("%+v", c)
		}
		t.Logf("%-8s %s: %s %s", c.Status, c.Name, c.Detail, c.Remedy)
	}
}
