package volume

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/ublk"
)

// export is the block device of one volume.
type export struct {
	name     string // POOL/VOLUME, for messages
	link     string
	dev      *ublk.Device // nil when failed is set
	backend  *ublk.Backend
	readOnly bool
	failed   error // why a volume that should be served is not
}

// tagMagic marks the ublk devices that are swapback's, in the upper 16 bits of
// the tag. 24 bits each of a checksum over the pool's and the volume's UUID
// follow, so that a device is adopted for the volume it was made for only.
const tagMagic = 0x5342

func deviceTag(pool, volume string) uint64 {
	return tagMagic<<48 | poolTag(pool) | uint64(crc32.ChecksumIEEE([]byte(volume))>>8)
}

func poolTag(pool string) uint64 {
	return uint64(crc32.ChecksumIEEE([]byte(pool))>>8) << 24
}

// claimNew draws the UUID of a new volume and claims it. No volume of the pool has
// its tag: one would get the other's device when both are adopted.
func (c *Controller) claimNew(p *dmswap.Pool) string {
	pool, taken := p.Info().UUID, map[uint64]bool{}
	for _, v := range p.Volumes() {
		taken[deviceTag(pool, v.UUID)] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for uuid := range c.claims {
		taken[deviceTag(pool, uuid)] = true
	}
	uuid := freeUUID(dmswap.NewUUID, func(uuid string) bool { return taken[deviceTag(pool, uuid)] })
	c.claims[uuid] = "creating it"
	return uuid
}

// freeUUID draws until it has one that is not taken.
func freeUUID(draw func() string, taken func(uuid string) bool) string {
	for {
		if uuid := draw(); !taken(uuid) {
			return uuid
		}
	}
}

// blank says that nobody can have written to the volume: it was never served,
// and its position is no other's.
func (t target) blank() bool { return t.info.DeviceNumber < 0 && t.info.Position.Generation == 1 }

func (t target) tag() uint64 { return deviceTag(t.pool.Info().UUID, t.uuid()) }

// readOnly tells whether nobody may write to the volume.
func (t target) readOnly() bool { return t.info.ReadOnly || t.info.Position.Quarantine != nil }

// serveAttached serves every volume that is marked attached, and removes ublk
// devices that a dead daemon left for volumes that are gone. Devices that are
// left are adopted all at once: each is a pause to somebody. Only then missing
// ones are made, so that none takes the number of another.
func (c *Controller) serveAttached(ctx context.Context) {
	left := c.leftDevices(ctx)
	var adopting sync.WaitGroup
	var missing []target
	for _, p := range c.poolsSorted() {
		for _, v := range p.Volumes() {
			t := target{p, v}
			numbers := left[t.tag()]
			switch {
			case !v.Attached:
			case len(numbers) > 0:
				if !slices.Contains(numbers, v.DeviceNumber) {
					t.info.DeviceNumber = numbers[0]
				}
				adopting.Go(func() { _ = c.serveAgain(ctx, t) }) // shown with the volume
			default:
				missing = append(missing, t)
			}
		}
	}
	adopting.Wait()
	for _, t := range missing {
		_ = c.serveAgain(ctx, t)
	}
	failpoint.Hit("start: volumes served")
	if err := c.removeOrphans(ctx); err != nil {
		c.log.Warn("looking for orphaned ublk devices", "err", err)
	}
}

// leftDevices are the numbers of the ublk devices in the kernel by their tags. A
// daemon that died before it had recorded a number has left the tag.
func (c *Controller) leftDevices(ctx context.Context) map[uint64][]int {
	list, err := c.ublk.List(ctx)
	if err != nil {
		c.log.Warn("looking for ublk devices of an earlier daemon", "err", err)
	}
	numbers := map[uint64][]int{}
	for _, info := range list {
		numbers[info.Tag] = append(numbers[info.Tag], info.ID)
	}
	return numbers
}

// serveAgain serves a volume that was served before, or notes why it can't.
func (c *Controller) serveAgain(ctx context.Context, t target) error {
	_, err := c.serve(ctx, t, t.info.DeviceNumber, false)
	if err != nil {
		c.log.Error("volume not served", "volume", t.String(), "err", err)
		c.setExport(t, &export{name: t.String(), failed: err})
	}
	return err
}

// serve gives a volume its block device: it adopts the device that an earlier
// daemon left or makes one. wanted is the device number, or -1 for any; with
// insist another number than wanted is an error.
func (c *Controller) serve(ctx context.Context, t target, wanted int, insist bool) (*export, error) {
	readOnly := t.readOnly()
	changed, err := c.changesOf(t)
	if err != nil {
		return nil, err
	}
	reservations, err := c.reservationsOf(t)
	if err != nil {
		return nil, err
	}
	opt := ublk.Options{
		ID: wanted, Queues: c.opt.Queues, Depth: c.opt.Depth,
		DataPath: c.opt.DataPath, ChangeMap: changed.Blocks(), Failed: c.failureLog(t).heard,
		ReadOnly: readOnly, Reserved: reservedOf(reservations), Tag: t.tag(), Control: c.ublk, Logger: c.log.With("volume", t.String()),
		// What looks like a partition table in failed data is nobody's to use, and
		// a volume that was never served has none.
		NoPartitionScan: t.info.Position.Quarantine != nil || t.blank(),
	}
	adopt := false
	if wanted >= 0 {
		info, err := c.ublk.Info(ctx, wanted)
		switch {
		case errors.Is(err, ublk.ErrNoDevice):
		case err != nil:
			return nil, fmt.Errorf("ublk device %d: %w", wanted, err)
		case info.Tag == opt.Tag && info.State == ublk.StateDead:
			// The daemon died between adding and starting it, or between stopping and
			// deleting: it has no disk, so nobody uses it.
			if err := c.ublk.Delete(ctx, wanted); err != nil {
				return nil, fmt.Errorf("ublk device %d, which was left half made: %w", wanted, err)
			}
		case info.Tag == opt.Tag:
			adopt = true
		case insist:
			return nil, &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("/dev/ublkb%d belongs to somebody else (process %d)", wanted, info.PID), Remedy: "leave --device out to get a free number"}
		default:
			c.log.Warn("device number is taken, using another", "volume", t.String(), "wanted", wanted)
			opt.ID = -1
		}
	}
	failpoint.Hit("serve: begun")
	// Where its device is now: a delete that was refused has made it anew, and the
	// number that it had may be another volume's.
	now, err := t.pool.Volume(t.uuid())
	if err != nil {
		return nil, fromPool(fmt.Sprintf("volume %s", t), err)
	}
	t.info.Device = now.Device
	backend, err := openBackend(t.pool, t.info.Device)
	if err != nil {
		return nil, fmt.Errorf("backend of volume %s: %w", t, err)
	}
	start := ublk.Start
	if adopt {
		start = ublk.Adopt
	}
	// The mark has to be there before udev hears of the device.
	if err := c.markQuarantine(opt.ID, t.info.Position.Quarantine != nil); err != nil {
		backend.Close()
		return nil, err
	}
	dev, err := start(ctx, backend, opt)
	if err != nil {
		backend.Close()
		return nil, fmt.Errorf("block device of volume %s: %w", t, err)
	}
	failpoint.Hit("serve: device started")
	e := &export{name: t.String(), dev: dev, backend: backend, readOnly: readOnly, link: c.linkPath(t)}
	dev.SetReadOnly(readOnly)
	if err := c.finishServe(ctx, t, e); err != nil {
		// An adopted device has users: it is kept for the next try.
		if adopt {
			return nil, errors.Join(err, e.abandon(ctx))
		}
		return nil, errors.Join(err, c.stopExport(ctx, e))
	}
	failpoint.Hit("serve: recorded")
	c.setExport(t, e)
	c.watch(t, e)
	if adopt {
		err := c.catchUp(ctx, t, e)
		if e = c.export(t); e == nil {
			return nil, err
		}
		if err != nil {
			c.log.Error("volume has changed, but its block device does not show it (detach and attach it)", "volume", t.String(), "err", err)
		}
	}
	c.log.Info("volume served", "volume", t.String(), "device", dev.Path(), "adopted", adopt, "read_only", readOnly)
	return e, nil
}

