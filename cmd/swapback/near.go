package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/swapback/swapback/api"
)

// nearVolumes adds volumes with names like the unknown ones to the remedy of a
// "not found" error. Any other error passes unchanged.
func (a *app) nearVolumes(ctx context.Context, c api.Service, err error, names ...string) error {
	if api.CodeOf(err) != api.CodeNotFound {
		return err
	}
	volumes, lerr := c.Volumes(ctx, "")
	if lerr != nil {
		return err
	}
	var known []string
	for _, v := range volumes {
		known = append(known, v.Name, v.Pool+"/"+v.Name, v.UUID)
	}
	return suggest(err, names, known, "swapback volume list shows them all")
}

// nearPools does the same for pools.
func (a *app) nearPools(ctx context.Context, c *api.Client, err error, name string) error {
	if api.CodeOf(err) != api.CodeNotFound || name == "" {
		return err
	}
	pools, lerr := c.Pools(ctx)
	if lerr != nil {
		return err
	}
	var known []string
	for _, p := range pools {
		known = append(known, p.Name, p.UUID)
	}
	return suggest(err, []string{name}, known, "swapback pool list shows them all")
}

// suggest puts known names near the unknown ones into the error's remedy. A name
// that somebody may have meant helps more than the general remedy that the error
// may have already.
func suggest(err error, names, known []string, otherwise string) error {
	var ae *api.Error
	if !errors.As(err, &ae) {
		return err
	}
	var found []string
	for _, name := range names {
		if !slices.Contains(known, name) {
			found = append(found, near(name, known)...)
		}
	}
	e := *ae
	switch {
	case len(found) > 0:
		e.Remedy = "did you mean " + strings.Join(found, " or ") + "?"
	case ae.Remedy != "":
		return err
	default:
		e.Remedy = otherwise
	}
	return &e
}

// near returns at most three known names that somebody may have meant, the
// nearest first.
func near(name string, known []string) []string {
	type candidate struct {
		name     string
		distance int
	}
	var list []candidate
	for _, k := range known {
		d := distance(strings.ToLower(name), strings.ToLower(k))
		if d <= max(1, len(name)/3) || (len(name) > 1 && strings.HasPrefix(k, name)) {
			list = append(list, candidate{k, d})
		}
	}
	slices.SortStableFunc(list, func(a, b candidate) int { return a.distance - b.distance })
	var names []string
	for _, c := range list[:min(3, len(list))] {
		names = append(names, c.name)
	}
	return names
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbouring bytes that turn a into b.
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range b {
		d[0][j+1] = j + 1
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
