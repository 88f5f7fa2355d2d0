package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/holders"
	"github.com/swapback/swapback/ublk"
)

// Volumes implements [api.Service].
func (c *Controller) Volumes(_ context.Context, pool string) ([]api.Volume, error) {
	pools := c.poolsSorted()
	if pool != "" {
		p, err := c.pool(pool)
		if err != nil {
			return nil, err
		}
		pools = []*dmswap.Pool{p}
	}
	list := []api.Volume{}
	for _, p := range pools {
		for _, v := range p.Volumes() {
			list = append(list, c.describe(target{p, v}))
		}
	}
	return list, nil
}

// Volume implements [api.Service].
func (c *Controller) Volume(_ context.Context, ref string) (api.Volume, error) {
	t, err := c.find(ref)
	if err != nil {
		return api.Volume{}, err
	}
	return c.describe(t), nil
}

// CreateVolume implements [api.Service].
func (c *Controller) CreateVolume(ctx context.Context, req api.CreateVolumeRequest) (api.Volume, error) {
	p, err := c.pool(req.Pool)
	if err != nil {
		return api.Volume{}, err
	}
	var export *dmswap.Export
	if req.Like != "" {
		like, err := c.find(req.Like)
		if err == nil {
			err = mustBeExported(like)
		}
		if err != nil {
			return api.Volume{}, err
		}
		export = like.info.Export
	}
	// Claimed before it is there: nobody comes between creating and attaching it.
	uuid := c.claimNew(p)
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.claims, uuid)
	}()
	info, err := p.CreateVolume(ctx, dmswap.VolumeSpec{
		UUID: uuid, Name: req.Name, Size: req.Size, Stripes: req.Stripes, StripeSize: req.StripeSize, Zero: req.Zero,
		// One commit for all: a daemon that dies here serves it when it is back.
		Attached: !req.Detached, Export: export,
	})
	if err != nil {
		return api.Volume{}, fromPool(fmt.Sprintf("volume %s/%s not created", p.Info().Name, req.Name), err)
	}
	t := target{p, info}
	c.linkMapper(info.Device)
	failpoint.Hit("create: in the pool")
	c.log.Info("volume created", "volume", t.String(), "size", req.Size)
	if !req.Detached {
		_, err = c.serve(ctx, t, -1, false)
	}
	if err == nil {
		err = c.serveRemote(ctx, t)
	}
	if err != nil {
		// A volume that nobody has seen yet holds no data: all or nothing.
		after := context.WithoutCancel(ctx)
		undo := c.unserve(after, t)
		if undo == nil {
			undo = p.DeleteVolume(after, t.uuid())
		}
		c.forgetReservations(t)
		c.forgetChanges(t)
		return api.Volume{}, errors.Join(fmt.Errorf("volume %s not created: %w", t, err), undo)
	}
	failpoint.Hit("create: served")
	return c.refreshed(t)
}

// DeleteVolume implements [api.Service].
func (c *Controller) DeleteVolume(ctx context.Context, ref string, force bool) error {
	t, release, err := c.claimOne("deleting it", ref)
	if err != nil {
		return err
	}
	defer release()
	if q := t.info.Position.Quarantine; q != nil && !force {
		return &api.Error{
			Code:    api.CodeQuarantined,
			Message: fmt.Sprintf("volume %s is in quarantine since %s: %s", t, q.Time.Format(time.RFC3339), q.Reason),
			Remedy:  "it is evidence of a failure; release it first, or delete it with --force",
		}
	}
	if err := c.refuseHosts(nil, t); err != nil {
		return err
	}
	// It stays marked as attached and exported: a daemon that dies here serves it again.
	if err := c.unserve(ctx, t); err != nil {
		return err
	}
	failpoint.Hit("delete: device removed")
	err = c.stopRemote(ctx, t)
	if err == nil {
		err = fromPool(fmt.Sprintf("volume %s not deleted", t), t.pool.DeleteVolume(ctx, t.uuid()))
	}
	if err != nil {
		return errors.Join(err, c.serveBack(ctx, t))
	}
	failpoint.Hit("delete: out of the pool")
	c.forgetReservations(t)
	c.forgetChanges(t)
	c.unlinkMapper()
	c.log.Info("volume deleted", "volume", t.String())
	return nil
}

