package volume

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/ublk"
)

// How a swap ended, as swapback_swaps_total counts it.
const (
	swapCommitted  = "committed"
	swapRefused    = "refused"    // before the gates closed: nobody had to wait
	swapCalledOff  = "called_off" // the time that I/O may be held ran out
	swapFailed     = "failed"     // the gates were closed, and nothing has changed
	swapUnfinished = "unfinished" // committed, but a device could not be resumed
)

// pauseBuckets are bounds in seconds, from what a fast kernel can do to the
// default of --hold-for. Scrapers that know native histograms get those too.
var pauseBuckets = []float64{
	50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 200e-3, 500e-3, 1, 2, 5, 10,
}

// metrics are what the daemon tells of itself in the format of Prometheus.
// Counters begin at 0 with the process.
type metrics struct {
	registry *prometheus.Registry
	pause    prometheus.Histogram
	phase    *prometheus.HistogramVec
	swaps    *prometheus.CounterVec
	held     prometheus.Counter
	refused  prometheus.Counter
	// diskErrors counts failed requests by the disks that they went to.
	diskErrors *prometheus.CounterVec
}

func newMetrics(version string) *metrics {
	histogram := func(name, help string) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: pauseBuckets,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
		}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		pause:    prometheus.NewHistogram(histogram("swapback_swap_pause_seconds", "From the volumes of a swap being busy to their held I/O being released, also when the swap was called off.")),
		phase:    prometheus.NewHistogramVec(histogram("swapback_swap_phase_seconds", "Parts of the pause of committed swaps."), []string{"phase"}),
		swaps:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "swapback_swaps_total", Help: "Swap requests by how they ended."}, []string{"result"}),
		held:     counter("swapback_swap_held_requests_total", "I/O requests that waited for a swap."),
		refused:  counter("swapback_swap_refused_requests_total", "I/O requests that were answered EBUSY because of a swap."),
	}
	m.diskErrors = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "swapback_disk_errors_total",
		Help: "Requests of volumes that were answered with an error, by the pool's disk that they went to; one that went to several counts for each.",
	}, []string{"pool", "disk", "op"})
	// Series that are there from the start let a rate see the first event.
	for _, phase := range []string{"drain", "suspend", "commit", "resume"} {
		m.phase.WithLabelValues(phase)
	}
	for _, result := range []string{swapCommitted, swapRefused, swapCalledOff, swapFailed, swapUnfinished} {
		m.swaps.WithLabelValues(result)
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "swapback_build_info", Help: "Always 1.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	m.registry.MustRegister(m.pause, m.phase, m.swaps, m.held, m.refused, m.diskErrors, info)
	return m
}

// swapped counts a swap request that has ended. paused tells whether the gates
// were closed for it.
func (m *metrics) swapped(outcome string, paused bool, r *api.SwapResult) {
	m.swaps.WithLabelValues(outcome).Inc()
	if !paused {
		return
	}
	m.pause.Observe(r.Pause)
	m.held.Add(float64(r.Held))
	m.refused.Add(float64(r.Refused))
	if outcome != swapCommitted {
		return
	}
	for phase, seconds := range map[string]float64{
		"drain": r.Phases.Drain, "suspend": r.Phases.Suspend, "commit": r.Phases.Commit, "resume": r.Phases.Resume,
	} {
		m.phase.WithLabelValues(phase).Observe(seconds)
	}
}

// Metrics answers with the daemon's counters in the text format of Prometheus.
func (c *Controller) Metrics() http.Handler {
	return promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{})
}

// ioCollector reads the counters of the block devices when it is asked: they
// are kept by the devices' queues anyway.
type ioCollector struct{ c *Controller }

var (
	volumeLabels   = []string{"pool", "volume"}
	requestLabels  = append(volumeLabels[:2:2], "op")
	volumeRequests = prometheus.NewDesc("swapback_volume_requests_total", "Requests that the volume's block device answered; the count starts anew with the device and with the daemon.", requestLabels, nil)
	volumeBytes    = prometheus.NewDesc("swapback_volume_bytes_total", "Bytes of the requests that were answered well.", requestLabels, nil)
	volumeErrors   = prometheus.NewDesc("swapback_volume_errors_total", "Requests that were answered with an error.", requestLabels, nil)
	volumeHeld     = prometheus.NewDesc("swapback_volume_held_requests_total", "Requests held at the volume's busy gate.", volumeLabels, nil)
	volumeRefused  = prometheus.NewDesc("swapback_volume_refused_requests_total", "Requests answered EBUSY at the volume's busy gate.", volumeLabels, nil)
	volumeWaiting  = prometheus.NewDesc("swapback_volume_waiting_requests", "Requests that the gate holds now.", volumeLabels, nil)
	volumeInFlight = prometheus.NewDesc("swapback_volume_in_flight_requests", "Requests under way below the gate now.", volumeLabels, nil)
)

// Describe implements [prometheus.Collector].
func (ioCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{volumeRequests, volumeBytes, volumeErrors, volumeHeld, volumeRefused, volumeWaiting, volumeInFlight} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (i ioCollector) Collect(ch chan<- prometheus.Metric) {
	i.c.mu.Lock()
	devices := map[string]*ublk.Device{}
	for _, e := range i.c.exports {
		if e.dev != nil {
			devices[e.name] = e.dev
		}
	}
	i.c.mu.Unlock()
	for name, dev := range devices {
		collectDevice(ch, name, dev.Stats())
	}
}

// collectDevice sends the counters of a device; name is POOL/VOLUME.
func collectDevice(ch chan<- prometheus.Metric, name string, s ublk.Stats) {
	pool, volume, _ := strings.Cut(name, "/")
	send := func(desc *prometheus.Desc, kind prometheus.ValueType, value uint64, op ...string) {
		ch <- prometheus.MustNewConstMetric(desc, kind, float64(value), append([]string{pool, volume}, op...)...)
	}
	for op, n := range map[string]ublk.OpStats{
		"read": s.Read, "write": s.Write, "flush": s.Flush, "discard": s.Discard, "write_zeroes": s.WriteZeroes,
	} {
		send(volumeRequests, prometheus.CounterValue, n.Ops, op)
		send(volumeBytes, prometheus.CounterValue, n.Bytes, op)
		send(volumeErrors, prometheus.CounterValue, n.Errors, op)
	}
	send(volumeHeld, prometheus.CounterValue, s.Held)
	send(volumeRefused, prometheus.CounterValue, s.Refused)
	send(volumeWaiting, prometheus.GaugeValue, s.HeldNow)
	send(volumeInFlight, prometheus.GaugeValue, s.InFlight)
}
