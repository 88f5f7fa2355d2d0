package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// pauseFiles are where bench/pause leaves its results.
const pauseFiles = "pause-*.json"

// pauseResult is what is shown of one point of bench/pause.
type pauseResult struct {
	Mode   string  `json:"mode"`
	What   string  `json:"what"`
	N      int     `json:"n"`
	Count  int     `json:"count"`
	Floor  float64 `json:"floor_us"`
	Median float64 `json:"median_us"`
	Max    float64 `json:"max_us"`
	FioMax float64 `json:"fio_max_us"`
}

// What bench/pause calls its points.
const (
	pausesUnderLoad = "swaps under load"
	pausesByExtents = "extents in one piece"
	pausesByPairs   = "pairs"
)

func decodePauses(text []byte) ([]pauseResult, error) {
	var list []pauseResult
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	for _, r := range list {
		if r.N < 0 || r.Count < 1 || r.Median < 0 || r.Max < r.Median || r.Floor < 0 {
			return nil, fmt.Errorf("%q with %d: %d swaps of %v to %v µs cannot be", r.What, r.N, r.Count, r.Median, r.Max)
		}
	}
	return list, nil
}

// readPauses returns the results in a folder, of the mode, or none.
func readPauses(dir, mode string) ([]pauseResult, error) {
	paths, err := filepath.Glob(filepath.Join(dir, pauseFiles))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		list, err := decodePauses(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w (bench/pause writes such files)", path, err)
		}
		if len(list) > 0 && (mode == "" || list[0].Mode == mode) {
			return list, nil
		}
	}
	return nil, nil
}

// pauseCharts draws what more extents and more pairs cost a swap. bench/pause
// has judged them.
func pauseCharts(list []pauseResult) []chart {
	var out []chart
	for _, s := range []struct{ what, title, of string }{
		{pausesByExtents, "swap pause by the volumes’ extents", "extents in a volume"},
		{pausesByPairs, "swap pause by pairs at once", "pairs"},
	} {
		var points []point
		for _, r := range list {
			if r.What == s.what {
				points = append(points, point{N: r.N, Value: r.Median / 1e3})
			}
		}
		if len(points) < 2 {
			continue
		}
		c := plot(points, s.what == pausesByPairs)
		c.Title, c.Unit, c.Of = s.title, "ms", s.of
		out = append(out, c)
	}
	return out
}

// pauseText sums up the swaps under load.
func pauseText(list []pauseResult) string {
	for _, r := range list {
		if r.What != pausesUnderLoad || r.Floor == 0 {
			continue
		}
		return fmt.Sprintf("%s swaps with 16 requests in flight: median %.1f ms, longest %.1f ms, fio’s longest latency %.1f ms. "+
			"The least that the kernel allows (one suspend and resume of an idle device, one durable write to each disk) took %.1f ms: %.2f and %.2f times that.",
			thousands(float64(r.Count)), r.Median/1e3, r.Max/1e3, r.FioMax/1e3, r.Floor/1e3, r.Median/r.Floor, r.Max/r.Floor)
	}
	return ""
}
