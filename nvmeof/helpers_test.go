package nvmeof

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

func TestMain(m *testing.M) {
	ReserveProcs(2)
	goleak.VerifyTestMain(m)
}

const (
	testNQN  = "nqn.2026-01.org.example:disks"
	testSize = 8 << 20
)

// rig is a target with one subsystem, which has one namespace in memory, on a
// loopback address.
type rig struct {
	t      *testing.T
	target *Target
	subsys *Subsystem
	ns     *Namespace
	memory *Memory
	addr   string

	serving []chan error

	mu   sync.Mutex
	told []Failure
}

func (r *rig) failed(f Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, f)
}

// failures are those that namespace 2 of a fileRig has told.
func (r *rig) failures() []Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.told
}

func newRig(t *testing.T, opt Options) *rig {
	t.Helper()
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	target, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, target: target}
	r.addr = r.listen("127.0.0.1:0")
	if r.subsys, err = target.AddSubsystem(SubsystemConfig{NQN: testNQN, Serial: "serial", Model: "model", AnyHost: true}); err != nil {
		t.Fatal(err)
	}
	if r.memory, err = NewMemory(testSize); err != nil {
		t.Fatal(err)
	}
	r.ns = r.addNamespace(1, r.memoryBackend(r.memory))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := target.Close(ctx); err != nil {
			t.Error(err)
		}
		for _, ended := range r.serving {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if n := target.Connections(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
		if n := r.subsys.Controllers(); n != 0 {
			t.Errorf("%d controllers are left", n)
		}
		r.memory.Close()
	})
	return r
}

// testWriter is the log of a test. Nothing is written after it has ended: the rig's
// cleanup has waited for all that write.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(b)))
	return len(b), nil
}

// listen adds a port and returns its address.
func (r *rig) listen(addr string) string {
	r.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.target.Serve(l) }()
	r.serving = append(r.serving, ended)
	eventually(r.t, "the port is there", func() bool {
		r.target.mu.Lock()
		defer r.target.mu.Unlock()
		for p := range r.target.ports {
			if p.listener == l {
				return true
			}
		}
		return false
	})
	return l.Addr().String()
}

func (r *rig) memoryBackend(m *Memory) *Backend {
	r.t.Helper()
	b, err := NewHandlerBackend("memory", m, Limits{Size: m.Size(), Discard: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *rig) addNamespace(id uint32, b *Backend) *Namespace {
	r.t.Helper()
	ns, err := r.subsys.AddNamespace(NamespaceConfig{ID: id, Backend: b, UUID: [16]byte{0xaa, byte(id)}, NGUID: [16]byte{0xbb, byte(id)}})
	if err != nil {
		r.t.Fatal(err)
	}
	return ns
}

// connect connects a host.
func (r *rig) connect(change ...func(*nvmetest.Config)) *nvmetest.Controller {
	r.t.Helper()
	cfg := nvmetest.Config{Addr: r.addr, Subsys: testNQN, Queues: 1}
	for _, f := range change {
		f(&cfg)
	}
	c, err := nvmetest.Connect(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

// eventually waits for what must come true in a while.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// noise is n bytes that depend on the seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// wantStatus wants a command to fail with a status.
func wantStatus(t *testing.T, what string, err error, want wire.Status) {
	t.Helper()
	if got, ok := err.(wire.Status); !ok || got != want {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func ctxFor(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// variants are the ways to talk: digests, flow control, padding, ring or not.
func variants(t *testing.T, f func(t *testing.T, opt Options, change func(*nvmetest.Config))) {
	for _, v := range []struct {
		name string
		opt  nvmetest.Options
		flow bool
	}{
		{"plain", nvmetest.Options{}, false},
		{"flow control", nvmetest.Options{}, true},
		{"header digest", nvmetest.Options{Digests: wire.Digests{Header: true}}, false},
		{"data digest", nvmetest.Options{Digests: wire.Digests{Data: true}}, true},
		{"both digests, padded", nvmetest.Options{Digests: wire.Digests{Header: true, Data: true}, HPDA: 15}, false},
	} {
		for _, noRing := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, ring %v", v.name, !noRing), func(t *testing.T) {
				f(t, Options{NoRing: noRing, ringAlways: !noRing}, func(c *nvmetest.Config) { c.Options, c.Flow = v.opt, v.flow })
			})
		}
	}
}
