package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/ci/internal/gotest"
)

// runInside runs the compiled tests, each package from its own folder and on
// blank disks.
func runInside(ctx context.Context, o *options) error {
	data, err := os.ReadFile(o.inside)
	if err != nil {
		return fmt.Errorf("read the list of tests: %w", err)
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("decode %s: %w", o.inside, err)
	}
	var total gotest.Counts
	began := time.Now()
	for i, p := range m.Packages {
		fmt.Printf("== %s\n", p.Name)
		if err := blankDisks(strings.Fields(os.Getenv("SWAPBACK_TEST_DISKS"))); err != nil {
			fmt.Printf("  FAIL  %v\n", err)
			total.Failed++
			continue
		}
		before := leftovers()
		counts, stuck := runPackage(ctx, o, p)
		total.Add(counts)
		if stuck {
			// What follows would fail for this package's reason.
			fmt.Printf("  the machine is not usable any more; packages not run: %d\n", len(m.Packages)-i-1)
			break
		}
		for _, name := range leftovers() {
			if !contains(before, name) {
				fmt.Printf("  FAIL  %s left the device %s behind\n", p.Name, name)
				total.Failed++
			}
		}
	}
	fmt.Printf("%s, on Linux %s, in %.0f s\n", total, release(), time.Since(began).Seconds())
	switch {
	case total.Failed > 0:
		return &failedError{1}
	case total.Passed == 0 && total.Skipped == 0:
		return errors.New("there was no test to run: does RUN match one?")
	}
	return nil
}

// grace is how long a package may take beyond its limit: the binary's own
// limit comes first and shows what every goroutine was doing.
const grace = time.Minute

// runPackage runs one test binary. It says whether the binary is stuck in the
// kernel, so that not even a kill ends it.
func runPackage(ctx context.Context, o *options, p compiled) (counts gotest.Counts, stuck bool) {
	cmd := exec.CommandContext(ctx, p.Binary, "-test.v", "-test.timeout="+o.timeout.String(),
		"-test.run="+p.Run, fmt.Sprintf("-test.count=%d", o.count))
	cmd.Dir = p.Dir
	f := gotest.NewFollower(os.Stdout, o.verbose)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Printf("  FAIL  %s: %v\n", p.Name, err)
		return gotest.Counts{Failed: 1}, false
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		fmt.Printf("  FAIL  %s: %v\n", p.Name, err)
		return gotest.Counts{Failed: 1}, false
	}
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(f, r)
		close(copied)
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	select {
	case err = <-ended:
	case <-time.After(o.timeout + grace):
		err = fmt.Errorf("it took longer than %s", o.timeout+grace)
		showThreads(cmd.Process.Pid)
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			err = fmt.Errorf("%w, and a kill does not end it: it is stuck in the kernel", err)
			stuck = true
		}
	}
	// A process that a test left behind may keep the pipe open.
	select {
	case <-copied:
	case <-time.After(5 * time.Second):
		if err == nil {
			err = errors.New("processes that its tests started are still running")
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = r.SetReadDeadline(time.Now())
		<-copied
	}
	counts = f.Close(err == nil)
	if err != nil {
		fmt.Printf("  %s: %v\n", p.Name, err)
	}
	return counts, stuck
}

// showThreads prints where in the kernel a process's threads are.
func showThreads(pid int) {
	stacks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", pid))
	for _, name := range stacks {
		text, err := os.ReadFile(name)
		if err == nil && len(text) > 0 {
			fmt.Printf("  thread %s in the kernel:\n", filepath.Base(filepath.Dir(name)))
			for line := range strings.Lines(string(text)) {
				fmt.Printf("        %s", line)
			}
		}
	}
	// All blocked tasks, kernel threads among them, into the kernel's log.
	_ = os.WriteFile("/proc/sys/kernel/printk", []byte("7"), 0)
	_ = os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0)
}

// leftovers lists the block devices that a test may make and must remove.
func leftovers() []string {
	var out []string
	for _, pattern := range []string{"dm-*", "ublkb*", "loop*", "nbd*", "nullb*"} {
		dirs, _ := filepath.Glob("/sys/block/" + pattern)
		for _, d := range dirs {
			// A loop or nbd device without a size is a slot, not a device.
			size, err := os.ReadFile(filepath.Join(d, "size"))
			if err == nil && strings.TrimSpace(string(size)) != "0" {
				out = append(out, filepath.Base(d))
			}
		}
	}
	return out
}

// blankDisks makes every disk read as zeroes where labels and superblocks
// lie, and frees the rest.
func blankDisks(disks []string) error {
	const edge = 32 << 20
	for _, disk := range disks {
		f, err := os.OpenFile(disk, os.O_RDWR|unix.O_EXCL, 0)
		if err != nil {
			return fmt.Errorf("make %s blank: %w", disk, err)
		}
		defer f.Close()
		size, err := f.Seek(0, 2)
		if err != nil {
			return fmt.Errorf("make %s blank: %w", disk, err)
		}
		// Best effort: it gives the host its space back.
		_ = blockRange(f, unix.BLKDISCARD, 0, uint64(size))
		end := uint64(max(size-edge, 0))
		for _, at := range []uint64{0, end} {
			if err := blockRange(f, unix.BLKZEROOUT, at, min(edge, uint64(size)-at)); err != nil {
				return fmt.Errorf("make %s blank: write zeroes at %d: %w", disk, at, err)
			}
		}
	}
	return nil
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "?"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
