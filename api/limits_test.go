package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// accepting says yes to whatever reaches it, and remembers that something did.
type accepting struct {
	Service
	reached bool
}

func (a *accepting) CreatePool(context.Context, CreatePoolRequest) (Pool, error) {
	a.reached = true
	return Pool{}, nil
}

func (a *accepting) Pool(context.Context, string) (Pool, error) {
	a.reached = true
	return Pool{}, nil
}

func (a *accepting) Volumes(context.Context, string) ([]Volume, error) {
	a.reached = true
	return nil, nil
}

func (a *accepting) Volume(context.Context, string) (Volume, error) {
	a.reached = true
	return Volume{State: StateServing}, nil
}

func (a *accepting) CreateVolume(context.Context, CreateVolumeRequest) (Volume, error) {
	a.reached = true
	return Volume{}, nil
}

func (a *accepting) GrowVolume(context.Context, string, int64) (Volume, error) {
	a.reached = true
	return Volume{}, nil
}

func (a *accepting) Attach(context.Context, string, AttachRequest) (Volume, error) {
	a.reached = true
	return Volume{}, nil
}

func (a *accepting) Quarantine(context.Context, string, QuarantineRequest) (Volume, error) {
	a.reached = true
	return Volume{}, nil
}

func (a *accepting) SetDescendsFrom(context.Context, string, DescendsRequest) (Volume, error) {
	a.reached = true
	return Volume{}, nil
}

func (a *accepting) Swap(context.Context, SwapRequest) (SwapResult, error) {
	a.reached = true
	return SwapResult{}, nil
}

func (a *accepting) OpenSnapshot(context.Context, SnapshotRequest) (Snapshot, func(context.Context) error, error) {
	a.reached = true
	return Snapshot{}, func(context.Context) error { return nil }, nil
}

// list is n JSON values, each the same.
func list(n int, value string) string {
	return "[" + strings.TrimSuffix(strings.Repeat(value+",", n), ",") + "]"
}

