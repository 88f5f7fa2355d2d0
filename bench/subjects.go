package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/swapback/swapback/ublk"
)

// subject is something to measure. Its name is in result.json and keeps.
type subject struct {
	name   string
	about  string
	colour string // in plots, always the same
	// needs are the driver's features that it uses, and since the kernel that
	// brought them.
	needs ublk.Features
	since string
	short bool // part of the short form
	exact bool // only in exact mode
	// remote subjects are what other hosts get; see remoteSubjects.
	remote bool
	start  func(context.Context, *stage) (*served, error)
}

// served is a subject that is up.
type served struct {
	device   string
	pids     []int // whose processor time is the server's
	dataPath string
	// ownScheduler says that the device keeps the scheduler that its driver chose.
	ownScheduler bool
	stop         func(context.Context) error
}

// subjects are measured, and shown, in this order.
func subjects() []subject {
	zc, batch := ublk.AutoBufReg|ublk.SupportZeroCopy, ublk.AutoBufReg|ublk.SupportZeroCopy|ublk.BatchIO
	return append([]subject{
		{name: "disk", colour: "#a9afb8", about: "the disk under it all", exact: true, start: bareDisk},
		{name: "raw", colour: "#6b7480", about: "the device-mapper device on it", short: true, start: rawDevice},
		{name: "loop", colour: "#dd8a2e", about: "the kernel's loop driver on that, direct I/O", short: true, start: loopDevice},
		{name: "nbd", colour: "#b4544d", about: "qemu-nbd on that, with the kernel's client", start: nbdDevice},
		{name: "volume-copy", colour: "#9cc4ea", about: "swapback's volume, data copied", short: true, start: volumeDevice("copy")},
		{name: "volume-zero-copy", colour: "#4a90d9", about: "swapback's volume, zero copy", short: true, needs: zc, since: "6.16", start: volumeDevice("zero-copy")},
		{name: "volume-batch", colour: "#1f5fae", about: "swapback's volume, zero copy and BATCH_IO", short: true, needs: batch, since: "7.0", start: volumeDevice("batch")},
		{name: "null-copy", colour: "#b7dcae", about: "swapback's null target, data copied", short: true, start: nullTarget("copy")},
		{name: "null-zero-copy", colour: "#71b565", about: "swapback's null target, zero copy", short: true, needs: zc, since: "6.16", start: nullTarget("zero-copy")},
		{name: "null-batch", colour: "#3c8133", about: "swapback's null target, zero copy and BATCH_IO", short: true, needs: batch, since: "7.0", start: nullTarget("batch")},
	}, remoteSubjects()...)
}

// missing says why a subject cannot be measured here, or "".
func (s *subject) missing(st *stage) string {
	if !st.ublk.Has(s.needs) {
		return "not on this kernel (needs " + s.since + ")"
	}
	return ""
}

func bareDisk(_ context.Context, s *stage) (*served, error) {
	return &served{device: s.disk, stop: func(context.Context) error { return nil }}, nil
}

func rawDevice(ctx context.Context, s *stage) (*served, error) {
	path, remove, err := dmDevice(ctx, s.dm, "swapback-bench", s.table)
	if err != nil {
		return nil, err
	}
	return &served{device: path, stop: remove}, nil
}

func loopDevice(ctx context.Context, s *stage) (*served, error) {
	raw, err := rawDevice(ctx, s)
	if err != nil {
		return nil, err
	}
	path, err := command(ctx, "losetup", "--direct-io=on", "--find", "--show", raw.device)
	if err != nil {
		return nil, errors.Join(err, raw.stop(ctx))
	}
	return &served{device: path, stop: func(ctx context.Context) error {
		_, err := command(ctx, "losetup", "--detach", path)
		return errors.Join(err, raw.stop(ctx))
	}}, nil
}

func nbdDevice(ctx context.Context, s *stage) (_ *served, err error) {
	const device = "/dev/nbd0"
	if err := modprobe(ctx, device, "nbd", "max_part=0"); err != nil {
		return nil, err
	}
	program, err := s.program("qemu-nbd")
	if err != nil {
		return nil, fmt.Errorf("%w (install Debian's package qemu-utils)", err)
	}
	raw, err := rawDevice(ctx, s)
	if err != nil {
		return nil, err
	}
	// It forks a server and ends; the server writes the file.
	pidFile := filepath.Join(s.tmp, "qemu-nbd.pid")
	_, err = command(ctx, program, "--connect="+device, "--cache=none", "--aio=native", "--format=raw", "--pid-file="+pidFile, raw.device)
	if err != nil {
		return nil, errors.Join(err, raw.stop(ctx))
	}
	n := &served{device: device, stop: func(ctx context.Context) error {
		_, err := command(ctx, program, "--disconnect", device)
		return errors.Join(err, raw.stop(ctx))
	}}
	if n.pids, err = readPID(pidFile); err != nil {
		return nil, errors.Join(err, n.stop(ctx))
	}
	err = retry(ctx, time.Minute, func() error {
		size, err := os.ReadFile("/sys/block/nbd0/size")
		if err == nil && strings.TrimSpace(string(size)) == "0" {
			err = fmt.Errorf("%s has no size", device)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("qemu-nbd: %w", err), n.stop(ctx))
	}
	return n, nil
}

func readPID(path string) ([]int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return []int{pid}, nil
}

func volumeDevice(dataPath string) func(context.Context, *stage) (*served, error) {
	return func(ctx context.Context, s *stage) (*served, error) {
		d, err := s.daemon(ctx, dataPath, 1)
		if err != nil {
			return nil, err
		}
		v, err := d.client.Volume(ctx, volumeName)
		if err == nil && v.Device == "" {
			err = fmt.Errorf("volume %s is %s and has no device: %s", volumeName, v.State, v.Error)
		}
		if err == nil && v.DataPath != dataPath {
			err = fmt.Errorf("volume %s moves data by %s although %s was asked for", volumeName, v.DataPath, dataPath)
		}
		if err == nil && s.mode == modeExact {
			err = retarget(ctx, s.dm, v.Backend, s.table)
		}
		if err != nil {
			return nil, errors.Join(err, d.stop())
		}
		return &served{device: v.Device, dataPath: v.DataPath, pids: []int{d.pid()}, stop: func(context.Context) error { return d.stop() }}, nil
	}
}

func nullTarget(dataPath string) func(context.Context, *stage) (*served, error) {
	return func(_ context.Context, s *stage) (*served, error) {
		program, err := s.program("serve")
		if err != nil {
			return nil, fmt.Errorf("%w (make build puts it into build/bin)", err)
		}
		size := fmt.Sprint(s.table.Size() * 512)
		cmd := exec.Command(program, "null", size, "-queues", "1", "-depth", "64", "-data-path", dataPath)
		cmd.Env = append(os.Environ(), s.serverEnv...)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("start serve: %w", err)
		}
		// The first line is the device; it comes when the device is there.
		device, rerr := bufio.NewReader(out).ReadString('\n')
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		if rerr != nil {
			return nil, fmt.Errorf("serve null ended before it had a device: %w", <-ended)
		}
		return &served{device: strings.TrimSpace(device), pids: []int{cmd.Process.Pid}, stop: func(context.Context) error {
			return endProcess(cmd, ended, syscall.SIGTERM)
		}}, nil
	}
}
