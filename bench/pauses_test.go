package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const samplePauses = `[
	{"mode":"exact","what":"swaps under load","n":1,"count":1000,"floor_us":10000,"median_us":12000,"max_us":30000,"fio_max_us":31000},
	{"mode":"exact","what":"pairs","n":1,"count":10,"floor_us":10000,"median_us":11000,"max_us":12000},
	{"mode":"exact","what":"pairs","n":32,"count":10,"floor_us":10000,"median_us":33000,"max_us":34000},
	{"mode":"exact","what":"extents in one piece","n":1,"count":10,"floor_us":10000,"median_us":11000,"max_us":12000}]`

func TestPausesOnThePage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pause-exact.json"), []byte(samplePauses), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeReport(dir); err != nil {
		t.Fatal(err)
	}
	html, err := os.ReadFile(filepath.Join(dir, reportFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"median 12.0 ms, longest 30.0 ms", "1.20 and 3.00 times that", "swap pause by pairs", ">33<"} {
		if !strings.Contains(string(html), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	// One point is no curve.
	if strings.Contains(string(html), "by the volumes’ extents") {
		t.Error("a plot of one point")
	}
	if list, err := readPauses(dir, "wall"); err != nil || list != nil {
		t.Errorf("results of another mode: %v, %v", list, err)
	}
}

func TestPausesThatCannotBe(t *testing.T) {
	for _, bad := range []string{`{`, `[{"count":0}]`, `[{"count":1,"median_us":5,"max_us":4}]`, `[{"count":1,"n":-1}]`} {
		if _, err := decodePauses([]byte(bad)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func FuzzDecodePauses(f *testing.F) {
	f.Add([]byte(samplePauses))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := decodePauses(text)
		if err != nil {
			return
		}
		var out strings.Builder
		if err := renderReport(&out, nil, nil, list); err != nil {
			t.Error(err)
		}
	})
}
