package api

import (
	"io"
	"log/slog"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
)

// Whatever is in a body, it costs a bounded amount of memory, the answer is
// short, and the service does not see it. A body that is too large is not read.
func TestHostileBodies(t *testing.T) {
	fill := func(open, part, end string) string {
		return open + strings.Repeat(part, (maxBody-1-len(open)-len(end))/len(part)) + end
	}
	f := &fake{}
	h := NewHandler(f, nil, "test", slog.New(slog.DiscardHandler))
	for name, c := range map[string]struct {
		path, body string
		status     int
	}{
		"deep list":        {"/v1/swaps", fill("", "[", ""), 400},
		"deep objects":     {"/v1/swaps", fill("", `{"pairs":`, ""), 400},
		"closed deep list": {"/v1/swaps", strings.Repeat("[", maxBody/2-1) + strings.Repeat("]", maxBody/2-1), 400},
		"many pairs":       {"/v1/swaps", fill(`{"pairs":[`, `{},`, `{}]}`), 422},
		"pairs of numbers": {"/v1/swaps", fill(`{"pairs":[`, `1,`, `1]}`), 422},
		"pairs of lists":   {"/v1/swaps", fill(`{"pairs":[`, `[],`, `1]}`), 422},
		"good pairs":       {"/v1/swaps", fill(`{"pairs":[`, `{"a":"b","b":"a"},`, `{"a":"b","b":"a"}]}`), 422},
		"unknown fields":   {"/v1/swaps", fill(`{`, `"x":0,`, `"pairs":[]}`), 422},
		"volumes":          {"/v1/snapshots", fill(`{"volumes":[`, `"",`, `""]}`), 422},
		"disks":            {"/v1/pools", fill(`{"name":"p","disks":[`, `0,`, `0]}`), 422},
		"long name":        {"/v1/volumes", fill(`{"size":4096,"name":"`, `a`, `"}`), 422},
		"long number":      {"/v1/volumes", fill(`{"name":"a","size":`, `9`, `}`), 400},
		"huge exponent":    {"/v1/volumes", `{"name":"a","size":1e999999999}`, 400},
		"bad text":         {"/v1/volumes", fill(`{"size":4096,"name":"`, "\xff", `"}`), 422},
		"long reason":      {"/v1/volumes/a/quarantine", fill(`{"reason":"`, `r`, `"}`), 422},
		"long hold":        {"/v1/swaps", `{"pairs":[{"a":"a","b":"b"}],"hold_for":1e300}`, 422},
		"too large":        {"/v1/volumes", fill(`{"size":4096,"name":"`, `a`, `"}`) + "  ", 413},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("POST", c.path, io.NopCloser(strings.NewReader(c.body)))
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			h.ServeHTTP(w, r)
			runtime.ReadMemStats(&after)
			cost := after.TotalAlloc - before.TotalAlloc
			t.Logf("status %d, %d KiB allocated, answer of %d KiB", w.Code, cost>>10, w.Body.Len()>>10)
			if w.Code != c.status {
				t.Errorf("status %d, want %d: %.200s", w.Code, c.status, w.Body)
			}
			// Measured: at most 40 MiB, without the race detector.
			if cost > 96<<20 {
				t.Errorf("%d bytes were allocated", cost)
			}
			if w.Body.Len() > 16<<10 {
				t.Errorf("the answer has %d bytes", w.Body.Len())
			}
			if f.got != nil {
				t.Errorf("the service saw %.200v", f.got)
				f.got = nil
			}
		})
	}
}

func TestMistakesMoreAreCounted(t *testing.T) {
	r := httptest.NewRequest("POST", "/v1/swaps", strings.NewReader(`{"pairs":[`+strings.Repeat("0,", 40)+`0]}`))
	w := httptest.NewRecorder()
	NewHandler(&fake{}, nil, "test", slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
	err := decodeError(w.Result())
	if got := strings.Count(err.Error(), "body.pairs"); got != maxMistakes || !strings.Contains(err.Error(), "and 21 mistakes more") {
		t.Errorf("%d mistakes: %v", got, err)
	}
}

// A name, however strange, is one segment of the path: the service gets it as
// it is, or the caller gets an error. It never leads to another operation.
func TestStrangeNames(t *testing.T) {
	f := &fake{volumes: []Volume{{Name: "x"}}}
	c := connect(t, f)
	for _, name := range []string{"..", ".", "../pools/tank", "../volumes", "..%2fvolumes", "a//b", "a/../b", "/", "//", "a/", "%", "%2e%2e", "?force=true", "#", " ", "\n", "\x00", "é", "\xff", ";", "a\\..\\b", ""} {
		f.got = nil
		err := c.DeleteVolume(t.Context(), name, false)
		if seen, ok := f.got.([]any); err == nil && (!ok || seen[0] != name || seen[1] != false) {
			t.Errorf("delete %q: no error, and the service saw %v", name, f.got)
		}
		f.got = nil
		v, err := c.Volume(t.Context(), name)
		if err == nil && (f.got != name || v.Name != strings.ToValidUTF8(name, "\ufffd")) {
			t.Errorf("show %q: got %+v, and the service saw %v", name, v, f.got)
		}
		if name == "." || name == ".." {
			if CodeOf(err) != CodeNotFound {
				t.Errorf("show %q: %v", name, err)
			}
		}
	}
}
