package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/ublk"
)

// stage is what the subjects stand on: the same blocks of the same disks for
// all of them.
//
// In wall mode these are the extents of a volume in a pool on the given disks.
//
// In exact mode they are a null_blk disk that keeps no contents, since keeping
// them would cost more than much of what is measured. A pool needs contents for
// its labels and metadata. So the pool lies on a second disk, which keeps them,
// and when a volume is up its device-mapper device is given a table with the
// bare disk in it: linear, one entry, as the pool's own was. Nothing in the way
// of a request looks at the table or the metadata; the gate, the change map and
// the device-mapper device are the volume's own.
type stage struct {
	mode  string
	tmp   string // in memory, in the machine
	jobs  string // folder of the job files
	fio   fio
	dm    *dm.Control
	ublk  ublk.Features
	disks []string // the pool's members
	disk  string   // exact mode: the disk under everything
	table dm.Table // what the blocks are
	// serverEnv is added to the environment of swapback's servers.
	serverEnv []string
	undo      []func(context.Context) error
	notice    func(string, ...any)
	// scheduler is what every subject's device gets; empty leaves its driver's
	// choice.
	scheduler string
}

const (
	poolName   = "bench"
	volumeName = "bench"
	// exactDisk is the size of the exact mode's disk, MiB.
	exactDisk = 256
)

type stageOptions struct {
	mode          string
	jobs          string
	disks         []string
	size          int64 // of the volume, in wall mode
	runtime, ramp string
	scheduler     string
	notice        func(string, ...any)
}

func newStage(ctx context.Context, o stageOptions) (_ *stage, err error) {
	s := &stage{mode: o.mode, jobs: o.jobs, disks: o.disks, scheduler: o.scheduler, notice: o.notice}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(context.WithoutCancel(ctx)))
		}
	}()
	if s.tmp, err = os.MkdirTemp("", "swapback-bench-"); err != nil {
		return nil, err
	}
	s.later(func(context.Context) error { return os.RemoveAll(s.tmp) })
	s.fio = fio{program: "fio", runtime: o.runtime, ramp: o.ramp}
	if s.dm, err = dm.Open(); err != nil {
		return nil, err
	}
	s.later(func(context.Context) error { return s.dm.Close() })
	if s.ublk, err = ublkFeatures(ctx); err != nil {
		return nil, err
	}
	if o.mode == modeExact {
		if err := s.makeExact(ctx); err != nil {
			return nil, err
		}
		o.size = exactDisk << 20
	} else if len(s.disks) == 0 {
		return nil, errors.New("no disks: name them in SWAPBACK_TEST_DISKS, separated by blanks (what they carry is lost)")
	}
	if err := s.makeVolume(ctx, o.size); err != nil {
		return nil, err
	}
	return s, nil
}

func ublkFeatures(ctx context.Context) (ublk.Features, error) {
	c, err := ublk.OpenControl(ublk.ControlOptions{})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.Features(ctx)
}

// makeExact makes the exact mode's disks, and keeps the host's time out of
// what is measured: it would come in with each page of a program that is read
// from the host's folder for the first time.
func (s *stage) makeExact(ctx context.Context) error {
	for _, d := range []struct {
		name string
		mib  int
		keep bool
	}{{"sbdata", exactDisk, false}, {"sbmeta", 1024, true}} {
		remove, err := nullDisk(ctx, d.name, d.mib, d.keep)
		if err != nil {
			return err
		}
		s.later(func(context.Context) error { return remove() })
	}
	// While the machine waits for its host, its clock jumps from timer to timer,
	// hours if it must. What Go's runtime does every two minutes would so fall
	// into every second row, and cost it milliseconds. Memory that is used up is
	// still collected.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(64 << 20)
	s.serverEnv = []string{"GOGC=off", "GOMEMLIMIT=64MiB"}
	s.disk, s.disks = "/dev/sbdata", []string{"/dev/sbmeta"}
	// fio has a processor of its own, as in the figures of other servers.
	s.fio.cpus = "1"
	var err error
	s.fio.program, err = s.program("fio")
	return err
}

// program returns the path of a program; in exact mode that of a copy in memory.
func (s *stage) program(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil || s.mode != modeExact {
		return path, err
	}
	kept := filepath.Join(s.tmp, name)
	if _, err := os.Stat(kept); err == nil {
		return kept, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return kept, os.WriteFile(kept, text, 0o755)
}

// makeVolume makes a pool and a volume, learns which blocks the volume has, and
// takes everything down but the metadata.
func (s *stage) makeVolume(ctx context.Context, size int64) (err error) {
	d, err := s.daemon(ctx, "copy", 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if _, err := d.client.CreatePool(ctx, api.CreatePoolRequest{Name: poolName, Disks: s.disks, Force: true}); err != nil {
		return fmt.Errorf("make a pool on %s: %w", strings.Join(s.disks, " "), err)
	}
	v, err := d.client.CreateVolume(ctx, api.CreateVolumeRequest{Pool: poolName, Name: volumeName, Size: size})
	if err != nil {
		return fmt.Errorf("make a volume of %d bytes: %w", size, err)
	}
	s.later(s.removePool)
	if s.mode == modeExact {
		number, err := deviceNumber(s.disk)
		if err != nil {
			return err
		}
		s.table = dm.Table{{Length: uint64(size) / dm.SectorSize, Target: dm.Linear{Device: number}}}
		return nil
	}
	// A disk that was never written answers reads faster than one that was.
	if _, err := s.fio.run(ctx, filepath.Join(s.jobs, "fill.fio"), "fill", v.Device); err != nil {
		return err
	}
	s.table, err = tableOf(s.dm, v.Backend)
	return err
}

// removePool checks the pool one last time and takes it off the disks.
func (s *stage) removePool(ctx context.Context) (err error) {
	d, err := s.daemon(ctx, "copy", 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	volumes, err := d.client.Volumes(ctx, poolName)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if err := d.client.DeleteVolume(ctx, v.Name, true); err != nil {
			return err
		}
	}
	report, err := d.client.CheckPool(ctx, poolName)
	if err != nil {
		return err
	}
	if len(report.Problems) > 0 {
		return fmt.Errorf("the pool is damaged after the benchmark: %s", strings.Join(report.Problems, "; "))
	}
	return d.client.DeletePool(ctx, poolName, true)
}

func (s *stage) daemon(ctx context.Context, dataPath string, queues int, args ...string) (*daemon, error) {
	program, err := s.program("swapbackd")
	if err != nil {
		return nil, fmt.Errorf("%w (make build puts it into build/bin)", err)
	}
	return startDaemon(ctx, daemonOptions{program: program, dir: s.tmp, disks: s.disks, queues: queues, dataPath: dataPath, args: args, env: s.serverEnv})
}

func (s *stage) later(f func(context.Context) error) { s.undo = append(s.undo, f) }

// close takes down what was made, the last first.
func (s *stage) close(ctx context.Context) error {
	var errs []error
	for len(s.undo) > 0 {
		last := s.undo[len(s.undo)-1]
		s.undo = s.undo[:len(s.undo)-1]
		errs = append(errs, last(ctx))
	}
	return errors.Join(errs...)
}
