package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
)

// Pools implements [api.Service].
func (c *Controller) Pools(context.Context) ([]api.Pool, error) {
	list := []api.Pool{}
	for _, p := range c.poolsSorted() {
		list = append(list, describePool(p))
	}
	return list, nil
}

// Pool implements [api.Service].
func (c *Controller) Pool(_ context.Context, ref string) (api.Pool, error) {
	p, err := c.pool(ref)
	if err != nil {
		return api.Pool{}, err
	}
	return describePool(p), nil
}

// CreatePool implements [api.Service].
func (c *Controller) CreatePool(ctx context.Context, req api.CreatePoolRequest) (api.Pool, error) {
	c.mu.Lock()
	for _, p := range c.pools {
		if p.Info().Name == req.Name {
			c.mu.Unlock()
			return api.Pool{}, &api.Error{Code: api.CodeExists, Message: fmt.Sprintf("a pool %q is open already", req.Name), Remedy: "choose another name"}
		}
	}
	c.mu.Unlock()
	p, err := dmswap.Create(ctx, dmswap.CreateOptions{
		Name: req.Name, Disks: req.Disks, ExtentSize: req.ExtentSize, Force: req.Force, Logger: c.log,
	})
	if err != nil {
		return api.Pool{}, fromPool(fmt.Sprintf("pool %s not created", req.Name), err)
	}
	c.mu.Lock()
	c.pools[p.Info().UUID] = p
	c.mu.Unlock()
	c.log.Info("pool created", "pool", req.Name, "disks", req.Disks)
	return describePool(p), nil
}

// DeletePool implements [api.Service].
func (c *Controller) DeletePool(ctx context.Context, ref string, force bool) error {
	p, err := c.pool(ref)
	if err != nil {
		return err
	}
	name, uuid := p.Info().Name, p.Info().UUID
	volumes := p.Volumes()
	if len(volumes) > 0 && !force {
		return &api.Error{
			Code:    api.CodeExists,
			Message: fmt.Sprintf("pool %s has %d volumes, %s among them", name, len(volumes), volumes[0].Name),
			Remedy:  "delete them first, or delete the pool with --force",
		}
	}
	var refs []string
	for _, v := range volumes {
		refs = append(refs, v.UUID)
	}
	targets, release, err := c.claim("deleting its pool", refs...)
	if err != nil {
		return err
	}
	defer release()
	var exports []*export
	for _, t := range targets {
		exports = append(exports, c.export(t))
	}
	if err := c.refuseHolders(ctx, unmountFirst, exports...); err != nil {
		return err
	}
	if err := c.destroy(ctx, p, targets); err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.pools, uuid)
	c.mu.Unlock()
	for _, t := range targets {
		c.forgetChanges(t.info.Position.ID)
	}
	c.unlinkMapper()
	c.log.Info("pool deleted", "pool", name)
	return nil
}

// destroy takes the block devices of all volumes away, and then the pool. The
// volumes of a pool that stays are served again.
func (c *Controller) destroy(ctx context.Context, p *dmswap.Pool, targets []target) (err error) {
	var stopped []target
	defer func() {
		if err == nil {
			return
		}
		for _, t := range stopped {
			if _, again := c.serve(context.WithoutCancel(ctx), t, t.info.DeviceNumber, false); again != nil {
				err = errors.Join(err, fmt.Errorf("and the device of volume %s could not be made again: %w", t, again))
			}
		}
	}()
	for _, t := range targets {
		e := c.export(t)
		if e != nil && e.dev != nil {
			if err := c.stopExport(ctx, e); err != nil {
				return err
			}
			stopped = append(stopped, t)
		}
		c.setExport(t, nil)
	}
	return fromPool(fmt.Sprintf("pool %s not deleted", p.Info().Name), p.Destroy(ctx))
}

// CheckPool implements [api.Service]. Beside what the pool itself can check, it
// holds the block devices against the volumes.
func (c *Controller) CheckPool(ctx context.Context, ref string) (api.CheckReport, error) {
	p, err := c.pool(ref)
	if err != nil {
		return api.CheckReport{}, err
	}
	r, err := p.Check(ctx)
	if err != nil {
		return api.CheckReport{}, fromPool("pool check", err)
	}
	report := api.CheckReport{Pool: p.Info().Name, Checked: append([]string{}, r.Checked...), Problems: append([]string{}, r.Problems...)}
	report.Checked = append(report.Checked, "every attached volume is served by a block device of its size")
	for _, v := range p.Volumes() {
		if problem := c.checkExport(ctx, target{p, v}); problem != "" {
			report.Problems = append(report.Problems, problem)
		}
	}
	report.OK = len(report.Problems) == 0
	return report, nil
}

// checkExport says what is wrong with a volume's block device, or "".
func (c *Controller) checkExport(ctx context.Context, t target) string {
	e := c.export(t)
	switch {
	case e == nil && t.info.Attached && c.claimed(t.uuid()) == "":
		return fmt.Sprintf("volume %s is marked attached but not served", t)
	case e == nil:
		return ""
	case e.dev == nil:
		return fmt.Sprintf("volume %s is not served: %v", t, e.failed)
	case e.dev.Err() != nil:
		return fmt.Sprintf("volume %s: its server has ended: %v", t, e.dev.Err())
	}
	if size := e.dev.Limits().Size; size != uint64(t.info.Size) {
		return fmt.Sprintf("volume %s has %d bytes, its block device %s shows %d", t, t.info.Size, e.dev.Path(), size)
	}
	info, err := c.ublk.Info(ctx, e.dev.ID())
	if err != nil {
		return fmt.Sprintf("volume %s: %s: %v", t, e.dev.Path(), err)
	}
	if info.Tag != t.tag() {
		return fmt.Sprintf("volume %s: %s carries the tag of another volume", t, e.dev.Path())
	}
	return ""
}
