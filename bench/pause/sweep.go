package main

import (
	"context"
	"fmt"

	"github.com/swapback/swapback/api"
)

var (
	extentPoints = []int{1, 10, 100, 1000, 10_000, 100_000}
	pairPoints   = []int{1, 2, 4, 8, 16, 32}
)

// extentSweep swaps volumes of more and more extents that lie in one piece: the
// metadata and the kernel's table stay as they are.
func extentSweep(ctx context.Context, d *daemon, o options) (results []result, err error) {
	for _, n := range extentPoints {
		if _, err := d.volumes(ctx, n, "a", "b"); err != nil {
			return results, err
		}
		s, err := d.swap(ctx, o.points, api.SwapPair{A: "a", B: "b"})
		if err != nil {
			return results, err
		}
		results = append(results, announce(s.result(whatExtents, n)))
		if err := d.remove(ctx, "a", "b"); err != nil {
			return results, err
		}
	}
	return results, nil
}

// fragmentSweep does the same with volumes in which no two extents touch: the
// metadata has a segment, and the kernel's table an entry, for each.
func fragmentSweep(ctx context.Context, d *daemon, o options) (results []result, err error) {
	for _, n := range extentPoints {
		if _, err := d.volumes(ctx, n, "a", "b"); err != nil {
			return results, err
		}
		if err := d.stop(); err != nil {
			return results, err
		}
		if err := scatter(o.disks); err != nil {
			return results, fmt.Errorf("scattering %d extents: %w", n, err)
		}
		if err := d.start(ctx); err != nil {
			return results, err
		}
		// Reads of every entry of a large table on a slow machine would take most
		// of the time: a few swaps tell as much.
		s, err := d.swap(ctx, max(o.points*1000/max(n, 1000), 5), api.SwapPair{A: "a", B: "b"})
		if err != nil {
			return results, err
		}
		results = append(results, announce(s.result(whatFragments, n)))
		if err := d.remove(ctx, "a", "b"); err != nil {
			return results, err
		}
	}
	return results, nil
}

// pairSweep swaps more and more pairs at once.
func pairSweep(ctx context.Context, d *daemon, o options) (results []result, err error) {
	const extents = 16
	var pairs []api.SwapPair
	var names []string
	for _, n := range pairPoints {
		for len(pairs) < n {
			p := api.SwapPair{A: fmt.Sprintf("a%d", len(pairs)), B: fmt.Sprintf("b%d", len(pairs))}
			if _, err := d.volumes(ctx, extents, p.A, p.B); err != nil {
				return results, err
			}
			pairs, names = append(pairs, p), append(names, p.A, p.B)
		}
		s, err := d.swap(ctx, o.points, pairs...)
		if err != nil {
			return results, err
		}
		results = append(results, announce(s.result(whatPairs, n)))
	}
	return results, d.remove(ctx, names...)
}
