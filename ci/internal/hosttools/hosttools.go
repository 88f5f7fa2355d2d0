// Package hosttools sees to it that this Debian machine has the programs that
// the harness and the tests need.
package hosttools

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Tool is a program and the Debian package that has it.
type Tool struct {
	Program, Package string
	// For says what it is needed for.
	For string
	// Guest tools are used by what runs in the machine, not by the harness:
	// the machine boots without them.
	Guest bool
}

// VM lists what the test machine and the tests in it need. The machine shows
// the host's own files, so the tests' tools are installed here too.
func VM() []Tool {
	return []Tool{
		{"qemu-system-x86_64", "qemu-system-x86", "the virtual machine", false},
		{"depmod", "kmod", "the index of the kernel's modules; modprobe in the machine", false},
		{"xz", "xz-utils", "unpacking kernel modules", false},
		{"fio", "fio", "load and verification", true},
		{"qemu-nbd", "qemu-utils", "nbd, as something to compare with in the benchmark", true},
		{"mkfs.ext4", "e2fsprogs", "filesystems to test with", true},
		{"mkfs.xfs", "xfsprogs", "filesystems to test with", true},
		{"mkfs.btrfs", "btrfs-progs", "disks that carry something", true},
		{"mkfs.vfat", "dosfstools", "disks that carry something", true},
		{"nvme", "nvme-cli", "connecting to NVMe/TCP targets in tests", true},
		{"sqlite3", "sqlite3", "the ledger of the demo", true},
		{"dmsetup", "dmsetup", "a second opinion on device-mapper tables, in tests only", true},
		{"lsblk", "util-linux", "a second opinion on block devices, in tests only", true},
		{"ps", "procps", "looking at processes in tests", true},
		{"systemd-analyze", "systemd", "running the daemon's unit as it is, in tests only", true},
		{"udevadm", "udev", "running the rules of dist/udev, in tests only", true},
		{"python3", "python3-minimal", "small helpers in tests", true},
	}
}

// Native lists what NATIVE=1 needs: no machine, only the tests' own tools.
func Native() []Tool {
	list := []Tool{{"losetup", "util-linux", "files as disks", false}}
	for _, t := range VM() {
		if t.Guest {
			list = append(list, t)
		}
	}
	return list
}

// Backup lists what make bench-backup compares with.
func Backup() []Tool {
	return []Tool{
		{"borg", "borgbackup", "backups, as something to compare with", false},
		{"restic", "restic", "backups, as something to compare with", false},
	}
}

// Missing returns the tools of a list that path (as in $PATH) does not have.
// The system folders are searched too: they are not on everybody's path.
func Missing(list []Tool, path string) []Tool {
	dirs := append(filepath.SplitList(path), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")
	var out []Tool
	for _, t := range list {
		found := false
		for _, dir := range dirs {
			info, err := os.Stat(filepath.Join(dir, t.Program))
			found = found || err == nil && !info.IsDir() && info.Mode()&0o111 != 0
		}
		if !found {
			out = append(out, t)
		}
	}
	return out
}

// Ensure installs what is missing when run by root. Otherwise it names the
// command that would do so: as an error if the harness itself cannot do
// without, as a notice if only commands in the machine may miss it.
func Ensure(ctx context.Context, list []Tool, notice func(format string, args ...any)) error {
	missing := Missing(list, os.Getenv("PATH"))
	if len(missing) == 0 {
		return nil
	}
	install := "apt-get install --no-install-recommends " + strings.Join(packages(missing), " ")
	_, err := exec.LookPath("apt-get")
	if err == nil && os.Geteuid() == 0 {
		return aptInstall(ctx, list, notice)
	}
	var lines []string
	required := false
	for _, t := range missing {
		lines = append(lines, fmt.Sprintf("%s (%s)", t.Program, t.For))
		required = required || !t.Guest
	}
	text := fmt.Sprintf("missing on this machine: %s\nto install, run as root: %s", strings.Join(lines, ", "), install)
	if required {
		return fmt.Errorf("%s", text)
	}
	notice("%s", text)
	return nil
}

// aptInstall installs what is missing when no other process of this project does
// so: two machines may be started at once.
func aptInstall(ctx context.Context, list []Tool, notice func(string, ...any)) error {
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "swapback-apt.lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("lock the installation of packages: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock the installation of packages: %w", err)
	}
	missing := Missing(list, os.Getenv("PATH"))
	if len(missing) == 0 {
		return nil
	}
	names := packages(missing)
	notice("installing %s", strings.Join(names, " "))
	for _, args := range [][]string{
		{"update", "-q"},
		append([]string{"install", "-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"}, names...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		out, err := cmd.CombinedOutput()
		// A third party's broken source fails an update that was good enough;
		// the installation tells.
		if err != nil && args[0] != "update" {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	if still := Missing(missing, os.Getenv("PATH")); len(still) > 0 {
		return fmt.Errorf("installed %s, but there is still no %s", strings.Join(names, " "), still[0].Program)
	}
	return nil
}

func packages(tools []Tool) []string {
	var out []string
	seen := map[string]bool{}
	for _, t := range tools {
		if !seen[t.Package] {
			seen[t.Package] = true
			out = append(out, t.Package)
		}
	}
	return out
}
