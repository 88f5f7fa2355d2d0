package hostagent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent/afar"
)

// spareName is the name that marks a volume as a spare of another.
func spareName(volume string) string { return volume + "-spare" }

// isSpareOf tells whether a name marks its volume as a spare of a volume.
func isSpareOf(name, volume string) bool { return strings.HasPrefix(name, spareName(volume)) }

// maxName is the longest name of a volume.
const maxName = 64

// Spare is what a recovery would restore a volume onto.
type Spare struct {
	For api.Volume // the volume to recover
	// Volume is an unused volume. When Create is set it does not exist yet and
	// has no more than a name and a size.
	Volume api.Volume
	Create bool
	// Named says that the caller chose it.
	Named bool
}

// FindSpares chooses an unused volume for each of the volumes, all of one pool,
// and names those that have to be created; it changes nothing. See the package
// documentation for what counts as unused. onto names volumes by any of their
// names. The error tells which volume cannot be recovered, and why.
func FindSpares(ctx context.Context, svc api.Service, volumes []api.Volume, onto map[string]string) ([]Spare, error) {
	named, err := namedSpares(ctx, svc, volumes, onto)
	if err != nil {
		return nil, err
	}
	remote, err := afar.Remote(ctx, svc)
	if err != nil {
		return nil, err
	}
	all, err := svc.Volumes(ctx, volumes[0].Pool)
	if err != nil {
		return nil, fmt.Errorf("look for unused volumes in pool %s: %w", volumes[0].Pool, err)
	}
	taken := map[string]bool{}
	for _, v := range volumes {
		taken[v.UUID] = true
	}
	for _, v := range named {
		taken[v.UUID] = true
	}
	names := map[string]bool{}
	for _, v := range all {
		names[v.Name] = true
	}
	if remote {
		// What other machines can't have is no spare for this one.
		all = slices.DeleteFunc(all, func(v api.Volume) bool { return v.NQN == "" })
	}
	var spares []Spare
	var create []Spare
	for _, v := range volumes {
		if s, ok := named[v.UUID]; ok {
			spares = append(spares, Spare{For: v, Volume: s, Named: true})
			continue
		}
		s, found, err := unusedFor(ctx, svc, v, all, taken)
		if err != nil {
			return nil, err
		}
		if found {
			taken[s.UUID] = true
			spares = append(spares, Spare{For: v, Volume: s})
			continue
		}
		name, err := freeName(v.Name, names)
		if err != nil {
			return nil, err
		}
		names[name] = true
		c := Spare{For: v, Create: true, Volume: api.Volume{Name: name, Pool: v.Pool, Size: v.Size}}
		spares = append(spares, c)
		create = append(create, c)
	}
	return spares, checkSpace(ctx, svc, create)
}

// namedSpares looks up what the caller named, by the UUID of the volume that it
// is for, and refuses what cannot be restored onto or swapped.
func namedSpares(ctx context.Context, svc api.Service, volumes []api.Volume, onto map[string]string) (map[string]api.Volume, error) {
	named := map[string]api.Volume{}
	used := map[string]string{}
	for _, key := range sortedKeys(onto) {
		i := slices.IndexFunc(volumes, func(v api.Volume) bool { return key == v.Name || key == v.UUID || key == full(v) })
		if i < 0 {
			return nil, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("a spare is named for volume %s, which is not to be recovered", key)}
		}
		v := volumes[i]
		s, err := svc.Volume(ctx, onto[key])
		if err != nil {
			return nil, fmt.Errorf("spare of volume %s: %w", full(v), err)
		}
		if other, twice := used[s.UUID]; twice {
			return nil, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("volume %s is named as the spare of both %s and %s", full(s), other, full(v))}
		}
		if slices.ContainsFunc(volumes, func(o api.Volume) bool { return o.UUID == s.UUID }) {
			return nil, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("volume %s is to be recovered and can't be a spare as well", full(s))}
		}
		switch {
		case s.Pool != v.Pool:
			return nil, &api.Error{
				Code: api.CodeInvalid, Message: fmt.Sprintf("volume %s can't be the spare of %s: they are in different pools", full(s), full(v)),
				Remedy: "a swap happens within one pool; name a volume of pool " + v.Pool + " or let one be created",
			}
		case s.Size != v.Size:
			return nil, &api.Error{
				Code:    api.CodeInvalid,
				Message: fmt.Sprintf("volume %s can't be the spare of %s: it has %d bytes, not %d", full(s), full(v), s.Size, v.Size),
				Remedy:  "a swap needs equal sizes; name another volume or let one be created",
			}
		}
		if err := checkTarget(ctx, svc, s); err != nil {
			return nil, fmt.Errorf("spare of volume %s: %w", full(v), err)
		}
		used[s.UUID] = full(v)
		named[v.UUID] = s
	}
	return named, nil
}

