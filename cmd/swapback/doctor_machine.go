package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/version"
)

// machine is what the doctor examines. Files are read below root, which tests
// replace; the functions ask the kernel and the daemon.
type machine struct {
	root    string
	root0   bool // runs as root
	memlock uint64

	ublkFeatures func(context.Context) ([]string, error)
	dmVersions   func(context.Context) (dmInfo, error)
	ioUring      func() error
	daemon       func(context.Context) (api.Info, error)
}

// dmInfo is what device-mapper tells: its version, and those of its targets
// that are loaded.
type dmInfo struct {
	version string
	targets map[string]string
}

func thisMachine() *machine {
	m := &machine{
		root: "/", root0: os.Geteuid() == 0,
		ublkFeatures: ublkFeatures, dmVersions: dmVersions, ioUring: tryIOUring,
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit) == nil {
		m.memlock = limit.Cur
	}
	return m
}

func (m *machine) path(p string) string { return filepath.Join(m.root, p) }

func (m *machine) exists(p string) bool {
	_, err := os.Stat(m.path(p))
	return err == nil
}

func (m *machine) read(p string) string {
	b, err := os.ReadFile(m.path(p))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// examine runs all checks, the most fundamental first.
func (m *machine) examine(ctx context.Context) []check {
	checks := []check{m.kernel(), m.privileges(), m.checkIOUring()}
	checks = append(checks, m.ublk(ctx)...)
	checks = append(checks, m.deviceMapper(ctx)...)
	checks = append(checks, m.memory(), m.devices(), m.udev(), m.disks())
	return append(checks, m.checkDaemon(ctx)...)
}

func (m *machine) release() string { return m.read("proc/sys/kernel/osrelease") }

// releaseNumber returns major and minor of the running kernel, zeroes when it
// cannot be told.
func (m *machine) releaseNumber() (major, minor int) {
	a, rest, _ := strings.Cut(m.release(), ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	major, _ = strconv.Atoi(a)
	minor, _ = strconv.Atoi(rest[:end])
	return major, minor
}

func (m *machine) older(major, minor int) bool {
	a, b := m.releaseNumber()
	return a < major || a == major && b < minor
}

func (m *machine) kernel() check {
	switch {
	case m.release() == "":
		return degraded("kernel", "mount /proc", "its release cannot be read")
	case m.older(6, 4):
		return missing("kernel", newerKernel, "Linux %s is too old", m.release())
	case m.older(6, 12):
		return degraded("kernel", newerKernel, "Linux %s is older than 6.12, the oldest that is tested", m.release())
	}
	return ok("kernel", "Linux %s", m.release())
}

const newerKernel = "boot Linux 6.12 or later; on Debian 12: apt install linux-image-6.12-amd64 (bookworm-security)"

func (m *machine) privileges() check {
	if !m.root0 {
		return degraded("root", "run swapback doctor as root; swapbackd has to run as root", "not root, so not everything can be seen")
	}
	// A container may have a root that is none.
	caps, err := strconv.ParseUint(m.statusField("CapEff"), 16, 64)
	if err != nil {
		return degraded("root", "", "root, with capabilities that cannot be read")
	}
	if caps&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return missing("root", "run outside the container, or give it CAP_SYS_ADMIN", "root without CAP_SYS_ADMIN")
	}
	return ok("root", "with CAP_SYS_ADMIN")
}

func (m *machine) statusField(name string) string {
	for line := range strings.Lines(m.read("proc/self/status")) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (m *machine) checkIOUring() check {
	const name, sysctl = "io_uring", "sysctl kernel.io_uring_disabled=0"
	setting := m.read("proc/sys/kernel/io_uring_disabled")
	if setting == "2" {
		return missing(name, sysctl, "switched off (kernel.io_uring_disabled = 2)")
	}
	switch err := m.ioUring(); {
	case err == nil && setting == "1":
		return ok(name, "permitted for root only (kernel.io_uring_disabled = 1)")
	case err == nil:
		return ok(name, "permitted")
	case errors.Is(err, unix.ENOSYS):
		return missing(name, "boot a kernel built with CONFIG_IO_URING", "not in this kernel")
	case setting == "1" && !m.root0:
		return degraded(name, "run as root, or "+sysctl, "permitted for root only (kernel.io_uring_disabled = 1)")
	default:
		return missing(name, "allow the io_uring system calls in the container's seccomp profile", "refused: %v", err)
	}
}

// memory checks the limit on locked memory, which bounds the buffers that a
// ring can register. Root with CAP_IPC_LOCK is not bound.
func (m *machine) memory() check {
	const wanted = 64 << 20
	caps, _ := strconv.ParseUint(m.statusField("CapEff"), 16, 64)
	switch {
	case caps&(1<<unix.CAP_IPC_LOCK) != 0:
		return ok("memlock", "no limit (CAP_IPC_LOCK)")
	case m.memlock == unix.RLIM_INFINITY:
		return ok("memlock", "no limit")
	case m.memlock >= wanted:
		return ok("memlock", "%s", formatSize(int64(m.memlock)))
	}
	return degraded("memlock", "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit",
		"limit of %s; rings may fail to register buffers", formatSize(int64(m.memlock)))
}

// devices checks that new block devices get their nodes.
func (m *machine) devices() check {
	for line := range strings.Lines(m.read("proc/self/mountinfo")) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i > 4 && len(f) > i+1 && f[4] == "/dev" && f[i+1] == "devtmpfs" {
			return ok("/dev", "devtmpfs: the kernel makes nodes for new devices")
		}
	}
	return degraded("/dev", "mount devtmpfs on /dev, or run outside the container", "not a devtmpfs: nodes of new devices may not appear")
}

const rulesFile = "11-swapback.rules"

func (m *machine) udev() check {
	if !m.exists("run/udev/control") {
		return ok("udev", "not running, so nothing probes volumes")
	}
	for _, dir := range []string{"etc/udev/rules.d", "run/udev/rules.d", "usr/local/lib/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d"} {
		if p := filepath.Join(dir, rulesFile); m.exists(p) {
			return ok("udev", "running, rules in /%s", p)
		}
	}
	return degraded("udev", "install dist/udev/"+rulesFile+" in /etc/udev/rules.d, then: udevadm control --reload",
		"running without swapback's rules: quarantined volumes are probed, and their UUIDs clash with the recovered ones")
}

func (m *machine) disks() check {
	dirs, err := filepath.Glob(m.path("sys/block/nvme*n*"))
	if err != nil || len(dirs) == 0 {
		return degraded("disks", "any block device can be a member of a pool; NVMe disks are what swapback is made for", "no NVMe disks")
	}
	var list []string
	for _, dir := range dirs {
		rel, _ := filepath.Rel(m.root, dir)
		sectors, _ := strconv.ParseInt(m.read(filepath.Join(rel, "size")), 10, 64)
		list = append(list, fmt.Sprintf("/dev/%s (%s)", filepath.Base(dir), formatSize(sectors*512)))
	}
	return ok("disks", "%s", strings.Join(list, ", "))
}

func (m *machine) checkDaemon(ctx context.Context) []check {
	info, err := m.daemon(ctx)
	var ae *api.Error
	switch {
	case errors.As(err, &ae):
		return []check{degraded("swapbackd", ae.Remedy, "%s", ae.Message)}
	case err != nil:
		return []check{degraded("swapbackd", "look at its log: journalctl -u swapbackd", "%v", err)}
	}
	state := ok("swapbackd", "version %s, PID %d, %s open", info.Version, info.PID, plural(len(info.Pools), "pool"))
	if own := version.String(); info.Version != own {
		state = degraded("swapbackd", "restart swapbackd after an upgrade; volumes only pause",
			"version %s, PID %d, while this command is version %s", info.Version, info.PID, own)
	}
	checks := []check{state}
	for _, f := range info.Failed {
		checks = append(checks, degraded("pool "+f.Name, "swapbackd's log tells more: journalctl -u swapbackd",
			"on %s, could not be opened: %s", strings.Join(f.Disks, ", "), f.Error))
	}
	return checks
}

// hasModule says whether a kernel module is there to be loaded, or built in.
func (m *machine) hasModule(name string) bool {
	dir := filepath.Join("lib/modules", m.release())
	for _, list := range []string{"modules.dep", "modules.builtin"} {
		for line := range strings.Lines(m.read(filepath.Join(dir, list))) {
			file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
			base, _, _ := strings.Cut(filepath.Base(file), ".")
			if strings.ReplaceAll(base, "-", "_") == name {
				return true
			}
		}
	}
	return false
}
