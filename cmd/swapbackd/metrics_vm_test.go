//go:build vm

package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// scrape asks the daemon for its metrics as Prometheus does.
func (d *process) scrape() map[string]float64 {
	d.t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket())
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://swapbackd/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		d.t.Fatalf("%s, %v: %s", resp.Status, err, text)
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		at := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || at < 0 {
			continue
		}
		if values[line[:at]], err = strconv.ParseFloat(strings.TrimSpace(line[at:]), 64); err != nil {
			d.t.Fatalf("line %q: %v", line, err)
		}
	}
	return values
}

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
	got := d.scrape()
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
	if _, ok := d.scrape()[`swapback_volume_in_flight_requests{pool="tank",volume="a"}`]; ok {
		t.Error("a detached volume has counters")
	}
}