// GrowVolume implements [api.Service]. A kernel that can't resize a live ublk
// device (before 6.16) gets a new device of the same number, if nobody holds it.
func (c *Controller) GrowVolume(ctx context.Context, ref string, size int64) (api.Volume, error) {
	t, release, err := c.claimOne("growing it", ref)
	if err != nil {
		return api.Volume{}, err
	}
	defer release()
	if err := refuseDegraded("grow refused", t); err != nil {
		return api.Volume{}, err
	}
	e := c.export(t)
	live := e != nil && e.dev != nil
	if e != nil && e.trouble() != nil {
		return api.Volume{}, &api.Error{
			Code: api.CodeInternal, Message: fmt.Sprintf("grow refused: volume %s should be served but is not: %v", t, e.trouble()),
			Remedy: "pool check --repair serves it, or says why not",
		}
	}
	restart := live && !e.dev.Info().Flags.Has(ublk.UpdateSize)
	if live && !restart {
		// Its new extents may lie on any disk.
		if err := e.unsuited(t.pool, nil); err != nil {
			return api.Volume{}, &api.Error{
				Code:    api.CodeInvalid,
				Message: fmt.Sprintf("grow refused: the device of %s is not made for all disks of the pool: %v", t, err),
				Remedy:  fmt.Sprintf("detach %s and attach it: its new device will be", t),
			}
		}
	}
	if r := c.door(t); r != nil {
		if err := r.unsuited(t.pool, nil); err != nil {
			return api.Volume{}, &api.Error{
				Code:    api.CodeInvalid,
				Message: fmt.Sprintf("grow refused: the hosts of %s were not told what all disks of the pool need: %v", t, err),
				Remedy:  fmt.Sprintf("delete the export of %s and create it again", t),
			}
		}
	}
	if restart {
		if err := c.refuseHolders(ctx, "this kernel can't grow a device in use (needs 6.16): unmount it first", e); err != nil {
			return api.Volume{}, err
		}
	}
	info, err := t.pool.GrowVolume(ctx, t.uuid(), size)
	if err != nil {
		return api.Volume{}, fromPool(fmt.Sprintf("growing volume %s", t), err)
	}
	t.info = info
	// First the map, so that no write behind the old end goes unrecorded.
	err = c.growChanges(ctx, t)
	failpoint.Hit("grow: change map grown")
	switch {
	case err != nil:
	case restart:
		err = c.restart(ctx, t, e)
	case live:
		err = e.dev.Resize(ctx, uint64(info.Size))
	}
	if err != nil {
		return api.Volume{}, fmt.Errorf("volume %s has its new size in the pool, but its block device does not show it (detach and attach it): %w", t, err)
	}
	if r := c.door(t); r != nil {
		if err := r.ns.Resize(uint64(info.Size)); err != nil {
			return api.Volume{}, fmt.Errorf("volume %s has its new size, but other hosts do not see it (delete its export and create it again): %w", t, err)
		}
	}
	failpoint.Hit("grow: shown")
	c.log.Info("volume grown", "volume", t.String(), "size", info.Size)
	return c.describe(t), nil
}

// restart replaces the block device of a volume that nobody holds.
func (c *Controller) restart(ctx context.Context, t target, e *export) error {
	if err := c.stopExport(ctx, e); err != nil {
		return err
	}
	c.setExport(t, nil)
	failpoint.Hit("restart: device stopped")
	_, err := c.serve(ctx, t, e.dev.ID(), false)
	return err
}

// Attach implements [api.Service].
func (c *Controller) Attach(ctx context.Context, ref string, req api.AttachRequest) (api.Volume, error) {
	t, release, err := c.claimOne("attaching it", ref)
	if err != nil {
		return api.Volume{}, err
	}
	defer release()
	if e := c.export(t); e != nil && e.dev != nil {
		return api.Volume{}, &api.Error{Code: api.CodeExists, Message: fmt.Sprintf("volume %s is attached already, as %s", t, e.dev.Path())}
	}
	wanted, insist := t.info.DeviceNumber, false
	if req.Device != nil {
		wanted, insist = *req.Device, true
	}
	t.info.ReadOnly = req.ReadOnly
	if _, err := c.serve(ctx, t, wanted, insist); err != nil {
		return api.Volume{}, err
	}
	if r := c.door(t); r != nil && r.ns.ReadOnly() != t.readOnly() {
		r.ns.SetReadOnly(t.readOnly())
	}
	return c.refreshed(t)
}