// openBackend opens a volume's device. What its users are told of it now stays, and the
// next swap may give the volume an extent of any member: one with larger blocks, or with
// a cache that a flush has to empty. A degraded volume may have no disk below it at all.
func openBackend(p *dmswap.Pool, device string) (*ublk.Backend, error) {
	backend, err := ublk.OpenBackend(device)
	if err != nil {
		return nil, err
	}
	present := disksOf(p, nil)
	if err := backend.AlsoFor(present...); err != nil {
		backend.Close()
		return nil, err
	}
	if len(present) < len(p.Info().Members) {
		backend.AlsoCached() // the one that is away may be
	}
	return backend, nil
}

// catchUp gives an adopted device what its volume has in the pool, size and
// leave to write: the daemon may have died between the one and the other. It
// makes one anew, too, that was made while a disk was away that needs more.
func (c *Controller) catchUp(ctx context.Context, t target, e *export) error {
	size := uint64(t.info.Size)
	grown := e.dev.Limits().Size != size
	if grown && e.dev.Info().Flags.Has(ublk.UpdateSize) {
		if err := e.dev.Resize(ctx, size); err != nil {
			return err
		}
		grown = false
	}
	unsuited := e.unsuited(t.pool, &t.info.Position)
	if unsuited != nil {
		c.log.Warn("the block device does not suit its disks", "volume", t.String(), "err", unsuited)
	}
	if !grown && !e.madeReadOnly(t) && unsuited == nil {
		return nil
	}
	// As in GrowVolume and ReleaseQuarantine: nobody held it then.
	if err := c.refuseHolders(ctx, "unmount it first", e); err != nil {
		return err
	}
	return c.restart(ctx, t, e)
}

