package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
)

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
	return c.report(ctx, p, r), nil
}

// RepairPool implements [api.Service].
func (c *Controller) RepairPool(ctx context.Context, ref string) (api.CheckReport, error) {
	p, err := c.pool(ref)
	if err != nil {
		return api.CheckReport{}, err
	}
	r, err := p.Repair(ctx, dmswap.RepairOptions{KeepDir: c.opt.KeepDir})
	if err != nil {
		return api.CheckReport{}, fromPool("pool repair", err)
	}
	for _, v := range p.Volumes() {
		c.linkMapper(v.Device)
	}
	c.serveRest(ctx, p)
	return c.report(ctx, p, r), nil
}

func (c *Controller) report(ctx context.Context, p *dmswap.Pool, r dmswap.Report) api.CheckReport {
	report := api.CheckReport{
		Pool: p.Info().Name, Checked: append([]string{}, r.Checked...), Problems: append([]string{}, r.Problems...),
		Found: r.Found, Mended: r.Mended, Saved: r.Kept,
	}
	report.Checked = append(report.Checked, "every attached volume is served by a block device of its size, writable if the volume is")
	if c.nvme != nil {
		report.Checked = append(report.Checked, "every exported volume is served to other hosts in its size")
	}
	for _, v := range p.Volumes() {
		if problem := c.checkExport(ctx, target{p, v}); problem != "" {
			report.Problems = append(report.Problems, problem)
		}
	}
	for _, v := range p.Volumes() {
		if problem := c.checkRemote(target{p, v}); problem != "" {
			report.Problems = append(report.Problems, problem)
		}
	}
	report.OK = len(report.Problems) == 0
	return report
}

// stillReadOnly is what a volume says whose device was [export.madeReadOnly].
const stillReadOnly = "it can be written to, but its block device was made read-only and somebody holds it (unmount it; then pool check --repair makes it anew)"

