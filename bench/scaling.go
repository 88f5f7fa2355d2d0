package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
)

// point is one figure of a series: what some number of queues or volumes cost.
type point struct {
	Mode   string  `json:"mode"`
	Series string  `json:"series"`
	N      int     `json:"n"`
	Value  float64 `json:"value"`
	versions
}

// series says what a line of points is, and what would make it a bad one.
type series struct {
	name, title, unit, of string
	// rate: more is better, and n must not take too much of it away. Otherwise
	// it is a cost that is paid in all, and n must not make the next one dearer.
	rate bool
	// limit: for a rate, how much of the first value has to be left; for a cost,
	// how many times as much one more may cost as at the beginning.
	limit float64
	// floor names, and floorText describes, a series whose only value a rate is
	// held against, instead of its own first.
	floor, floorText string
}

// allSeries are shown in this order.
//
// A rate may lose a tenth, or with four queues for one a fifth: four threads
// sleep and wake where one did. In exact mode it is the inverse of what one request
// costs. Requests that are spread over more queues or busy volumes cannot be
// taken in batches as large any more; they are held to what a request costs where
// as few are in flight: eight in one queue, one on a volume.
func allSeries() []series {
	return []series{
		{name: "queues", title: "4k reads by queues of one volume", unit: "IOPS", of: "queues", rate: true, limit: 0.8, floor: "thin", floorText: "8 in flight in one queue"},
		{name: "idle", title: "4k reads on one volume among idle ones", unit: "IOPS", of: "volumes", rate: true, limit: 0.9},
		{name: "busy", title: "4k reads over all volumes, 128 in flight", unit: "IOPS", of: "busy volumes", rate: true, limit: 0.9, floor: "alone", floorText: "one request at a time on one volume"},
		{name: "rss", title: "memory of swapbackd", unit: "MiB", of: "volumes", limit: 1.25},
		{name: "pinned", title: "of it locked or pinned", unit: "MiB", of: "volumes", limit: 1.25},
		{name: "system", title: "memory of the whole machine", unit: "MiB", of: "volumes", limit: 1.25},
		{name: "create", title: "time to create all volumes", unit: "s", of: "volumes", limit: 2},
		{name: "adopt", title: "time to adopt all volumes after kill -9", unit: "s", of: "volumes", limit: 2},
	}
}

// verdict judges one series.
type verdict struct {
	series string
	ok     bool
	text   string
}

// pointsOf returns a series' points by N.
func pointsOf(all []point, name string) []point {
	var list []point
	for _, p := range all {
		if p.Series == name {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b point) int { return a.N - b.N })
	return list
}

// judge tells of every series that was measured whether costs grow no faster
// than the work.
func judge(points []point) []verdict {
	var list []verdict
	for _, s := range allSeries() {
		p := pointsOf(points, s.name)
		if len(p) < 2 {
			continue
		}
		if s.rate {
			list = append(list, judgeRate(s, p, pointsOf(points, s.floor)))
		} else if len(p) > 2 {
			list = append(list, judgeCost(s, p))
		}
	}
	return list
}

func judgeRate(s series, p, floor []point) verdict {
	base, what := p[0].Value, fmt.Sprintf("with %d", p[0].N)
	if s.floor != "" {
		if len(floor) != 1 {
			return verdict{s.name, false, "there is no series " + s.floor + " to compare with"}
		}
		base, what = floor[0].Value, "with "+s.floorText
	}
	worst := slices.MinFunc(p, func(a, b point) int { return int(a.Value - b.Value) })
	left := worst.Value / base
	return verdict{s.name, left >= s.limit, fmt.Sprintf("%d %s: %.2f of the rate %s (at least %.2f)", worst.N, s.of, left, what, s.limit)}
}

// judgeCost compares what one more costs at the end with what it did at the
// beginning. What is there before the first counts for nothing, and where there
// are enough points neither does the first, which is lost in what it shares.
func judgeCost(s series, p []point) verdict {
	if len(p) > 3 && p[0].N == 0 {
		p = p[1:]
	}
	each := func(a, b point) float64 { return (b.Value - a.Value) / float64(b.N-a.N) }
	first, last := each(p[0], p[1]), each(p[len(p)-2], p[len(p)-1])
	v := verdict{series: s.name, ok: last <= max(first, 0)*s.limit}
	switch {
	case last <= 0:
		v.ok, v.text = true, "one more costs nothing"
	case first <= 0:
		v.text = fmt.Sprintf("one more costs %.3g %s, and cost nothing at first", last, s.unit)
	default:
		v.text = fmt.Sprintf("one more costs %.3g %s, at first %.3g: %.2f times (at most %.2f)", last, s.unit, first, last/first, s.limit)
	}
	return v
}

func decodePoints(text []byte) ([]point, error) {
	var list []point
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&list); err != nil {
		return nil, err
	}
	seen := map[[2]any]bool{}
	for _, p := range list {
		id := [2]any{p.Series, p.N}
		if p.N < 0 || p.N > 1<<20 || p.Value < 0 || seen[id] {
			return nil, fmt.Errorf("series %q: %d with %v cannot be, or is there twice", p.Series, p.N, p.Value)
		}
		seen[id] = true
	}
	return list, nil
}

func readPoints(path string) ([]point, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, err := decodePoints(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (bench scale writes such files)", path, err)
	}
	return list, nil
}

// printScaling writes all series and their verdicts.
func printScaling(w io.Writer, points []point) {
	verdicts := map[string]verdict{}
	for _, v := range judge(points) {
		verdicts[v.series] = v
	}
	for _, s := range allSeries() {
		p := pointsOf(points, s.name)
		if len(p) == 0 {
			continue
		}
		fmt.Fprintf(w, "%s (%s)\n ", s.title, s.unit)
		for _, p := range p {
			fmt.Fprintf(w, "  %d: %.4g", p.N, p.Value)
		}
		fmt.Fprintln(w)
		if v, ok := verdicts[s.name]; ok {
			fmt.Fprintf(w, "   %s  %s\n", map[bool]string{true: "ok  ", false: "FAIL"}[v.ok], v.text)
		}
	}
}
