package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// Files in the folder of the results.
const (
	reportFile = "backup.json"
	pageFile   = "backup.html"
)

func writeReport(dir string, r report) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, reportFile), append(text, '\n'), 0o644)
}

func readReport(dir string) (r report, err error) {
	text, err := os.ReadFile(filepath.Join(dir, reportFile))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s: %w", reportFile, err)
	}
	return r, nil
}

// titles are those of the rows, for people.
var titles = map[string]string{
	rowFull:        "Full backup into an empty repository",
	rowRestore:     "Restore into a new file",
	rowUnchanged:   "Backup of what has not changed, all read again",
	rowChanged:     "Backup after 1 % was written in 4 KiB blocks, all read again",
	rowIncremental: "Backup after another 1 % was written; swapback is told where",
}

// printReport writes the table that a person reads in the terminal.
func printReport(out io.Writer, r report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		if !slices.ContainsFunc(r.Results, func(x result) bool { return x.Row == row }) {
			continue
		}
		fmt.Fprintf(w, "%s\tseconds\tMiB/s\tCPU s\tRSS MiB\tread MiB\twritten MiB\tstored MiB\tfastest … slowest\t\n", row)
		for _, x := range r.Results {
			if x.Row == row {
				fmt.Fprintf(w, "%s\t%.2f\t%.0f\t%.2f\t%d\t%d\t%d\t%d\t%.2f … %.2f\t\n", x.Program, x.Seconds, float64(r.Size>>20)/x.Seconds, x.CPU,
					x.MaxRSS>>20, x.ReadBytes>>20, x.WriteBytes>>20, x.Stored>>20, x.SecondsMin, x.SecondsMax)
			}
		}
		fmt.Fprintln(w, "\t\t\t\t\t\t\t\t\t")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, t := range r.Targets {
		fmt.Fprintln(out, t)
	}
	fmt.Fprintf(out, "medians of %d rounds, %d MiB (%s), page cache %s; Linux %s, %d × %s\n", r.Rounds, r.Size>>20, r.Data, r.Cache, r.Kernel, r.CPUs, r.CPU)
	for _, p := range programs("swapback") {
		if v, ok := r.Versions[p.name]; ok {
			fmt.Fprintf(out, "%s: %s\n", p.name, v)
		}
	}
	return nil
}

//go:embed page.html
var pageText string

// page is what the template is filled with.
type page struct {
	report
	Panels []panel
	Legend []legend
}

type legend struct{ Name, Colour, About string }

type panel struct {
	Title string
	Bars  []bar
}

// bar is a result; lengths are percents of the longest.
type bar struct {
	result
	Colour            string
	Length, Low, High float64
	Rate              float64 // MiB/s
}

func writePage(dir string, r report) error {
	p := page{report: r}
	for _, row := range rows {
		if !slices.ContainsFunc(r.Results, func(x result) bool { return x.Row == row }) {
			continue
		}
		pl := panel{Title: titles[row]}
		longest := 0.0
		for _, x := range r.Results {
			if x.Row == row {
				longest = max(longest, x.SecondsMax)
			}
		}
		for _, prog := range programs("swapback") {
			for _, x := range r.Results {
				if x.Row == row && x.Program == prog.name {
					pl.Bars = append(pl.Bars, bar{result: x, Colour: prog.colour, Length: 100 * x.Seconds / longest,
						Low: 100 * x.SecondsMin / longest, High: 100 * x.SecondsMax / longest, Rate: float64(r.Size>>20) / x.Seconds})
				}
			}
		}
		p.Panels = append(p.Panels, pl)
	}
	t, err := template.New(pageFile).Funcs(template.FuncMap{
		"mib":   func(n int64) int64 { return n >> 20 },
		"fixed": func(v float64) string { return fmt.Sprintf("%.2f", v) },
		"whole": func(v float64) string { return fmt.Sprintf("%.0f", v) },
	}).Parse(pageText)
	if err != nil {
		return err
	}
	for _, prog := range programs("swapback") {
		if _, ok := r.Versions[prog.name]; ok {
			p.Legend = append(p.Legend, legend{prog.name, prog.colour, prog.about})
		}
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, pageFile), b.Bytes(), 0o644)
}