// madeReadOnly tells whether the device was made read-only for a volume that can
// be written to now. The driver's attribute can't be changed while it lives.
func (e *export) madeReadOnly(t target) bool {
	return e.dev != nil && e.dev.Limits().ReadOnly && !t.readOnly()
}

// unsuited says what a disk that a position lies on, or any of the pool's when it
// is nil, needs that the device has not told its users; as when the disk was away
// while the device was made. It is nil when there is none.
func (e *export) unsuited(p *dmswap.Pool, under *dmswap.Position) error {
	for _, disk := range disksOf(p, under) {
		if err := e.dev.Limits().Suit(disk); err != nil {
			return err
		}
	}
	return nil
}

// finishServe makes the link and records how the volume is served.
func (c *Controller) finishServe(ctx context.Context, t target, e *export) error {
	if err := setBlockReadOnly(e.dev.Path(), e.readOnly); err != nil {
		return fmt.Errorf("volume %s: %w", t, err)
	}
	if err := c.markQuarantine(e.dev.ID(), t.info.Position.Quarantine != nil); err != nil {
		return err
	}
	if err := replaceLink(e.dev.Path(), e.link); err != nil {
		return fmt.Errorf("link of volume %s: %w", t, err)
	}
	failpoint.Hit("serve: link made")
	// Commits only what is new: nothing for a device that was adopted.
	err := t.pool.SetVolume(ctx, t.uuid(), func(a *dmswap.VolumeAttrs) {
		a.Attached, a.DeviceNumber, a.ReadOnly = true, e.dev.ID(), t.info.ReadOnly
	})
	return fromPool(fmt.Sprintf("volume %s", t), err)
}

// disksOf are the disks of the members that take part, of those that a position
// lies on unless it is nil. One that was pulled and not yet missed is none.
func disksOf(p *dmswap.Pool, under *dmswap.Position) (paths []string) {
	for _, m := range p.Info().Members {
		if m.State != dmswap.MemberOK || under != nil && !under.LiesOn(m.Index) {
			continue
		}
		if _, err := os.Stat(m.Path); err == nil {
			paths = append(paths, m.Path)
		}
	}
	return paths
}

func (c *Controller) setExport(t target, e *export) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e == nil {
		delete(c.exports, t.uuid())
		return
	}
	c.exports[t.uuid()] = e
}

