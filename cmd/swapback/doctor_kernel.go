package main

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/ublk"
)

// ublk checks the driver that makes block devices out of a process.
func (m *machine) ublk(ctx context.Context) []check {
	const name = "ublk"
	if !m.exists("dev/ublk-control") {
		switch {
		case m.hasModule("ublk_drv"):
			return []check{missing(name, "modprobe ublk_drv, and put ublk_drv into /etc/modules-load.d/swapback.conf", "driver not loaded")}
		case m.older(6, 12):
			return []check{missing(name, "Debian 12's 6.1 kernel has no ublk: apt install linux-image-6.12-amd64 (bookworm-security)", "no driver in this kernel")}
		}
		return []check{missing(name, "boot a kernel built with CONFIG_BLK_DEV_UBLK; Debian's and Ubuntu's own kernels from 6.12 have it", "no driver for Linux %s", m.release())}
	}
	features, err := m.ublkFeatures(ctx)
	switch {
	case errors.Is(err, fs.ErrPermission) && !m.root0:
		return []check{degraded(name, "run as root", "driver loaded; asking for its features needs root")}
	case err != nil:
		return []check{missing(name, "see whether dmesg tells more", "driver does not answer: %v", err)}
	}
	checks := []check{}
	for _, need := range []string{"ioctl-encode", "user-recovery", "user-recovery-reissue"} {
		if !slices.Contains(features, need) {
			checks = append(checks, missing(name, newerKernel, "the driver lacks %s", need))
		}
	}
	if len(checks) == 0 {
		checks = append(checks, ok(name, "%s", strings.Join(features, " ")))
	}
	switch {
	case slices.Contains(features, "batch-io"):
		checks = append(checks, ok("data path", "batch: no copies, requests fetched and answered many at a time"))
	case slices.Contains(features, "auto-buf-reg"):
		checks = append(checks, ok("data path", "zero-copy; Linux 7.0 can answer many requests at a time"))
	default:
		checks = append(checks, degraded("data path", "Linux 6.16 or later, if you need the speed", "copy: every byte is copied once between the kernel and swapbackd"))
	}
	if !slices.Contains(features, "update-size") {
		checks = append(checks, degraded("ublk resize", "Linux 6.16 or later, if you need it",
			"a volume that grows shows its new size after the next attach only"))
	}
	return checks
}

func ublkFeatures(ctx context.Context) ([]string, error) {
	c, err := ublk.OpenControl(ublk.ControlOptions{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	f, err := c.Features(ctx)
	if err != nil {
		return nil, err
	}
	return f.Names(), nil
}

// dmModules are the targets that swapback uses, with the modules they are in.
var dmModules = []struct{ target, module, purpose string }{
	{"linear", "dm_mod", "volumes"},
	{"striped", "dm_mod", "striped volumes"},
	{"error", "dm_mod", "volumes with a lost disk"},
	{"snapshot", "dm_snapshot", "backups"},
	{"snapshot-origin", "dm_snapshot", "backups"},
}

// deviceMapper checks the driver that maps volumes to extents.
func (m *machine) deviceMapper(ctx context.Context) []check {
	const name = "device-mapper"
	info, err := m.dmVersions(ctx)
	switch {
	case noDM(err) && m.hasModule("dm_mod"):
		return []check{missing(name, "modprobe dm_mod, and put dm_mod into /etc/modules-load.d/swapback.conf", "driver not loaded")}
	case noDM(err):
		return []check{missing(name, "boot a kernel built with CONFIG_BLK_DEV_DM", "no driver for Linux %s", m.release())}
	case errors.Is(err, fs.ErrPermission) && !m.root0:
		return []check{degraded(name, "run as root", "asking it needs root")}
	case err != nil:
		return []check{missing(name, "see whether dmesg tells more", "driver does not answer: %v", err)}
	}
	var loaded, later []string
	var checks []check
	for _, t := range dmModules {
		switch v := info.targets[t.target]; {
		case v != "":
			loaded = append(loaded, t.target+" "+v)
		case m.hasModule(t.module):
			later = append(later, t.target)
		default:
			checks = append(checks, missing("dm "+t.target, "boot a kernel that has the module "+t.module,
				"no target %s, needed for %s", t.target, t.purpose))
		}
	}
	state := ok(name, "version %s; %s", info.version, strings.Join(loaded, ", "))
	if len(later) > 0 {
		state.Detail += "; loaded on demand: " + strings.Join(later, ", ")
	}
	return append([]check{state}, checks...)
}

// tryIOUring makes a ring and closes it: only that tells whether a container's
// seccomp profile lets it through.
func tryIOUring() error {
	// struct io_uring_params (linux/io_uring.h), which is 120 bytes.
	var params [120]byte
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}
