package nvmeof

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// TestHosts: who is on the list may come, and goes when he is taken off.
func TestHosts(t *testing.T) {
	r := newRig(t, Options{})
	const nqn, friend = "nqn.2026-01.org.example:private", "nqn.2026-01.org.example:friend"
	s, err := r.target.AddSubsystem(SubsystemConfig{NQN: nqn, Hosts: []string{friend}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddNamespace(NamespaceConfig{Backend: r.memoryBackend(r.memory), UUID: [16]byte{3}}); err != nil {
		t.Fatal(err)
	}
	join := func(host string) (*nvmetest.Controller, error) {
		return nvmetest.Connect(nvmetest.Config{Addr: r.addr, Subsys: nqn, Host: host, Queues: 2})
	}
	if _, err := join(nvmetest.HostNQN); !errors.Is(err, wire.ConnectInvalidHost|wire.DNR) {
		t.Errorf("a stranger: %v", err)
	}
	c, err := join(friend)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.IO[1].Read(1, 0, make([]byte, 512)); err != nil {
		t.Error(err)
	}
	if err := s.DenyHost(ctxFor(t, 10*time.Second), friend); err != nil {
		t.Fatal(err)
	}
	for _, q := range append(c.IO, c.Admin) {
		<-q.Done()
	}
	if n := s.Controllers(); n != 0 {
		t.Errorf("%d controllers are left", n)
	}
	if _, err := join(friend); !errors.Is(err, wire.ConnectInvalidHost|wire.DNR) {
		t.Errorf("who was taken off the list: %v", err)
	}
	if err := s.AllowHost("somebody"); err == nil {
		t.Error("a host without a proper name was let in")
	}
}

func TestBadConfigs(t *testing.T) {
	r := newRig(t, Options{})
	for _, cfg := range []SubsystemConfig{
		{}, {NQN: "disks"}, {NQN: testNQN}, {NQN: wire.DiscoveryNQN},
		{NQN: "nqn.2026-01.org.example:x", Serial: "a serial number that is too long"},
		{NQN: "nqn.2026-01.org.example:x", Model: "é"},
		{NQN: "nqn.2026-01.org.example:x", Hosts: []string{"x"}},
	} {
		if _, err := r.target.AddSubsystem(cfg); err == nil {
			t.Errorf("subsystem %+v was taken", cfg)
		}
	}
	b := r.memoryBackend(r.memory)
	for _, cfg := range []NamespaceConfig{
		{ID: 1, Backend: b, UUID: [16]byte{1}}, {ID: 2, UUID: [16]byte{1}}, {ID: 2, Backend: b},
		{ID: maxNamespaces + 1, Backend: b, UUID: [16]byte{1}}, {ID: 2, Backend: b, UUID: [16]byte{1}, ANAGroup: maxGroups + 1},
	} {
		if _, err := r.subsys.AddNamespace(cfg); err == nil {
			t.Errorf("namespace %+v was taken", cfg)
		}
	}
	for _, opt := range []Options{
		{MaxData: 5000}, {MaxData: 2 << 20}, {InCapsule: 256 << 10}, {QueueDepth: 1}, {QueueDepth: 4096}, {MaxQueues: -1},
		{HoldFor: -1}, {ANATransition: time.Hour}, {RetryDelays: [3]time.Duration{-1}},
	} {
		if _, err := New(opt); err == nil {
			t.Errorf("options %+v were taken", opt)
		}
	}
	for _, l := range []Limits{{}, {Size: 1000}, {Size: 4096, LogicalBlockSize: 1024}, {Size: 4096, PhysicalBlockSize: 100}} {
		if _, err := NewHandlerBackend("bad", r.memory, l); err == nil {
			t.Errorf("limits %+v were taken", l)
		}
	}
	for _, size := range []uint64{0, 1000} {
		if err := r.ns.Resize(size); err == nil {
			t.Errorf("a resize to %d bytes was taken", size)
		}
	}
	if err := r.subsys.RemoveNamespace(t.Context(), 9); err == nil {
		t.Error("a namespace that is none was removed")
	}
	if err := r.target.RemoveSubsystem(t.Context(), "nqn.2026-01.org.example:x"); err == nil {
		t.Error("a subsystem that is none was removed")
	}
}

// TestControllersOfOneHost are independent of each other; one that loses its admin
// queue loses the others, and one that loses an I/O queue goes on.
func TestControllersOfOneHost(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		second := r.listen("127.0.0.1:0")
		a := r.connect(func(c *nvmetest.Config) { c.Queues = 2 })
		b := r.connect(func(c *nvmetest.Config) { c.Queues, c.Addr = 2, second })
		if list := r.subsys.Connected(); len(list) != 2 || list[0].Host != nvmetest.HostNQN || list[0].HostID == [16]byte{} ||
			list[0].Queues != 2 || !strings.HasPrefix(list[1].Peer, "127.0.0.1:") || list[0].Controller >= list[1].Controller {
			t.Errorf("connected: %+v", list)
		}
		if a.ID == b.ID {
			t.Fatalf("both are controller %d", a.ID)
		}
		if err := a.IO[0].Write(1, 0, noise(1, 4096)); err != nil {
			t.Fatal(err)
		}
		back := make([]byte, 4096)
		if err := b.IO[1].Read(1, 0, back); err != nil || string(back) != string(noise(1, 4096)) {
			t.Errorf("by the other controller: %v", err)
		}
		b.IO[0].Close()
		eventually(t, "the queue can be connected again", func() bool { return b.AddQueue(1) == nil })
		a.Admin.Conn.Close()
		for _, q := range a.IO {
			<-q.Done()
		}
		eventually(t, "one controller is left", func() bool { return r.subsys.Controllers() == 1 })
		if err := b.IO[1].Read(1, 0, back); err != nil {
			t.Errorf("the other controller: %v", err)
		}
	})
}