// abandon leaves the device to the next daemon.
func (e *export) abandon(ctx context.Context) error {
	if e.dev == nil {
		return nil
	}
	return errors.Join(e.dev.Abandon(ctx), e.backend.Close())
}

// stopExport removes the device and its link. The volume keeps its number.
func (c *Controller) stopExport(ctx context.Context, e *export) error {
	if e.dev == nil {
		return nil
	}
	if err := e.dev.Stop(ctx); err != nil {
		return fmt.Errorf("removing %s of volume %s: %w", e.dev.Path(), e.name, err)
	}
	failpoint.Hit("stop: device removed")
	if err := e.backend.Close(); err != nil {
		c.log.Warn("backend not closed", "volume", e.name, "err", err)
	}
	if err := os.Remove(e.link); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.Warn("link not removed", "link", e.link, "err", err)
	}
	// Gone unless another volume's link is in it.
	_ = os.Remove(filepath.Dir(e.link))
	failpoint.Hit("stop: link removed")
	return c.markQuarantine(e.dev.ID(), false)
}

// removeOrphans deletes ublk devices that bear an open pool's tag but belong
// to none of its volumes: a daemon died between making or forgetting a volume
// and its device.
func (c *Controller) removeOrphans(ctx context.Context) error {
	list, err := c.ublk.List(ctx)
	if err != nil {
		return err
	}
	wanted, pools := map[int]bool{}, map[uint64]bool{}
	c.mu.Lock()
	for _, e := range c.exports {
		if e.dev != nil {
			wanted[e.dev.ID()] = true
		}
	}
	for uuid := range c.pools {
		pools[tagMagic<<48|poolTag(uuid)] = true
	}
	c.mu.Unlock()
	for _, info := range list {
		if wanted[info.ID] || !pools[info.Tag&^(1<<24-1)] || c.shouldServe(info.Tag) {
			continue
		}
		c.log.Warn("removing an orphaned block device", "device", fmt.Sprintf("/dev/ublkb%d", info.ID))
		if err := c.ublk.Delete(ctx, info.ID); err != nil {
			return fmt.Errorf("ublk device %d: %w", info.ID, err)
		}
	}
	return nil
}

// shouldServe tells whether a device with this tag belongs to an attached
// volume. One that could not be adopted holds its application's I/O and is
// left for the next try.
func (c *Controller) shouldServe(tag uint64) bool {
	for _, p := range c.poolsSorted() {
		for _, v := range p.Volumes() {
			if t := (target{p, v}); v.Attached && t.tag() == tag {
				return true
			}
		}
	}
	return false
}

func (c *Controller) linkPath(t target) string {
	return filepath.Join(c.opt.LinkDir, t.pool.Info().Name, t.info.Name)
}

// replaceLink makes link point to path, in one step for whoever looks.
func replaceLink(path, link string) error {
	if err := makePublic(filepath.Dir(link)); err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(link), "."+filepath.Base(link)+".new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(path, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, link)
}

// makePublic makes a directory and those above it that everybody may look into,
// whatever the daemon's mask for new files is.
func makePublic(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := makePublic(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// markQuarantine makes or removes the mark by which the udev rules know that a
// block device must not be probed.
func (c *Controller) markQuarantine(id int, quarantined bool) error {
	if id < 0 {
		return nil
	}
	path := c.markPath(id)
	if !quarantined {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("mark of a quarantined device: %w", err)
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("mark of a quarantined device: %w", err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return fmt.Errorf("mark of a quarantined device: %w", err)
	}
	return nil
}

func (c *Controller) markPath(id int) string {
	return filepath.Join(c.opt.RunDir, "quarantine", "ublkb"+strconv.Itoa(id))
}

// setBlockReadOnly sets the kernel's read-only flag of a block device (BLKROSET,
// linux/fs.h): write(2) and mounts for writing are refused. What comes another
// way is stopped by the server, see [ublk.Device.SetReadOnly].
func setBlockReadOnly(path string, readOnly bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	value := 0
	if readOnly {
		value = 1
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, value); err != nil {
		return fmt.Errorf("BLKROSET on %s: %w", path, err)
	}
	return nil
}
