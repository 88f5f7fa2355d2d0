package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/failpoint"
)

// Exports implements [api.Service].
func (c *Controller) Exports(context.Context) ([]api.Export, error) {
	list := []api.Export{}
	for _, t := range c.exported() {
		list = append(list, c.describeRemote(t))
	}
	return list, nil
}

// Export implements [api.Service].
func (c *Controller) Export(_ context.Context, ref string) (api.Export, error) {
	t, err := c.find(ref)
	if err == nil {
		err = mustBeExported(t)
	}
	if err != nil {
		return api.Export{}, err
	}
	return c.describeRemote(t), nil
}

func mustBeExported(t target) error {
	if t.info.Export != nil {
		return nil
	}
	return &api.Error{
		Code: api.CodeNotFound, Message: fmt.Sprintf("volume %s is not exported", t),
		Remedy: fmt.Sprintf("swapback export create %s --host NQN", t.info.Name),
	}
}

// CreateExport implements [api.Service]. It is recorded first: a daemon that dies here
// serves it when it is back.
func (c *Controller) CreateExport(ctx context.Context, ref string, req api.ExportRequest) (api.Export, error) {
	t, release, err := c.claimOne("exporting it", ref)
	if err != nil {
		return api.Export{}, err
	}
	defer release()
	if t.info.Export != nil {
		return api.Export{}, &api.Error{
			Code: api.CodeExists, Message: fmt.Sprintf("volume %s is exported already", t),
			Remedy: fmt.Sprintf("export allow and export deny change who may use it; export show %s tells", t.info.Name),
		}
	}
	e := &dmswap.Export{Hosts: withoutTwins(req.Hosts), Authenticate: req.Authenticate}
	if err := t.pool.SetExport(ctx, t.uuid(), e); err != nil {
		return api.Export{}, fromPool(fmt.Sprintf("volume %s not exported", t), err)
	}
	failpoint.Hit("export: recorded")
	t.info.Export = e
	if err := c.serveRemote(ctx, t); err != nil {
		undo := t.pool.SetExport(context.WithoutCancel(ctx), t.uuid(), nil)
		c.forgetReservations(t)
		return api.Export{}, errors.Join(fmt.Errorf("volume %s not exported: %w", t, err), undo)
	}
	return c.describeRemote(t), nil
}

func withoutTwins(hosts []string) []string {
	list := slices.Clone(hosts)
	slices.Sort(list)
	return slices.Compact(list)
}

// ChangeExport implements [api.Service].
func (c *Controller) ChangeExport(ctx context.Context, ref string, req api.ChangeExportRequest) (api.Export, error) {
	t, release, err := c.claimOne("changing its export", ref)
	if err != nil {
		return api.Export{}, err
	}
	defer release()
	if err := mustBeExported(t); err != nil {
		return api.Export{}, err
	}
	e := &dmswap.Export{Authenticate: t.info.Export.Authenticate}
	for _, h := range withoutTwins(append(req.Allow, t.info.Export.Hosts...)) {
		if !slices.Contains(req.Deny, h) {
			e.Hosts = append(e.Hosts, h)
		}
	}
	if req.Authenticate != nil {
		e.Authenticate = *req.Authenticate
	}
	if len(e.Hosts) == 0 {
		return api.Export{}, &api.Error{
			Code: api.CodeInvalid, Message: fmt.Sprintf("volume %s would be exported to nobody", t),
			Remedy: fmt.Sprintf("swapback export delete %s ends the export", t.info.Name),
		}
	}
	if err := t.pool.SetExport(ctx, t.uuid(), e); err != nil {
		return api.Export{}, fromPool(fmt.Sprintf("export of volume %s not changed", t), err)
	}
	failpoint.Hit("export change: recorded")
	t.info.Export = e
	if r := c.door(t); r != nil {
		if err := c.admit(ctx, r, e, req.Deny); err != nil {
			return api.Export{}, fmt.Errorf("the export of volume %s is changed, but not for all who are connected: %w", t, err)
		}
	}
	c.log.Info("export changed", "volume", t.String(), "hosts", e.Hosts, "authenticate", e.Authenticate)
	return c.describeRemote(t), nil
}

// admit has a subsystem let in whom an export names, and nobody of those denied. Whoever
// is connected and has not had to authenticate stays.
func (c *Controller) admit(ctx context.Context, r *remote, e *dmswap.Export, denied []string) error {
	r.authenticate.Store(e.Authenticate)
	var errs []error
	for _, h := range e.Hosts {
		errs = append(errs, r.subsys.AllowHost(h))
	}
	limit, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	for _, h := range denied {
		errs = append(errs, r.subsys.DenyHost(limit, h))
	}
	return errors.Join(errs...)
}

// DeleteExport implements [api.Service].
func (c *Controller) DeleteExport(ctx context.Context, ref string, force bool) error {
	t, release, err := c.claimOne("ending its export", ref)
	if err != nil {
		return err
	}
	defer release()
	if err := mustBeExported(t); err != nil {
		return err
	}
	if !force {
		if err := c.refuseHosts(nil, t); err != nil {
			return err
		}
	}
	// It stays recorded until nothing of a host is in flight: a daemon that dies here
	// serves it again.
	if err := c.stopRemote(ctx, t); err != nil {
		return err
	}
	failpoint.Hit("export delete: stopped")
	if err := t.pool.SetExport(ctx, t.uuid(), nil); err != nil {
		return errors.Join(fromPool(fmt.Sprintf("export of volume %s not ended", t), err), c.serveRemote(context.WithoutCancel(ctx), t))
	}
	c.forgetReservations(t)
	c.log.Info("volume not exported any more", "volume", t.String())
	return nil
}
