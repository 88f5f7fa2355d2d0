package remote

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
)

// FuzzGuard: whatever a client sends, nothing reaches the service but what it has
// the right to, no answer names what it may not see, and no answer blames the daemon.
func FuzzGuard(f *testing.F) {
	for _, q := range requests {
		f.Add(q.method, q.path, q.body)
		f.Add(q.method, strings.ReplaceAll(q.path, "db", "secret"), strings.ReplaceAll(q.body, "db", "secret"))
	}
	table, err := access.Parse([]byte("swapback-access 1\nallow host1 backup,swap tank/db\nallow host1 manage tank/db-* tank/new*\n"))
	if err != nil {
		f.Fatal(err)
	}
	may := map[string][]string{
		"swap": {"tank/db"}, "quarantine-volume": {"tank/db"}, "open-snapshot": {"tank/db"}, "set-descends-from": {"tank/db"},
		"list-holders": {"tank/db", "tank/db-spare"},
		"grow-volume":  {"tank/db-spare"}, "attach-volume": {"tank/db-spare"}, "detach-volume": {"tank/db-spare"}, "release-volume": {"tank/db-spare"}, "delete-volume": {"tank/db-spare"},
	}
	svc := &store{ended: make(chan struct{}, 9)}
	g := &guard{svc: svc}
	log := slog.New(slog.DiscardHandler)
	h := api.NewGuardedHandler(g, http.NotFoundHandler(), "test", log, g.check)
	f.Fuzz(func(t *testing.T, method, target, body string) {
		head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: swapbackd\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", method, target, len(body))
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + body)))
		if err != nil {
			return // net/http answers for us
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // a snapshot ends at once
		c := &call{name: "host1", table: table, file: "access", peer: &peer{name: "host1"}, log: log, denies: func() bool { return true }, now: func() *access.Table { return table }}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req.WithContext(withCall(ctx, c)))
		for len(svc.ended) > 0 {
			<-svc.ended
		}
		for _, one := range svc.changes() {
			words := strings.Fields(one)
			for _, volume := range words[1:] {
				created := words[0] == "create-volume" && (strings.HasPrefix(volume, "tank/db-") || strings.HasPrefix(volume, "tank/new"))
				ok := created
				for _, v := range may[words[0]] {
					ok = ok || v == volume
				}
				if !ok {
					t.Errorf("%s %s %s did %q", method, target, body, one)
				}
			}
		}
		if w.Code >= 500 {
			t.Errorf("%s %s: %d %s", method, target, w.Code, w.Body)
		}
		if sent := target + body; strings.Contains(w.Body.String(), "secret") && !strings.Contains(sent, "secret") && json.Valid(w.Body.Bytes()) {
			// It may have sent the word in another spelling.
			if !strings.ContainsAny(sent, `%\`) {
				t.Errorf("%s %s tells of what is secret: %s", method, target, w.Body)
			}
		}
	})
}

// TestNobodyIsRefused: without a caller in its context a call is refused, whatever it is.
func TestNobodyIsRefused(t *testing.T) {
	svc := &store{}
	g := &guard{svc: svc}
	h := api.NewGuardedHandler(g, http.NotFoundHandler(), "test", slog.New(slog.DiscardHandler), g.check)
	for _, q := range requests {
		r := httptest.NewRequest(q.method, q.path, strings.NewReader(q.body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s", q.id, w.Code, w.Body)
		}
	}
	// The service alone refuses as well.
	if _, err := g.Swap(t.Context(), api.SwapRequest{}); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("swap: %v", err)
	}
	if err := g.DeleteVolume(t.Context(), "tank/db", true); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("delete: %v", err)
	}
	if calls := svc.changes(); len(calls) > 0 {
		t.Errorf("the service was asked: %q", calls)
	}
}
