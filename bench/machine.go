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
	"time"

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

// cpuTimes is a reading of the processor time that serving took so far. Both
// clocks count nanoseconds; utime and stime of /proc/PID/stat count ticks.
type cpuTimes struct {
	server  time.Duration
	workers map[string]uint64 // by thread, ns
}

// readCPU reads the processor time of the given processes, with their threads
// that have ended, and of the kernel's workers.
func readCPU(root string, pids []int) (cpuTimes, error) {
	t := cpuTimes{workers: map[string]uint64{}}
	for _, pid := range pids {
		var ts unix.Timespec
		// CPUCLOCK_SCHED of another process, as clock_getcpuclockid(3) builds it.
		if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
			return t, fmt.Errorf("processor time of server process %d: %w", pid, err)
		}
		t.server += time.Duration(ts.Nano())
	}
	all, err := os.ReadDir(root)
	if err != nil {
		return t, fmt.Errorf("look for kernel workers: %w", err)
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
		if t.workers[e.Name()], err = runNanos(filepath.Join(root, e.Name(), "schedstat")); err != nil {
			return t, err
		}
	}
	return t, nil
}

// since is the time spent between two readings, in seconds. What a worker did
// that has ended in between is lost; they live for minutes.
func (t cpuTimes) since(before cpuTimes) float64 {
	spent := t.server - before.server
	for id, ns := range t.workers {
		if was := before.workers[id]; ns > was {
			spent += time.Duration(ns - was)
		}
	}
	return spent.Seconds()
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
