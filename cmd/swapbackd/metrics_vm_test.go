//go:build vm

package main

import (
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

func TestMetrics(t *testing.T) {
	d := startDaemon(t)
	d.Pool()
	a, b := d.Volume("a", 16*MiB), d.Volume("b", 16*MiB)
	rig.WriteDevice(t, a.Device, 0, rig.RandomBytes(1, int(MiB)))
	res := d.Swap("a", "b")
	// Refused: the generation is another one by now.
	_, err := d.Client.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "b", ExpectA: b.Position.Generation}}})
	if err == nil {
		t.Fatal("a swap with an old generation went through")
	}
	got := d.Metrics()
	for name, want := range map[string]float64{
		`swapback_swaps_total{result="committed"}`:                    1,
		`swapback_swaps_total{result="refused"}`:                      1,
		`swapback_swaps_total{result="failed"}`:                       0,
		`swapback_swap_pause_seconds_count`:                           1,
		`swapback_swap_pause_seconds_sum`:                             res.Pause,
		`swapback_swap_pause_seconds_bucket{le="+Inf"}`:               1,
		`swapback_swap_phase_seconds_count{phase="suspend"}`:          1,
		`swapback_swap_phase_seconds_sum{phase="commit"}`:             res.Phases.Commit,
		`swapback_volume_in_flight_requests{pool="tank",volume="a"}`:  0,
		`swapback_volume_held_requests_total{pool="tank",volume="b"}`: 0,
	} {
		if have, ok := got[name]; !ok || have != want {
			t.Errorf("%s is %v (there: %v), want %v", name, have, ok, want)
		}
	}
	if n := got[`swapback_volume_bytes_total{op="write",pool="tank",volume="a"}`]; n < float64(MiB) {
		t.Errorf("%v bytes written to a", n)
	}
	if _, err := d.Client.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.Metrics()[`swapback_volume_in_flight_requests{pool="tank",volume="a"}`]; ok {
		t.Error("a detached volume has counters")
	}
}
