package afar

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/holders/pagecache"
)

// Swap implements [api.Service]. What of the volumes is connected here is claimed, written
// back, and held until the swap has been answered and nothing of the old content is left in
// the page cache; then the daemon is told that it need not mind this machine. Who uses a
// volume here is in the way, as on the storage machine.
func (s *Service) Swap(ctx context.Context, req api.SwapRequest) (api.SwapResult, error) {
	me, err := s.caller(ctx)
	if err != nil {
		return api.SwapResult{}, err
	}
	if me == nil {
		return s.Service.Swap(ctx, req)
	}
	here, err := s.connected(ctx, req)
	if err != nil || len(here) == 0 {
		return s.pass(ctx, req, err)
	}
	var devices []string
	for _, v := range here {
		devices = append(devices, v.Device)
		names, err := s.names(v.Device)
		if err != nil {
			return api.SwapResult{}, err
		}
		for _, n := range names {
			if slices.Contains(me.Hosts, n) && !slices.Contains(req.Released, n) {
				req.Released = append(slices.Clip(req.Released), n)
			}
		}
	}
	guards, found, err := s.finder().Claim(ctx, devices...)
	if err != nil {
		return api.SwapResult{}, fmt.Errorf("swap: %w", err)
	}
	defer closeAll(guards)
	if len(found) > 0 && !req.AllowHolders {
		return api.SwapResult{}, &api.Error{
			Code: api.CodeInUse, Message: "swap refused: a device of this machine is in use", Holders: holdersHere(found),
			Remedy: "unmount or stop what is named above",
		}
	}
	var warnings []string
	lost, err := pagecache.WriteBack(ctx, devices)
	if err != nil {
		return api.SwapResult{}, fmt.Errorf("swap refused: writing back what is cached: %w", err)
	}
	for i, err := range lost {
		switch {
		case err == nil:
		case failed(req, here[i]):
			warnings = append(warnings, fmt.Sprintf("what was written last to the content that %s gave away could not be written back and is lost: %v", full(here[i]), err))
		default:
			return api.SwapResult{}, fmt.Errorf("swap refused: writing back what was written to %s: %w", full(here[i]), err)
		}
	}
	result, err := s.Service.Swap(ctx, req)
	if err != nil {
		return result, err
	}
	if err := pagecache.CheckAllCoherent(context.WithoutCancel(ctx), devices); err != nil {
		result.Coherent = false
		warnings = append(warnings, fmt.Sprintf("the positions are exchanged, but cached data of this machine could not be proven fresh: %v", err))
	}
	if len(warnings) > 0 {
		if result.Warning != "" {
			warnings = append([]string{result.Warning}, warnings...)
		}
		result.Warning = strings.Join(warnings, "; ")
	}
	return result, nil
}

func (s *Service) pass(ctx context.Context, req api.SwapRequest, err error) (api.SwapResult, error) {
	if err != nil {
		return api.SwapResult{}, err
	}
	return s.Service.Swap(ctx, req)
}

// connected are the volumes of a swap that this machine has. One that is about to show
// failed content goes, if this has connected it: it looks like the volume that is back.
func (s *Service) connected(ctx context.Context, req api.SwapRequest) (here []api.Volume, err error) {
	for _, p := range req.Pairs {
		for _, ref := range []string{p.A, p.B} {
			v, err := s.volume(ctx, ref)
			if err != nil {
				return nil, err
			}
			if ref == p.B && p.Quarantine != nil {
				if err := s.letGo(ctx, v); err != nil {
					return nil, err
				}
				v.Device = s.host.Device(v.UUID)
			}
			if v.Device != "" {
				here = append(here, v)
			}
		}
	}
	return here, nil
}

// failed tells whether a swap labels what a volume shows before it as what failed.
func failed(req api.SwapRequest, v api.Volume) bool {
	return slices.ContainsFunc(req.Pairs, func(p api.SwapPair) bool {
		return p.Quarantine != nil && (p.A == v.UUID || p.A == v.Name || p.A == full(v))
	})
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
