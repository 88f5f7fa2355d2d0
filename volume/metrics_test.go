package volume

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/ublk"
)

// scrape returns the lines that a scrape of c answers, without comments.
func scrape(t *testing.T, c *Controller) map[string]string {
	t.Helper()
	w := httptest.NewRecorder()
	c.Metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		t.Fatalf("%d %v: %s", w.Code, w.Header(), w.Body)
	}
	lines := map[string]string{}
	for line := range strings.Lines(w.Body.String()) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok {
			lines[name+"}"] = value
		} else if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			lines[name] = value
		}
	}
	return lines
}

func wantLines(t *testing.T, got map[string]string, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
}

func testController() *Controller {
	c := &Controller{metrics: newMetrics("v1"), exports: map[string]*export{}}
	c.metrics.registry.MustRegister(ioCollector{c})
	return c
}

func TestMetricsOfSwaps(t *testing.T) {
	c := testController()
	wantLines(t, scrape(t, c), map[string]string{
		`swapback_build_info{version="v1"}`:                  "1",
		`swapback_swaps_total{result="called_off"}`:          "0",
		`swapback_swap_pause_seconds_count`:                  "0",
		`swapback_swap_phase_seconds_count{phase="suspend"}`: "0",
	})
	c.metrics.swapped(swapCommitted, true, &api.SwapResult{
		Pause: 0.0125, Held: 16, Refused: 2,
		Phases: api.SwapPhases{Drain: 0.00006, Suspend: 0.012, Commit: 0.0001, Resume: 0.00034},
	})
	c.metrics.swapped(swapRefused, false, &api.SwapResult{})
	c.metrics.swapped(swapCalledOff, true, &api.SwapResult{Pause: 10.01, Held: 1})
	wantLines(t, scrape(t, c), map[string]string{
		`swapback_swaps_total{result="committed"}`:                      "1",
		`swapback_swaps_total{result="refused"}`:                        "1",
		`swapback_swaps_total{result="called_off"}`:                     "1",
		`swapback_swap_pause_seconds_bucket{le="0.01"}`:                 "0",
		`swapback_swap_pause_seconds_bucket{le="0.02"}`:                 "1",
		`swapback_swap_pause_seconds_bucket{le="10"}`:                   "1",
		`swapback_swap_pause_seconds_count`:                             "2",
		`swapback_swap_phase_seconds_bucket{phase="drain",le="5e-05"}`:  "0",
		`swapback_swap_phase_seconds_bucket{phase="drain",le="0.0001"}`: "1",
		`swapback_swap_phase_seconds_count{phase="commit"}`:             "1",
		`swapback_swap_phase_seconds_sum{phase="resume"}`:               "0.00034",
		`swapback_swap_held_requests_total`:                             "17",
		`swapback_swap_refused_requests_total`:                          "2",
	})
}

// statsCollector shows fixed counters of one device.
type statsCollector struct {
	ioCollector
	stats ublk.Stats
}

func (s statsCollector) Collect(ch chan<- prometheus.Metric) { collectDevice(ch, "tank/db", s.stats) }

func TestMetricsOfVolumes(t *testing.T) {
	c := &Controller{metrics: newMetrics("v1")}
	c.metrics.registry.MustRegister(statsCollector{stats: ublk.Stats{
		Read: ublk.OpStats{Ops: 1, Bytes: 2, Errors: 3}, Write: ublk.OpStats{Ops: 4, Bytes: 5, Errors: 6},
		Flush: ublk.OpStats{Ops: 7}, Discard: ublk.OpStats{Ops: 8}, WriteZeroes: ublk.OpStats{Ops: 9},
		Held: 10, Refused: 11, HeldNow: 12, InFlight: 13,
	}})
	wantLines(t, scrape(t, c), map[string]string{
		`swapback_volume_requests_total{op="read",pool="tank",volume="db"}`:         "1",
		`swapback_volume_bytes_total{op="read",pool="tank",volume="db"}`:            "2",
		`swapback_volume_errors_total{op="read",pool="tank",volume="db"}`:           "3",
		`swapback_volume_requests_total{op="write",pool="tank",volume="db"}`:        "4",
		`swapback_volume_bytes_total{op="write",pool="tank",volume="db"}`:           "5",
		`swapback_volume_errors_total{op="write",pool="tank",volume="db"}`:          "6",
		`swapback_volume_requests_total{op="flush",pool="tank",volume="db"}`:        "7",
		`swapback_volume_requests_total{op="discard",pool="tank",volume="db"}`:      "8",
		`swapback_volume_requests_total{op="write_zeroes",pool="tank",volume="db"}`: "9",
		`swapback_volume_held_requests_total{pool="tank",volume="db"}`:              "10",
		`swapback_volume_refused_requests_total{pool="tank",volume="db"}`:           "11",
		`swapback_volume_waiting_requests{pool="tank",volume="db"}`:                 "12",
		`swapback_volume_in_flight_requests{pool="tank",volume="db"}`:               "13",
	})
}

func TestMetricsWithoutVolumes(t *testing.T) {
	c := testController()
	c.exports["u"] = &export{name: "tank/broken"} // failed: there is no device
	for name := range scrape(t, c) {
		if strings.HasPrefix(name, "swapback_volume_") {
			t.Errorf("there is %s", name)
		}
	}
}
