package volume

import (
	"fmt"
	"slices"
	"strings"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
)

// target is a volume that a reference named, with the pool it is in. Its
// information is of the moment it was looked up.
type target struct {
	pool *dmswap.Pool
	info dmswap.VolumeInfo
}

func (t target) uuid() string { return t.info.UUID }

// String returns POOL/VOLUME, as messages name a volume.
func (t target) String() string { return t.pool.Info().Name + "/" + t.info.Name }

// poolsSorted returns the open pools in the order of their names.
func (c *Controller) poolsSorted() []*dmswap.Pool {
	c.mu.Lock()
	list := make([]*dmswap.Pool, 0, len(c.pools))
	for _, p := range c.pools {
		list = append(list, p)
	}
	c.mu.Unlock()
	slices.SortFunc(list, func(a, b *dmswap.Pool) int { return strings.Compare(a.Info().Name, b.Info().Name) })
	return list
}

// pool finds a pool by name or UUID. An empty reference means the only pool.
func (c *Controller) pool(ref string) (*dmswap.Pool, error) {
	pools := c.poolsSorted()
	if ref == "" {
		switch len(pools) {
		case 1:
			return pools[0], nil
		case 0:
			return nil, &api.Error{Code: api.CodeNotFound, Message: "no pool is open", Remedy: "create one: swapback pool create NAME DISK…"}
		}
		return nil, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%d pools are open", len(pools)), Remedy: "name one of them: " + names(pools)}
	}
	for _, p := range pools {
		if info := p.Info(); info.Name == ref || info.UUID == ref {
			return p, nil
		}
	}
	e := &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no pool %q is open", ref)}
	if len(pools) > 0 {
		e.Remedy = "open pools: " + names(pools)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.failed {
		if f.Name == ref {
			e.Message = fmt.Sprintf("pool %q was found on %s but could not be opened: %s", ref, strings.Join(f.Disks, ", "), f.Error)
		}
	}
	return nil, e
}

func names(pools []*dmswap.Pool) string {
	list := make([]string, len(pools))
	for i, p := range pools {
		list[i] = p.Info().Name
	}
	return strings.Join(list, ", ")
}

// find looks a volume up by NAME, POOL/NAME or UUID.
func (c *Controller) find(ref string) (target, error) {
	pools, name := c.poolsSorted(), ref
	if before, after, ok := strings.Cut(ref, "/"); ok {
		p, err := c.pool(before)
		if err != nil {
			return target{}, err
		}
		pools, name = []*dmswap.Pool{p}, after
	}
	var hits []target
	for _, p := range pools {
		for _, v := range p.Volumes() {
			if v.Name == name || v.UUID == name {
				hits = append(hits, target{p, v})
			}
		}
	}
	switch len(hits) {
	case 1:
		return hits[0], nil
	case 0:
		e := &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no volume %q", ref), Remedy: "swapback volume list shows all"}
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.failed) > 0 {
			e.Remedy += fmt.Sprintf("; %d pools were found but could not be opened, see swapback doctor", len(c.failed))
		}
		return target{}, e
	}
	e := &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%d pools have a volume %q", len(hits), ref)}
	for _, h := range hits {
		e.Remedy += h.String() + " "
	}
	e.Remedy = "name one as POOL/VOLUME: " + strings.TrimSpace(e.Remedy)
	return target{}, e
}

// claim looks volumes up and claims them, each named once, for one operation.
// The returned function gives them free; it is to be called exactly once. The information
// in the targets is read after the claim, so nobody changes it meanwhile.
func (c *Controller) claim(operation string, refs ...string) ([]target, func(), error) {
	list := make([]target, len(refs))
	for i, ref := range refs {
		t, err := c.find(ref)
		if err != nil {
			return nil, nil, err
		}
		for _, other := range list[:i] {
			if other.uuid() == t.uuid() {
				return nil, nil, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("volume %s is named twice", t)}
			}
		}
		list[i] = t
	}
	c.mu.Lock()
	for _, t := range list {
		if other, taken := c.claims[t.uuid()]; taken {
			c.mu.Unlock()
			return nil, nil, &api.Error{
				Code:    api.CodeBusy,
				Message: fmt.Sprintf("volume %s is busy: %s is under way", t, other),
				Remedy:  "try again when it has ended",
			}
		}
	}
	for _, t := range list {
		c.claims[t.uuid()] = operation
	}
	c.mu.Unlock()
	release := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, t := range list {
			delete(c.claims, t.uuid())
		}
	}
	for i, t := range list {
		info, err := t.pool.Volume(t.uuid())
		if err != nil {
			release()
			return nil, nil, fromPool(fmt.Sprintf("volume %s", t), err)
		}
		list[i].info = info
	}
	return list, release, nil
}

// claimOne is claim for a single volume.
func (c *Controller) claimOne(operation, ref string) (target, func(), error) {
	list, release, err := c.claim(operation, ref)
	if err != nil {
		return target{}, nil, err
	}
	return list[0], release, nil
}

// claimed returns the operation that a volume is claimed for, or "".
func (c *Controller) claimed(uuid string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.claims[uuid]
}

// export returns the block device of a volume, or nil.
func (c *Controller) export(t target) *export {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exports[t.uuid()]
}
