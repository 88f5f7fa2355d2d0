package main

import (
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed report.html
var reportText string

// writeReport makes the page from the results in a folder, as far as they are
// there.
func writeReport(dir string) error {
	results, err := readResults(filepath.Join(dir, resultFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	points, err := readPoints(filepath.Join(dir, scaleFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mode := ""
	if len(results) > 0 {
		mode = results[0].Mode
	}
	pauses, err := readPauses(dir, mode)
	if err != nil {
		return err
	}
	if len(results)+len(points)+len(pauses) == 0 {
		return fmt.Errorf("%s has no %s, %s or %s: bench run, bench scale and bench/pause write them", dir, resultFile, scaleFile, pauseFiles)
	}
	path := filepath.Join(dir, reportFile)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := renderReport(f, results, points, pauses); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), f.Close())
	}
	return f.Close()
}

// page is what the template shows.
type page struct {
	Mode, Machine, Go, Version string
	Exact                      bool
	Headline                   string
	Tiles                      []tile
	Legend                     []legend
	Groups                     []group
	Scaling                    []chart
	Pause                      string
	Pauses                     []chart
	Missing                    []result
	Results                    []result
	Rounds                     int
}

// tile is one of the large figures on top.
type tile struct {
	Row, Ratio, Text string
	Better           bool
}

type legend struct{ Name, About, Colour string }

// group is a kind of load: one panel for one job and one for four.
type group struct {
	Title  string
	Panels []panel
}

type panel struct {
	Title, Unit string
	Bars        []bar
}

// bar's lengths are in percent of the panel's longest.
type bar struct {
	Subject, Colour, Text string
	Length, Low, High     float64
	Spread                bool
}

func renderReport(w io.Writer, results []result, points []point, pauses []pauseResult) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"ratio": ratio,
		"count": thousands,
		"fixed": func(v float64) string { return fmt.Sprintf("%.1f", v) },
	}).Parse(reportText)
	if err != nil {
		return err
	}
	return t.Execute(w, newPage(results, points, pauses))
}

func newPage(results []result, points []point, pauses []pauseResult) page {
	p := page{Scaling: charts(points), Pause: pauseText(pauses), Pauses: pauseCharts(pauses)}
	var v versions
	switch {
	case len(results) > 0:
		v, p.Mode = results[0].versions, results[0].Mode
	case len(points) > 0:
		v, p.Mode = points[0].versions, points[0].Mode
	}
	p.Machine, p.Go, p.Version, p.Exact = v.machine(), v.Go, v.Bench, p.Mode == modeExact
	for _, r := range results {
		if r.Missing != "" {
			p.Missing = append(p.Missing, r)
			continue
		}
		p.Results = append(p.Results, r)
		p.Rounds = r.Rounds
	}
	for _, s := range subjects() {
		if slices.ContainsFunc(p.Results, func(r result) bool { return r.Subject == s.name }) {
			p.Legend = append(p.Legend, legend{s.name, s.about, s.colour})
		}
	}
	p.Headline, p.Tiles = headline(p.Results)
	p.Groups = groups(p.Results)
	return p
}

// titles are those of the rows, without the number of jobs.
var titles = map[string]string{
	"randread-4k-qd1":   "4k random reads, one at a time",
	"randread-4k-qd32":  "4k random reads, 32 in flight",
	"randwrite-4k-qd1":  "4k random writes, one at a time",
	"randwrite-4k-qd32": "4k random writes, 32 in flight",
	"mix-4k-qd32":       "4k, 70 % reads and 30 % writes, 32 in flight",
	"read-128k-qd8":     "128k sequential reads, 8 in flight",
	"write-128k-qd8":    "128k sequential writes, 8 in flight",
	"fsync-4k-qd1":      "4k random writes, fsync after each",
}

func titleOf(row string) string {
	if t, ok := titles[row]; ok {
		return t
	}
	return row
}

// headline compares the best of swapback's volumes with the loop driver, which
// does the same work inside the kernel.
func headline(results []result) (string, []tile) {
	best := map[string]result{}
	var rows []string
	for _, r := range results {
		// One job is what tiles have room for.
		if !strings.HasPrefix(r.Subject, "volume-") || r.RatioLoop == 0 || strings.HasSuffix(r.Row, "-j4") {
			continue
		}
		b, ok := best[r.Row]
		if !ok {
			rows = append(rows, r.Row)
		}
		if !ok || r.IOPS > b.IOPS {
			best[r.Row] = r
		}
	}
	var tiles []tile
	ahead := 0
	for _, row := range rows {
		b := best[row]
		if b.RatioLoop >= 1 {
			ahead++
		}
		text := b.Subject
		if b.RatioRaw > 0 {
			text = fmt.Sprintf("%s, %.0f %% of the raw device", b.Subject, 100*b.RatioRaw)
		}
		tiles = append(tiles, tile{Row: titleOf(row), Ratio: fmt.Sprintf("%.2f×", b.RatioLoop), Text: text, Better: b.RatioLoop >= 1})
	}
	if len(tiles) == 0 {
		return "", nil
	}
	return fmt.Sprintf("A swapback volume, at its best, is at least as fast as the kernel’s loop driver in %d of %d loads.", ahead, len(tiles)), tiles
}

// groups makes the panels, in the order of the results.
func groups(results []result) []group {
	var list []group
	var bases []string
	for _, r := range results {
		base := strings.TrimSuffix(r.Row, "-j4")
		if !slices.Contains(bases, base) {
			bases = append(bases, base)
		}
	}
	for _, base := range bases {
		g := group{Title: titleOf(base)}
		for _, suffix := range []string{"", "-j4"} {
			if p := newPanel(results, base+suffix); len(p.Bars) > 0 {
				p.Title = map[string]string{"": "1 job", "-j4": "4 jobs"}[suffix]
				g.Panels = append(g.Panels, p)
			}
		}
		list = append(list, g)
	}
	return list
}

func newPanel(results []result, row string) panel {
	p := panel{Unit: "IOPS"}
	large := strings.Contains(row, "-128k-")
	if large {
		p.Unit = "MB/s"
	}
	longest := 0.0
	for _, r := range results {
		if r.Row == row {
			longest = max(longest, r.IOPSMax)
		}
	}
	for _, s := range subjects() {
		i := slices.IndexFunc(results, func(r result) bool { return r.Row == row && r.Subject == s.name })
		if i < 0 {
			continue
		}
		r := results[i]
		value := r.IOPS
		if large {
			value = r.MBps
		}
		p.Bars = append(p.Bars, bar{
			Subject: r.Subject, Colour: s.colour, Text: thousands(value),
			Length: 100 * r.IOPS / longest, Low: 100 * r.IOPSMin / longest, High: 100 * r.IOPSMax / longest,
			Spread: r.Rounds > 1,
		})
	}
	return p
}

// thousands writes a figure without its fraction, in groups of three digits.
func thousands(v float64) string {
	text := fmt.Sprintf("%.0f", v)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "\u202f" + text[i:]
	}
	return text
}
