package volume

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/nvmeof"
	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
	"github.com/swapback/swapback/ublk"
)

// remoteOnMemory is a namespace in memory with a host on it.
func remoteOnMemory(t *testing.T, ana bool) (*remote, *nvmetest.Controller) {
	t.Helper()
	target, err := nvmeof.New(nvmeof.Options{})
	if err != nil {
		t.Fatal(err)
	}
	memory, err := nvmeof.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Close() })
	r := &remote{name: "tank/db"}
	if r.backend, err = nvmeof.NewHandlerBackend("memory", memory, nvmeof.Limits{Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	const volume = "33333333-0000-4000-8000-000000000001"
	r.subsys, err = target.AddSubsystem(nvmeof.SubsystemConfig{
		NQN: nqnOf(volume), Serial: serialOf(volume), Hosts: []string{nvmetest.HostNQN},
		Namespaces: []nvmeof.NamespaceConfig{{ID: remoteNamespace, Backend: r.backend, UUID: [16]byte{1}, ANAGroup: remoteGroup}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.ns = r.subsys.Namespace(remoteNamespace)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- target.Serve(l) }()
	host, err := nvmetest.Connect(nvmetest.Config{Addr: l.Addr().String(), Subsys: r.subsys.NQN(), Queues: 1, ANA: ana})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		host.Close()
		if err := target.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return r, host
}

// stateOfGroup has a host read the log of asymmetric access.
func stateOfGroup(t *testing.T, host *nvmetest.Controller) wire.ANAState {
	t.Helper()
	page, err := host.Log(wire.LogRequest{Page: wire.LogANA, Length: uint64(wire.ANALogSize(1, 1))})
	if err != nil {
		t.Fatal(err)
	}
	log, err := wire.ParseANALog(page)
	if err != nil || len(log.Groups) != 1 {
		t.Fatalf("the log has %+v, %v", log, err)
	}
	return log.Groups[0].State
}

// TestDoorsForHosts: a closed door holds or refuses, tells hosts when it takes long, and
// has what it lets through then recorded in the map that is there by then.
func TestDoorsForHosts(t *testing.T) {
	r, host := remoteOnMemory(t, true)
	q := host.IO[0]
	d := &doors{log: slog.New(slog.DiscardHandler), remotes: []*remote{r}}
	read := nvmetest.IOCommand(wire.OpRead, 1, 0, 1)
	d.hold()
	if err := d.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	held, err := q.Send(&read, nil, make([]byte, 512))
	if err != nil {
		t.Fatal(err)
	}
	for n := uint64(0); n == 0; time.Sleep(time.Millisecond) {
		n, _ = d.stopped()
	}
	d.tellHosts() // as after yieldAfter
	if state := stateOfGroup(t, host); state != wire.ANAUnreachable {
		t.Errorf("during a long pause the group has state %v", state)
	}
	_, err = held.Wait()
	if err != wire.ANAInaccessible {
		t.Errorf("what was held: %v", err)
	}
	d.release()
	if state := stateOfGroup(t, host); state != wire.ANAOptimized {
		t.Errorf("after the pause the group has state %v", state)
	}
	d.tellHosts() // too late: it tells nobody
	d.turnHostsAway()
	if err := q.Read(1, 0, make([]byte, 512)); err != nil {
		t.Errorf("after the pause: %v", err)
	}
	d.refuse()
	if err := q.Read(1, 0, make([]byte, 512)); err != wire.NamespaceNotReady.WithDelay(1) {
		t.Errorf("refused with %v", err)
	}
	d.release()
	if h, refused := d.stopped(); h != 1 || refused != 2 {
		t.Errorf("%d held, %d refused", h, refused)
	}
	if list := r.holders(); len(list) != 1 || list[0].Kind != "nvme" || !strings.Contains(list[0].Detail, nvmetest.HostNQN) {
		t.Errorf("holders: %+v", list)
	}
}

// TestDoorsTurnHostsAway: hosts that can't be told of a long pause are out until it is over.
func TestDoorsTurnHostsAway(t *testing.T) {
	r, host := remoteOnMemory(t, false)
	d := &doors{log: slog.New(slog.DiscardHandler), remotes: []*remote{r}}
	d.hold()
	d.turnHostsAway() // as after turnAwayAfter
	if _, err := nvmetest.Connect(host.Config); !errors.Is(err, wire.ConnectBusy) {
		t.Errorf("connecting during a long pause: %v", err)
	}
	d.release()
	again, err := nvmetest.Connect(host.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.IO[0].Read(1, 0, make([]byte, 512)); err != nil {
		t.Errorf("after the pause: %v", err)
	}
}

// TestFailuresOfHosts: they are heard with the names of the other door's, in their order.
func TestFailuresOfHosts(t *testing.T) {
	var mu sync.Mutex
	var heard []ublk.Failure
	l := &failureLog{
		log: slog.New(slog.DiscardHandler), metrics: newMetrics("v1"), pool: "tank", volume: "tank/db", now: time.Now, size: diskSize,
		locate: func(f ublk.Failure) []dmswap.DiskRange {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, f)
			return nil
		},
	}
	f := newRemoteFailures(l)
	want := []ublk.Failure{
		{Op: ublk.OpWrite, Offset: 4096, Length: 512, Errno: unix.EIO},
		{Op: ublk.OpFlush, Errno: unix.ENOSPC},
		{Op: ublk.OpRead, Length: 1, Errno: unix.EIO},
		{Op: ublk.OpDiscard, Length: 2, Errno: unix.EIO},
		{Op: ublk.OpWriteZeroes, Length: 3, Errno: unix.EIO},
	}
	f.add(nvmeof.Failure{Op: nvmeof.OpWrite, Offset: 4096, Length: 512, Errno: unix.EIO})
	f.add(nvmeof.Failure{Op: nvmeof.OpFlush, Errno: unix.ENOSPC})
	f.add(nvmeof.Failure{Op: nvmeof.OpRead, Length: 1, Errno: unix.EIO})
	f.add(nvmeof.Failure{Op: nvmeof.OpDiscard, Length: 2, Errno: unix.EIO})
	f.add(nvmeof.Failure{Op: nvmeof.OpWriteZeroes, Length: 3, Errno: unix.EIO})
	f.close()
	if !slices.Equal(heard, want) {
		t.Errorf("heard %+v", heard)
	}
}

func TestConnectLines(t *testing.T) {
	got := connectLines([]string{"192.0.2.1:4420", "[2001:db8::1]:4421"}, "nqn.x", false)
	want := []string{"nvme connect -t tcp -a 192.0.2.1 -s 4420 -n nqn.x", "nvme connect -t tcp -a 2001:db8::1 -s 4421 -n nqn.x"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := connectLines([]string{"192.0.2.1:4420"}, "nqn.x", true); !strings.HasSuffix(got[0], ` --dhchap-secret "$DHCHAP_SECRET"`) {
		t.Errorf("%q", got)
	}
	for _, addr := range reachable([]string{"0.0.0.0:4420", "[::]:4420"}) {
		if strings.HasPrefix(addr, "0.0.0.0") || strings.HasPrefix(addr, "[::]") || !strings.HasSuffix(addr, ":4420") {
			t.Errorf("a host can't reach %s", addr)
		}
	}
}

// remoteStats shows fixed counters of one namespace.
type remoteStats struct {
	remoteCollector
	stats nvmeof.Stats
}

func (s remoteStats) Collect(ch chan<- prometheus.Metric) { collectRemote(ch, "tank/db", s.stats, 12) }

func TestMetricsOfHosts(t *testing.T) {
	c := &Controller{metrics: newMetrics("v1")}
	c.metrics.registry.MustRegister(remoteStats{stats: nvmeof.Stats{
		Reads: 1, Writes: 2, Flushes: 3, Discards: 4, WriteZeroes: 5, Compares: 6, ReadBytes: 7, WriteBytes: 8, Errors: 9, Held: 10, Refused: 11, InFlight: 13,
	}})
	wantLines(t, scrape(t, c), map[string]string{
		`swapback_nvme_requests_total{op="read",pool="tank",volume="db"}`:         "1",
		`swapback_nvme_requests_total{op="write",pool="tank",volume="db"}`:        "2",
		`swapback_nvme_requests_total{op="flush",pool="tank",volume="db"}`:        "3",
		`swapback_nvme_requests_total{op="discard",pool="tank",volume="db"}`:      "4",
		`swapback_nvme_requests_total{op="write_zeroes",pool="tank",volume="db"}`: "5",
		`swapback_nvme_requests_total{op="compare",pool="tank",volume="db"}`:      "6",
		`swapback_nvme_bytes_total{op="read",pool="tank",volume="db"}`:            "7",
		`swapback_nvme_bytes_total{op="write",pool="tank",volume="db"}`:           "8",
		`swapback_nvme_errors_total{pool="tank",volume="db"}`:                     "9",
		`swapback_nvme_held_requests_total{pool="tank",volume="db"}`:              "10",
		`swapback_nvme_refused_requests_total{pool="tank",volume="db"}`:           "11",
		`swapback_nvme_controllers{pool="tank",volume="db"}`:                      "12",
		`swapback_nvme_in_flight_requests{pool="tank",volume="db"}`:               "13",
	})
}
