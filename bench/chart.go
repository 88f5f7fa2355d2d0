package main

import (
	"fmt"
	"math"
	"strings"
)

// chart is one line plot of the scaling part, as SVG coordinates.
type chart struct {
	Title, Unit, Of string
	Line            string // points of a polyline
	Dots            []dot
	Floor           float64 // y of the dashed line, 0 for none
	FloorText       string
	Ticks           []tick
	Judged, OK      bool
	Verdict         string
}

type dot struct {
	X, Y        float64
	Label, Text string
}

type tick struct {
	Y    float64
	Text string
}

// The plot's frame inside its SVG, in its units.
const (
	plotLeft, plotRight = 58.0, 380.0
	plotTop, plotBottom = 18.0, 150.0
)

func charts(points []point) []chart {
	verdicts := map[string]verdict{}
	for _, v := range judge(points) {
		verdicts[v.series] = v
	}
	var list []chart
	for _, s := range allSeries() {
		p := pointsOf(points, s.name)
		if len(p) == 0 {
			continue
		}
		c := plot(p, !s.rate)
		c.Title, c.Unit, c.Of = s.title, s.unit, s.of
		if floor := pointsOf(points, s.floor); len(floor) == 1 {
			top := niceTop(maxValue(p))
			c.Floor = yOf(floor[0].Value, top)
			c.FloorText = s.floorText + ": " + figure(floor[0].Value)
		}
		if v, ok := verdicts[s.name]; ok {
			c.Judged, c.OK, c.Verdict = true, v.ok, v.text
		}
		list = append(list, c)
	}
	return list
}

// plot places a series. A cost is drawn to scale, so that one in proportion is
// a straight line; the steps of a rate are drawn all alike.
func plot(p []point, toScale bool) chart {
	var c chart
	top := niceTop(maxValue(p))
	for i := range 3 {
		v := top * float64(i) / 2
		c.Ticks = append(c.Ticks, tick{yOf(v, top), figure(v)})
	}
	const left, right = plotLeft + 30, plotRight - 30
	var line []string
	for i, pt := range p {
		place := float64(i) / float64(max(1, len(p)-1))
		if toScale {
			place = float64(pt.N) / float64(max(1, p[len(p)-1].N))
		}
		d := dot{X: left + place*(right-left), Y: yOf(pt.Value, top), Label: fmt.Sprint(pt.N), Text: figure(pt.Value)}
		c.Dots = append(c.Dots, d)
		line = append(line, fmt.Sprintf("%.1f,%.1f", d.X, d.Y))
	}
	// Where dots lie too close for their labels, the last of them has one.
	for i := range len(c.Dots) - 1 {
		if d := &c.Dots[i]; c.Dots[i+1].X-d.X < 24 {
			d.Label, d.Text = "", ""
		}
	}
	c.Line = strings.Join(line, " ")
	return c
}

func yOf(v, top float64) float64 { return plotBottom - (plotBottom-plotTop)*v/top }

func maxValue(p []point) float64 {
	highest := 0.0
	for _, p := range p {
		highest = max(highest, p.Value)
	}
	return highest
}

// niceTop is the end of an axis: a round figure above the highest value, with
// room for its label.
func niceTop(v float64) float64 {
	if v <= 0 {
		return 1
	}
	v *= 1.1
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 1.5, 2, 3, 4, 5, 6, 8} {
		if v <= m*unit {
			return m * unit
		}
	}
	return 10 * unit
}

// figure writes a value in about three digits.
func figure(v float64) string {
	switch {
	case v >= 1000:
		return thousands(v)
	case v >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