// TestRequestsOutOfBounds: what no pool could ever mean is answered before it
// reaches the service, for each object and each of its fields. A good request
// stands beside the bad ones, so that a path that is misspelt here does not
// pass for a refusal.
func TestRequestsOutOfBounds(t *testing.T) {
	long := strings.Repeat("x", 5000)
	huge := "9223372036854775807"
	for _, c := range []struct {
		method, path string
		good         string
		bad          []string
	}{
		{"POST", "/v1/pools", `{"name":"tank","disks":["/dev/nvme0n1"],"extent_size":4194304}`, []string{
			``, `[]`, `{}`, `{"name":"tank"}`, `{"name":"tank","disks":null}`, `{"name":"tank","disks":[]}`, `{"name":"tank","disks":[7]}`,
			`{"name":"","disks":["/dev/x"]}`, `{"name":"` + long + `","disks":["/dev/x"]}`,
			`{"name":"../etc","disks":["/dev/x"]}`, `{"name":"a/b","disks":["/dev/x"]}`, `{"name":".","disks":["/dev/x"]}`,
			`{"name":"a\u0000","disks":["/dev/x"]}`, `{"name":"a\n","disks":["/dev/x"]}`, `{"name":"a\u001b[2J","disks":["/dev/x"]}`,
			`{"name":"tank","disks":` + list(1025, `"/dev/x"`) + `}`,
			`{"name":"tank","disks":["/dev/x"],"extent_size":-1}`, `{"name":"tank","disks":["/dev/x"],"extent_size":` + huge + `}`,
			`{"name":"tank","disks":["/dev/x"],"force":"yes"}`, `{"name":"tank","disks":["/dev/x"],"unknown":1}`,
			`{"name":"tank","disks":["` + long + `"]}`, `{"name":"tank","disks":[""]}`, `{"name":"tank","disks":["nvme0n1"]}`,
			`{"name":"tank","disks":["/dev/../etc/passwd"]}`, `{"name":"tank","disks":["/dev//x"]}`, `{"name":"tank","disks":["/dev/x\u0000"]}`,
			`{"name":"tank","disks":["/dev/x\n"]}`,
		}},
		{"POST", "/v1/volumes", `{"pool":"tank","name":"db","size":67108864,"stripes":2,"stripe_size":65536}`, []string{
			``, `{"name":"db"}`, `{"name":"../db","size":67108864}`, `{"name":"db/x","size":67108864}`, `{"name":"-rf","size":67108864}`,
			`{"name":"db","size":0}`, `{"name":"db","size":-1}`, `{"name":"db","size":` + huge + `}`, `{"name":"db","size":1e400}`,
			`{"name":"db","size":67108864,"stripes":-1}`, `{"name":"db","size":67108864,"stripes":1025}`,
			`{"name":"db","size":67108864,"stripe_size":-1}`, `{"name":"db","size":67108864,"stripe_size":` + huge + `}`,
			`{"pool":"` + long + `","name":"db","size":67108864}`, `{"name":"db","size":67108864,"uuid":"x"}`,
		}},
		{"POST", "/v1/volumes/db/grow", `{"size":134217728}`, []string{``, `{}`, `{"size":-1}`, `{"size":` + huge + `}`, `{"size":"1G"}`}},
		{"POST", "/v1/volumes/db/attach", `{"device":1048575}`, []string{``, `{"device":-1}`, `{"device":1048576}`, `{"device":4294967296}`, `{"device":4294967295}`}},
		{"POST", "/v1/volumes/db/quarantine", `{"reason":"Größe paßt nicht","job":"nightly","step":"load","exit_code":3}`, []string{
			``, `{}`, `{"reason":"` + long + `"}`, `{"reason":"a\u001b]0;b\u0007"}`, `{"reason":"a\nb"}`, `{"reason":"a\u009bb"}`, `{"reason":"a\u202eb"}`,
			`{"reason":"r","job":"` + long + `"}`, `{"reason":"r","job":"\u0007"}`, `{"reason":"r","step":"` + long + `"}`, `{"reason":"r","step":"\u0007"}`,
			`{"reason":"r","volume":"` + long + `"}`, `{"reason":"r","volume":"\u0007"}`, `{"reason":"r","backup":"` + long + `"}`, `{"reason":"r","backup":"\u0007"}`,
			`{"reason":"r","time":"yesterday"}`, `{"reason":"r","generation":-1}`,
		}},
		{"PUT", "/v1/volumes/db/descends-from", `{"backup":"20260301T120000Z-0a1b"}`, []string{``, `{}`, `{"backup":""}`, `{"backup":"` + long + `"}`, `{"backup":"a\u001bb"}`}},
		{"POST", "/v1/swaps", `{"pairs":[{"a":"tank/db","b":"spare"}],"busy":"hold","hold_for":2.5}`, []string{
			``, `{}`, `{"pairs":null}`, `{"pairs":[]}`, `{"pairs":[{"a":"db"}]}`, `{"pairs":[{"a":"","b":"x"}]}`, `{"pairs":[{"a":"` + long + `","b":"x"}]}`,
			`{"pairs":[{"a":"x","b":"` + long + `"}]}`, `{"pairs":` + list(1025, `{"a":"x","b":"y"}`) + `}`,
			`{"pairs":[{"a":"x","b":"y"}],"busy":"never"}`, `{"pairs":[{"a":"x","b":"y"}],"hold_for":-1}`, `{"pairs":[{"a":"x","b":"y"}],"hold_for":1e300}`,
		}},
		{"POST", "/v1/snapshots", `{"volumes":["db"],"cow_size":4194304}`, []string{
			``, `{}`, `{"volumes":null}`, `{"volumes":[]}`, `{"volumes":` + list(65, `"db"`) + `}`, `{"volumes":["` + long + `"]}`, `{"volumes":[""]}`,
			`{"volumes":["db"],"cow_size":-1}`, `{"volumes":["db"],"cow_size":` + huge + `}`,
		}},
	} {
		send := func(body string) (*accepting, *httptest.ResponseRecorder) {
			svc := &accepting{}
			h := NewHandler(svc, nil, "test", slog.New(slog.DiscardHandler))
			// A snapshot is held until its client goes.
			ctx, cancel := context.WithCancel(t.Context())
			if c.path == "/v1/snapshots" {
				cancel()
			}
			defer cancel()
			r := httptest.NewRequestWithContext(ctx, c.method, c.path, strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return svc, w
		}
		if svc, w := send(c.good); !svc.reached || w.Code != http.StatusOK {
			t.Errorf("%s %s %s: refused: %d %s", c.method, c.path, c.good, w.Code, w.Body)
		}
		for _, body := range c.bad {
			svc, w := send(body)
			if svc.reached || w.Code < 400 || w.Code > 499 {
				t.Errorf("%s %s %.100s: answered %d, reached the service: %v", c.method, c.path, body, w.Code, svc.reached)
			}
		}
	}
}

// TestReferencesAreBounded: the names in a path are as bounded as those in a body.
func TestReferencesAreBounded(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for path, want := range map[string]int{
		"/v1/pools/tank":           http.StatusOK,
		"/v1/pools/" + long:        http.StatusUnprocessableEntity,
		"/v1/volumes/tank%2Fdb":    http.StatusOK,
		"/v1/volumes/" + long:      http.StatusUnprocessableEntity,
		"/v1/volumes?pool=tank":    http.StatusOK,
		"/v1/volumes?pool=" + long: http.StatusUnprocessableEntity,
	} {
		svc := &accepting{}
		w := httptest.NewRecorder()
		NewHandler(svc, nil, "test", slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want || svc.reached != (want == http.StatusOK) {
			t.Errorf("GET %.60s: %d, want %d; reached the service: %v; %s", path, w.Code, want, svc.reached, w.Body)
		}
	}
}

// TestBodyIsBounded: a request without an end is cut off, not collected.
func TestBodyIsBounded(t *testing.T) {
	svc := &accepting{}
	body := fmt.Sprintf(`{"name":"tank","disks":["/dev/x"]%s}`, strings.Repeat(" ", 2<<20))
	r := httptest.NewRequest("POST", "/v1/pools", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	NewHandler(svc, nil, "test", slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
	if w.Code != http.StatusRequestEntityTooLarge || svc.reached {
		t.Errorf("a body of 2 MiB was answered %d, reached the service: %v", w.Code, svc.reached)
	}
}

// TestReasonIsTaken: whatever a failure says can stand on the label of its data.
func TestReasonIsTaken(t *testing.T) {
	for text, want := range map[string]string{
		"exit code 3":                    "exit code 3",
		"two\n  lines\r\n":               "two lines",
		"\x1b]0;title\x07 \u202eevil":    "]0;title evil",
		"\xff broken":                    "· broken",
		strings.Repeat("ä", MaxReason):   strings.Repeat("ä", MaxReason),
		strings.Repeat("ä", MaxReason+1): strings.Repeat("ä", MaxReason),
	} {
		got := Reason(text)
		if got != want {
			t.Errorf("Reason(%.40q) is %.40q, want %.40q", text, got, want)
		}
		f := &fake{}
		c := connect(t, f)
		if _, err := c.Quarantine(t.Context(), "db", QuarantineRequest{Quarantine: Quarantine{Reason: got}}); err != nil {
			t.Errorf("the daemon refuses the reason %.40q: %v", got, err)
		}
	}
}
