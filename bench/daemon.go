package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/swapback/swapback/api"
)

// daemon is a running swapbackd.
type daemon struct {
	cmd    *exec.Cmd
	client *api.Client
	ended  chan error
}

type daemonOptions struct {
	program  string
	dir      string // of its socket, lock and links
	disks    []string
	queues   int
	dataPath string
	args     []string // more of them
	env      []string // more of it
}

// startDaemon starts swapbackd and waits until it answers.
func startDaemon(ctx context.Context, o daemonOptions) (*daemon, error) {
	socket := filepath.Join(o.dir, "sock")
	args := []string{
		"--socket", socket, "--run-dir", filepath.Join(o.dir, "run"), "--link-dir", filepath.Join(o.dir, "links"),
		"--queues", strconv.Itoa(o.queues), "--depth", "64", "--on-exit", "stop", "--log-level", "warn",
		"--data-path", o.dataPath,
	}
	args = append(args, o.args...)
	for _, d := range o.disks {
		args = append(args, "--disk", d)
	}
	d := &daemon{cmd: exec.Command(o.program, args...), client: api.NewClient(socket), ended: make(chan error, 1)}
	d.cmd.Env = append(os.Environ(), o.env...)
	d.cmd.Stdout, d.cmd.Stderr = os.Stderr, os.Stderr
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start swapbackd: %w", err)
	}
	go func() { d.ended <- d.cmd.Wait() }()
	err := retry(ctx, time.Minute, func() error {
		select {
		case err := <-d.ended:
			d.ended <- err
			return nil // seen below
		default:
		}
		_, err := d.client.Info(ctx)
		return err
	})
	select {
	case err := <-d.ended:
		return nil, fmt.Errorf("swapbackd %v ended at once: %w", args, err)
	default:
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("swapbackd does not answer: %w", err), d.stop())
	}
	return d, nil
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

// stop ends swapbackd, which takes its devices with it.
func (d *daemon) stop() error {
	d.client.Close()
	return endProcess(d.cmd, d.ended, syscall.SIGTERM)
}

// kill ends swapbackd as a crash would. Its devices stay.
func (d *daemon) kill() error {
	d.client.Close()
	if err := d.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill swapbackd: %w", err)
	}
	<-d.ended // its status is the signal's
	return nil
}

// endProcess asks a process to end and waits until it has.
func endProcess(cmd *exec.Cmd, ended <-chan error, sig os.Signal) error {
	name := filepath.Base(cmd.Path)
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", name, err)
	}
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	case <-time.After(2 * time.Minute):
		return errors.Join(fmt.Errorf("%s does not end within two minutes; killed", name), cmd.Process.Kill())
	}
}
