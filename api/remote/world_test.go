package remote

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/certs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store is a service of two pools that keeps what it was asked.
type store struct {
	mu    sync.Mutex
	calls []string
	ended chan struct{} // gets a value for each snapshot that ends
}

const uuidOf = "33333333-0000-4000-8000-00000000000"

func (s *store) note(parts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, strings.Join(parts, " "))
}

// changes returns the calls that are not looks, and forgets all.
func (s *store) changes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.calls
	s.calls = nil
	return all
}

func volumes() []api.Volume {
	var list []api.Volume
	for i, name := range []string{"tank/db", "tank/db-spare", "tank/secret", "safe/db", "safe/log"} {
		pool, name, _ := strings.Cut(name, "/")
		list = append(list, api.Volume{
			Pool: pool, Name: name, UUID: uuidOf + string(rune('1'+i)), Size: 1 << 20, State: api.StateServing,
			Device: "/dev/ublkb0", Link: "/dev/swapback/x", Backend: "/dev/dm-0",
		})
	}
	return list
}

func (s *store) Info(context.Context) (api.Info, error) {
	return api.Info{Version: "v1", Pools: []string{"safe", "tank"}, Failed: []api.FailedPool{{Name: "old"}}}, nil
}

func (s *store) Pools(context.Context) ([]api.Pool, error) {
	return []api.Pool{
		{Name: "safe", UUID: uuidOf + "a", Members: []api.Member{{Path: "/dev/sda"}}, Volumes: 2},
		{Name: "tank", UUID: uuidOf + "b", Members: []api.Member{{Path: "/dev/sdb"}}, Volumes: 3},
	}, nil
}

func (s *store) Pool(ctx context.Context, ref string) (api.Pool, error) {
	all, _ := s.Pools(ctx)
	for _, p := range all {
		if p.Name == ref || p.UUID == ref {
			return p, nil
		}
	}
	return api.Pool{}, &api.Error{Code: api.CodeNotFound, Message: "no pool"}
}

func (s *store) Volumes(ctx context.Context, pool string) ([]api.Volume, error) {
	p, err := s.Pool(ctx, pool)
	if pool != "" && err != nil {
		return nil, err
	}
	return slices.DeleteFunc(volumes(), func(v api.Volume) bool { return pool != "" && v.Pool != p.Name }), nil
}

func (s *store) Volume(_ context.Context, ref string) (api.Volume, error) {
	for _, v := range volumes() {
		if v.UUID == ref || v.Pool+"/"+v.Name == ref {
			return v, nil
		}
	}
	return api.Volume{}, &api.Error{Code: api.CodeNotFound, Message: "no volume " + ref}
}

// change notes a call and answers with its volume.
func (s *store) change(ctx context.Context, id, ref string) (api.Volume, error) {
	v, err := s.Volume(ctx, ref)
	s.note(id, v.Pool+"/"+v.Name)
	return v, err
}

func (s *store) pool(ctx context.Context, id, ref string) error {
	p, err := s.Pool(ctx, ref)
	s.note(id, p.Name)
	return err
}

func (s *store) CreatePool(_ context.Context, req api.CreatePoolRequest) (api.Pool, error) {
	s.note("create-pool", req.Name)
	return api.Pool{}, nil
}

func (s *store) DeletePool(ctx context.Context, ref string, _ bool) error {
	return s.pool(ctx, "delete-pool", ref)
}

func (s *store) CheckPool(ctx context.Context, ref string) (api.CheckReport, error) {
	return api.CheckReport{}, s.pool(ctx, "check-pool", ref)
}

func (s *store) RepairPool(ctx context.Context, ref string) (api.CheckReport, error) {
	return api.CheckReport{}, s.pool(ctx, "repair-pool", ref)
}

func (s *store) RejoinPool(ctx context.Context, ref string) (api.Pool, error) {
	return api.Pool{}, s.pool(ctx, "rejoin-pool", ref)
}

func (s *store) PoolMetadata(ctx context.Context, ref string) (api.PoolMetadata, error) {
	return api.PoolMetadata{}, s.pool(ctx, "dump-pool-metadata", ref)
}

