package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/version"
)

func findVersions(ctx context.Context) (versions, error) {
	v := versions{Go: runtime.Version(), Bench: version.String()}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return v, fmt.Errorf("uname: %w", err)
	}
	v.Kernel = unix.ByteSliceToString(uts.Release[:])
	out, err := exec.CommandContext(ctx, "fio", "--version").Output()
	if err != nil {
		return v, fmt.Errorf("fio --version: %w (install Debian's package fio)", err)
	}
	v.Fio = strings.TrimSpace(string(out))
	// An emulated machine shows its host's programs, the emulator too.
	if vendor, err := os.ReadFile("/sys/class/dmi/id/sys_vendor"); err == nil && strings.Contains(string(vendor), "QEMU") {
		out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
		if err != nil {
			v.QEMU = "of unknown version"
			return v, nil
		}
		first, _, _ := strings.Cut(string(out), "\n")
		v.QEMU = strings.TrimPrefix(first, "QEMU emulator version ")
	}
	return v, nil
}

// modprobe loads a module. What counts is whether the thing is there then:
// it may be part of the kernel, where modprobe has nothing to do.
func modprobe(ctx context.Context, there string, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, "modprobe", append([]string{name}, args...)...).CombinedOutput()
	if _, serr := os.Stat(there); serr == nil {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("no %s", there)
	}
	return fmt.Errorf("kernel module %s: %w %s", name, err, strings.TrimSpace(string(out)))
}

// cpuTime is the processor time that served I/O since some start, in seconds:
// all threads of the given processes, and all workers of the kernel. It is read
// from schedstat, which counts nanoseconds; utime and stime of /proc/PID/stat
// count clock ticks of 4 ms.
func cpuTime(root string, pids []int) (float64, error) {
	var total uint64
	for _, pid := range pids {
		threads, err := filepath.Glob(filepath.Join(root, strconv.Itoa(pid), "task", "*", "schedstat"))
		if err != nil {
			return 0, err
		}
		if len(threads) == 0 {
			return 0, fmt.Errorf("server process %d is gone", pid)
		}
		for _, t := range threads {
			ns, err := runNanos(t)
			if err != nil {
				return 0, err
			}
			total += ns
		}
	}
	all, err := os.ReadDir(root)
	if err != nil {
		return 0, fmt.Errorf("look for kernel workers: %w", err)
	}
	for _, e := range all {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		// The name changes with the work: loop's workers are kworker/u8:1-loop0.
		comm, err := os.ReadFile(filepath.Join(root, e.Name(), "comm"))
		if err != nil || !strings.HasPrefix(string(comm), "kworker/") {
			continue
		}
		ns, err := runNanos(filepath.Join(root, e.Name(), "schedstat"))
		if err != nil {
			return 0, err
		}
		total += ns
	}
	return float64(total) / 1e9, nil
}

// runNanos reads the first field of a schedstat file: nanoseconds on a
// processor. A thread that has ended meanwhile counts nothing.
func runNanos(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	ns, err := strconv.ParseUint(first, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return ns, nil
}
