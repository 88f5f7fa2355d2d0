package remote

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
)

// Info tells a client of the pools that it sees, and of those that could not be
// opened only who administers all.
func (g *guard) Info(ctx context.Context) (api.Info, error) {
	c, _, err := g.begin(ctx, "info")
	if err != nil {
		return api.Info{}, err
	}
	info, err := g.svc.Info(ctx)
	info.Pools = slices.DeleteFunc(slices.Clone(info.Pools), func(p string) bool { return !c.table.SeesPool(c.name, p) })
	if !c.table.MayAll(c.name, access.Admin) {
		info.Failed = nil
	}
	info.Caller = &api.Caller{Name: c.name, Hosts: c.table.Hosts(c.name)}
	return info, err
}

func (g *guard) Pools(ctx context.Context) ([]api.Pool, error) {
	c, _, err := g.begin(ctx, "list-pools")
	if err != nil {
		return nil, err
	}
	all, err := g.svc.Pools(ctx)
	if err != nil {
		return nil, err
	}
	list := []api.Pool{}
	for _, p := range all {
		if !c.table.SeesPool(c.name, p.Name) {
			continue
		}
		if p, err = g.part(ctx, c, p); err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

func (g *guard) Pool(ctx context.Context, ref string) (api.Pool, error) {
	c, _, err := g.begin(ctx, "show-pool")
	if err != nil {
		return api.Pool{}, err
	}
	p, err := g.pool(ctx, c, "show-pool", ref, c.table.SeesPool)
	if err != nil {
		return p, err
	}
	return g.part(ctx, c, p)
}

// part is what of a pool a client sees: its disks only who administers it.
func (g *guard) part(ctx context.Context, c *call, p api.Pool) (api.Pool, error) {
	if c.table.MayPool(c.name, access.Admin, p.Name) {
		return p, nil
	}
	all, err := g.svc.Volumes(ctx, p.UUID)
	p.Members, p.Volumes = nil, 0
	for _, v := range all {
		if c.table.May(c.name, access.List, v.Pool, v.Name) {
			p.Volumes++
		}
	}
	return p, err
}

// pool finds a pool of which may is true. Pools are few: all of them are looked at.
func (g *guard) pool(ctx context.Context, c *call, operation, ref string, may func(client, pool string) bool) (api.Pool, error) {
	all, err := g.svc.Pools(ctx)
	if err != nil {
		return api.Pool{}, err
	}
	for _, p := range all {
		if (p.Name == ref || p.UUID == ref) && may(c.name, p.Name) {
			return p, nil
		}
	}
	want := ref + "/*"
	if uuid.Validate(ref) == nil {
		want = "POOL/*"
	} else if may(c.name, ref) {
		return api.Pool{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no pool %q", ref), Remedy: "swapback pool list shows all that are open"}
	}
	return api.Pool{}, c.denied(operation, rules[operation].right, fmt.Sprintf("pool %q", ref), want)
}

// onPool does an operation to a pool that the client administers.
func onPool[T any](ctx context.Context, g *guard, operation, ref string, do func(ref string) (T, error)) (out T, err error) {
	c, r, err := g.begin(ctx, operation)
	if err != nil {
		return out, err
	}
	may := func(client, pool string) bool { return c.table.MayPool(client, r.right, pool) }
	p, err := g.pool(ctx, c, operation, ref, may)
	if err != nil {
		return out, err
	}
	if !c.uses(r.right, p.Name, "*") {
		return out, c.denied(operation, r.right, "pool "+p.Name, p.Name+"/*")
	}
	c.permitted(operation, r.right, p.Name+"/*")
	return do(p.UUID)
}

// CreatePool is not done from afar, whoever asks.
func (g *guard) CreatePool(ctx context.Context, _ api.CreatePoolRequest) (api.Pool, error) {
	_, _, err := g.begin(ctx, "create-pool")
	return api.Pool{}, err
}

func (g *guard) DeletePool(ctx context.Context, ref string, force bool) error {
	_, err := onPool(ctx, g, "delete-pool", ref, func(id string) (struct{}, error) { return struct{}{}, g.svc.DeletePool(ctx, id, force) })
	return err
}

func (g *guard) CheckPool(ctx context.Context, ref string) (api.CheckReport, error) {
	return onPool(ctx, g, "check-pool", ref, func(id string) (api.CheckReport, error) { return g.svc.CheckPool(ctx, id) })
}

func (g *guard) RepairPool(ctx context.Context, ref string) (api.CheckReport, error) {
	return onPool(ctx, g, "repair-pool", ref, func(id string) (api.CheckReport, error) { return g.svc.RepairPool(ctx, id) })
}

func (g *guard) PoolMetadata(ctx context.Context, ref string) (api.PoolMetadata, error) {
	return onPool(ctx, g, "dump-pool-metadata", ref, func(id string) (api.PoolMetadata, error) { return g.svc.PoolMetadata(ctx, id) })
}

// RejoinPool also opens a pool that is not open: that one is judged by its name.
func (g *guard) RejoinPool(ctx context.Context, ref string) (api.Pool, error) {
	const operation = "rejoin-pool"
	c, r, err := g.begin(ctx, operation)
	if err != nil {
		return api.Pool{}, err
	}
	may := func(client, pool string) bool { return c.table.MayPool(client, r.right, pool) }
	p, err := g.pool(ctx, c, operation, ref, may)
	switch {
	case err == nil:
		ref = p.UUID
	case api.CodeOf(err) == api.CodeNotFound:
		p.Name = ref
	default:
		return api.Pool{}, err
	}
	c.permitted(operation, r.right, p.Name+"/*")
	return g.svc.RejoinPool(ctx, ref)
}