// unusedFor looks for a volume that is called a spare of v and is free.
func unusedFor(ctx context.Context, svc api.Service, v api.Volume, all []api.Volume, taken map[string]bool) (api.Volume, bool, error) {
	for _, s := range all {
		if taken[s.UUID] || !isSpareOf(s.Name, v.Name) || s.Pool != v.Pool || s.Size != v.Size {
			continue
		}
		err := checkTarget(ctx, svc, s)
		if err == nil {
			return s, true, nil
		}
		// Anything the daemon has a word for means "not this one".
		if api.CodeOf(err) == api.CodeInternal && s.State != api.StateFailed {
			return api.Volume{}, false, err
		}
	}
	return api.Volume{}, false, nil
}

// freeName returns NAME-spare, or with a number behind it when that is taken.
func freeName(volume string, taken map[string]bool) (string, error) {
	for n := 1; n < 1000; n++ {
		name := spareName(volume)
		if n > 1 {
			name = fmt.Sprintf("%s-%d", name, n)
		}
		if len(name) > maxName {
			break
		}
		if !taken[name] {
			return name, nil
		}
	}
	return "", &api.Error{
		Code: api.CodeInvalid, Message: fmt.Sprintf("no name is left for a spare of volume %s", volume),
		Remedy: "name an unused volume yourself, or delete old spares",
	}
}

// checkSpace refuses when the spares to be created do not fit.
func checkSpace(ctx context.Context, svc api.Service, create []Spare) error {
	if len(create) == 0 {
		return nil
	}
	pool, err := svc.Pool(ctx, create[0].For.Pool)
	if err != nil {
		return fmt.Errorf("room for a spare: %w", err)
	}
	var need int64
	var names []string
	for _, s := range create {
		// A striped volume rounds up on every stripe.
		stripes, _ := stripesOf(s.For)
		stripes = max(stripes, 1)
		unit := pool.ExtentSize * int64(stripes)
		need += (s.For.Size + unit - 1) / unit * int64(stripes)
		names = append(names, full(s.For))
	}
	if need <= pool.FreeExtents {
		return nil
	}
	return &api.Error{
		Code: api.CodeNoSpace,
		Message: fmt.Sprintf("no unused volume to recover %s onto, and no room to create one: pool %s has %d MiB free, %d MiB are needed",
			strings.Join(names, ", "), pool.Name, pool.Free>>20, need*pool.ExtentSize>>20),
		Remedy: "delete volumes whose quarantine is over (swapback volume list), or name an unused volume of the same size",
	}
}

// createSpare makes the volume that a spare stands for, with a block device; on another
// machine it has none there, and is for the hosts that the volume is for.
func createSpare(ctx context.Context, svc api.Service, s Spare) (api.Volume, error) {
	stripes, size := stripesOf(s.For)
	req := api.CreateVolumeRequest{
		Pool: s.For.Pool, Name: s.Volume.Name, Size: s.For.Size, Stripes: stripes, StripeSize: size,
	}
	remote, err := afar.Remote(ctx, svc)
	if err != nil {
		return api.Volume{}, err
	}
	if remote {
		req.Like, req.Detached = s.For.UUID, true
	}
	return svc.CreateVolume(ctx, req)
}

// stripesOf is the layout of a spare that is created: that of the volume it is
// for, but linear when a disk of that one is dead. There may be too few others
// for as many stripes.
func stripesOf(v api.Volume) (stripes int, size int64) {
	if v.Degraded {
		return 0, 0
	}
	return v.Position.Stripes, v.Position.StripeSize
}
