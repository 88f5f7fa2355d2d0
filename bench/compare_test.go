package main

import (
	"slices"
	"strings"
	"testing"
)

func wallResult(iops, low, high float64) result {
	return result{Mode: modeWall, Subject: "raw", Row: "r", IOPS: iops, IOPSMin: low, IOPSMax: high, Rounds: 5}
}

func TestCompareTellsChangesFromSpread(t *testing.T) {
	for name, c := range map[string]struct {
		old, new result
		beyond   bool
	}{
		"exact, the same":                 {exactly("raw", "r", 1000), exactly("raw", "r", 1000), false},
		"exact, within the noise":         {exactly("raw", "r", 1000), exactly("raw", "r", 996), false},
		"exact, slower":                   {exactly("raw", "r", 1000), exactly("raw", "r", 990), true},
		"exact, faster":                   {exactly("raw", "r", 1000), exactly("raw", "r", 1010), true},
		"wall, rounds overlap":            {wallResult(1000, 800, 1200), wallResult(750, 700, 850), false},
		"wall, rounds apart":              {wallResult(1000, 900, 1200), wallResult(750, 700, 850), true},
		"wall, apart but next to nothing": {wallResult(1000, 999, 1001), wallResult(1004, 1003, 1005), false},
	} {
		changes, onlyOld, onlyNew := compareResults([]result{c.old}, []result{c.new})
		if len(changes) != 1 || len(onlyOld)+len(onlyNew) > 0 || changes[0].beyond != c.beyond {
			t.Errorf("%s: %+v, want beyond=%v", name, changes, c.beyond)
		}
	}
}

func TestCompareNamesRowsOfOneRunOnly(t *testing.T) {
	old := []result{exactly("raw", "a", 1), exactly("raw", "b", 1)}
	now := []result{exactly("raw", "b", 1), exactly("raw", "c", 1), {Mode: modeExact, Subject: "x", Missing: "why"}}
	_, onlyOld, onlyNew := compareResults(old, now)
	if !slices.Equal(onlyOld, []key{{modeExact, "raw", "a"}}) || !slices.Equal(onlyNew, []key{{modeExact, "raw", "c"}}) {
		t.Errorf("only old %v, only new %v", onlyOld, onlyNew)
	}
}

func TestPrintComparison(t *testing.T) {
	old, now := exactly("volume-copy", "randread", 1000), exactly("volume-copy", "randread", 900)
	old.Kernel, now.Kernel = "6.12", "7.3"
	var out strings.Builder
	printComparison(&out, []result{old}, []result{now})
	for _, want := range []string{"-10.0 %  randread on volume-copy (exact): 1000 → 900 IOPS", "1 of 1 rows changed", "different machines", "kernel 6.12"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
}

func TestCheckBaseline(t *testing.T) {
	base := []result{exactly("raw", "r", 1000), exactly("volume-copy", "r", 500)}
	addRatios(base)
	with := func(raw, volume float64, kernel string) []result {
		list := []result{exactly("raw", "r", raw), exactly("volume-copy", "r", volume)}
		addRatios(list)
		list[0].Kernel, list[1].Kernel = kernel, kernel
		return list
	}
	lacking := result{Mode: modeExact, Subject: "volume-copy", Missing: "not here"}
	for name, c := range map[string]struct {
		now  []result
		fail bool
		want string
	}{
		"the same":                 {with(1000, 500, ""), false, "none of 2 rows"},
		"within two percent":       {with(1000, 491, ""), false, "none of 2 rows"},
		"below":                    {with(1000, 489, ""), true, "FAIL  r on volume-copy (exact): 500 → 489 IOPS, -2.2 %"},
		"below, how to go on":      {with(1000, 489, ""), true, "only by a commit"},
		"above":                    {with(1000, 520, ""), false, "raise the baseline"},
		"a row is missing":         {with(1000, 500, "")[:1], true, "was not measured"},
		"a kernel lacks a subject": {append(with(1000, 500, "")[:1], lacking), false, "not checked: volume-copy: not here"},
		"other kernel, like ratio": {with(500, 250, "8"), false, "not the machine of the baseline"},
		"other kernel, some less":  {with(500, 240, "8"), false, "none of 1 rows"},
		"other kernel, much less":  {with(500, 230, "8"), true, "FAIL  r on volume-copy (exact): 0.5 → 0.46 of the raw"},
	} {
		var out strings.Builder
		err := checkBaseline(&out, base, c.now)
		if (err != nil) != c.fail || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: %v, want failure %v and %q in:\n%s", name, err, c.fail, c.want, &out)
		}
	}
	if checkBaseline(&strings.Builder{}, nil, base) == nil || checkBaseline(&strings.Builder{}, base, nil) == nil {
		t.Error("a check of nothing succeeded")
	}
}

func TestJudge(t *testing.T) {
	line := func(series string, values ...float64) []point {
		var list []point
		for i, v := range values {
			list = append(list, point{Mode: modeExact, Series: series, N: []int{1, 16, 128}[i], Value: v})
		}
		return list
	}
	for name, c := range map[string]struct {
		points []point
		ok     bool
	}{
		"a rate that stays":               {line("idle", 100, 99, 98), true},
		"a rate that sinks":               {line("idle", 100, 99, 80), false},
		"a rate that sinks in between":    {line("idle", 100, 80, 99), false},
		"busy ones, as dear as one alone": {append(line("busy", 300, 120, 100), line("alone", 100)...), true},
		"busy ones, dearer than alone":    {append(line("busy", 300, 120, 80), line("alone", 100)...), false},
		"busy ones, nothing to hold to":   {line("busy", 300, 120, 80), false},
		"a cost in proportion":            {line("rss", 101, 116, 228), true},
		"a cost that gets dearer":         {line("rss", 101, 116, 400), false},
		"a cost that there is not":        {line("rss", 100, 100, 100), true},
		"a cost that comes late":          {line("rss", 100, 100, 200), false},
	} {
		v := judge(c.points)
		if len(v) != 1 || v[0].ok != c.ok {
			t.Errorf("%s: %+v, want ok=%v", name, v, c.ok)
		}
	}
	if v := judge(append(line("idle", 5), line("rss", 1, 2)...)); len(v) != 0 {
		t.Errorf("too few points to judge gave %+v", v)
	}
}