// slowDisk is a Handler whose writes wait until they are let go.
type slowDisk struct {
	Memory
	entered, release chan struct{}
}

func (d *slowDisk) Handle(r *Request) unix.Errno {
	if r.Op == OpWrite {
		d.entered <- struct{}{}
		<-d.release
	}
	return d.Memory.Handle(r)
}

// TestStaleWriteIsFenced: a write of a connection that its host has given up is
// carried out before the host gets its next controller, or never.
func TestStaleWriteIsFenced(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		d := &slowDisk{Memory{mem: r.memory.mem}, make(chan struct{}, 100), make(chan struct{}, 100)}
		b, err := NewHandlerBackend("slow", d, Limits{Size: testSize})
		if err != nil {
			t.Fatal(err)
		}
		ns := r.addNamespace(2, b)
		old := r.connect()
		write := func(q *nvmetest.Queue, n byte) *nvmetest.Sent {
			t.Helper()
			data := make([]byte, 512)
			data[0] = n
			cmd := nvmetest.IOCommand(wire.OpWrite, 2, 0, 1)
			s, err := q.Send(&cmd, data, nil)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		// One is at the disk, one has arrived behind it, when the host lets go.
		write(old.IO[0], 1)
		<-d.entered
		write(old.IO[0], 2)
		connected := make(chan *nvmetest.Controller)
		go func() { connected <- r.connect() }()
		select {
		case <-connected:
			t.Fatal("the next controller is there while a write of before is at the disk")
		case <-time.After(100 * time.Millisecond):
		}
		d.release <- struct{}{}
		d.release <- struct{}{}
		next := <-connected
		if r.memory.mem[0] != 2 {
			t.Errorf("connected, and of the old writes only %d has landed", r.memory.mem[0])
		}
		d.release <- struct{}{}
		if _, err := write(next.IO[0], 3).Wait(); err != nil {
			t.Fatal(err)
		}
		// What is held when the host lets go is never carried out.
		ns.Hold()
		write(next.IO[0], 4)
		eventually(t, "it is held", func() bool { return ns.Stats().Held == 1 })
		next.IO[0].Close()
		next.Admin.Conn.Close()
		r.connect()
		ns.Release()
		eventually(t, "the old controllers are gone", func() bool { return ns.Stats().Queues <= 1 })
		if r.memory.mem[0] != 3 {
			t.Errorf("write %d of a connection that was closed has landed", r.memory.mem[0])
		}
	})
}

func TestConnectionLimit(t *testing.T) {
	r := newRig(t, Options{MaxConnections: 3})
	c := r.connect(func(c *nvmetest.Config) { c.Queues = 2 })
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if !ended(t, conn) {
		t.Error("a fourth connection stays")
	}
	if err := c.IO[0].Read(1, 0, make([]byte, 512)); err != nil {
		t.Error(err)
	}
}

// TestMemoryLimit: a queue that is too much may be tried again, and finds room when
// another has gone.
func TestMemoryLimit(t *testing.T) {
	r := newRig(t, Options{MaxMemory: 40 << 20})
	c := r.connect(func(c *nvmetest.Config) { c.Queues = 2 })
	other := r.connect(func(c *nvmetest.Config) { c.Queues = 0 })
	wantStatus(t, "a third queue", other.AddQueue(1), wire.ConnectBusy)
	c.IO[0].Close()
	eventually(t, "there is room again", func() bool { return other.AddQueue(1) == nil })
	c.Close()
	other.Close()
	eventually(t, "all is given back", func() bool { return r.target.memory.Load() == 0 })
}

