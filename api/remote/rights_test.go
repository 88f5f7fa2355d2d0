package remote

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
)

// request is one way to call an operation, and what it takes.
type request struct {
	id     string
	method string
	path   string
	body   string
	// right is the weakest that will do, and on what. "" is for nobody.
	right access.Right
	on    []string
	// calls are what reaches the service then.
	calls []string
}

// requests has at least one request for each operation of the API; a test fails
// for one that is not here.
var requests = []request{
	{"info", "GET", "/v1/info", "", access.List, []string{"tank/db"}, nil},
	{"list-pools", "GET", "/v1/pools", "", access.List, []string{"tank/db"}, nil},
	{"show-pool", "GET", "/v1/pools/tank", "", access.List, []string{"tank/db"}, nil},
	{"create-pool", "POST", "/v1/pools", `{"name":"p","disks":["/dev/x"]}`, "", nil, nil},
	{"delete-pool", "DELETE", "/v1/pools/tank?force=true", "", access.Admin, []string{"tank/*"}, []string{"delete-pool tank"}},
	{"check-pool", "POST", "/v1/pools/tank/check", "", access.Admin, []string{"tank/*"}, []string{"check-pool tank"}},
	{"repair-pool", "POST", "/v1/pools/tank/repair", "", access.Admin, []string{"tank/*"}, []string{"repair-pool tank"}},
	{"rejoin-pool", "POST", "/v1/pools/tank/rejoin", "", access.Admin, []string{"tank/*"}, []string{"rejoin-pool tank"}},
	{"rejoin-pool", "POST", "/v1/pools/" + uuidOf + "b/rejoin", "", access.Admin, []string{"tank/*"}, []string{"rejoin-pool tank"}},
	{"dump-pool-metadata", "GET", "/v1/pools/tank/metadata", "", access.Admin, []string{"tank/*"}, []string{"dump-pool-metadata tank"}},
	{"list-volumes", "GET", "/v1/volumes", "", access.List, []string{"tank/db"}, nil},
	{"list-volumes", "GET", "/v1/volumes?pool=tank", "", access.List, []string{"tank/db"}, nil},
	{"create-volume", "POST", "/v1/volumes", `{"pool":"tank","name":"new","size":4096}`, access.Manage, []string{"tank/new"}, []string{"create-volume tank/new"}},
	{"show-volume", "GET", "/v1/volumes/tank%2Fdb", "", access.List, []string{"tank/db"}, nil},
	{"delete-volume", "DELETE", "/v1/volumes/tank%2Fdb", "", access.Manage, []string{"tank/db"}, []string{"delete-volume tank/db"}},
	{"delete-volume", "DELETE", "/v1/volumes/tank%2Fdb?force=true", "", access.Admin, []string{"tank/db"}, []string{"delete-volume! tank/db"}},
	{"grow-volume", "POST", "/v1/volumes/tank%2Fdb/grow", `{"size":8192}`, access.Manage, []string{"tank/db"}, []string{"grow-volume tank/db"}},
	{"attach-volume", "POST", "/v1/volumes/db-spare/attach", `{}`, access.Manage, []string{"tank/db-spare"}, []string{"attach-volume tank/db-spare"}},
	{"detach-volume", "POST", "/v1/volumes/" + uuidOf + "1/detach", "", access.Manage, []string{"tank/db"}, []string{"detach-volume tank/db"}},
	{"quarantine-volume", "POST", "/v1/volumes/tank%2Fdb/quarantine", `{"reason":"r"}`, access.Swap, []string{"tank/db"}, []string{"quarantine-volume tank/db"}},
	{"release-volume", "DELETE", "/v1/volumes/tank%2Fdb/quarantine", "", access.Manage, []string{"tank/db"}, []string{"release-volume tank/db"}},
	{"set-descends-from", "PUT", "/v1/volumes/tank%2Fdb/descends-from", `{"backup":"b"}`, access.Backup, []string{"tank/db"}, []string{"set-descends-from tank/db"}},
	{"list-holders", "GET", "/v1/volumes/tank%2Fdb/holders", "", access.List, []string{"tank/db"}, []string{"list-holders tank/db"}},
	{"swap", "POST", "/v1/swaps", `{"pairs":[{"a":"tank/db","b":"` + uuidOf + `2"}]}`, access.Swap, []string{"tank/db", "tank/db-spare"}, []string{"swap tank/db tank/db-spare"}},
	{"swap", "POST", "/v1/swaps", `{"pairs":[{"a":"tank/db","b":"db-spare"}],"allow_holders":true}`, access.Admin, []string{"tank/db", "tank/db-spare"}, []string{"swap! tank/db tank/db-spare"}},
	{"open-snapshot", "POST", "/v1/snapshots", `{"volumes":["tank/db","tank/db-spare"]}`, access.Backup, []string{"tank/db", "tank/db-spare"}, []string{"open-snapshot tank/db tank/db-spare"}},
	{"list-exports", "GET", "/v1/exports", "", access.List, []string{"tank/db"}, nil},
	{"show-export", "GET", "/v1/volumes/tank%2Fdb/export", "", access.List, []string{"tank/db"}, nil},
	{"create-export", "POST", "/v1/volumes/tank%2Fdb/export", `{"hosts":["nqn.2026-01.org.example:host"]}`, "", nil, nil},
	{"change-export", "PATCH", "/v1/volumes/tank%2Fdb/export", `{"allow":["nqn.2026-01.org.example:host"]}`, "", nil, nil},
	{"delete-export", "DELETE", "/v1/volumes/tank%2Fdb/export?force=true", "", "", nil, nil},
	{"metrics", "GET", "/metrics", "", access.Metrics, []string{"*"}, []string{"metrics"}},
}

