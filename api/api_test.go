package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// fake answers with what a test put into it. Methods that a test does not
// need panic through the embedded nil interface.
type fake struct {
	Service
	err     error
	got     any
	ended   chan struct{}
	volumes []Volume
}

func (f *fake) Volumes(_ context.Context, pool string) ([]Volume, error) {
	f.got = pool
	return f.volumes, f.err
}

func (f *fake) Volume(_ context.Context, ref string) (Volume, error) {
	f.got = ref
	return Volume{Name: ref}, f.err
}

func (f *fake) DeleteVolume(_ context.Context, ref string, force bool) error {
	f.got = []any{ref, force}
	return f.err
}

func (f *fake) CreateVolume(_ context.Context, req CreateVolumeRequest) (Volume, error) {
	f.got = req
	return Volume{Name: req.Name, Size: req.Size}, f.err
}

func (f *fake) Quarantine(_ context.Context, ref string, req QuarantineRequest) (Volume, error) {
	f.got = req
	return Volume{Name: ref}, f.err
}

func (f *fake) Swap(_ context.Context, req SwapRequest) (SwapResult, error) {
	f.got = req
	return SwapResult{Busy: req.Busy, Held: 3}, f.err
}

func (f *fake) OpenSnapshot(_ context.Context, req SnapshotRequest) (Snapshot, func(context.Context) error, error) {
	f.got = req
	end := func(ctx context.Context) error {
		close(f.ended)
		return ctx.Err()
	}
	return Snapshot{Volumes: []SnapshotVolume{{Device: "/dev/dm-9"}}}, end, f.err
}

// connect serves a fake on a unix socket and returns a client for it.
func connect(t *testing.T, f *fake) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: NewHandler(f, nil, "test", slog.New(slog.DiscardHandler))}
	go func() { _ = srv.Serve(ln) }()
	c := NewClient(path)
	t.Cleanup(func() {
		c.Close()
		_ = srv.Close()
	})
	return c
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRequestsArriveAsSent(t *testing.T) {
	f := &fake{volumes: []Volume{{Name: "db", Size: 7}}}
	c := connect(t, f)
	ctx := t.Context()

	list, err := c.Volumes(ctx, "my pool")
	if err != nil || f.got != "my pool" || len(list) != 1 || list[0].Size != 7 {
		t.Errorf("Volumes: got %v, %v; service saw %v", list, err, f.got)
	}
	// A reference with a slash is one path segment.
	if v, err := c.Volume(ctx, "tank/db"); err != nil || v.Name != "tank/db" {
		t.Errorf("Volume: got %q, %v", v.Name, err)
	}
	if err := c.DeleteVolume(ctx, "db", true); err != nil || !reflect.DeepEqual(f.got, []any{"db", true}) {
		t.Errorf("DeleteVolume: %v; service saw %v", err, f.got)
	}
	swap := SwapRequest{Pairs: []SwapPair{{A: "a", B: "b", ExpectB: 4}}, Busy: BusyRefuse, HoldFor: 2.5, AllowHolders: true}
	if res, err := c.Swap(ctx, swap); err != nil || res.Held != 3 || !reflect.DeepEqual(f.got, swap) {
		t.Errorf("Swap: got %+v, %v; service saw %+v", res, err, f.got)
	}
	q := QuarantineRequest{Quarantine: Quarantine{Reason: "r", Job: "j", ExitCode: 3, Time: time.Unix(9, 0).UTC()}, Generation: 5}
	if _, err := c.Quarantine(ctx, "db", q); err != nil || !reflect.DeepEqual(f.got, q) {
		t.Errorf("Quarantine: %v; service saw %+v", err, f.got)
	}
	if _, err := c.Quarantine(ctx, "db", QuarantineRequest{}); err != nil {
		t.Errorf("Quarantine without a time: %v", err)
	}
}

func TestErrorsKeepCodeRemedyAndHolders(t *testing.T) {
	want := &Error{
		Code: CodeInUse, Message: "volume db is in use", Remedy: "unmount it",
		Holders: []Holder{{Kind: "mount", Device: "/dev/ublkb0", Detail: "mounted on /srv"}},
	}
	f := &fake{err: want}
	c := connect(t, f)
	_, err := c.Swap(t.Context(), SwapRequest{Pairs: []SwapPair{{A: "a", B: "b"}}})
	var got *Error
	if !errors.As(err, &got) {
		t.Fatalf("got %T %v", err, err)
	}
	if got.Status != http.StatusConflict || got.Code != want.Code || got.Message != want.Message || got.Remedy != want.Remedy || !reflect.DeepEqual(got.Holders, want.Holders) {
		t.Errorf("got %+v", got)
	}
	for _, part := range []string{"in use", "/dev/ublkb0", "/srv", "unmount it"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("text lacks %q: %s", part, err)
		}
	}

	f.err = errors.New("disk on fire")
	if _, err := c.Volume(t.Context(), "db"); CodeOf(err) != CodeInternal || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("plain error came back as %v", err)
	}
}