// Detach implements [api.Service].
func (c *Controller) Detach(ctx context.Context, ref string) (api.Volume, error) {
	t, release, err := c.claimOne("detaching it", ref)
	if err != nil {
		return api.Volume{}, err
	}
	defer release()
	if c.export(t) == nil && !t.info.Attached {
		return api.Volume{}, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("volume %s is not attached", t)}
	}
	if err := c.detach(ctx, t); err != nil {
		return api.Volume{}, err
	}
	failpoint.Hit("detach: recorded")
	return c.refreshed(t)
}

const unmountFirst = "unmount or stop what is named above"

// detach takes away the block device, if there is one and nobody holds it, for
// good.
func (c *Controller) detach(ctx context.Context, t target) error {
	if err := c.unserve(ctx, t); err != nil {
		return err
	}
	failpoint.Hit("detach: device removed")
	if !t.info.Attached {
		return nil
	}
	err := t.pool.SetVolume(ctx, t.uuid(), func(a *dmswap.VolumeAttrs) { a.Attached = false })
	return fromPool(fmt.Sprintf("volume %s", t), err)
}

// serveBack brings back the devices of attached volumes that unserve took, and serves
// exported ones that stopRemote took.
func (c *Controller) serveBack(ctx context.Context, targets ...target) error {
	var errs []error
	for _, t := range targets {
		if c.remote(t) == nil {
			if err := c.serveRemote(context.WithoutCancel(ctx), t); err != nil {
				errs = append(errs, fmt.Errorf("and volume %s could not be exported again: %w", t, err))
			}
		}
		if !t.info.Attached || c.export(t) != nil {
			continue
		}
		if err := c.serveAgain(context.WithoutCancel(ctx), t); err != nil {
			errs = append(errs, fmt.Errorf("and the device of volume %s could not be made again: %w", t, err))
		}
	}
	return errors.Join(errs...)
}

// unserve takes away the block device, if there is one and nobody holds it. The
// volume stays marked as it is.
func (c *Controller) unserve(ctx context.Context, t target) error {
	e := c.export(t)
	if e != nil && e.dev != nil {
		if err := c.refuseHolders(ctx, unmountFirst, e); err != nil {
			return err
		}
		if err := c.stopExport(ctx, e); err != nil {
			return err
		}
	} else if err := c.removeLeft(ctx, t); err != nil {
		return err
	}
	c.setExport(t, nil)
	return nil
}

// refuseHolders returns an error that names everybody who holds one of the
// devices. An export may be nil.
func (c *Controller) refuseHolders(ctx context.Context, remedy string, exports ...*export) error {
	var paths, names []string
	for _, e := range exports {
		if e != nil && e.dev != nil {
			paths, names = append(paths, e.dev.Path()), append(names, e.name)
		}
	}
	found, err := c.holdersOf(ctx, paths...)
	if err != nil || len(found) == 0 {
		return err
	}
	message := fmt.Sprintf("volume %s is in use", names[0])
	if len(names) > 1 {
		message = fmt.Sprintf("of %d volumes some are in use", len(names))
	}
	return &api.Error{Code: api.CodeInUse, Message: message, Remedy: remedy, Holders: apiHolders(found)}
}

// holdersOf names who holds one of the devices, and waits a little for udev to
// let go. It walks through all processes once, however many devices there are.
func (c *Controller) holdersOf(ctx context.Context, paths ...string) ([]holders.Holder, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	finder := c.finder()
	// Somebody whom no table of the kernel names can still have claimed it.
	finder.Probe = true
	return finder.Lasting(ctx, paths...)
}

// Holders implements [api.Service].
func (c *Controller) Holders(ctx context.Context, ref string) ([]api.Holder, error) {
	t, err := c.find(ref)
	if err != nil {
		return nil, err
	}
	hosts := append([]api.Holder{}, c.hostsOf(nil, t)...)
	e := c.export(t)
	if e == nil || e.dev == nil {
		return hosts, nil
	}
	found, err := c.holdersOf(ctx, e.dev.Path())
	return append(apiHolders(found), hosts...), err
}

// refreshed describes a volume as it is now.
func (c *Controller) refreshed(t target) (api.Volume, error) {
	info, err := t.pool.Volume(t.uuid())
	if err != nil {
		return api.Volume{}, fromPool(fmt.Sprintf("volume %s", t), err)
	}
	t.info = info
	return c.describe(t), nil
}
