package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
)

func TestRequest(t *testing.T) {
	a, _ := authority(t)
	key, request, err := NewRequest("host1")
	if err != nil {
		t.Fatal(err)
	}
	c, text, err := a.IssueRequested("host1", request, year, now)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := ClientName(c); name != "host1" || err != nil {
		t.Errorf("name %q, %v", name, err)
	}
	if strings.Contains(string(text), "PRIVATE") {
		t.Error("there is a key in what is given out")
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	if err := WriteNew(certFile, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteNew(keyFile, key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadPair(certFile, keyFile, ForClient, now); err != nil {
		t.Error(err)
	}
	if _, err := LoadAuthorities(certFile, now); err != nil {
		t.Error(err)
	}

	if _, _, err := NewRequest("a/b"); err == nil {
		t.Error("a request for a bad name was made")
	}
	broken := []byte(strings.Replace(string(request), "M", "N", 1))
	spoilt, _ := pem.Decode(request)
	spoilt.Bytes[len(spoilt.Bytes)-1] ^= 1 // of the signature
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	old, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(key any, uris ...*url.URL) []byte {
		t.Helper()
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: uris}, key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	for what, tt := range map[string]struct {
		name    string
		request []byte
		says    string // "" when it is signed
	}{
		"another program's":              {"host1", signed(ec), ""},
		"an RSA key":                     {"host1", signed(large), ""},
		"another URI beside":             {"host1", signed(ec, nameURI("host1"), &url.URL{Scheme: "spiffe", Host: "x"}), ""},
		"another name":                   {"host2", request, "another name"},
		"another name beside":            {"host1", signed(ec, nameURI("host1"), nameURI("host2")), "another name"},
		"a name of another form":         {"host1", signed(ec, &url.URL{Scheme: Scheme, Host: "host1"}), "another name"},
		"a bad name":                     {"host/1", request, "client name"},
		"nothing":                        {"host1", nil, "no request"},
		"a certificate":                  {"host1", encodeCert(a.cert), "no request"},
		"broken":                         {"host1", broken, "it "},
		"not signed by its key":          {"host1", pem.EncodeToMemory(spoilt), "not signed"},
		"a curve that TLS does not have": {"host1", signed(old), "P-224"},
	} {
		c, _, err := a.IssueRequested(tt.name, tt.request, year, now)
		if tt.says == "" {
			if err != nil || len(c.URIs) != 1 {
				t.Errorf("%s: %v", what, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", what, err, tt.says)
		}
	}
}

// FuzzRequest: a request is refused in few words, or it is signed with its own key,
// of a kind that TLS 1.3 has, and names nobody else.
func FuzzRequest(f *testing.F) {
	_, request, err := NewRequest("host1")
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(request)
	f.Add(block.Bytes)
	f.Fuzz(func(t *testing.T, der []byte) {
		key, err := parseRequest("host1", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("%d bytes of an error", len(err.Error()))
			}
			return
		}
		r, err := x509.ParseCertificateRequest(der)
		if err != nil || r.CheckSignature() != nil || key == nil {
			t.Fatalf("taken: %v", err)
		}
		for _, u := range r.URIs {
			if u.Scheme == Scheme && u.Opaque != "host1" {
				t.Errorf("it names %q", u)
			}
		}
	})
}
