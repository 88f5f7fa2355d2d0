package api

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// recorder is a service that only keeps what it was asked, and complains when
// that is something that the API promises to refuse.
type recorder struct {
	calls []string
	wrong []string
	end   context.CancelFunc // ends the request, as a client that goes away
}

func (r *recorder) call(name string) { r.calls = append(r.calls, name) }

func (r *recorder) want(ok bool, format string, args ...any) {
	if !ok {
		r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
	}
}

func length(s string, low, high int) bool {
	n := utf8.RuneCountInString(s)
	return n >= low && n <= high
}

func (r *recorder) ref(s string) { r.want(s != "", "an empty name") }

func (r *recorder) Info(context.Context) (Info, error) { r.call("info"); return Info{}, nil }

func (r *recorder) Pools(context.Context) ([]Pool, error) { r.call("list-pools"); return nil, nil }

func (r *recorder) Pool(_ context.Context, pool string) (Pool, error) {
	r.call("show-pool")
	r.ref(pool)
	return Pool{Name: pool}, nil
}

func (r *recorder) CreatePool(_ context.Context, req CreatePoolRequest) (Pool, error) {
	r.call("create-pool")
	r.want(length(req.Name, 1, 64) && len(req.Disks) >= 1 && len(req.Disks) <= 1024 && req.ExtentSize >= 0, "%+v", req)
	return Pool{}, nil
}

func (r *recorder) DeletePool(_ context.Context, pool string, _ bool) error {
	r.call("delete-pool")
	r.ref(pool)
	return nil
}

func (r *recorder) CheckPool(_ context.Context, pool string) (CheckReport, error) {
	r.call("check-pool")
	r.ref(pool)
	return CheckReport{}, nil
}

func (r *recorder) RepairPool(_ context.Context, pool string) (CheckReport, error) {
	r.call("repair-pool")
	r.ref(pool)
	return CheckReport{}, nil
}

func (r *recorder) RejoinPool(_ context.Context, pool string) (Pool, error) {
	r.call("rejoin-pool")
	r.ref(pool)
	return Pool{}, nil
}

func (r *recorder) PoolMetadata(_ context.Context, pool string) (PoolMetadata, error) {
	r.call("dump-pool-metadata")
	r.ref(pool)
	return PoolMetadata{}, nil
}

func (r *recorder) Volumes(context.Context, string) ([]Volume, error) {
	r.call("list-volumes")
	return nil, nil
}

func (r *recorder) volume(name, volume string) (Volume, error) {
	r.call(name)
	r.ref(volume)
	return Volume{Name: volume}, nil
}

func (r *recorder) Volume(_ context.Context, volume string) (Volume, error) {
	return r.volume("show-volume", volume)
}

func (r *recorder) CreateVolume(_ context.Context, req CreateVolumeRequest) (Volume, error) {
	r.want(length(req.Name, 1, 64) && length(req.Pool, 0, 64) && req.Size >= 4096 && req.Stripes >= 0 && req.Stripes <= 1024 && req.StripeSize >= 0, "%+v", req)
	return r.volume("create-volume", req.Name)
}

func (r *recorder) DeleteVolume(_ context.Context, volume string, _ bool) error {
	_, err := r.volume("delete-volume", volume)
	return err
}

func (r *recorder) GrowVolume(_ context.Context, volume string, size int64) (Volume, error) {
	r.want(size >= 4096, "size %d", size)
	return r.volume("grow-volume", volume)
}

func (r *recorder) Attach(_ context.Context, volume string, req AttachRequest) (Volume, error) {
	r.want(req.Device == nil || *req.Device >= 0 && *req.Device < 1<<20, "%+v", req)
	return r.volume("attach-volume", volume)
}

func (r *recorder) Detach(_ context.Context, volume string) (Volume, error) {
	return r.volume("detach-volume", volume)
}

func (r *recorder) Quarantine(_ context.Context, volume string, req QuarantineRequest) (Volume, error) {
	r.want(length(req.Reason, 0, MaxReason), "reason of %d bytes", len(req.Reason))
	for _, s := range []string{req.Quarantine.Volume, req.Job, req.Step, req.Backup} {
		r.want(length(s, 0, 256), "field of %d bytes", len(s))
	}
	return r.volume("quarantine-volume", volume)
}

func (r *recorder) ReleaseQuarantine(_ context.Context, volume string) (Volume, error) {
	return r.volume("release-volume", volume)
}

func (r *recorder) SetDescendsFrom(_ context.Context, volume string, req DescendsRequest) (Volume, error) {
	r.want(length(req.Backup, 1, 256), "backup of %d bytes", len(req.Backup))
	return r.volume("set-descends-from", volume)
}

func (r *recorder) Holders(_ context.Context, volume string) ([]Holder, error) {
	_, err := r.volume("list-holders", volume)
	return nil, err
}

