package remote

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/certs"
)

// ask makes one request and returns the status, or the error of the connection.
func (w *world) ask(conf *tls.Config) (int, error) {
	w.t.Helper()
	c, err := tls.Dial("tcp", w.address, conf)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v1/volumes HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}

// strange is an authority that can sign what certs would not.
type strange struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

func newStrange(t *testing.T) strange {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "strange"}, NotBefore: time.Now().Add(-life), NotAfter: time.Now().Add(life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return strange{cert, key}
}

// sign makes a client's certificate, otherwise good, with a change.
func (s strange) sign(t *testing.T, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(0x77), Subject: pkix.Name{CommonName: "host1"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{{Scheme: "swapback", Opaque: "host1"}},
	}
	change(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, s.cert, key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestWhoGetsIn: a connection whose client is not known for sure gets no answer
// to anything, and the log says why.
func TestWhoGetsIn(t *testing.T) {
	// The server trusts an authority that signs odd things, beside its own.
	odd := newStrange(t)
	w := newWorld(t, "allow host1 admin *\nallow host2 list tank/db\nrevoke name host2\nrevoke serial 99\n")
	good, goodPath := w.issue("host1")
	lost, lostPath := w.issue("host1")
	_, byName := w.issue("host2")
	w.rights(fmt.Sprintf("allow host1 admin *\nallow host2 admin *\nrevoke name host2\nrevoke serial 0099\nrevoke sha256 %s\n", strings.ToUpper(certs.Fingerprint(lost))))
	both, err := os.ReadFile(w.path(certs.AuthorityFile))
	if err != nil {
		t.Fatal(err)
	}
	both = append(both, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: odd.cert.Raw})...)
	if err := certs.Replace(w.path(certs.AuthorityFile), both, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := w.srv.Reload(); err != nil {
		t.Fatal(err)
	}
	otherDir := filepath.Join(t.TempDir(), "other")
	other, err := certs.Init(otherDir, life, time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, text, err := other.IssueClient("host1", life, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	otherPath := filepath.Join(otherDir, "host1.pem")
	if err := certs.WriteNew(otherPath, text, 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*x509.Certificate)) func(*tls.Config) {
		return func(c *tls.Config) { c.Certificates = []tls.Certificate{odd.sign(t, change)} }
	}
	file := func(path string) func(*tls.Config) {
		return func(c *tls.Config) {
			// Whatever the server says that it takes.
			pair := w.config(path).Certificates[0]
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
	}
	uri := func(u ...*url.URL) func(*tls.Config) {
		return with(func(c *x509.Certificate) { c.URIs = u })
	}
	for _, tt := range []struct {
		what   string
		change func(*tls.Config)
		logged string // "" when it gets in
	}{
		{"a good one", func(*tls.Config) {}, ""},
		{"a good one of the other authority", with(func(*x509.Certificate) {}), ""},
		{"another authority", file(otherPath), "unknown authority"},
		{"none", func(c *tls.Config) { c.Certificates = nil }, "didn't provide a certificate"},
		{"TLS 1.2", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "unsupported versions"},
		{"expired", with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "expired"},
		{"not yet valid", with(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "not yet valid"},
		{"for a server", with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "key usage"},
		{"the server's own", file(w.path(certs.ServerFile)), "key usage"},
		{"no name but in its subject", uri(), "names 0 clients"},
		{"two names", uri(&url.URL{Scheme: "swapback", Opaque: "host1"}, &url.URL{Scheme: "swapback", Opaque: "host3"}), "names 2 clients"},
		{"a name with a host", uri(&url.URL{Scheme: "swapback", Host: "host1"}), "names no client"},
		{"a name with a query", uri(&url.URL{Scheme: "swapback", Opaque: "host1", RawQuery: "x"}), "names no client"},
		{"another scheme", uri(&url.URL{Scheme: "spiffe", Host: "x", Path: "/host1"}), "names 0 clients"},
		{"a name with blanks", uri(&url.URL{Scheme: "swapback", Opaque: "host1%20admin"}), "want at most 64 letters"},
		{"revoked by name", file(byName), "revoke name host2"},
		{"revoked by serial number", with(func(c *x509.Certificate) { c.SerialNumber = big.NewInt(0x99) }), "revoke serial 99"},
		{"revoked by fingerprint", file(lostPath), "revoke sha256"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			conf := w.config(goodPath)
			tt.change(conf)
			before := len(w.log.String())
			status, err := w.ask(conf)
			if tt.logged == "" {
				if status != http.StatusOK || err != nil {
					t.Errorf("answered %d, %v", status, err)
				}
				return
			}
			if err == nil {
				t.Errorf("answered %d", status)
			}
			w.until("the log says "+tt.logged, func() bool { return strings.Contains(w.log.String()[before:], tt.logged) })
			if calls := w.svc.changes(); len(calls) > 0 {
				t.Errorf("the service was asked: %q", calls)
			}
		})
	}
	if got := certs.Fingerprint(good); len(got) != 64 {
		t.Errorf("fingerprint %q", got)
	}
}

// TestClientIsTold: what went wrong, and what to do about it, in the words of the
// client that everybody uses.
func TestClientIsTold(t *testing.T) {
	w := newWorld(t, "allow host1 list tank/db\nrevoke name host2\n")
	none := func(string) string { return "" }
	_, good := w.issue("host1")
	_, revoked := w.issue("host2")
	plain := &http.Server{Handler: http.NotFoundHandler()}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = plain.Serve(ln) }()
	t.Cleanup(func() { plain.Close() })
	elsewhere := newWorld(t, "allow host1 list *\n")
	_, goodElsewhere := elsewhere.issue("host1")
	if _, err := elsewhere.ca.IssueServer([]string{"127.0.0.1", "other.example.com"}, life, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.srv.Reload(); err != nil {
		t.Fatal(err)
	}
	_, portElsewhere, _ := strings.Cut(elsewhere.address, ":")
	_, port, _ := strings.Cut(w.address, ":")
	for _, tt := range []struct {
		what   string
		target api.Target
		code   string
		words  []string
	}{
		{"good", api.Target{Server: w.address, Cert: good}, "", nil},
		{"by name", api.Target{Server: "localhost:" + port, Cert: good}, "", nil},
		{"in three files", api.Target{Server: w.address, Cert: good, Key: good, CA: w.path(certs.AuthorityFile)}, "", nil},
		{"revoked", api.Target{Server: w.address, Cert: revoked}, api.CodeDenied, []string{"refuses", "revoked"}},
		{"another authority", api.Target{Server: elsewhere.address, Cert: good}, api.CodeUnavailable, []string{"not trusted", "--ca"}},
		{"another name", api.Target{Server: "localhost:" + portElsewhere, Cert: goodElsewhere}, api.CodeUnavailable, []string{"127.0.0.1", "other.example.com", "cert renew"}},
		{"not TLS", api.Target{Server: ln.Addr().String(), Cert: good}, api.CodeUnavailable, []string{"TLS"}},
		{"nobody", api.Target{Server: "127.0.0.1:1", Cert: good}, api.CodeUnavailable, []string{"--api-listen"}},
		{"no file", api.Target{Server: w.address, Cert: good + "x"}, api.CodeInvalid, []string{good + "x", "cert issue"}},
		{"no certificate", api.Target{Server: w.address}, api.CodeInvalid, []string{"--cert"}},
		{"the server's certificate", api.Target{Server: w.address, Cert: w.path(certs.ServerFile)}, api.CodeInvalid, []string{"not for a client"}},
		{"no port", api.Target{Server: "x:y", Cert: good}, api.CodeInvalid, []string{`"y"`}},
		{"a URL", api.Target{Server: "https://x:1", Cert: good}, api.CodeInvalid, []string{"https"}},
		{"both", api.Target{Server: w.address, Socket: "/x", Cert: good}, api.CodeInvalid, []string{"--socket"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			c := tt.target.Client(none)
			defer c.Close()
			_, err := c.Volumes(t.Context(), "")
			if tt.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || api.CodeOf(err) != tt.code {
				t.Fatalf("got %v, want %s", err, tt.code)
			}
			for _, word := range tt.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q is not in: %v", word, err)
				}
			}
		})
	}
}

// TestRevocationEndsOpenConnections: whatever takes a client's right away, a
// snapshot that it holds open ends, and with it its connection.
func TestRevocationEndsOpenConnections(t *testing.T) {
	const before = "allow host1 backup tank/db tank/db-spare\nallow host2 backup tank/db\n"
	for what, after := range map[string]func(w *world, c *x509.Certificate){
		"by name":        func(w *world, _ *x509.Certificate) { w.rights(before + "revoke name host1\n") },
		"by serial":      func(w *world, c *x509.Certificate) { w.rights(before + "revoke serial " + certs.Serial(c) + "\n") },
		"by fingerprint": func(w *world, c *x509.Certificate) { w.rights(before + "revoke sha256 " + certs.Fingerprint(c) + "\n") },
		"the right is gone": func(w *world, _ *x509.Certificate) {
			w.rights("allow host1 list,swap,manage tank/db\nallow host1 admin tank/db-spare\nallow host2 backup tank/db\n")
		},
		"the client is gone":      func(w *world, _ *x509.Certificate) { w.rights("allow host2 backup tank/db\n") },
		"the certificate expires": func(w *world, c *x509.Certificate) { w.expire() },
		"the certificate expires, with a file that is not good": func(w *world, _ *x509.Certificate) {
			if err := certs.Replace(w.path("access"), []byte("nonsense\n"), 0o644); err != nil {
				w.t.Fatal(err)
			}
			w.expire()
		},
		"without being told": func(w *world, _ *x509.Certificate) {
			// The server looks at its files by itself.
			if err := certs.Replace(w.path("access"), []byte("swapback-access 1\nallow host2 backup tank/db\n"), 0o644); err != nil {
				w.t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, before)
			cert, path := w.issue("host1")
			c := api.Target{Server: w.address, Cert: path}.Client(func(string) string { return "" })
			defer c.Close()
			other := w.client("host2")
			ctx := t.Context()
			_, end, err := c.OpenSnapshot(ctx, api.SnapshotRequest{Volumes: []string{"tank/db-spare", "db"}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = end(context.Background()) }()
			_, stay, err := other.OpenSnapshot(ctx, api.SnapshotRequest{Volumes: []string{"db"}})
			if err != nil {
				t.Fatal(err)
			}
			w.rights(before + "allow host3 list *\n") // changes nothing for the two
			if n := len(w.svc.ended); n != 0 {
				t.Fatalf("%d snapshots ended", n)
			}
			after(w, cert)
			w.until("the snapshot ends", func() bool { return len(w.svc.ended) > 0 })
			<-w.svc.ended
			if !strings.HasPrefix(what, "the certificate expires") {
				if n := len(w.svc.ended); n != 0 {
					t.Errorf("the other client's snapshot ended too")
				}
				if _, err := c.Swap(ctx, api.SwapRequest{Pairs: []api.SwapPair{{A: "tank/db", B: "tank/db-spare"}}}); what != "the right is gone" && api.CodeOf(err) != api.CodeDenied {
					t.Errorf("a new connection: %v", err)
				}
			}
			_ = stay(context.Background())
			w.until("it is logged", func() bool { return strings.Contains(w.log.String(), "connection ended") })
		})
	}
}
