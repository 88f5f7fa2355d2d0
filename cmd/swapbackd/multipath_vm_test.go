//go:build vm

package main

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// TestMultipath: a host with native multipath reaches a volume by two listeners. It loses
// the one and the other while it verifies what it writes, and sees no error.
func TestMultipath(t *testing.T) {
	d := startExporting(t, "--nvme-listen", "127.0.0.1:4421")
	d.Pool()
	d.Volume("a", 64*MiB)
	d.Volume("b", 64*MiB)
	e := d.Export("a")
	if len(e.Connect) != 2 || !strings.Contains(e.Connect[0], "-s 4420") || !strings.Contains(e.Connect[1], "-s 4421") {
		t.Fatalf("lines to connect with: %q", e.Connect)
	}
	kernel := rig.OpenKernelLog(t)
	out, err := rig.NVMe(rig.NVMeHost, "discover", "-t", "tcp", "-a", "127.0.0.1", "-s", "4421")
	for _, port := range []string{"trsvcid: 4420", "trsvcid: 4421"} {
		if err != nil || !strings.Contains(out, port) {
			t.Errorf("discover: no %q: %v\n%s", port, err, out)
		}
	}
	device := d.Connect(e, "-i", "1", "--reconnect-delay", "1")
	direct := slices.Collect(maps.Keys(rig.Controllers(e.NQN)))[0]
	second := rig.NewCable(t, "127.0.0.1:0", "127.0.0.1:4421")
	addr := second.Addr()
	_, port, _ := net.SplitHostPort(addr)
	connect := []string{"connect", "-t", "tcp", "-a", "127.0.0.1", "-s", port, "-n", e.NQN, "-i", "1", "--reconnect-delay", "1"}
	if out, err := rig.NVMe(rig.NVMeHost, connect...); err != nil {
		t.Fatalf("the second path: %v\n%s", err, out)
	}
	live := func(n int) {
		t.Helper()
		rig.WaitUntil(t, "the paths to be as many as there are cables", func() bool {
			count := 0
			for _, state := range rig.Controllers(e.NQN) {
				if state == "live" {
					count++
				}
			}
			return count == n
		})
	}
	live(2)
	if now, err := d.Client.Export(t.Context(), "a"); err != nil || len(now.Connected) != 2 || now.Connected[0].Host != now.Connected[1].Host {
		t.Errorf("the daemon sees %+v, %v", now.Connected, err)
	}
	for ctrl := range rig.Controllers(e.NQN) {
		if out := rig.Tool(t, "nvme", "ana-log", "/dev/"+ctrl); !strings.Contains(out, "optimized") {
			t.Errorf("the log of asymmetric access by %s:\n%s", ctrl, out)
		}
		if out := rig.Tool(t, "nvme", "list-subsys", device); !strings.Contains(out, ctrl+" tcp") || !strings.Contains(out, e.NQN) {
			t.Errorf("no path %s:\n%s", ctrl, out)
		}
	}
	members, _ := filepath.Glob("/sys/class/nvme-subsystem/*/" + direct)
	if len(members) != 1 {
		t.Fatalf("subsystems of %s: %q", direct, members)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(members[0]), "iopolicy"), []byte("round-robin"), 0); err != nil {
		t.Fatal(err)
	}

	load := rig.LoopFio(t, rig.HostJob(device, "4m", "--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"))
	d.WaitHostIO("a", load, 100)
	if n := second.Cut(); n < 1<<16 {
		t.Errorf("%d bytes have come by the second path", n)
	}
	d.WaitHostIO("a", load, 100)
	live(1)
	second.Mend()
	live(2)
	d.WaitHostIO("a", load, 50)
	rig.Tool(t, "nvme", "disconnect", "-d", direct)
	d.WaitHostIO("a", load, 100)
	live(1)
	d.ConnectPath(e, 0, "-i", "1", "--reconnect-delay", "1")
	live(2)
	d.WaitHostIO("a", load, 50)
	d.Kill()
	d.Run()
	live(2)
	d.WaitHostIO("a", load, 50)
	runs, longest := load.Stop()
	t.Logf("%d runs of fio, longest latency %v", runs, longest)

	reads := startReader(t, device)
	for range 2 {
		reads.waitReads(20)
		d.swapUnder(api.BusyHold)
	}
	reads.waitReads(20)
	reads.stop()
	if n := reads.busy.Load() + reads.other.Load(); n > 0 {
		t.Errorf("the host saw %d errors in swaps", n)
	}
	d.Leave("a", e)
	kernel.ExpectQuiet(t)
}