// TestEveryOperationHasARight fails when an operation is added to the API and
// nobody has said who may call it from afar.
func TestEveryOperationHasARight(t *testing.T) {
	doc, err := api.OpenAPI("test")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^ +operationId: (\S+)$`).FindAllStringSubmatch(string(doc), -1)
	if len(found) < 20 {
		t.Fatalf("%d operations are found in the document", len(found))
	}
	for _, m := range found {
		id := m[1]
		r, ok := rules[id]
		if !ok {
			t.Errorf("operation %s has no right: add it to rules", id)
			continue
		}
		if (r.local == "") == (r.right == "") {
			t.Errorf("operation %s: give it a right, or say why it is done locally only", id)
		}
		if !slices.ContainsFunc(requests, func(q request) bool { return q.id == id }) {
			t.Errorf("operation %s is not tried: add it to requests", id)
		}
		if q := slices.IndexFunc(requests, func(q request) bool { return q.id == id && q.method != "GET" }); q >= 0 && !r.changes && id != "check-pool" {
			t.Errorf("operation %s changes something, and its rule does not say so", id)
		}
	}
	for id := range rules {
		if !slices.ContainsFunc(found, func(m []string) bool { return m[1] == id }) {
			t.Errorf("there is a right to %s, which is no operation", id)
		}
	}
}

// send makes a request on a connection and returns the answer's status and error.
func send(t *testing.T, c *tls.Conn, q request) (int, api.Error) {
	t.Helper()
	_, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", q.method, q.path, len(q.body), q.body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	var e api.Error
	if resp.StatusCode < 300 {
		return resp.StatusCode, e // closing the body of a snapshot would wait for its end
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatalf("%s %s: answered %d %s", q.method, q.path, resp.StatusCode, b)
	}
	return resp.StatusCode, e
}

// TestWhatEachRightIsGoodFor tries each request with nothing, with every other
// right to the same, with the same right to all else, with one of the volumes left
// out, and with what it takes.
func TestWhatEachRightIsGoodFor(t *testing.T) {
	w := newWorld(t, "")
	_, path := w.issue("host1")
	conf := w.config(path)
	try := func(t *testing.T, q request, allowed bool, rights string) {
		t.Helper()
		w.rights(rights)
		c := w.dial(conf)
		status, e := send(t, c, q)
		c.Close() // ends a snapshot
		calls := w.svc.changes()
		if allowed {
			if status != http.StatusOK {
				t.Errorf("with %q: answered %d %+v", rights, status, e)
			}
			if d := cmp.Diff(q.calls, calls); d != "" {
				t.Errorf("with %q: calls (-want +got):\n%s", rights, d)
			}
			return
		}
		if status != http.StatusForbidden || e.Code != api.CodeDenied || len(calls) > 0 {
			t.Errorf("with %q: answered %d %+v, and the service was asked: %q", rights, status, e, calls)
		}
		if !strings.Contains(e.Message, "host1") || e.Remedy == "" {
			t.Errorf("with %q: the answer does not say who, or what to do: %+v", rights, e)
		}
		names := func(r access.Right) bool {
			return strings.Contains(e.Message, `"`+string(r)+`"`) && strings.Contains(e.Remedy, "allow host1 "+string(r)+" ")
		}
		// Who lacks the usual right hears of that before his request is read.
		if q.right != "" && !names(q.right) && !names(rules[q.id].right) {
			t.Errorf("with %q: the answer does not say which right is missing: %+v", rights, e)
		}
		if strings.Contains(fmt.Sprint(e), "secret") {
			t.Errorf("with %q: the answer tells of what host1 may not see: %+v", rights, e)
		}
	}
	for i, q := range requests {
		t.Run(fmt.Sprintf("%d %s", i, q.id), func(t *testing.T) {
			try(t, q, false, "")
			try(t, q, false, "allow host2 admin *\n")
			if q.right == "" {
				try(t, q, false, "allow host1 admin *\n")
				return
			}
			for _, r := range access.Rights {
				ok := r == q.right || r == access.Admin || q.right == access.List && r != access.Metrics
				on := q.on
				if r == access.Metrics {
					on = []string{"*"}
				}
				try(t, q, ok, access.Allow("host1", []access.Right{r}, on)+"\n")
			}
			try(t, q, true, "allow host1 admin *\n")
			if q.right == access.Metrics || len(q.calls) == 0 && q.path != "/v1/volumes/tank%2Fdb" && q.id != "show-pool" {
				return // about no one thing: lists show less instead
			}
			others := []string{"safe/log", "tank/secret", "tank/x*"}
			if q.id == "show-pool" {
				others = others[:1]
			}
			try(t, q, false, access.Allow("host1", []access.Right{q.right}, others)+"\n")
			if len(q.on) > 1 {
				for i := range q.on {
					rest := slices.Delete(slices.Clone(q.on), i, i+1)
					try(t, q, false, access.Allow("host1", []access.Right{q.right}, rest)+"\nallow host1 list *\n")
				}
			}
		})
	}
}

// TestUnknownRoutes: what is no operation is not found, and the pages that document
// the API are not given out.
func TestUnknownRoutes(t *testing.T) {
	w := newWorld(t, "allow host1 admin *\n")
	_, path := w.issue("host1")
	for _, target := range []string{"/", "/docs", "/openapi.json", "/openapi.yaml", "/schemas/Volume.json", "/v1/nothing"} {
		c := w.dial(w.config(path))
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", target); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: %d", target, resp.StatusCode)
		}
	}
	// A page of another site in the browser of somebody with a certificate.
	c := w.dial(w.config(path))
	body := `{"pairs":[{"a":"tank/db","b":"tank/db-spare"}]}`
	_, err := fmt.Fprintf(c, "POST /v1/swaps HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.example\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if calls := w.svc.changes(); resp.StatusCode != http.StatusForbidden || len(calls) > 0 {
		t.Errorf("another site's page: %d, %q", resp.StatusCode, calls)
	}
}

// TestListsShowWhatAClientMaySee, and nothing of what the storage machine's devices
// are called.
func TestListsShowWhatAClientMaySee(t *testing.T) {
	w := newWorld(t, "allow host1 list tank/db*\nallow host1 swap safe/log\nallow host2 admin safe/*\nallow host3 metrics *\nallow host4 list *\n")
	ctx := t.Context()
	for client, want := range map[string]struct {
		volumes, pools string
		members        int
	}{
		"host1": {"tank/db tank/db-spare safe/log", "safe:1 tank:2", 0},
		"host2": {"safe/db safe/log", "safe:2", 1},
		"host4": {"tank/db tank/db-spare tank/secret safe/db safe/log", "safe:2 tank:3", 0},
	} {
		c := w.client(client)
		list, err := c.Volumes(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, v := range list {
			names = append(names, v.Pool+"/"+v.Name)
		}
		if got := strings.Join(names, " "); got != want.volumes {
			t.Errorf("%s sees volumes %s", client, got)
		}
		pools, err := c.Pools(ctx)
		if err != nil {
			t.Fatal(err)
		}
		names = nil
		members := 0
		for _, p := range pools {
			names = append(names, fmt.Sprintf("%s:%d", p.Name, p.Volumes))
			members += len(p.Members)
		}
		if got := strings.Join(names, " "); got != want.pools || members != want.members {
			t.Errorf("%s sees pools %s with %d disks", client, got, members)
		}
		info, err := c.Info(ctx)
		if err != nil || len(info.Pools) != len(pools) || len(info.Failed) != 0 {
			t.Errorf("%s sees %+v, %v", client, info, err)
		}
	}
	// host1 sees one volume that is called log, of two pools one db, and no secret.
	c := w.client("host1")
	for ref, code := range map[string]string{
		"db": "", "tank/db": "", "log": "", "safe/log": "", uuidOf + "5": "",
		"safe/db": api.CodeDenied, "secret": api.CodeDenied, "tank/secret": api.CodeDenied, "nothing": api.CodeDenied,
		uuidOf + "3": api.CodeDenied, uuidOf + "9": api.CodeDenied, "tank/nothing": api.CodeDenied,
		"db-other": api.CodeNotFound, "tank/db-other": api.CodeNotFound,
	} {
		v, err := c.Volume(ctx, ref)
		if (err == nil) != (code == "") || err != nil && api.CodeOf(err) != code {
			t.Errorf("volume %s: %+v, %v", ref, v, err)
		}
	}
	if _, err := w.client("host3").Volumes(ctx, ""); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("host3 sees volumes: %v", err)
	}
	// A volume of both pools is not named by its name alone by who sees both.
	_, err := w.client("host4").Volume(ctx, "db")
	if api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "safe/db") {
		t.Errorf("volume db: %v", err)
	}

}

// TestNoDeviceOfTheStorageMachineIsNamed: a path means another thing elsewhere.
func TestNoDeviceOfTheStorageMachineIsNamed(t *testing.T) {
	w := newWorld(t, "allow host1 admin *\n")
	_, path := w.issue("host1")
	for _, q := range requests {
		conn := w.dial(w.config(path))
		_, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", q.method, q.path, len(q.body), q.body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		part := make([]byte, 64<<10) // a snapshot's answer does not end
		n, err := resp.Body.Read(part)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if regexp.MustCompile(`/dev/(ublk|dm-|swapback)`).Match(part[:n]) {
			t.Errorf("%s tells of a device of the storage machine: %s", q.id, part[:n])
		}
		conn.Close()
	}
}

// TestNewVolumesPool: which pool is meant is found among those where the client
// may have the volume.
func TestNewVolumesPool(t *testing.T) {
	w := newWorld(t, "allow host1 manage tank/n* safe/log\nallow host2 manage *\n")
	req := api.CreateVolumeRequest{Name: "new", Size: 4096}
	if _, err := w.client("host1").CreateVolume(t.Context(), req); err != nil || !slices.Equal(w.svc.changes(), []string{"create-volume tank/new"}) {
		t.Errorf("one pool: %v", err)
	}
	if _, err := w.client("host2").CreateVolume(t.Context(), req); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("two pools: %v", err)
	}
	req.Pool = "safe"
	if _, err := w.client("host1").CreateVolume(t.Context(), req); api.CodeOf(err) != api.CodeDenied || !strings.Contains(err.Error(), "allow host1 manage safe/new") {
		t.Errorf("the other pool: %v", err)
	}
	if calls := w.svc.changes(); len(calls) > 0 {
		t.Errorf("the service was asked: %q", calls)
	}
}

// TestDevicesAreThisMachines: a client puts its own machine's device in, and
// never takes another machine's.
func TestDevicesAreThisMachines(t *testing.T) {
	w := newWorld(t, "allow host1 admin *\n")
	_, path := w.issue("host1")
	device := func(uuid string) string {
		if uuid == uuidOf+"1" {
			return "/dev/nvme1n1"
		}
		return ""
	}
	c := api.Target{Server: w.address, Cert: path, Device: device}.Client(func(string) string { return "" })
	defer c.Close()
	list, err := c.Volumes(t.Context(), "tank")
	if err != nil || len(list) != 3 || list[0].Device != "/dev/nvme1n1" || list[1].Device != "" {
		t.Errorf("got %+v, %v", list, err)
	}
	if v, err := c.Detach(t.Context(), "tank/db"); err != nil || v.Device != "/dev/nvme1n1" {
		t.Errorf("got %+v, %v", v, err)
	}
}

// TestChangesAreLogged: who asked for which change of what, and how it ended, with
// refusals; not what the request holds.
func TestChangesAreLogged(t *testing.T) {
	w := newWorld(t, "allow host1 swap tank/db tank/db-spare\n")
	cert, path := w.issue("host1")
	for _, body := range []string{`{"pairs":[{"a":"tank/db","b":"db-spare"}],"hold_for":2.625}`, `{"pairs":[{"a":"tank/db","b":"tank/secret"}]}`} {
		c := w.dial(w.config(path))
		send(t, c, request{method: "POST", path: "/v1/swaps", body: body})
		c.Close()
	}
	w.until("both are answered", func() bool { return strings.Count(w.log.String(), "change answered") == 2 })
	log := w.log.String()
	who := fmt.Sprintf("client=host1 certificate=%s from=127.0.0.1:", cert.SerialNumber.Text(16))
	for _, want := range []string{
		`msg="change asked for" api=remote ` + who, "path=/v1/swaps", `msg=permitted api=remote ` + who, `objects="[tank/db tank/db-spare]"`,
		"msg=refused api=remote " + who, `lacks the right \"swap\"`, "status=200", "status=403",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s:\n%s", want, log)
		}
	}
	if strings.Contains(log, "2.625") {
		t.Errorf("the request is in the log:\n%s", log)
	}
}

// TestTheManualHasEveryOperation with the right that it takes.
func TestTheManualHasEveryOperation(t *testing.T) {
	text, err := os.ReadFile("../../docs/remote.md")
	if err != nil {
		t.Fatal(err)
	}
	for id, r := range rules {
		row := "| `" + string(r.right) + "` |"
		if r.local != "" {
			row = "| nobody's |"
		}
		found := false
		for line := range strings.Lines(string(text)) {
			found = found || strings.HasPrefix(line, row) && strings.Contains(line, "`"+id+"`")
		}
		if !found {
			t.Errorf("docs/remote.md does not have %s in the row of %q", id, r.right)
		}
	}
}
