package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestQuantiles(t *testing.T) {
	list := []float64{5e-6, 1e-6, 3e-6, 2e-6, 4e-6}
	for q, want := range map[float64]float64{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := quantile(list, q); got < want-0.001 || got > want+0.001 {
			t.Errorf("quantile %g is %g, want %g", q, got, want)
		}
	}
	if list[0] != 5e-6 {
		t.Error("the samples were sorted in place")
	}
}

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name    string
		results []result
		want    []string
	}{
		{"all well", []result{
			{What: "floor", Floor: 10, Median: 10, Max: 1000},
			{What: whatLoad, Floor: 10, Median: 20, Max: 50},
			{What: whatPairs, N: 1, Floor: 10, Median: 10}, {What: whatPairs, N: 2, Floor: 10, Median: 20},
			{What: whatExtents, N: 1, Floor: 10, Median: 1}, {What: whatExtents, N: 2, Floor: 10, Median: 19},
		}, nil},
		{"load", []result{{What: whatLoad, Floor: 10, Median: 21, Max: 51}}, []string{"median", "longest"}},
		{"growth", []result{
			{What: whatPairs, N: 1, Median: 10}, {What: whatPairs, N: 2, Median: 21}, {What: whatPairs, N: 4, Median: 42},
		}, []string{"from 1 to 2"}},
	} {
		got := judge(tt.results)
		if len(got) != len(tt.want) {
			t.Errorf("%s: %v", tt.name, got)
			continue
		}
		for i, w := range tt.want {
			if !strings.Contains(got[i], w) {
				t.Errorf("%s: %q lacks %q", tt.name, got[i], w)
			}
		}
	}
}

func TestFloorTakesTheCheaperWrites(t *testing.T) {
	f := floor{suspend: []float64{10e-6}, resume: []float64{2e-6}, sequential: []float64{3e-6}, together: []float64{5e-6}}
	if got := f.judged(); got < 14.9 || got > 15.1 {
		t.Errorf("floor of %g µs, want 15", got)
	}
}

func TestScatteredExtentsNeverTouch(t *testing.T) {
	body := `{"swapback":1,"generation":7,"members":[{},{}],"positions":[` +
		`{"id":"a","generation":3,"segments":["5@0:0"]},{"id":"b","generation":12345678901234567,"segments":["2@1:0","3@0:9"]}]}`
	out, err := scattered([]byte(body), 2)
	if err != nil {
		t.Fatal(err)
	}
	var meta struct {
		Positions []struct {
			Generation json.Number
			Segments   []string
		}
	}
	if err := json.Unmarshal(out, &meta); err != nil {
		t.Fatal(err)
	}
	a, b := meta.Positions[0], meta.Positions[1]
	if !slices.Equal(a.Segments, []string{"1@0:0", "1@1:0", "1@0:2", "1@1:2", "1@0:4"}) ||
		!slices.Equal(b.Segments, []string{"1@0:6", "1@1:4", "1@0:8", "1@1:6", "1@0:10"}) {
		t.Errorf("a %v, b %v", a.Segments, b.Segments)
	}
	if b.Generation != "12345678901234567" {
		t.Errorf("a number was changed: %s", b.Generation)
	}
	if _, err := scattered([]byte(`{"positions":[{}]}`), 2); err == nil {
		t.Error("a pool with another volume was taken")
	}
}