func (r *recorder) Swap(_ context.Context, req SwapRequest) (SwapResult, error) {
	r.call("swap")
	r.want(len(req.Pairs) >= 1 && len(req.Pairs) <= 1024 && req.HoldFor >= 0 && req.HoldFor <= 3600, "%+v", req)
	r.want(slices.Contains([]string{"", BusyHold, BusyRefuse}, req.Busy), "busy %q", req.Busy)
	for _, p := range req.Pairs {
		r.want(length(p.A, 1, 256) && length(p.B, 1, 256), "%+v", p)
	}
	return SwapResult{}, nil
}

func (r *recorder) OpenSnapshot(_ context.Context, req SnapshotRequest) (Snapshot, func(context.Context) error, error) {
	r.call("open-snapshot")
	r.want(len(req.Volumes) >= 1 && len(req.Volumes) <= 64 && req.COWSize >= 0, "%+v", req)
	r.end()
	return Snapshot{}, func(context.Context) error { r.call("end"); return nil }, nil
}

// FuzzHandler holds the API to its promises for whatever comes over the socket:
// no panic, no answer that blames the daemon, no long answer, and nothing
// reaches the service but what the document allows, exactly once.
func FuzzHandler(f *testing.F) {
	for _, s := range []string{
		"GET /v1/info", "GET /v1/pools", "GET /v1/pools/tank", "DELETE /v1/pools/tank?force=true", "POST /v1/pools/tank/check",
		"POST /v1/pools/tank/repair", "POST /v1/pools/tank/rejoin", "GET /v1/pools/tank/metadata",
		"GET /v1/volumes?pool=tank", "GET /v1/volumes/tank%2fdb", "DELETE /v1/volumes/db?force=1", "POST /v1/volumes/db/detach",
		"DELETE /v1/volumes/db/quarantine", "GET /v1/volumes/db/holders", "GET /metrics", "GET /openapi.json", "GET /docs",
		`POST /v1/pools {"name":"p","disks":["/dev/x"],"extent_size":65536,"force":true}`,
		`POST /v1/volumes {"pool":"p","name":"v","size":4096,"stripes":2,"stripe_size":4096,"zero":true,"detached":true,"like":"db"}`,
		`POST /v1/volumes/db/grow {"size":1e6}`,
		`POST /v1/volumes/db/attach {"read_only":true,"device":3}`,
		`POST /v1/volumes/db/quarantine {"reason":"r","time":"2026-11-25T00:00:00Z","job":"j","exit_code":3,"generation":4}`,
		`PUT /v1/volumes/db/descends-from {"backup":"b","generation":18446744073709551615}`,
		"GET /v1/exports", "GET /v1/volumes/db/export", "DELETE /v1/volumes/db/export?force=true",
		`POST /v1/volumes/db/export {"hosts":["nqn.2014-08.org.nvmexpress:uuid:x"],"authenticate":true}`,
		`PATCH /v1/volumes/db/export {"allow":["nqn.2014-08.org:a"],"deny":["nqn.2014-08.org:b"],"authenticate":false}`,
		`POST /v1/swaps {"pairs":[{"a":"a","b":"b","expect_a":1,"expect_b":2}],"busy":"refuse","hold_for":2.5,"allow_holders":true,"released":["nqn.2014-08.org:a"]}`,
		`POST /v1/snapshots {"volumes":["a","b"],"cow_size":1048576,"to_hosts":true}`,
		`POST /v1/snapshots {"volumes":null}`, `POST /v1/swaps [[[[[[`, `POST /v1/volumes//grow {}`, `GET /v1/volumes/..%2f..%2fetc`,
	} {
		line, body, _ := strings.Cut(s, " {")
		if line != s {
			body = "{" + body
		}
		method, target, _ := strings.Cut(line, " ")
		f.Add(method, target, "application/json", body)
	}
	rec := &recorder{}
	metrics := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { rec.call("metrics") })
	h := NewHandler(rec, metrics, "test", slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, method, target, contentType, body string) {
		head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: swapbackd\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", method, target, contentType, len(body))
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + body)))
		if err != nil {
			return // net/http answers for us
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		*rec = recorder{end: cancel}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req.WithContext(ctx))
		if w.Code >= 500 {
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
		if w.Code >= 400 && w.Body.Len() > 16<<10 {
			t.Errorf("the answer has %d bytes", w.Body.Len())
		}
		if len(rec.wrong) > 0 {
			t.Errorf("%s %s %s reached the service with %q", method, target, body, rec.wrong)
		}
		switch served := strings.Join(rec.calls, " "); {
		case w.Code >= 300 && served != "":
			t.Errorf("status %d, but the service was called: %s", w.Code, served)
		case w.Code < 300 && strings.HasPrefix(req.URL.Path, "/v1/") && len(rec.calls) != 1 && served != "open-snapshot end":
			t.Errorf("status %d, and the service was called so: %q", w.Code, served)
		}
	})
}
