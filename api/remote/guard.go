package remote

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
)

// guard is a service as one client from afar may use it: the one that the context
// of each call is of. A call without one is refused.
//
// Names are looked up among what the client may see, and handed on as UUIDs: what
// was permitted is what is used. A volume that a client may not see is
// answered as one that is not there.
type guard struct {
	svc api.Service
}

var _ api.Service = (*guard)(nil)

// check is asked before anything of a request is read: it refuses whoever has the
// right to nothing at all.
func (g *guard) check(ctx context.Context, operation string) error {
	c, r, err := g.begin(ctx, operation)
	if err != nil {
		return err
	}
	if !c.table.Has(c.name, r.right) {
		return c.denied(operation, r.right, "", "POOL/NAME")
	}
	if r.right == access.Metrics {
		if !c.table.MayAll(c.name, r.right) {
			return c.denied(operation, r.right, "all volumes", "*")
		}
		c.permitted(operation, r.right)
	}
	return nil
}

func (g *guard) begin(ctx context.Context, operation string) (*call, rule, error) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return nil, rule{}, &api.Error{Code: api.CodeDenied, Message: operation + ": it is not known who asks"}
	}
	r, ok := rules[operation]
	if !ok || r.local != "" {
		why := r.local
		if !ok {
			why = "no right stands for it"
		}
		e := &api.Error{
			Code: api.CodeDenied, Message: fmt.Sprintf("%s is not done for clients from afar, such as %s: %s", operation, c.name, why),
			Remedy: "do it on the storage machine itself",
		}
		c.refuse(operation, e)
		return nil, r, e
	}
	return c, r, nil
}

