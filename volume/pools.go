package volume

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/failpoint"
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
	for _, p := range c.poolsSorted() {
		if p.Info().Name == req.Name {
			return api.Pool{}, &api.Error{Code: api.CodeExists, Message: fmt.Sprintf("a pool %q is open already", req.Name), Remedy: "choose another name"}
		}
	}
	p, err := dmswap.Create(ctx, dmswap.CreateOptions{
		Name: req.Name, Disks: req.Disks, ExtentSize: req.ExtentSize, Force: req.Force, DiskTimeout: c.opt.DiskTimeout, Logger: c.log,
	})
	if err != nil {
		return api.Pool{}, fromPool(fmt.Sprintf("pool %s not created", req.Name), err)
	}
	failpoint.Hit("pool create: opened")
	c.track(p)
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
	if err := c.refuseHosts(nil, targets...); err != nil {
		return err
	}
	for _, t := range targets {
		if err := c.refuseLeft(ctx, t); err != nil {
			return err
		}
	}
	if err := c.destroy(ctx, p, targets); err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.pools, uuid)
	c.mu.Unlock()
	for _, t := range targets {
		c.forgetChanges(t)
	}
	if err := os.RemoveAll(c.changesPath(uuid)); err != nil {
		c.log.Warn("change maps of a pool that is gone not removed", "err", err)
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
		err = errors.Join(err, c.serveBack(ctx, stopped...))
	}()
	for _, t := range targets {
		stopped = append(stopped, t)
		if err := c.stopRemote(ctx, t); err != nil {
			return err
		}
		e := c.export(t)
		if e != nil && e.dev != nil {
			if err := c.stopExport(ctx, e); err != nil {
				return err
			}
		} else if err := c.removeLeft(ctx, t); err != nil {
			return err
		}
		c.setExport(t, nil)
	}
	failpoint.Hit("pool delete: devices removed")
	return fromPool(fmt.Sprintf("pool %s not deleted", p.Info().Name), p.Destroy(ctx))
}
