package volume

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/swapback/swapback/nvmeof"
)

// remoteCollector reads the counters of the namespaces that other hosts use.
type remoteCollector struct{ c *Controller }

var (
	remoteRequests    = prometheus.NewDesc("swapback_nvme_requests_total", "Commands of other hosts that succeeded; the count starts anew with the daemon.", requestLabels, nil)
	remoteBytes       = prometheus.NewDesc("swapback_nvme_bytes_total", "Bytes of those commands.", requestLabels, nil)
	remoteErrors      = prometheus.NewDesc("swapback_nvme_errors_total", "Commands of other hosts that failed.", volumeLabels, nil)
	remoteHeld        = prometheus.NewDesc("swapback_nvme_held_requests_total", "Commands held at the volume's busy gate.", volumeLabels, nil)
	remoteRefused     = prometheus.NewDesc("swapback_nvme_refused_requests_total", "Commands answered that they be tried again.", volumeLabels, nil)
	remoteInFlight    = prometheus.NewDesc("swapback_nvme_in_flight_requests", "Commands under way below the gate now.", volumeLabels, nil)
	remoteControllers = prometheus.NewDesc("swapback_nvme_controllers", "Controllers that other hosts have now; one with several paths has several.", volumeLabels, nil)
	remoteConnections = prometheus.NewDesc("swapback_nvme_connections", "Connections of other hosts that are open now.", nil, nil)
	remotePorts       = prometheus.NewDesc("swapback_nvme_listeners", "Addresses that are listened on for other hosts.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (remoteCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		remoteRequests, remoteBytes, remoteErrors, remoteHeld, remoteRefused, remoteInFlight, remoteControllers, remoteConnections, remotePorts,
	} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (r remoteCollector) Collect(ch chan<- prometheus.Metric) {
	if r.c.nvme == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	gauge(remoteConnections, r.c.nvme.target.Connections())
	gauge(remotePorts, len(r.c.nvme.addresses()))
	r.c.mu.Lock()
	var list []*remote
	for _, x := range r.c.remotes {
		if x.failed == nil {
			list = append(list, x)
		}
	}
	r.c.mu.Unlock()
	for _, x := range list {
		collectRemote(ch, x.name, x.ns.Stats(), x.subsys.Controllers())
	}
}

// collectRemote sends the counters of a namespace; name is POOL/VOLUME.
func collectRemote(ch chan<- prometheus.Metric, name string, s nvmeof.Stats, controllers int) {
	pool, volume, _ := strings.Cut(name, "/")
	send := func(desc *prometheus.Desc, kind prometheus.ValueType, value uint64, op ...string) {
		ch <- prometheus.MustNewConstMetric(desc, kind, float64(value), append([]string{pool, volume}, op...)...)
	}
	for op, n := range map[string]uint64{
		"read": s.Reads, "write": s.Writes, "flush": s.Flushes, "discard": s.Discards, "write_zeroes": s.WriteZeroes, "compare": s.Compares,
	} {
		send(remoteRequests, prometheus.CounterValue, n, op)
	}
	send(remoteBytes, prometheus.CounterValue, s.ReadBytes, "read")
	send(remoteBytes, prometheus.CounterValue, s.WriteBytes, "write")
	send(remoteErrors, prometheus.CounterValue, s.Errors)
	send(remoteHeld, prometheus.CounterValue, s.Held)
	send(remoteRefused, prometheus.CounterValue, s.Refused)
	send(remoteInFlight, prometheus.GaugeValue, s.InFlight)
	send(remoteControllers, prometheus.GaugeValue, uint64(controllers))
}
