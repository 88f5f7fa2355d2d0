// Package volume is the controller of the storage daemon. It opens pools,
// serves their volumes through ublk, keeps the busy gate, takes snapshots for
// backups and carries out swaps. [Controller] implements [api.Service].
//
// # Locks
//
// A volume that an operation works on is claimed for it ([Controller.claim]);
// a second operation gets a busy answer instead of waiting. Controller.mu
// guards the maps only and is never held over a blocking call. A pool has its
// own lock, below mu.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/nvmeof/reserve"
	"github.com/swapback/swapback/ublk"
	"github.com/swapback/swapback/volume/changes"
)

// Options configure a [Controller]. The zero value of a field means its default.
type Options struct {
	// Disks limits the search for pool members to these block devices.
	Disks []string
	// WaitForMembers is how long a pool that this machine has not had open since
	// it started is waited for to be whole, before it is opened degraded.
	WaitForMembers time.Duration
	// DiskTimeout is how long a disk may take for a request of the metadata before
	// the change that needs it is refused; 10 s.
	DiskTimeout time.Duration
	// HoldFor bounds the swaps that name no time of their own; 10 s.
	HoldFor time.Duration
	// KeepDir is where old metadata is kept before a repair;
	// [dmswap.DefaultKeepDir] unless set.
	KeepDir string
	// RunDir holds the lock and the marks of quarantined devices; /run/swapback.
	RunDir string
	// LinkDir holds the links POOL/VOLUME to block devices; /dev/swapback.
	LinkDir string
	// Queues per volume; default the number of CPUs, at most 4.
	Queues int
	// Depth is the number of requests in flight per queue; default 64.
	Depth int
	// DataPath of devices that are made; adopted ones keep theirs.
	DataPath ublk.DataPath
	// NVMe says how volumes are served to other hosts; without an address, not at all.
	NVMe NVMe
	// Helper starts a [Helper] that has these block devices open. It returns when
	// ctx ends. There must be one.
	Helper  func(ctx context.Context, devices []string) (Helper, error)
	Version string
	Logger  *slog.Logger
}