func (s *store) CreateVolume(ctx context.Context, req api.CreateVolumeRequest) (api.Volume, error) {
	p, err := s.Pool(ctx, req.Pool)
	if req.Like == "" {
		s.note("create-volume", p.Name+"/"+req.Name)
	} else {
		like, lerr := s.Volume(ctx, req.Like)
		err = errors.Join(err, lerr)
		s.note("create-volume", p.Name+"/"+req.Name, "like", like.Pool+"/"+like.Name, fmt.Sprint("zero:", req.Zero))
	}
	return api.Volume{Pool: p.Name, Name: req.Name, Device: "/dev/ublkb9"}, err
}

func (s *store) DeleteVolume(ctx context.Context, ref string, force bool) error {
	_, err := s.change(ctx, map[bool]string{false: "delete-volume", true: "delete-volume!"}[force], ref)
	return err
}

func (s *store) GrowVolume(ctx context.Context, ref string, _ int64) (api.Volume, error) {
	return s.change(ctx, "grow-volume", ref)
}

func (s *store) Attach(ctx context.Context, ref string, _ api.AttachRequest) (api.Volume, error) {
	return s.change(ctx, "attach-volume", ref)
}

func (s *store) Detach(ctx context.Context, ref string) (api.Volume, error) {
	return s.change(ctx, "detach-volume", ref)
}

func (s *store) Quarantine(ctx context.Context, ref string, _ api.QuarantineRequest) (api.Volume, error) {
	return s.change(ctx, "quarantine-volume", ref)
}

func (s *store) ReleaseQuarantine(ctx context.Context, ref string) (api.Volume, error) {
	return s.change(ctx, "release-volume", ref)
}

func (s *store) SetDescendsFrom(ctx context.Context, ref string, _ api.DescendsRequest) (api.Volume, error) {
	return s.change(ctx, "set-descends-from", ref)
}

func (s *store) Holders(ctx context.Context, ref string) ([]api.Holder, error) {
	_, err := s.change(ctx, "list-holders", ref)
	return nil, err
}

func (s *store) Exports(context.Context) ([]api.Export, error) {
	var list []api.Export
	for _, v := range volumes() {
		list = append(list, api.Export{Volume: v.Pool + "/" + v.Name})
	}
	return list, nil
}

func (s *store) Export(ctx context.Context, ref string) (api.Export, error) {
	v, err := s.Volume(ctx, ref)
	return api.Export{Volume: v.Pool + "/" + v.Name}, err
}

func (s *store) CreateExport(ctx context.Context, ref string, _ api.ExportRequest) (api.Export, error) {
	_, err := s.change(ctx, "create-export", ref)
	return api.Export{}, err
}

func (s *store) ChangeExport(ctx context.Context, ref string, _ api.ChangeExportRequest) (api.Export, error) {
	_, err := s.change(ctx, "change-export", ref)
	return api.Export{}, err
}

func (s *store) DeleteExport(ctx context.Context, ref string, _ bool) error {
	_, err := s.change(ctx, "delete-export", ref)
	return err
}

func (s *store) Swap(ctx context.Context, req api.SwapRequest) (api.SwapResult, error) {
	id := "swap"
	if req.AllowHolders {
		id = "swap!"
	}
	var names []string
	for _, p := range req.Pairs {
		a, aerr := s.Volume(ctx, p.A)
		b, berr := s.Volume(ctx, p.B)
		if aerr != nil || berr != nil {
			return api.SwapResult{}, &api.Error{Code: api.CodeNotFound, Message: "no volume"}
		}
		names = append(names, a.Pool+"/"+a.Name, b.Pool+"/"+b.Name)
	}
	s.note(append(append([]string{id}, names...), req.Released...)...)
	return api.SwapResult{}, nil
}

func (s *store) OpenSnapshot(ctx context.Context, req api.SnapshotRequest) (api.Snapshot, func(context.Context) error, error) {
	var snap api.Snapshot
	names := []string{"open-snapshot"}
	for _, ref := range req.Volumes {
		v, err := s.Volume(ctx, ref)
		if err != nil {
			return snap, nil, err
		}
		names = append(names, v.Pool+"/"+v.Name)
		snap.Volumes = append(snap.Volumes, api.SnapshotVolume{Volume: v, Device: "/dev/dm-9"})
	}
	s.note(names...)
	return snap, func(context.Context) error { s.ended <- struct{}{}; return nil }, nil
}

