package main

import (
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
	"github.com/swapback/swapback/api/certs"
	"github.com/swapback/swapback/api/remote"
)

// TestThreeCommands: an authority, a certificate with rights, and a client at work
// with it, on a real connection; and revoked again.
func TestThreeCommands(t *testing.T) {
	c := newCLI(t)
	c.clock = time.Now()
	dir, pem := filepath.Join(t.TempDir(), "made", "remote"), filepath.Join(t.TempDir(), "host1.pem")
	c.must(t, "cert", "init", "127.0.0.1", "--dir", dir)
	c.must(t, "cert", "issue", "host1", "--allow", "list,swap", "--volume", "tank/db,tank/db-*", "--dir", dir, "--out", pem)
	address := serveRemote(t, c.svc, dir)

	c.env[api.SocketEnv] = "" // no other daemon
	out := c.must(t, "volume", "list", "--server", address, "--cert", pem)
	if !strings.Contains(out, "db-spare") || strings.Contains(out, "log") || strings.Contains(out, "ublkb") {
		t.Errorf("the list is\n%s", out)
	}
	c.env[api.ServerEnv], c.env[api.CertEnv] = address, pem
	c.must(t, "swap", "db", "db-spare", "--json")
	if len(c.svc.swaps) != 1 || c.svc.swaps[0].Pairs[0].A != "33333333-0000-4000-8000-000000000001" {
		t.Errorf("the daemon was asked for %+v", c.svc.swaps)
	}
	_, errOut, code := c.run("volume", "grow", "db", "--size", "2G", "--json")
	var e errorJSON
	if err := json.Unmarshal([]byte(errOut), &e); err != nil || code != exitRefused || e.Code != api.CodeDenied || !strings.Contains(e.Message, "host1") || !strings.Contains(e.Remedy, "allow host1 manage ") {
		t.Errorf("grow: exit code %d, %s", code, errOut)
	}
	if _, errOut, code := c.run("volume", "list", "--socket", c.socket, "--server", address); code != exitUsage {
		t.Errorf("two daemons: exit code %d, %s", code, errOut)
	}
	// A socket that is named counts, whatever the environment says.
	if out := c.must(t, "volume", "list", "--socket", c.socket); !strings.Contains(out, "log") {
		t.Errorf("by the socket: %s", out)
	}
	out = c.must(t, "cert", "revoke", "host1", "--reason", "sold\n# off", "--dir", dir)
	if !strings.Contains(out, "revoke serial ") {
		t.Errorf("revoke says %s", out)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		_, errOut, code = c.run("volume", "list")
		if code == exitRefused || time.Now().After(deadline) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if code != exitRefused || !strings.Contains(errOut, "revoked") {
		t.Errorf("revoked: exit code %d, %s", code, errOut)
	}
	// A new one of the same client is good.
	const nqn = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
	out = c.must(t, "cert", "issue", "host1", "--host", nqn, "--dir", dir, "--out", pem+"2")
	text, err := os.ReadFile(filepath.Join(dir, "access"))
	if err != nil || !strings.Contains(out, "host host1 "+nqn) || !strings.HasSuffix(string(text), "\nhost host1 "+nqn+"\n") {
		t.Errorf("%v: issue says %s, and writes\n%s", err, out, text)
	}
	if _, errOut, code := c.run("cert", "issue", "host9", "--host", "host9.example.com", "--dir", dir); code != exitUsage || !strings.Contains(errOut, "hostnqn") {
		t.Errorf("a host that is none: exit code %d, %s", code, errOut)
	}
	c.env[api.CertEnv] = pem + "2"
	c.must(t, "volume", "list")
}

// serveRemote serves to other machines what a folder says, until the test ends.
func serveRemote(t *testing.T, svc api.Service, dir string) (address string) {
	t.Helper()
	// The port is free now; who takes it before the server has it would be noticed below.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = ln.Addr().String()
	ln.Close()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	srv := remote.New(remote.Options{
		Listen: address, Cert: filepath.Join(dir, certs.ServerFile), CA: filepath.Join(dir, certs.AuthorityFile), Access: filepath.Join(dir, accessFile),
		Service: svc, Version: "test", Logger: log,
	})
	ended := make(chan struct{})
	go func() { defer close(ended); srv.Run(t.Context()) }()
	t.Cleanup(func() { <-ended }) // the context is over by then
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return address
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestCertCare(t *testing.T) {
	c := newCLI(t)
	dir := filepath.Join(t.TempDir(), "remote")
	t.Chdir(t.TempDir())
	c.must(t, "cert", "init", "storage", "--dir", dir)
	c.clock = c.clock.Add(time.Minute)
	out := c.must(t, "cert", "issue", "host1", "--dir", dir, "--json")
	var j certJSON
	if err := json.Unmarshal([]byte(out), &j); err != nil || j.Name != "host1" || j.File != "host1.pem" || j.Allowed != "" || !j.Expires.Equal(c.clock.Add(365*day)) {
		t.Errorf("issue says %s, %v", out, err)
	}
	if fi, err := os.Stat("host1.pem"); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", fi.Mode(), err)
	}
	c.clock = c.clock.Add(time.Minute)
	c.must(t, "cert", "issue", "host2", "--days", "1", "--allow", "admin", "--volume", "tank/*", "--volume", "safe/db", "--dir", dir)
	c.clock = c.clock.Add(time.Minute)
	c.must(t, "cert", "renew", "storage", "192.0.2.7", "--dir", dir)
	c.must(t, "cert", "revoke", strings.ToUpper(j.Serial), "--dir", dir)
	c.clock = c.clock.Add(2 * day)
	var list []certJSON
	if err := json.Unmarshal([]byte(c.must(t, "cert", "list", "--dir", dir, "--json")), &list); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, j := range list {
		got = append(got, j.Name+" "+j.State+" "+strings.Join(j.Hosts, ","))
	}
	want := []string{" good storage", "host1 revoked ", "host2 expired ", " good storage,192.0.2.7"}
	if !slices.Equal(got, want) {
		t.Errorf("listed: %q", got)
	}
	if out := c.must(t, "cert", "list", "--dir", dir); strings.Count(out, "\n") != 5 {
		t.Errorf("listed:\n%s", out)
	}
	text, err := os.ReadFile(filepath.Join(dir, accessFile))
	if err != nil {
		t.Fatal(err)
	}
	table, err := access.Parse(text)
	if err != nil || !table.MayPool("host2", access.Admin, "tank") || !table.May("host2", access.Swap, "safe", "db") || table.May("host2", access.List, "safe", "log") {
		t.Errorf("the rights are %s, %v", text, err)
	}
	c.must(t, "cert", "revoke", "host3", "--name", "--dir", dir)
	c.must(t, "cert", "request", "host5")
	if out := c.must(t, "cert", "issue", "host5", "--request", "host5.csr", "--dir", dir); strings.Contains(out, "key") {
		t.Errorf("issue says %s", out)
	}
	if _, err := certs.LoadPair("host5.pem", "host5.key", certs.ForClient, c.clock); err != nil {
		t.Error(err)
	}
	for line, want := range map[string]struct {
		code int
		says string
	}{
		"cert request host5": {exitFailed, "host5.key"},
		"cert request a/b":   {exitUsage, "client name"},
		"cert issue host6 --request host5.csr --dir " + dir:              {exitFailed, "another name"},
		"cert issue host6 --request host5.pem --dir " + dir:              {exitFailed, "cert request host6"},
		"cert issue host6 --request none.csr --dir " + dir:               {exitNotFound, "none.csr"},
		"cert init storage --dir " + dir:                                 {exitFailed, "not empty"},
		"cert init a/b --dir " + dir + "x":                               {exitUsage, "no host name"},
		"cert init storage --days 0 --dir " + dir + "x":                  {exitUsage, "--days"},
		"cert issue host1 --dir " + dir:                                  {exitFailed, "host1.pem"},
		"cert issue host3 --dir " + dir:                                  {exitRefused, "revoked by name"},
		"cert issue a/b --dir " + dir:                                    {exitUsage, "client name"},
		"cert issue host4 --allow list --dir " + dir:                     {exitUsage, "--volume"},
		"cert issue host4 --volume tank/db --dir " + dir:                 {exitUsage, "--allow"},
		"cert issue host4 --allow lost --volume tank/db --dir " + dir:    {exitUsage, "unknown right"},
		"cert issue host4 --allow list --volume db --dir " + dir:         {exitUsage, "POOL/NAME"},
		"cert issue host4 --allow metrics --volume tank/db --dir " + dir: {exitUsage, "goes with *"},
		"cert issue host4 --dir " + dir + "x":                            {exitNotFound, "cert init"},
		"cert revoke nobody --dir " + dir:                                {exitNotFound, "cert list"},
		"cert revoke host1 --dir " + dir:                                 {exitNotFound, "not revoked"},
		"cert revoke a/b --name --dir " + dir:                            {exitUsage, "client name"},
		"cert list --dir " + dir + "x":                                   {exitNotFound, "cert init"},
		"cert renew --dir " + dir + "x":                                  {exitNotFound, "cert init"},
		"volume list --server storage":                                   {exitUsage, "--cert"},
		"volume list --server storage --cert host1.pem --key /dev/null":  {exitUsage, "/dev/null"},
		"volume list --server storage:port --cert host1.pem":             {exitUsage, "port"},
	} {
		out, errOut, code := c.run(strings.Fields(line)...)
		if code != want.code || out != "" || !strings.Contains(errOut, want.says) {
			t.Errorf("%s: exit code %d, want %d with %q: %s", line, code, want.code, want.says, errOut)
		}
	}
	if _, err := os.Stat("host4.pem"); err == nil {
		t.Error("a certificate was written although it was refused")
	}
}
