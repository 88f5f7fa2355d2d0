//go:build vm

package main

import (
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// cable is what leads from a host to a listener, and can be cut.
type cable struct {
	t  *testing.T
	to string

	mu       sync.Mutex
	listener net.Listener
	whole    bool
	conns    []net.Conn
	carried  int64 // bytes, both ways
	ended    sync.WaitGroup
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	c := &cable{t: t, to: to}
	c.mend("127.0.0.1:0")
	t.Cleanup(func() {
		c.cut()
		c.ended.Wait()
	})
	return c
}

// mend listens, and leads on from there.
func (c *cable) mend(addr string) {
	c.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.listener, c.whole = l, true
	c.mu.Unlock()
	c.ended.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", c.to)
			if err != nil {
				from.Close()
				continue
			}
			c.mu.Lock()
			if !c.whole {
				c.mu.Unlock()
				from.Close()
				to.Close()
				continue
			}
			c.conns = append(c.conns, from, to)
			c.mu.Unlock()
			c.ended.Go(func() { c.carry(to, from) })
			c.ended.Go(func() { c.carry(from, to) })
		}
	})
}

func (c *cable) carry(to, from net.Conn) {
	n, _ := io.Copy(to, from)
	to.Close()
	from.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.carried += n
}

// cut ends all connections, and those that are tried from now on. It returns how many
// bytes have come through.
func (c *cable) cut() int64 {
	c.mu.Lock()
	c.listener.Close()
	c.whole = false
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
	c.mu.Unlock()
	c.ended.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.carried
}

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
	second := newCable(t, "127.0.0.1:4421")
	addr := second.listener.Addr().String()
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
	if n := second.cut(); n < 1<<16 {
		t.Errorf("%d bytes have come by the second path", n)
	}
	d.WaitHostIO("a", load, 100)
	live(1)
	second.mend(addr)
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