// volume finds a volume that the client has a right to.
func (g *guard) volume(ctx context.Context, c *call, operation string, right access.Right, ref string) (api.Volume, error) {
	v, found, err := g.find(ctx, c, ref)
	if err != nil {
		return v, err
	}
	if found && c.table.May(c.name, right, v.Pool, v.Name) && c.uses(right, v.Pool, v.Name) {
		return v, nil
	}
	if found {
		return api.Volume{}, c.denied(operation, right, "volume "+v.Pool+"/"+v.Name, v.Pool+"/"+v.Name)
	}
	pool, name, full := strings.Cut(ref, "/")
	if full && c.table.May(c.name, right, pool, name) || !full && c.table.MayBeNamed(c.name, right, ref) {
		return api.Volume{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no volume %q that client %s may see", ref, c.name), Remedy: "swapback volume list shows all of them"}
	}
	want := ref
	if !full {
		want = "POOL/" + ref
	}
	if uuid.Validate(ref) == nil {
		want = "POOL/NAME"
	}
	return api.Volume{}, c.denied(operation, right, fmt.Sprintf("volume %q", ref), want)
}

// find looks a volume up among those that the client may see.
func (g *guard) find(ctx context.Context, c *call, ref string) (v api.Volume, found bool, err error) {
	sees := func(v api.Volume) bool { return c.table.May(c.name, access.List, v.Pool, v.Name) }
	if strings.Contains(ref, "/") || uuid.Validate(ref) == nil {
		v, err := g.svc.Volume(ctx, ref)
		if api.CodeOf(err) == api.CodeNotFound && err != nil {
			return v, false, nil
		}
		return v, err == nil && sees(v), err
	}
	if c.all == nil { // once for a request, which may have thousands of names
		if c.all, err = g.svc.Volumes(ctx, ""); err != nil {
			return v, false, err
		}
	}
	var hits []api.Volume
	for _, v := range c.all {
		if v.Name == ref && sees(v) {
			hits = append(hits, v)
		}
	}
	switch len(hits) {
	case 0:
		return v, false, nil
	case 1:
		return hits[0], true, nil
	}
	var names []string
	for _, h := range hits {
		names = append(names, h.Pool+"/"+h.Name)
	}
	return v, false, &api.Error{
		Code: api.CodeInvalid, Message: fmt.Sprintf("%d pools have a volume %q", len(hits), ref),
		Remedy: "name one as POOL/VOLUME: " + strings.Join(names, " "),
	}
}

// on does an operation to one volume.
func on[T any](ctx context.Context, g *guard, operation, ref string, do func(uuid string) (T, error)) (out T, err error) {
	c, r, err := g.begin(ctx, operation)
	if err != nil {
		return out, err
	}
	v, err := g.volume(ctx, c, operation, r.right, ref)
	if err != nil {
		return out, err
	}
	c.permitted(operation, r.right, v.Pool+"/"+v.Name)
	return do(v.UUID)
}

// bare takes from a volume what means something on the storage machine only.
func bare(v api.Volume, err error) (api.Volume, error) {
	v.Device, v.Link, v.Backend = "", "", ""
	return v, err
}

func (g *guard) Volumes(ctx context.Context, pool string) ([]api.Volume, error) {
	c, _, err := g.begin(ctx, "list-volumes")
	if err != nil {
		return nil, err
	}
	if pool != "" {
		p, err := g.pool(ctx, c, "list-volumes", pool, c.table.SeesPool)
		if err != nil {
			return nil, err
		}
		pool = p.UUID
	}
	all, err := g.svc.Volumes(ctx, pool)
	if err != nil {
		return nil, err
	}
	list := []api.Volume{}
	for _, v := range all {
		if c.table.May(c.name, access.List, v.Pool, v.Name) {
			v, _ = bare(v, nil)
			list = append(list, v)
		}
	}
	return list, nil
}

func (g *guard) Volume(ctx context.Context, ref string) (api.Volume, error) {
	return bare(on(ctx, g, "show-volume", ref, func(id string) (api.Volume, error) { return g.svc.Volume(ctx, id) }))
}

func (g *guard) Holders(ctx context.Context, ref string) ([]api.Holder, error) {
	return on(ctx, g, "list-holders", ref, func(id string) ([]api.Holder, error) { return g.svc.Holders(ctx, id) })
}

func (g *guard) CreateVolume(ctx context.Context, req api.CreateVolumeRequest) (api.Volume, error) {
	const operation = "create-volume"
	c, r, err := g.begin(ctx, operation)
	if err != nil {
		return api.Volume{}, err
	}
	pools, err := g.svc.Pools(ctx)
	if err != nil {
		return api.Volume{}, err
	}
	var in []api.Pool
	for _, p := range pools {
		named := req.Pool == "" || req.Pool == p.Name || req.Pool == p.UUID
		if named && c.table.May(c.name, r.right, p.Name, req.Name) {
			in = append(in, p)
		}
	}
	switch {
	case len(in) == 0:
		want := req.Pool
		if want == "" || uuid.Validate(want) == nil {
			want = "POOL"
		}
		return api.Volume{}, c.denied(operation, r.right, fmt.Sprintf("a volume %q in pool %q", req.Name, req.Pool), want+"/"+req.Name)
	case len(in) > 1:
		return api.Volume{}, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%d pools could have the volume %q", len(in), req.Name), Remedy: "name one of them"}
	}
	if !c.uses(r.right, in[0].Name, req.Name) {
		return api.Volume{}, c.denied(operation, r.right, "volume "+in[0].Name+"/"+req.Name, in[0].Name+"/"+req.Name)
	}
	req.Pool = in[0].UUID
	if req.Like != "" {
		// Who may swap the two may show either content to these hosts anyway.
		like, err := g.volume(ctx, c, operation+" with like", access.Swap, req.Like)
		if err != nil {
			return api.Volume{}, err
		}
		// What lay on the disks before may be others', and these hosts could read it.
		req.Like, req.Zero = like.UUID, true
	}
	c.permitted(operation, r.right, in[0].Name+"/"+req.Name)
	return bare(g.svc.CreateVolume(ctx, req))
}

func (g *guard) DeleteVolume(ctx context.Context, ref string, force bool) error {
	_, err := on(ctx, g, "delete-volume", ref, func(id string) (struct{}, error) {
		if force {
			if err := g.over(ctx, "delete-volume with force", id); err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, g.svc.DeleteVolume(ctx, id, force)
	})
	return err
}

// over is what it takes to go over a refusal that protects data.
func (g *guard) over(ctx context.Context, operation string, refs ...string) error {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return &api.Error{Code: api.CodeDenied, Message: operation + ": it is not known who asks"}
	}
	for _, ref := range refs {
		if _, err := g.volume(ctx, c, operation, access.Admin, ref); err != nil {
			return err
		}
	}
	return nil
}

func (g *guard) GrowVolume(ctx context.Context, ref string, size int64) (api.Volume, error) {
	return bare(on(ctx, g, "grow-volume", ref, func(id string) (api.Volume, error) { return g.svc.GrowVolume(ctx, id, size) }))
}

func (g *guard) Attach(ctx context.Context, ref string, req api.AttachRequest) (api.Volume, error) {
	return bare(on(ctx, g, "attach-volume", ref, func(id string) (api.Volume, error) { return g.svc.Attach(ctx, id, req) }))
}

func (g *guard) Detach(ctx context.Context, ref string) (api.Volume, error) {
	return bare(on(ctx, g, "detach-volume", ref, func(id string) (api.Volume, error) { return g.svc.Detach(ctx, id) }))
}

func (g *guard) Quarantine(ctx context.Context, ref string, req api.QuarantineRequest) (api.Volume, error) {
	return bare(on(ctx, g, "quarantine-volume", ref, func(id string) (api.Volume, error) { return g.svc.Quarantine(ctx, id, req) }))
}

func (g *guard) ReleaseQuarantine(ctx context.Context, ref string) (api.Volume, error) {
	return bare(on(ctx, g, "release-volume", ref, func(id string) (api.Volume, error) { return g.svc.ReleaseQuarantine(ctx, id) }))
}

func (g *guard) SetDescendsFrom(ctx context.Context, ref string, req api.DescendsRequest) (api.Volume, error) {
	return bare(on(ctx, g, "set-descends-from", ref, func(id string) (api.Volume, error) { return g.svc.SetDescendsFrom(ctx, id, req) }))
}

func (g *guard) Swap(ctx context.Context, req api.SwapRequest) (api.SwapResult, error) {
	c, r, err := g.begin(ctx, "swap")
	if err != nil {
		return api.SwapResult{}, err
	}
	right, operation := r.right, "swap"
	if req.AllowHolders {
		right, operation = access.Admin, "swap with allow_holders"
	}
	var names []string
	req.Pairs = slices.Clone(req.Pairs)
	for i := range req.Pairs {
		p := &req.Pairs[i]
		for _, ref := range []*string{&p.A, &p.B} {
			v, err := g.volume(ctx, c, operation, right, *ref)
			if err != nil {
				return api.SwapResult{}, err
			}
			*ref = v.UUID
			names = append(names, v.Pool+"/"+v.Name)
		}
	}
	for _, nqn := range req.Released {
		if !c.speaksFor(nqn) {
			e := &api.Error{
				Code: api.CodeDenied, Message: fmt.Sprintf("client %s may not say that nothing on host %s uses a volume: it does not speak for it", c.name, nqn),
				Remedy: fmt.Sprintf("whoever administers the storage machine lets it, in %s: %s", c.file, access.Host(c.name, []string{nqn})),
			}
			c.refuse(operation, e)
			return api.SwapResult{}, e
		}
	}
	c.permitted(operation, right, append(names, req.Released...)...)
	return g.svc.Swap(ctx, req)
}

func (g *guard) OpenSnapshot(ctx context.Context, req api.SnapshotRequest) (api.Snapshot, func(context.Context) error, error) {
	c, r, err := g.begin(ctx, "open-snapshot")
	if err != nil {
		return api.Snapshot{}, nil, err
	}
	var names []string
	req.Volumes = slices.Clone(req.Volumes)
	for i, ref := range req.Volumes {
		v, err := g.volume(ctx, c, "open-snapshot", r.right, ref)
		if err != nil {
			return api.Snapshot{}, nil, err
		}
		req.Volumes[i] = v.UUID
		names = append(names, v.Pool+"/"+v.Name)
	}
	c.permitted("open-snapshot", r.right, names...)
	snap, end, err := g.svc.OpenSnapshot(ctx, req)
	snap.Volumes = slices.Clone(snap.Volumes)
	for i := range snap.Volumes {
		s := &snap.Volumes[i]
		s.Volume, _ = bare(s.Volume, nil)
		s.Device = ""
	}
	return snap, end, err
}