// openFiles counts the descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// mappings counts the memory mappings of this process.
func mappings(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range b {
		if c == '\n' {
			n++
		}
	}
	return n
}

// TestThousandConnections come and go, at every point of their life, and leave
// nothing: no descriptor, no goroutine, no mapping, no controller.
func TestThousandConnections(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		one := func(i int) error {
			if i%4 == 0 {
				conn, err := net.Dial("tcp", r.addr)
				if err == nil {
					_, _ = conn.Write(make([]byte, i%128))
					conn.Close()
				}
				return err
			}
			if i%4 == 1 {
				q, err := nvmetest.Dial(r.addr, nvmetest.Options{})
				if err == nil {
					q.Conn.Close()
				}
				return err
			}
			c, err := nvmetest.Connect(nvmetest.Config{Addr: r.addr, Subsys: testNQN, Queues: 1, HostID: [16]byte{byte(i), byte(i >> 8)}})
			if err != nil {
				return err
			}
			if i%4 == 3 { // something is on its way
				cmd := nvmetest.IOCommand(wire.OpRead, 1, 0, 256)
				_, _ = c.IO[0].Send(&cmd, nil, make([]byte, 128<<10))
			}
			c.Close()
			return nil
		}
		settled := func() (files, maps, goroutines int) {
			eventually(t, "all connections are gone", func() bool {
				return r.target.Connections() == 0 && r.subsys.Controllers() == 0
			})
			runtime.GC()
			return openFiles(t), mappings(t), runtime.NumGoroutine()
		}
		for i := range 40 { // whatever is made once
			if err := one(i); err != nil {
				t.Fatal(err)
			}
		}
		files, maps, goroutines := settled()
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := w; i < 1000; i += 4 {
					if err := one(i); err != nil {
						t.Errorf("connection %d: %v", i, err)
					}
				}
			})
		}
		wg.Wait()
		eventually(t, "the same is open as before", func() bool {
			f, _, g := settled()
			return f <= files && g <= goroutines
		})
		// Threads come and go with stacks of their own; a queue has 16 MiB.
		if _, m, _ := settled(); m > maps+100 {
			t.Errorf("%d mappings, %d before", m, maps)
		}
		if n := len(r.ns.gate.attached); n != 0 {
			t.Errorf("%d queues are attached to the namespace", n)
		}
	})
}

// TestCloseUnderLoad ends everything while hosts are busy.
func TestCloseUnderLoad(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		c := r.connect(func(c *nvmetest.Config) { c.Queues = 4 })
		var wg sync.WaitGroup
		for i, q := range c.IO {
			wg.Go(func() {
				for q.Write(1, uint64(i*256), make([]byte, 64<<10)) == nil {
				}
			})
		}
		eventually(t, "they write", func() bool { return r.ns.Stats().Writes > 100 })
		if err := r.target.RemoveSubsystem(ctxFor(t, 10*time.Second), testNQN); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if s := r.ns.Stats(); s.InFlight != 0 || s.Queues != 0 {
			t.Errorf("afterwards: %+v", s)
		}
	})
}

// TestNoAllocation: a queue that is warm takes no memory from the heap, whatever it
// is asked for.
func TestNoAllocation(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		for _, v := range []struct{ bytes, depth int }{{4096, 1}, {4096, 32}, {128 << 10, 8}} {
			t.Run(fmt.Sprint(v), func(t *testing.T) {
				r := newRig(t, opt)
				path := filepath.Join(t.TempDir(), "disk")
				if err := os.WriteFile(path, make([]byte, testSize), 0o600); err != nil {
					t.Fatal(err)
				}
				b, err := OpenBackend(path, Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if err := r.subsys.RemoveNamespace(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				r.addNamespace(1, b)
				c := r.connect(func(c *nvmetest.Config) { c.Queues = 0 })
				load, err := c.NewReader(1, v.depth, v.bytes, testSize)
				if err != nil {
					t.Fatal(err)
				}
				defer load.Close()
				if err := load.Read(1000); err != nil {
					t.Fatal(err)
				}
				// Not AllocsPerRun: it takes away the processors that the ring keeps.
				const n = 2000
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				if err := load.Read(n); err != nil {
					t.Fatal(err)
				}
				runtime.ReadMemStats(&after)
				got := after.Mallocs - before.Mallocs
				// The runtime's own, for timers and threads, are not one per command.
				if got > n/20 {
					t.Errorf("%v allocations for %d reads", got, n)
				}
			})
		}
	})
}
