package nvmeof

import (
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/swapback/swapback/nvmeof/nvmetest"
)

// BenchmarkRead reads over loopback from memory. The figures it adds are for the
// target and the host together, which are in this one process.
func BenchmarkRead(b *testing.B) {
	for _, v := range []struct {
		bytes, depth int
		noRing       bool
	}{
		{4 << 10, 1, true}, {4 << 10, 32, true}, {128 << 10, 8, true},
		{4 << 10, 1, false}, {4 << 10, 32, false}, {128 << 10, 8, false},
	} {
		b.Run(fmt.Sprintf("%dk,depth=%d,ring=%v", v.bytes>>10, v.depth, !v.noRing), func(b *testing.B) {
			benchmarkRead(b, v.bytes, v.depth, Options{NoRing: v.noRing, ringAlways: !v.noRing, Logger: slog.New(slog.DiscardHandler)})
		})
	}
}

func benchmarkRead(b *testing.B, n, depth int, opt Options) {
	target, err := New(opt)
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go target.Serve(l)
	defer target.Close(b.Context())
	s, err := target.AddSubsystem(SubsystemConfig{NQN: testNQN, AnyHost: true})
	if err != nil {
		b.Fatal(err)
	}
	memory, err := NewMemory(64 << 20)
	if err != nil {
		b.Fatal(err)
	}
	backend, err := NewHandlerBackend("memory", memory, Limits{Size: memory.Size()})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := s.AddNamespace(NamespaceConfig{Backend: backend, UUID: [16]byte{1}}); err != nil {
		b.Fatal(err)
	}
	clear(memory.mem)
	c, err := nvmetest.Connect(nvmetest.Config{Addr: l.Addr().String(), Subsys: testNQN})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	r, err := c.NewReader(1, depth, n, memory.Size())
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	b.SetBytes(int64(n))
	b.ReportAllocs()
	b.ResetTimer()
	before, start := cpuTime(b), time.Now()
	if err := r.Read(b.N); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "reads/s")
	b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