// text is a buffer that may be written and read at once.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

// world is a server on this machine's loopback, its authority, and its clients.
type world struct {
	t       *testing.T
	dir     string
	ca      *certs.Authority
	svc     *store
	log     *text
	srv     *Server
	address string
	ahead   atomic.Int64 // nanoseconds by which the server's clock is ahead
}

const life = 24 * time.Hour

// newWorld starts a server with a file of rights.
func newWorld(t *testing.T, rights string, change ...func(*limits)) *world {
	t.Helper()
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "remote"), svc: &store{ended: make(chan struct{}, 100)}, log: &text{}}
	var err error
	w.ca, err = certs.Init(w.dir, life, time.Now(), map[string][]byte{"access": []byte("swapback-access 1\n" + rights)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ca.IssueServer([]string{"127.0.0.1", "localhost"}, life, time.Now()); err != nil {
		t.Fatal(err)
	}
	w.srv = New(w.options("127.0.0.1:0"))
	w.srv.now = func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }
	w.srv.every = 20 * time.Millisecond
	for _, f := range change {
		f(&w.srv.limits)
	}
	w.start()
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) options(listen string) Options {
	metrics := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.svc.note("metrics")
		_, _ = rw.Write([]byte("up 1\n"))
	})
	return Options{
		Listen: listen, Cert: w.path(certs.ServerFile), CA: w.path(certs.AuthorityFile), Access: w.path("access"),
		Service: w.svc, Metrics: metrics, Version: "test", Logger: slog.New(slog.NewTextHandler(w.log, nil)),
	}
}

// start runs the server until the test ends, and waits until it listens.
func (w *world) start() {
	w.t.Helper()
	w.run()
	w.until("the server listens", func() bool { return w.srv.listener.Load() != nil })
	w.address = w.srv.listener.Load().Addr().String()
}

func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); w.srv.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-ended })
}

// until waits for something that has no event.
func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("it never came about that %s; log:\n%s", what, w.log)
		}
	}
}

// rights writes the file of rights anew and has it read.
func (w *world) rights(text string) {
	w.t.Helper()
	if err := certs.Replace(w.path("access"), []byte("swapback-access 1\n"+text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if err := w.srv.Reload(); err != nil {
		w.t.Fatal(err)
	}
}

// expire lets all certificates be past their end.
func (w *world) expire() { w.ahead.Store(int64(2 * life)) }

// issue signs a certificate for a client.
func (w *world) issue(name string) (*x509.Certificate, string) {
	w.t.Helper()
	c, text, err := w.ca.IssueClient(name, life, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	path := filepath.Join(w.t.TempDir(), name+".pem")
	if err := certs.WriteNew(path, text, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return c, path
}

// client is a new client of a name.
func (w *world) client(name string) *api.Client {
	w.t.Helper()
	_, path := w.issue(name)
	c := api.Target{Server: w.address, Cert: path}.Client(func(string) string { return "" })
	w.t.Cleanup(c.Close)
	return c
}

// config is what a client's TLS needs, for what package api would not do.
func (w *world) config(path string) *tls.Config {
	w.t.Helper()
	pair, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		w.t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: w.roots(), ServerName: "localhost"}
}

func (w *world) roots() *x509.CertPool {
	w.t.Helper()
	b, err := os.ReadFile(w.path(certs.AuthorityFile))
	if err != nil {
		w.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(b)
	return roots
}

// dial makes a TLS connection.
func (w *world) dial(conf *tls.Config) *tls.Conn {
	w.t.Helper()
	c, err := tls.Dial("tcp", w.address, conf)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// tcp makes a connection on which nothing is said.
func (w *world) tcp() net.Conn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// closed waits until the other side has closed a connection.
func (w *world) closed(what string, c net.Conn) {
	w.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 4096)
	for {
		_, err := c.Read(buf)
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			w.t.Fatalf("%s: the connection stays open", what)
		}
		if err != nil {
			return
		}
	}
}

// tlsClient does a handshake on a connection, if that works.
func tlsClient(raw net.Conn, conf *tls.Config) *tls.Conn {
	c := tls.Client(raw, conf)
	_ = c.Handshake() // what comes next fails as well then
	return c
}