func (o *Options) setDefaults() {
	if o.RunDir == "" {
		o.RunDir = "/run/swapback"
	}
	if o.LinkDir == "" {
		o.LinkDir = "/dev/swapback"
	}
	if o.Queues == 0 {
		o.Queues = min(runtime.NumCPU(), 4)
	}
	if o.Depth == 0 {
		o.Depth = 64
	}
	if o.HoldFor == 0 {
		o.HoldFor = defaultHold
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Controller owns the pools and the block devices of this machine. There is
// one per machine and run directory. It is safe for concurrent use.
type Controller struct {
	opt  Options
	log  *slog.Logger
	ublk *ublk.Control
	// lock is held for the life of the controller, so that two daemons never
	// serve the same pools.
	lock    *os.File
	metrics *metrics
	// inMemory: fine change maps can be kept in the run directory.
	inMemory bool
	// nvme is the door for other hosts; nil when it is shut. Set once, by Open.
	nvme *nvme
	// closing ends those who watch devices.
	closing  context.Context
	close    context.CancelFunc
	watching sync.WaitGroup

	mu      sync.Mutex
	pools   map[string]*dmswap.Pool // by pool UUID
	failed  []api.FailedPool
	exports map[string]*export // by volume UUID
	remotes map[string]*remote // by volume UUID; see nvme
	// reservations by volume UUID, of exported volumes; see reservationsOf.
	reservations map[string]*reserve.Disk
	claims       map[string]string       // volume UUID → operation under way
	changes      map[string]*changes.Map // by position ID, of those that were served
	// untracked says of pools, by UUID, why no position with a base may be written to.
	untracked map[string]error
	revived   map[string]time.Time // volume UUID → when it was last served anew; see watch
	helpers   []int                // processes of swaps under way
}

var _ api.Service = (*Controller)(nil)

// Open opens every pool it finds and serves the attached volumes: it adopts
// the devices that an earlier daemon left and makes those that are missing. A
// pool or volume that can't be opened is logged and shown, and does not keep
// the others from working.
func Open(ctx context.Context, opt Options) (_ *Controller, err error) {
	if opt.Helper == nil {
		return nil, errors.New("volume: no helper for swaps is given")
	}
	opt.setDefaults()
	c := &Controller{
		opt: opt, log: opt.Logger, metrics: newMetrics(opt.Version),
		pools:   map[string]*dmswap.Pool{},
		exports: map[string]*export{}, remotes: map[string]*remote{}, reservations: map[string]*reserve.Disk{},
		claims:  map[string]string{},
		changes: map[string]*changes.Map{}, untracked: map[string]error{},
		revived: map[string]time.Time{},
	}
	c.closing, c.close = context.WithCancel(context.Background())
	c.metrics.registry.MustRegister(ioCollector{c}, remoteCollector{c})
	if c.lock, err = lockDir(opt.RunDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.close()
			c.lock.Close()
		}
	}()
	if c.inMemory = inMemory(opt.RunDir); !c.inMemory {
		c.log.Warn("the run directory is on a disk: after a restart of the daemon whole extents count as changed", "dir", opt.RunDir)
	}
	if c.ublk, err = ublk.OpenControl(ublk.ControlOptions{Logger: c.log}); err != nil {
		return nil, err
	}
	if err := c.openPools(ctx); err != nil {
		c.ublk.Close()
		return nil, err
	}
	failpoint.Hit("start: pools opened")
	c.serveAttached(ctx)
	failpoint.Hit("start: orphans removed")
	c.removeStaleFiles()
	if err := c.openNVMe(ctx); err != nil {
		return nil, errors.Join(err, c.Close(context.WithoutCancel(ctx), false))
	}
	return c, nil
}

// lockDir makes the directory and takes the lock in it.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	path := filepath.Join(dir, "swapbackd.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another swapbackd runs already (it holds %s); stop it first", path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// openPools opens what the disks' labels name.
func (c *Controller) openPools(ctx context.Context) error {
	found, err := c.scanPools(ctx)
	if err != nil {
		return fmt.Errorf("looking for pools: %w", err)
	}
	rivals := rivalsOf(found, dmswap.HasDevices)
	for _, f := range found {
		switch {
		case len(f.Problems) > 0:
			c.refusePool(f, strings.Join(f.Problems, "; "))
		case rivals[f.UUID] != "":
			c.refusePool(f, rivals[f.UUID])
		default:
			if err := c.openPool(ctx, f); err != nil {
				c.refusePool(f, err.Error())
			}
		}
	}
	return nil
}

// rivalsOf says, by UUID, which pools are not opened because another one that was
// found has their name: a volume and its link are named by the pool, and what is
// done to one would be done to the other. The one that is in use keeps the name.
func rivalsOf(found []dmswap.FoundPool, inUse func(uuid string) bool) map[string]string {
	byName, refused := map[string][]dmswap.FoundPool{}, map[string]string{}
	for _, f := range found {
		if len(f.Problems) == 0 {
			byName[f.Name] = append(byName[f.Name], f)
		}
	}
	for _, same := range byName {
		for i, f := range same {
			if len(same) == 1 || inUse(f.UUID) {
				continue
			}
			other := same[(i+1)%len(same)]
			refused[f.UUID] = fmt.Sprintf("another pool of this name is on %s: disconnect the disks of one of them", strings.Join(other.Disks, ", "))
		}
	}
	return refused
}

func (c *Controller) openPool(ctx context.Context, f dmswap.FoundPool) error {
	for _, p := range c.poolsSorted() {
		if info := p.Info(); info.Name == f.Name && info.UUID != f.UUID {
			return &api.Error{
				Code:    api.CodeExists,
				Message: fmt.Sprintf("the pool on %s is not opened: another pool %q is open", strings.Join(f.Disks, ", "), f.Name),
				Remedy:  "disconnect the disks of one of them",
			}
		}
	}
	pool, err := dmswap.Open(ctx, dmswap.OpenOptions{Disks: f.Disks, DiskTimeout: c.opt.DiskTimeout, Logger: c.log})
	if err != nil {
		return err
	}
	info := pool.Info()
	c.track(pool)
	c.mu.Lock()
	c.pools[info.UUID] = pool
	c.mu.Unlock()
	for _, v := range pool.Volumes() {
		c.linkMapper(v.Device)
	}
	c.log.Info("pool opened", "pool", info.Name, "generation", info.Generation, "volumes", len(pool.Volumes()), "degraded", info.Degraded())
	return nil
}

// scanPools looks for pools, and waits for members that are late: udev may bring
// a disk a moment after the daemon has started. A pool whose devices are in the
// kernel already is not waited for: its applications are waiting for us.
func (c *Controller) scanPools(ctx context.Context) ([]dmswap.FoundPool, error) {
	const pause = 250 * time.Millisecond
	said := ""
	for start := time.Now(); ; {
		found, err := dmswap.Scan(ctx, dmswap.ScanOptions{Disks: c.opt.Disks, SkipBad: true, Logger: c.log})
		if err != nil {
			return nil, err
		}
		late := ""
		for _, f := range found {
			if text := f.MissingText(); text != "" && len(f.Problems) == 0 && !dmswap.HasDevices(f.UUID) {
				late = "pool " + f.Name + ": " + text
			}
		}
		if late == "" || time.Since(start) >= c.opt.WaitForMembers {
			return found, nil
		}
		if late != said {
			c.log.Warn("waiting for a member", "why", late, "up_to", c.opt.WaitForMembers)
			said = late
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// refusePool remembers why a pool was not opened; Open is the only caller.
func (c *Controller) refusePool(f dmswap.FoundPool, why string) {
	c.log.Error("pool not opened", "pool", f.Name, "disks", f.Disks, "why", why)
	c.failed = append(c.failed, api.FailedPool{Name: f.Name, Disks: f.Disks, Error: why})
}

// Close ends the controller. With stop, block devices and device-mapper
// devices are removed; without, they stay for a successor, their I/O held.
// No other call may be under way.
func (c *Controller) Close(ctx context.Context, stop bool) error {
	c.close()
	c.watching.Wait()
	// Both doors at once: the pause of those who use them has begun.
	remote := make(chan error, 1)
	go func() { remote <- c.closeNVMe(ctx) }()
	c.mu.Lock()
	exports, pools := c.exports, c.pools
	c.exports, c.pools = map[string]*export{}, map[string]*dmswap.Pool{}
	c.mu.Unlock()

	errs := append(c.closeExports(ctx, exports, stop), <-remote)
	for _, p := range pools {
		if stop {
			errs = append(errs, p.Deactivate(ctx))
		}
		errs = append(errs, p.Close())
	}
	c.unlinkMapper()
	errs = append(errs, c.ublk.Close(), c.lock.Close())
	return errors.Join(errs...)
}

// closeExports removes devices, or leaves them all at once: the pause of their
// users has begun.
func (c *Controller) closeExports(ctx context.Context, exports map[string]*export, stop bool) []error {
	var errs []error
	if stop {
		for _, e := range exports {
			errs = append(errs, c.stopExport(ctx, e))
		}
		return errs
	}
	var mu sync.Mutex
	var leaving sync.WaitGroup
	for _, e := range exports {
		leaving.Go(func() {
			err := e.abandon(ctx)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	leaving.Wait()
	return errs
}

// Info implements [api.Service].
func (c *Controller) Info(ctx context.Context) (api.Info, error) {
	info := api.Info{Version: c.opt.Version, PID: os.Getpid(), Pools: []string{}}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return info, fmt.Errorf("uname: %w", err)
	}
	info.Kernel = unix.ByteSliceToString(uts.Release[:])
	features, err := c.ublk.Features(ctx)
	if err != nil {
		return info, err
	}
	info.UblkFeatures = features.Names()
	if info.DMVersion, info.DMTargets, err = dmSupport(); err != nil {
		return info, err
	}
	// A pool whose disk hangs must not keep the others from their exports.
	for _, p := range c.poolsSorted() {
		info.Pools = append(info.Pools, p.Info().Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	info.Failed = c.failed
	return info, nil
}
