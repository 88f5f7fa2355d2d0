package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	for _, p := range m.Packages {
		fmt.Printf("== %s\n", p.Name)
		if err := blankDisks(strings.Fields(os.Getenv("SWAPBACK_TEST_DISKS"))); err != nil {
			fmt.Printf("  FAIL  %v\n", err)
			total.Failed++
			continue
		}
		before := leftovers()
		total.Add(runPackage(ctx, o, p))
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

func runPackage(ctx context.Context, o *options, p compiled) gotest.Counts {
	// The binary has a limit of its own, which shows what every goroutine was
	// doing; ours is for one that is stuck in the kernel.
	limited, cancel := context.WithTimeout(ctx, o.timeout+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(limited, p.Binary, "-test.v", "-test.timeout="+o.timeout.String(),
		"-test.run="+p.Run, fmt.Sprintf("-test.count=%d", o.count))
	cmd.Dir = p.Dir
	f := gotest.NewFollower(os.Stdout, o.verbose)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A daemon that a test left behind keeps our pipe open; its tests are over.
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = fmt.Errorf("processes of the test are still running")
	}
	counts := f.Close(err == nil)
	if err != nil {
		fmt.Printf("  %s: %v\n", p.Name, err)
	}
	return counts
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