func TestBadRequestsDoNotReachTheService(t *testing.T) {
	f := &fake{}
	c := connect(t, f)
	for name, call := range map[string]func() error{
		"no name": func() error { _, err := c.CreateVolume(t.Context(), CreateVolumeRequest{Size: 4096}); return err },
		"tiny size": func() error {
			_, err := c.CreateVolume(t.Context(), CreateVolumeRequest{Name: "a", Size: 1})
			return err
		},
		"no pairs": func() error { _, err := c.Swap(t.Context(), SwapRequest{}); return err },
		"busy policy": func() error {
			_, err := c.Swap(t.Context(), SwapRequest{Pairs: []SwapPair{{A: "a", B: "b"}}, Busy: "wait"})
			return err
		},
		"unknown field": func() error {
			return c.call(t.Context(), "POST", "/v1/swaps", map[string]any{"pairs": []any{}, "nix": 1}, nil)
		},
		"unknown path": func() error { return c.call(t.Context(), "GET", "/v1/nix", nil, nil) },
	} {
		err := call()
		var e *Error
		if !errors.As(err, &e) || e.Status < 400 || e.Message == "" {
			t.Errorf("%s: got %v", name, err)
		}
		if f.got != nil {
			t.Errorf("%s: the service saw %v", name, f.got)
			f.got = nil
		}
	}
}

func TestSnapshotEndsWithTheConnection(t *testing.T) {
	for name, end := range map[string]func(context.CancelFunc, func(context.Context) error){
		"by its function": func(_ context.CancelFunc, f func(context.Context) error) { _ = f(context.Background()) },
		"by its context":  func(cancel context.CancelFunc, _ func(context.Context) error) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{ended: make(chan struct{})}
			c := connect(t, f)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			snap, stop, err := c.OpenSnapshot(ctx, SnapshotRequest{Volumes: []string{"a"}})
			if err != nil || snap.Volumes[0].Device != "/dev/dm-9" {
				t.Fatalf("got %+v, %v", snap, err)
			}
			select {
			case <-f.ended:
				t.Fatal("the snapshot ended while its connection was open")
			default:
			}
			end(cancel, stop)
			<-f.ended
			_ = stop(context.Background())
		})
	}
}

func TestNoDaemonNamesSocketAndRemedy(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "nobody"))
	_, err := c.Info(t.Context())
	if CodeOf(err) != CodeUnavailable || !strings.Contains(err.Error(), "nobody") || !strings.Contains(err.Error(), SocketEnv) {
		t.Errorf("got %v", err)
	}
}

// TestDaemonDiesInARequest: no answer, or a part of one, is the daemon's absence
// and not some error of the request.
func TestDaemonDiesInARequest(t *testing.T) {
	for name, answer := range map[string]string{
		"none": "", "half": "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"name\": ",
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "sock")
			ln, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = io.WriteString(conn, answer)
				conn.Close()
			}()
			c := NewClient(socket)
			defer c.Close()
			_, err = c.GrowVolume(t.Context(), "db", 1<<30)
			if CodeOf(err) != CodeUnavailable || !strings.Contains(err.Error(), "went away") || !strings.Contains(err.Error(), "volumes/db") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestOpenAPIDescribesEveryOperation(t *testing.T) {
	doc, err := OpenAPI("1")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"info", "create-pool", "check-pool", "create-volume", "quarantine-volume", "swap", "open-snapshot", "list-holders", "metrics"} {
		if !strings.Contains(string(doc), "operationId: "+id+"\n") {
			t.Errorf("the document lacks operation %s", id)
		}
	}
}

func TestMetricsArePassedThrough(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Accept"))
		_, _ = w.Write([]byte("up 1\n"))
	})
	for _, tt := range []struct {
		metrics http.Handler
		status  int
	}{{metrics, http.StatusOK}, {nil, http.StatusNotFound}} {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("Accept", "text/x")
		w := httptest.NewRecorder()
		NewHandler(&fake{}, tt.metrics, "test", slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
		if w.Code != tt.status || tt.metrics != nil && (w.Body.String() != "up 1\n" || w.Header().Get("Content-Type") != "text/x") {
			t.Errorf("%d %q %v", w.Code, w.Body, w.Header())
		}
	}
}

func FuzzDecodeError(f *testing.F) {
	f.Add([]byte(`{"status":409,"code":"busy","message":"m"}`), 409)
	f.Add([]byte(`{"title":"t","detail":"d","errors":[{"message":"m","location":"body.size"}]}`), 422)
	f.Fuzz(func(t *testing.T, body []byte, status int) {
		resp := &http.Response{StatusCode: status, Status: "x", Body: http.NoBody}
		resp.Body = readCloser{strings.NewReader(string(body))}
		var e *Error
		if err := decodeError(resp); !errors.As(err, &e) || e.Code == "" || e.Message == "" && e.Error() == "" && len(body) == 0 {
			t.Errorf("got %#v", err)
		}
	})
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }
