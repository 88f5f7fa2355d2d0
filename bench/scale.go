package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap/dm"
)

const (
	scaleFile     = "scale.json"
	scaleJobs     = "scale.fio"
	scaleVolume   = 4 << 20 // bytes: one extent
	scaleDeadline = 5 * time.Minute
)

// How many volumes and queues there are at each step.
var (
	scaleVolumes = []int{1, 16, 128}
	scaleQueues  = []int{1, 2, 4}
)

// scaleCommand measures what more volumes and more queues cost.
func scaleCommand(ctx context.Context, args []string) error {
	var o runOptions
	f := flag.NewFlagSet("bench scale", flag.ContinueOnError)
	o.common(f)
	path := f.String("data-path", "auto", "how volumes move data: auto, copy, zero-copy or batch")
	check := f.Bool("check", false, "fail when a cost grows faster than the work")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("bench scale takes no %q", f.Args())
	}
	points, err := scaleAll(ctx, o, *path)
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(o.out, scaleFile), points); err != nil {
		return err
	}
	printScaling(os.Stdout, points)
	if err := writeReport(o.out); err != nil {
		return err
	}
	if *check {
		for _, v := range judge(points) {
			if !v.ok {
				err = errors.Join(err, fmt.Errorf("series %s: the cost grows faster than the work: %s", v.series, v.text))
			}
		}
	}
	return err
}

// scaler measures series on a stage.
type scaler struct {
	*stage
	versions versions
	dataPath string
	points   []point
}

func scaleAll(ctx context.Context, o runOptions, dataPath string) (_ []point, err error) {
	if err := o.orDefault(); err != nil {
		return nil, err
	}
	s := &scaler{dataPath: dataPath}
	if s.versions, err = findVersions(ctx); err != nil {
		return nil, err
	}
	if s.stage, err = newStage(ctx, o.stage()); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	// Memory, and the time that fresh memory takes, are those of a daemon that
	// collects its garbage; the rates are no worse for it.
	s.serverEnv = nil
	// Each device of one queue has the kernel start modprobe, for a scheduler
	// "none" that is no module. In the machine the program comes from the host's
	// folder, and the clock of exact mode jumps by minutes while it waits for that.
	if o.mode == modeExact {
		if err := s.noModprobe(); err != nil {
			return nil, err
		}
	}
	if err := s.queues(ctx); err != nil {
		return nil, fmt.Errorf("queues: %w", err)
	}
	if err := s.volumes(ctx); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	return s.points, nil
}

func (s *scaler) add(series string, n int, value float64) {
	s.points = append(s.points, point{s.mode, series, n, value, s.versions})
	s.notice("%s, %d: %.4g", series, n, value)
}

// queues measures one volume with more and more queues. fio runs on all
// processors then: each has a queue of its own, as far as there are queues.
func (s *scaler) queues(ctx context.Context) error {
	for _, n := range scaleQueues {
		if n > runtime.NumCPU() {
			s.notice("no figure with %d queues: this machine has %d processors, and the kernel makes no more queues", n, runtime.NumCPU())
			continue
		}
		err := s.withDaemon(ctx, n, func(d *daemon) error {
			v, err := s.target(ctx, d, volumeName, s.table)
			if err != nil {
				return err
			}
			all := s.fio
			all.cpus = fmt.Sprintf("0-%d", runtime.NumCPU()-1)
			if n == 1 {
				if err := s.rate(ctx, &all, "thin", n, v.Device); err != nil {
					return err
				}
			}
			return s.rate(ctx, &all, "queues", n, v.Device)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *scaler) withDaemon(ctx context.Context, queues int, f func(*daemon) error) (err error) {
	d, err := s.daemon(ctx, s.dataPath, queues)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	return f(d)
}

// target puts a volume onto the disk to measure on, and makes it ready.
func (s *scaler) target(ctx context.Context, d *daemon, volume string, table dm.Table) (api.Volume, error) {
	v, err := d.client.Volume(ctx, volume)
	if err != nil {
		return v, err
	}
	if s.mode == modeExact {
		if err := retarget(ctx, s.dm, v.Backend, table); err != nil {
			return v, err
		}
	}
	return v, setScheduler(v.Device, s.scheduler)
}

// rate runs a section of the job file, once to warm up, and adds the IOPS.
func (s *scaler) rate(ctx context.Context, f *fio, section string, n int, device string) error {
	var got sample
	for range 2 {
		text, err := f.run(ctx, filepath.Join(s.jobs, scaleJobs), section, device)
		if err != nil {
			return err
		}
		if got, _, err = parseFio(text); err != nil {
			return fmt.Errorf("section %s on %s: %w", section, device, err)
		}
	}
	s.add(section, n, got.iops)
	return nil
}

// volumes makes more and more volumes, and measures at each step.
func (s *scaler) volumes(ctx context.Context) (err error) {
	d, err := s.daemon(ctx, s.dataPath, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.client.DeleteVolume(ctx, volumeName, true); err != nil {
		return err
	}
	free, err := memAvailable()
	if err != nil {
		return err
	}
	if err := s.memory(d, 0, free); err != nil {
		return err
	}
	s.add("create", 0, 0)
	made, spent := 0, time.Duration(0)
	for _, n := range scaleVolumes {
		began := time.Now()
		for ; made < n; made++ {
			req := api.CreateVolumeRequest{Pool: poolName, Name: numbered(made), Size: scaleVolume}
			if _, err := d.client.CreateVolume(ctx, req); err != nil {
				return err
			}
		}
		spent += time.Since(began)
		s.add("create", n, spent.Seconds())
		if err := s.memory(d, n, free); err != nil {
			return err
		}
		if d, err = s.adopt(ctx, d, n); err != nil {
			return err
		}
		if err := s.load(ctx, d, n); err != nil {
			return err
		}
	}
	return nil
}

func numbered(i int) string { return fmt.Sprintf("v%d", i) }

// adopt kills the daemon and measures how long the next one takes until it
// serves all n volumes.
func (s *scaler) adopt(ctx context.Context, d *daemon, n int) (*daemon, error) {
	if err := d.kill(); err != nil {
		return d, err
	}
	began := time.Now()
	next, err := s.daemon(ctx, s.dataPath, 1)
	if err != nil {
		return d, err
	}
	err = retry(ctx, scaleDeadline, func() error {
		volumes, err := next.client.Volumes(ctx, poolName)
		if err != nil {
			return err
		}
		serving := 0
		for _, v := range volumes {
			if v.State == "serving" {
				serving++
			}
		}
		if serving != n {
			return fmt.Errorf("%d of %d volumes are served after %v", serving, n, time.Since(began))
		}
		return nil
	})
	if err != nil {
		return next, err
	}
	s.add("adopt", n, time.Since(began).Seconds())
	return next, nil
}

// load measures reads of one volume, and of all of them together. It leaves the
// volumes' tables as it found them: the next daemon compares them with the
// pool's metadata.
func (s *scaler) load(ctx context.Context, d *daemon, n int) (err error) {
	var devices []string
	tables := map[string]dm.Table{}
	defer func() {
		for backend, table := range tables {
			err = errors.Join(err, retarget(ctx, s.dm, backend, table))
		}
	}()
	for i := range n {
		var table dm.Table
		if s.mode == modeExact {
			number, err := deviceNumber(s.disk)
			if err != nil {
				return err
			}
			// They share the disk's blocks: nothing is kept there anyway.
			table = dm.Table{{Length: scaleVolume / dm.SectorSize, Target: dm.Linear{Device: number}}}
		}
		v, err := d.client.Volume(ctx, numbered(i))
		if err != nil {
			return err
		}
		if s.mode == modeExact {
			if tables[v.Backend], err = tableOf(s.dm, v.Backend); err != nil {
				return err
			}
		}
		if v, err = s.target(ctx, d, v.Name, table); err != nil {
			return err
		}
		devices = append(devices, v.Device)
	}
	if n == 1 {
		if err := s.rate(ctx, &s.fio, "alone", n, devices[0]); err != nil {
			return err
		}
	}
	if err := s.rate(ctx, &s.fio, "idle", n, devices[0]); err != nil {
		return err
	}
	return s.rate(ctx, &s.fio, "busy", n, strings.Join(devices, ":"))
}

// memory adds what the daemon has in memory, and what the machine has less
// than before the first volume, which includes the kernel's part.
func (s *scaler) memory(d *daemon, n int, before uint64) error {
	p, err := procfs.NewProc(d.pid())
	if err != nil {
		return fmt.Errorf("swapbackd's memory: %w", err)
	}
	status, err := p.NewStatus()
	if err != nil {
		return fmt.Errorf("swapbackd's memory: %w", err)
	}
	now, err := memAvailable()
	if err != nil {
		return err
	}
	s.add("rss", n, float64(status.VmRSS)/(1<<20))
	s.add("pinned", n, float64(status.VmLck+status.VmPin)/(1<<20))
	s.add("system", n, float64(max(before, now)-now)/(1<<20))
	return nil
}

func memAvailable() (uint64, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	info, err := fs.Meminfo()
	if err != nil {
		return 0, fmt.Errorf("the machine's memory: %w", err)
	}
	if info.MemAvailableBytes == nil {
		return 0, errors.New("the machine's memory: /proc/meminfo has no MemAvailable")
	}
	return *info.MemAvailableBytes, nil
}

// noModprobe keeps the kernel from loading modules by itself until the stage is
// cleared.
func (s *scaler) noModprobe() error {
	const path = "/proc/sys/kernel/modprobe"
	before, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("the kernel's modprobe: %w", err)
	}
	if err := os.WriteFile(path, []byte("\n"), 0); err != nil {
		return fmt.Errorf("the kernel's modprobe: %w", err)
	}
	s.later(func(context.Context) error { return os.WriteFile(path, before, 0) })
	return nil
}
