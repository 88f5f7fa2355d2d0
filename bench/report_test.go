package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func sampleResults() []result {
	list := []result{
		exactly("raw", "randread-4k-qd32", 96774), exactly("loop", "randread-4k-qd32", 68181),
		exactly("volume-copy", "randread-4k-qd32", 47000), exactly("volume-batch", "randread-4k-qd32", 70000),
		exactly("raw", "read-128k-qd8", 16000), exactly("volume-batch", "read-128k-qd8", 17000),
		exactly("raw", "randread-4k-qd32-j4", 90000),
		{Mode: modeExact, Subject: "null-batch", Missing: "not on this kernel (needs 7.0)"},
	}
	for i := range list {
		list[i].MBps = list[i].IOPS / 10
		list[i].versions = versions{Kernel: "7.3.4", QEMU: "7.2", Fio: "fio-3.33", Go: "go1.26", Bench: "<devel>"}
	}
	addRatios(list)
	return list
}

func TestPage(t *testing.T) {
	p := newPage(sampleResults(), nil, nil)
	if want := "A swapback volume, at its best, is at least as fast as the kernel’s loop driver in 1 of 1 loads."; p.Headline != want {
		t.Errorf("headline %q, want %q", p.Headline, want)
	}
	if len(p.Tiles) != 1 || p.Tiles[0].Ratio != "1.03×" || !p.Tiles[0].Better || !strings.HasPrefix(p.Tiles[0].Text, "volume-batch, 72 %") {
		t.Errorf("tiles %+v", p.Tiles)
	}
	if len(p.Groups) != 2 || len(p.Groups[0].Panels) != 2 || len(p.Groups[0].Panels[0].Bars) != 4 {
		t.Fatalf("groups %+v", p.Groups)
	}
	if b := p.Groups[0].Panels[0].Bars[0]; b.Subject != "raw" || b.Length != 100 || b.Text != "96\u202f774" {
		t.Errorf("first bar %+v", b)
	}
	if large := p.Groups[1].Panels[0]; large.Unit != "MB/s" || large.Bars[0].Text != "1\u202f600" {
		t.Errorf("the panel of large requests %+v", large)
	}
	if len(p.Missing) != 1 || len(p.Results) != 7 || len(p.Legend) != 4 {
		t.Errorf("%d missing, %d results, %d in the legend", len(p.Missing), len(p.Results), len(p.Legend))
	}
}

func TestReportStandsAlone(t *testing.T) {
	dir := t.TempDir()
	if err := writeReport(dir); err == nil {
		t.Error("a report of nothing was written")
	}
	if err := writeJSON(filepath.Join(dir, resultFile), sampleResults()); err != nil {
		t.Fatal(err)
	}
	points := []point{
		{Mode: modeExact, Series: "rss", N: 0, Value: 16}, {Mode: modeExact, Series: "rss", N: 1, Value: 24},
		{Mode: modeExact, Series: "rss", N: 128, Value: 1050},
		{Mode: modeExact, Series: "busy", N: 1, Value: 30000}, {Mode: modeExact, Series: "busy", N: 128, Value: 31000},
		{Mode: modeExact, Series: "alone", N: 1, Value: 24000},
	}
	if err := writeJSON(filepath.Join(dir, scaleFile), points); err != nil {
		t.Fatal(err)
	}
	if err := writeReport(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, reportFile))
	if err != nil {
		t.Fatal(err)
	}
	html := string(text)
	for _, want := range []string{
		"<!doctype html>", "exact mode", "kernel 7.3.4, QEMU 7.2, fio-3.33", "&lt;devel&gt;", "1.03×",
		"null-batch: not on this kernel (needs 7.0)", "memory of swapbackd", "one more costs", "<polyline points=",
		"one request at a time on one volume: 24\u202f000", "</html>",
	} {
		if !strings.Contains(html, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	// ZgotmplZ is what html/template puts where it distrusts a value.
	for _, bad := range []string{"http:", "https:", "src=", "<link", "<script", "ZgotmplZ", "NaN"} {
		if strings.Contains(html, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
}

func TestPlot(t *testing.T) {
	points := []point{{N: 1, Value: 10}, {N: 16, Value: 160}, {N: 128, Value: 1280}}
	c := plot(points, true)
	a, b, d := c.Dots[0], c.Dots[1], c.Dots[2]
	if first, last := (b.Y-a.Y)/(b.X-a.X), (d.Y-b.Y)/(d.X-b.X); first-last > 1e-6 || last-first > 1e-6 {
		t.Errorf("a cost in proportion is no straight line: slopes %v and %v", first, last)
	}
	c = plot(points, false)
	if c.Dots[1].X-c.Dots[0].X != c.Dots[2].X-c.Dots[1].X {
		t.Errorf("the steps of a rate differ: %+v", c.Dots)
	}
	for v, want := range map[float64]float64{0: 1, 0.5: 0.6, 9.1: 15, 96774: 150000, 1280: 1500} {
		if got := niceTop(v); got < want*0.999 || got > want*1.001 {
			t.Errorf("the axis for %v ends at %v, want %v", v, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0", 0.0325: "0.0325", 24.38: "24.4", 145: "145", 1050: "1\u202f050", 1234567: "1\u202f234\u202f567"} {
		if got := figure(v); got != want {
			t.Errorf("%v is written %q, want %q", v, got, want)
		}
	}
}
