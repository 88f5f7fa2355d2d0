package nvmeof

import (
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// logWatch fails a test when the target logs a panic.
type logWatch struct {
	mu   sync.Mutex
	text strings.Builder
}

func (w *logWatch) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.Contains(string(b), "panic") {
		w.text.Write(b)
	}
	return len(b), nil
}

// FuzzConnection sends whatever it likes, at every point of a connection's life. The
// target never panics, closes the connection when it is half closed, and serves
// another host then.
func FuzzConnection(f *testing.F) {
	watch := &logWatch{}
	target, err := New(Options{Logger: slog.New(slog.NewTextHandler(watch, nil)), Patience: 2 * time.Second, QueueDepth: 8})
	if err != nil {
		f.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	go target.Serve(l)
	f.Cleanup(func() { target.Close(f.Context()) })
	key, err := auth.NewSecret(auth.SHA256)
	if err != nil {
		f.Fatal(err)
	}
	groups := []auth.Group{auth.GroupNull}
	s, err := target.AddSubsystem(SubsystemConfig{NQN: testNQN, AnyHost: true, Authenticate: func(string) (auth.Config, bool) {
		return auth.Config{Secret: key, Groups: groups}, true
	}})
	if err != nil {
		f.Fatal(err)
	}
	memory, err := NewMemory(1 << 20)
	if err != nil {
		f.Fatal(err)
	}
	b, err := NewHandlerBackend("memory", memory, Limits{Size: memory.Size(), Discard: true})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := s.AddNamespace(NamespaceConfig{Backend: b, UUID: [16]byte{1}}); err != nil {
		f.Fatal(err)
	}
	host := auth.Host{Host: nvmetest.HostNQN, Subsys: testNQN, Secret: key, Hashes: []auth.Hash{auth.SHA256}, Groups: groups}
	cfg := nvmetest.Config{Addr: l.Addr().String(), Subsys: testNQN, Queues: 1, Depth: 8, Auth: &host}
	good, err := nvmetest.Connect(cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(good.Close)

	command := func(cmd wire.SQE, capsule int) []byte {
		b := make([]byte, wire.CapsuleCmdSize+capsule)
		h := wire.Header{Type: wire.TypeCapsuleCmd, HLen: wire.CapsuleCmdSize, PLen: uint32(len(b))}
		if capsule > 0 {
			h.PDO = wire.CapsuleCmdSize
			cmd.SGL = wire.SGL{Length: uint32(capsule), Type: wire.SGLInCapsule}
		}
		h.Put(b)
		cmd.Put(b[wire.HeaderSize:])
		return b
	}
	ic := make([]byte, wire.ICSize)
	wire.ICReq{}.Put(ic)
	f.Add(uint8(0), ic)
	connect := wire.SQE{Flags: wire.FlagSGL, SGL: wire.SGL{Length: wire.ConnectDataSize, Type: wire.SGLInCapsule}}
	connect.SetConnect(wire.Connect{SQSize: 7})
	f.Add(uint8(1), command(connect, wire.ConnectDataSize))
	for _, op := range []wire.Opcode{wire.OpIdentify, wire.OpGetLogPage, wire.OpSetFeatures, wire.OpGetFeatures, wire.OpAbort, wire.OpAsyncEvent, wire.OpFabrics} {
		f.Add(uint8(2), command(wire.SQE{Opcode: op, SGL: wire.SGL{Length: 4096, Type: wire.SGLTransport}, CDW10: 0x02, NSID: 1}, 0))
	}
	for _, op := range []wire.Opcode{wire.OpRead, wire.OpWrite, wire.OpCompare, wire.OpWriteZeroes, wire.OpDSM, wire.OpFlush} {
		cmd := nvmetest.IOCommand(op, 1, 0, 1)
		f.Add(uint8(3), command(cmd, 512))
		cmd.SGL = wire.SGL{Length: 512, Type: wire.SGLTransport}
		data := make([]byte, wire.DataSize+512)
		wire.Header{Type: wire.TypeH2CData, Flags: wire.FlagLast, HLen: wire.DataSize, PDO: wire.DataSize, PLen: uint32(len(data))}.Put(data)
		wire.Data{Length: 512}.Put(data)
		f.Add(uint8(3), append(command(cmd, 0), data...))
		f.Add(uint8(7), append(command(cmd, 0), data...))
	}

	// A host that begins anew, asks, and begins once more; and one that makes no sense.
	message := func(b []byte) []byte {
		cmd := wire.SQE{}
		cmd.SetAuthentication(wire.FCAuthSend, uint32(len(b)))
		return append(command(cmd, len(b))[:wire.CapsuleCmdSize], b...)
	}
	ask := wire.SQE{SGL: wire.SGL{Length: wire.MaxAuthentication, Type: wire.SGLTransport}}
	ask.SetAuthentication(wire.FCAuthReceive, wire.MaxAuthentication)
	negotiate := (&auth.Host{Hashes: host.Hashes, Groups: groups}).Start()
	for _, how := range []uint8{2, 3} {
		f.Add(how, slices.Concat(message(negotiate), command(ask, 0), message(negotiate), command(ask, 0)))
		f.Add(how, slices.Concat(message(make([]byte, 16)), message(negotiate[:16]), command(ask, 0)))
	}

	f.Fuzz(func(t *testing.T, how uint8, input []byte) {
		conn := fuzzed(t, cfg, how)
		if conn == nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write(input)
		if err := conn.(*net.TCPConn).CloseWrite(); err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.Copy(io.Discard, conn); err != nil {
				if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
					t.Error("the connection stays after its host has let go")
				}
			}
		}
		if err := good.IO[0].Read(1, 0, make([]byte, 512)); err != nil {
			t.Errorf("another host: %v", err)
		}
		watch.mu.Lock()
		defer watch.mu.Unlock()
		if watch.text.Len() > 0 {
			t.Error(watch.text.String())
			watch.text.Reset()
		}
	})
}

// fuzzed is a connection that has come as far as how says: 0 nowhere, 1 ICResp, 2 an
// admin queue, 3 an I/O queue; plus 4: with digests, which are wrong most of the time.
func fuzzed(t *testing.T, cfg nvmetest.Config, how uint8) net.Conn {
	t.Helper()
	if how%4 == 0 {
		conn, err := net.Dial("tcp", cfg.Addr)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	cfg.Options.Digests.Data = how&4 != 0
	if how%4 == 1 {
		q, err := nvmetest.Dial(cfg.Addr, cfg.Options)
		if err != nil {
			t.Fatal(err)
		}
		return q.Conn
	}
	c, err := nvmetest.Connect(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if how%4 == 2 {
		return c.Admin.Conn
	}
	return c.IO[0].Conn
}
