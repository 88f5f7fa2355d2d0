package remote

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
)

const (
	ours   = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
	theirs = "nqn.2014-08.org.nvmexpress:uuid:66666666-2222-3333-4444-555555555555"
	swaps  = "allow host1 swap,manage tank/db tank/db-spare tank/new\n"
)

// TestWhoSpeaksForAHost: a client releases the hosts that it speaks for, and no other.
func TestWhoSpeaksForAHost(t *testing.T) {
	w := newWorld(t, "")
	_, path := w.issue("host1")
	swap := func(released string) (int, api.Error, []string) {
		t.Helper()
		c := w.dial(w.config(path))
		defer c.Close()
		status, e := send(t, c, request{method: "POST", path: "/v1/swaps", body: `{"pairs":[{"a":"tank/db","b":"db-spare"}],"released":[` + released + `]}`})
		return status, e, w.svc.changes()
	}
	for _, tt := range []struct {
		rights, released string
		status           int
	}{
		{swaps + "host host1 " + ours, `"` + ours + `"`, http.StatusOK},
		{swaps + "host host1 " + ours + " " + theirs, `"` + ours + `","` + theirs + `"`, http.StatusOK},
		{swaps + "host host1 " + ours, `"` + ours + `","` + theirs + `"`, http.StatusForbidden},
		{swaps + "host host2 " + ours, `"` + ours + `"`, http.StatusForbidden},
		{swaps, `"` + ours + `"`, http.StatusForbidden},
		{"allow host1 admin *\n", `"` + ours + `"`, http.StatusForbidden},
		{swaps + "host host1 " + ours, `"` + strings.ToUpper(ours) + `"`, http.StatusUnprocessableEntity},
	} {
		w.rights(tt.rights)
		status, e, calls := swap(tt.released)
		if status != tt.status {
			t.Errorf("%q releases %s: answered %d %+v", tt.rights, tt.released, status, e)
		}
		if status == http.StatusOK && (len(calls) != 1 || !strings.Contains(calls[0], ours)) || status != http.StatusOK && len(calls) > 0 {
			t.Errorf("%q releases %s: the service was asked %q", tt.rights, tt.released, calls)
		}
		if status == http.StatusForbidden && (e.Code != api.CodeDenied || !strings.Contains(e.Remedy, "host host1 nqn.")) {
			t.Errorf("%q releases %s: %+v", tt.rights, tt.released, e)
		}
	}
}

// TestCallerKnowsItsHosts: who asks is told what it may say.
func TestCallerKnowsItsHosts(t *testing.T) {
	w := newWorld(t, swaps+"host host1 "+ours+"\nhost host2 "+theirs+"\n")
	_, path := w.issue("host1")
	c := w.dial(w.config(path))
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	var info api.Info
	if err := json.Unmarshal([]byte(body), &info); err != nil || info.Caller == nil || info.Caller.Name != "host1" || !slices.Equal(info.Caller.Hosts, []string{ours}) {
		t.Errorf("%v in\n%s", err, answer)
	}
}

// TestVolumeLikeAnother takes the right to swap with the other, and shows nobody what lay on
// the disks before.
func TestVolumeLikeAnother(t *testing.T) {
	w := newWorld(t, "")
	_, path := w.issue("host1")
	for rights, want := range map[string]string{
		swaps: "create-volume tank/new like tank/db zero:true",
		"allow host1 manage tank/new\nallow host1 list,manage tank/db": "",
		"allow host1 manage tank/new":                                  "",
	} {
		w.rights(rights)
		c := w.dial(w.config(path))
		status, e := send(t, c, request{method: "POST", path: "/v1/volumes", body: `{"pool":"tank","name":"new","size":4096,"like":"tank/db"}`})
		c.Close()
		calls := strings.Join(w.svc.changes(), "; ")
		if calls != want || (want == "") != (status == http.StatusForbidden) {
			t.Errorf("%q: answered %d %+v, the service was asked %q", rights, status, e, calls)
		}
	}
}