// checkExport says what is wrong with a volume's block device, or "".
func (c *Controller) checkExport(ctx context.Context, t target) string {
	e := c.export(t)
	switch {
	case e == nil && t.info.Attached && c.claimed(t.uuid()) == "":
		return fmt.Sprintf("volume %s is marked attached but not served", t)
	case e == nil:
		return ""
	case e.trouble() != nil:
		return fmt.Sprintf("volume %s is not served: %v", t, e.trouble())
	}
	if size := e.dev.Limits().Size; size != uint64(t.info.Size) {
		return fmt.Sprintf("volume %s has %d bytes, its block device %s shows %d", t, t.info.Size, e.dev.Path(), size)
	}
	if e.madeReadOnly(t) && c.claimed(t.uuid()) == "" {
		return fmt.Sprintf("volume %s: %s", t, stillReadOnly)
	}
	if err := e.unsuited(t.pool, &t.info.Position); err != nil && c.claimed(t.uuid()) == "" {
		return fmt.Sprintf("volume %s: %v (unmount it; then pool check --repair makes the device anew)", t, err)
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

// checkRemote says what is wrong with a volume's service to other hosts, or "".
func (c *Controller) checkRemote(t target) string {
	r := c.remote(t)
	switch {
	case r == nil:
		return ""
	case r.failed != nil:
		return fmt.Sprintf("volume %s is not served to other hosts: %v", t, r.failed)
	case r.ns.Size() != uint64(t.info.Size) && c.claimed(t.uuid()) == "":
		return fmt.Sprintf("volume %s has %d bytes, other hosts see %d (delete its export and create it again)", t, t.info.Size, r.ns.Size())
	}
	if err := r.unsuited(t.pool, &t.info.Position); err != nil && c.claimed(t.uuid()) == "" {
		return fmt.Sprintf("volume %s: its hosts were not told what its disks need: %v (disconnect them, delete its export and create it again)", t, err)
	}
	return ""
}

// PoolMetadata implements [api.Service].
func (c *Controller) PoolMetadata(_ context.Context, ref string) (api.PoolMetadata, error) {
	p, err := c.pool(ref)
	if err != nil {
		return api.PoolMetadata{}, err
	}
	d, err := p.Dump()
	if err != nil {
		return api.PoolMetadata{}, fromPool("dump of metadata", err)
	}
	text, err := d.Encode()
	if err != nil {
		return api.PoolMetadata{}, err
	}
	return api.PoolMetadata{Pool: d.Pool(), Generation: d.Generation(), Dump: string(text)}, nil
}

// RejoinPool implements [api.Service].
func (c *Controller) RejoinPool(ctx context.Context, ref string) (api.Pool, error) {
	p, notOpen := c.pool(ref)
	if notOpen != nil && ref == "" {
		return api.Pool{}, notOpen
	}
	found, err := dmswap.Scan(ctx, dmswap.ScanOptions{Disks: c.opt.Disks, SkipBad: true, Logger: c.log})
	if err != nil {
		return api.Pool{}, fmt.Errorf("looking for members: %w", err)
	}
	if notOpen != nil {
		if p, err = c.openLate(ctx, ref, found, notOpen); err != nil {
			return api.Pool{}, err
		}
		return describePool(p), nil
	}
	info := p.Info()
	disks := []string{}
	for _, f := range found {
		if f.UUID != info.UUID {
			continue
		}
		if len(f.Problems) > 0 {
			return api.Pool{}, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("pool %s: %s", info.Name, f.Problems[0]), Remedy: "disconnect the one that is not right"}
		}
		disks = f.Disks
	}
	back, err := p.Rejoin(ctx, disks)
	if len(back) > 0 {
		c.log.Info("members take part again", "pool", info.Name, "members", back)
		c.serveRest(ctx, p)
	}
	if err != nil {
		return api.Pool{}, fromPool("rejoin", err)
	}
	return describePool(p), nil
}

// openLate opens a pool that could not be opened when the daemon started.
func (c *Controller) openLate(ctx context.Context, ref string, found []dmswap.FoundPool, notOpen error) (*dmswap.Pool, error) {
	i := slices.IndexFunc(found, func(f dmswap.FoundPool) bool { return (f.Name == ref || f.UUID == ref) && len(f.Problems) == 0 })
	if i < 0 {
		return nil, notOpen
	}
	if err := c.openPool(ctx, found[i]); err != nil {
		return nil, fromPool("pool "+ref, err)
	}
	c.mu.Lock()
	p := c.pools[found[i].UUID]
	c.failed = slices.DeleteFunc(c.failed, func(f api.FailedPool) bool { return f.Name == found[i].Name })
	c.mu.Unlock()
	if p == nil {
		return nil, errors.New("the pool was opened and is gone")
	}
	c.serveRest(ctx, p)
	return p, nil
}

// serveRest serves the attached volumes of a pool that are not served yet, and
// gives devices that were held what they lacked, see [Controller.catchUp].
func (c *Controller) serveRest(ctx context.Context, p *dmswap.Pool) {
	for _, v := range p.Volumes() {
		t, release, err := c.claimOne("serving it again", v.UUID)
		if err != nil {
			continue // busy: whoever has it sees to it
		}
		switch e := c.export(t); {
		case !t.info.Attached:
		case e == nil || e.trouble() != nil:
			_ = c.serveAnew(context.WithoutCancel(ctx), t, e) // shown with the volume
		default:
			if err := c.catchUp(context.WithoutCancel(ctx), t, e); err != nil {
				c.log.Warn("block device not made anew", "volume", t.String(), "err", err)
			}
		}
		if c.nvme != nil && t.info.Export != nil && c.door(t) == nil {
			_ = c.serveRemoteAgain(context.WithoutCancel(ctx), t) // shown with the export
		}
		release()
	}
}

// refuseDegraded refuses what can't be done to a volume of which a member is
// missing, before anything else about it is looked at.
func refuseDegraded(operation string, targets ...target) error {
	for _, t := range targets {
		if t.info.Degraded != "" {
			return fromPool(operation, &dmswap.DegradedError{Volume: t.info.Name, Why: t.info.Degraded})
		}
	}
	return nil
}
