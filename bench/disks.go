package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap/dm"
)

const nullBlkDir = "/sys/kernel/config/nullb"

// nullDisk makes a null_blk disk /dev/NAME of some MiB: one queue, no
// scheduler, and requests are complete when their submission returns (irqmode
// 0), so that no timer and no other processor has a part in them. Contents are
// kept in memory if asked; that costs reads a sixth and writes half of their
// rate.
func nullDisk(ctx context.Context, name string, mib int, keep bool) (remove func() error, err error) {
	if err := modprobe(ctx, nullBlkDir, "null_blk", "nr_devices=0"); err != nil {
		return nil, fmt.Errorf("exact mode needs null_blk disks: %w", err)
	}
	dir := filepath.Join(nullBlkDir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make null_blk disk %s: %w", name, err)
	}
	remove = func() error {
		if err := os.Remove(dir); err != nil {
			return fmt.Errorf("remove null_blk disk %s: %w", name, err)
		}
		return nil
	}
	settings := [][2]string{{"irqmode", "0"}, {"memory_backed", "0"}, {"size", fmt.Sprint(mib)}, {"power", "1"}}
	if keep {
		settings[1][1] = "1"
	}
	for _, s := range settings {
		if err := os.WriteFile(filepath.Join(dir, s[0]), []byte(s[1]), 0); err != nil {
			return nil, errors.Join(fmt.Errorf("set %s of null_blk disk %s: %w", s[0], name, err), remove())
		}
	}
	return remove, nil
}

// deviceNumber is the number behind a device node.
func deviceNumber(path string) (dm.Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return dm.Device{}, fmt.Errorf("stat %s: %w", path, err)
	}
	return dm.DeviceOf(st.Rdev), nil
}

// dmDevice makes a device-mapper device of the benchmark's own.
func dmDevice(ctx context.Context, c *dm.Control, name string, table dm.Table) (path string, remove func(context.Context) error, err error) {
	info, err := c.Create(name, "")
	if err != nil {
		return "", nil, err
	}
	remove = func(ctx context.Context) error {
		// Whoever looked at the device may have it open for a moment more.
		return retry(ctx, 5*time.Second, func() error { return c.Remove(dm.ByName(name), false) })
	}
	ref := dm.ByName(name)
	if err := c.Load(ref, table, false); err != nil {
		return "", nil, errors.Join(err, remove(ctx))
	}
	if err := c.Resume(ctx, ref); err != nil {
		return "", nil, errors.Join(err, remove(ctx))
	}
	return info.Path(), remove, nil
}

// dmName is the name of the device-mapper device with a node /dev/dm-N.
func dmName(path string) (string, error) {
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(path), "dm/name"))
	if err != nil {
		return "", fmt.Errorf("name of device-mapper device %s: %w", path, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// tableOf is the table that a device-mapper device has.
func tableOf(c *dm.Control, path string) (dm.Table, error) {
	name, err := dmName(path)
	if err != nil {
		return nil, err
	}
	return c.Table(dm.ByName(name), false)
}

// retarget puts another table under a device-mapper device that is in use.
func retarget(ctx context.Context, c *dm.Control, path string, table dm.Table) error {
	name, err := dmName(path)
	if err != nil {
		return err
	}
	ref := dm.ByName(name)
	if err := c.Load(ref, table, false); err != nil {
		return err
	}
	if err := c.Suspend(ctx, ref, dm.SuspendOptions{}); err != nil {
		return err
	}
	return c.Resume(ctx, ref)
}

// setScheduler chooses a device's I/O scheduler. Bio-based devices, such as
// those of device-mapper, have none to choose.
func setScheduler(device, name string) error {
	base := filepath.Base(device)
	if strings.HasPrefix(base, "dm-") {
		return nil
	}
	if err := os.WriteFile(filepath.Join("/sys/block", base, "queue/scheduler"), []byte(name), 0); err != nil {
		return fmt.Errorf("set the scheduler of %s to %s: %w", device, name, err)
	}
	return nil
}

// command runs a program to its end and returns what it printed.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// retry calls f until it succeeds or limit has passed, and returns its last error.
func retry(ctx context.Context, limit time.Duration, f func() error) error {
	end := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
