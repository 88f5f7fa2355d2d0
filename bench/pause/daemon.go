package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/swapback/swapback/api"
)

const (
	poolName = "pause"
	// extentSize is the smallest there is: most extents on a disk.
	extentSize = 64 << 10
	// answerTime is generous: emulated machines are slow.
	answerTime = 2 * time.Minute
)

// daemon is a swapbackd of our own with one pool.
type daemon struct {
	o      options
	dir    string
	client *api.Client
	cmd    *exec.Cmd
	ended  chan error
}

// startDaemon starts swapbackd and makes the pool.
func startDaemon(ctx context.Context, o options) (*daemon, error) {
	dir, err := os.MkdirTemp("", "swapback-pause")
	if err != nil {
		return nil, err
	}
	d := &daemon{o: o, dir: dir}
	d.client = api.NewClient(d.path("sock"))
	err = d.start(ctx)
	if err == nil {
		_, err = d.client.CreatePool(ctx, api.CreatePoolRequest{Name: poolName, Disks: o.disks, ExtentSize: extentSize, Force: true})
	}
	if err != nil {
		return nil, errors.Join(err, d.stop(), os.RemoveAll(dir))
	}
	return d, nil
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

func (d *daemon) start(ctx context.Context) error {
	args := []string{"--socket", d.path("sock"), "--run-dir", d.path("run"), "--link-dir", d.path("links"), "--on-exit", "stop", "--log-level", "warn"}
	for _, disk := range d.o.disks {
		args = append(args, "--disk", disk)
	}
	// Not bound to ctx: it is ended in good order, also after an interrupt.
	d.cmd = exec.Command(d.o.daemon, args...)
	d.cmd.Stderr = os.Stderr
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.ended = make(chan error, 1)
	go func() { d.ended <- d.cmd.Wait() }()
	for deadline := time.Now().Add(answerTime); ; {
		_, err := d.client.Info(ctx)
		if err == nil {
			return nil
		}
		select {
		case err := <-d.ended:
			d.cmd = nil
			return fmt.Errorf("%s ended at its start: %w", d.o.daemon, err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer: %w", d.o.daemon, err)
		}
	}
}

// stop ends swapbackd, which takes its devices away.
func (d *daemon) stop() error {
	if d.cmd == nil {
		return nil
	}
	defer func() { d.cmd = nil }()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("ending %s: %w", d.o.daemon, err)
	}
	if err := <-d.ended; err != nil {
		return fmt.Errorf("%s: %w", d.o.daemon, err)
	}
	return nil
}

// end checks the pool and removes everything.
func (d *daemon) end() error {
	// Also after an interrupt.
	ctx := context.Background()
	var errs []error
	if d.cmd != nil {
		report, err := d.client.CheckPool(ctx, poolName)
		if err == nil && !report.OK {
			err = fmt.Errorf("pool check: %s", strings.Join(report.Problems, "; "))
		}
		errs = append(errs, err, d.client.DeletePool(ctx, poolName, true))
	}
	return errors.Join(append(errs, d.stop(), os.RemoveAll(d.dir))...)
}

// volumes makes volumes of so many extents.
func (d *daemon) volumes(ctx context.Context, extents int, names ...string) ([]api.Volume, error) {
	var list []api.Volume
	for _, name := range names {
		v, err := d.client.CreateVolume(ctx, api.CreateVolumeRequest{Name: name, Size: int64(extents) * extentSize})
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func (d *daemon) remove(ctx context.Context, names ...string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, d.client.DeleteVolume(ctx, name, false))
	}
	return errors.Join(errs...)
}

// swap swaps pairs so many times. Whoever holds a device is known to.
func (d *daemon) swap(ctx context.Context, times int, pairs ...api.SwapPair) (samples, error) {
	var s samples
	for range times {
		r, err := d.client.Swap(ctx, api.SwapRequest{Pairs: pairs, AllowHolders: true})
		if err != nil {
			return s, err
		}
		if r.Warning != "" && !strings.Contains(r.Warning, "somebody holds the device") {
			return s, fmt.Errorf("swap: %s", r.Warning)
		}
		s.add(r)
	}
	return s, nil
}
