package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/swapback/swapback/ci/internal/hosttools"
	"github.com/swapback/swapback/ci/internal/qemu"
)

// runNative runs the command on this host, whose kernel must have what the
// machine would have. The disks are files behind loop devices.
func runNative(ctx context.Context, o *options, stdout, stderr io.Writer, notice func(string, ...any)) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("NATIVE=1 needs root")
	}
	if err := hosttools.Ensure(ctx, hosttools.Native(), notice); err != nil {
		return 0, err
	}
	for _, m := range []string{"ublk_drv", "dm_mod", "dm_snapshot", "loop"} {
		// It may be part of the kernel; what counts is looked at below.
		_ = exec.CommandContext(ctx, "/sbin/modprobe", "-q", m).Run()
	}
	for _, node := range []string{"/dev/ublk-control", "/dev/mapper/control", "/dev/loop-control"} {
		if _, err := os.Stat(node); err != nil {
			return 0, fmt.Errorf("NATIVE=1: this kernel lacks %s; leave NATIVE out and a virtual machine is used: %w", node, err)
		}
	}
	w, err := newWork()
	if err != nil {
		return 0, err
	}
	defer w.remove()
	disks, err := makeDisks(o, w)
	if err != nil {
		return 0, err
	}
	var loops []string
	defer func() {
		for _, l := range loops {
			if out, err := exec.Command("losetup", "-d", l).CombinedOutput(); err != nil {
				notice("detach %s: %v: %s", l, err, out)
			}
		}
	}()
	for _, d := range disks {
		args := []string{"--find", "--show", d.Path}
		if d.Direct {
			args = append([]string{"--direct-io=on"}, args...)
		}
		out, err := exec.CommandContext(ctx, "losetup", args...).Output()
		if err != nil {
			return 0, fmt.Errorf("make a loop device of %s: %w", d.Path, err)
		}
		loops = append(loops, strings.TrimSpace(string(out)))
	}
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return 0, err
	}
	limited, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	cmd := exec.CommandContext(limited, "/bin/bash", "-c", o.command)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "SWAPBACK_TEST_DISKS="+strings.Join(loops, " "))
	if o.out != "" {
		out, err := filepath.Abs(o.out)
		if err == nil {
			err = os.MkdirAll(out, 0o755)
		}
		if err != nil {
			return 0, fmt.Errorf("make the folder for results: %w", err)
		}
		cmd.Env = append(cmd.Env, "SWAPBACK_OUT="+out)
	}
	cmd.Env = append(cmd.Env, o.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case limited.Err() != nil && ctx.Err() == nil:
		return 0, fmt.Errorf("%w (limit %s)", qemu.ErrTimeout, o.timeout)
	case errors.As(err, &exit):
		ws := exit.Sys().(syscall.WaitStatus)
		if ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return ws.ExitStatus(), nil
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return 0, fmt.Errorf("run the command: %w", err)
	}
	return 0, nil
}
