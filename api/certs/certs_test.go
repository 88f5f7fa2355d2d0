package certs

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const year = 365 * 24 * time.Hour

// authority makes one with a certificate for its daemon.
func authority(t *testing.T) (*Authority, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "parent", "remote")
	a, err := Init(dir, 10*year, now, map[string][]byte{"access": []byte("x\n")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.IssueServer([]string{"storage.example.com", "192.0.2.7", "2001:db8::7"}, year, now); err != nil {
		t.Fatal(err)
	}
	return a, dir
}

func TestAuthority(t *testing.T) {
	_, dir := authority(t)
	for name, mode := range map[string]fs.FileMode{"": 0o700, AuthorityFile: 0o644, KeyFile: 0o600, ServerFile: 0o600, "access": 0o644} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := a.ServerHosts()
	if err != nil || strings.Join(hosts, " ") != "storage.example.com 192.0.2.7 2001:db8::7" {
		t.Errorf("hosts %q, %v", hosts, err)
	}
	cert, text, err := a.IssueClient("host1", 20*year, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if name, err := ClientName(cert); name != "host1" || err != nil {
		t.Errorf("name %q, %v", name, err)
	}
	if !cert.NotAfter.Equal(now.Add(10 * year)) {
		t.Errorf("it is good until %v, longer than its authority", cert.NotAfter)
	}
	path := filepath.Join(t.TempDir(), "host1.pem")
	if err := WriteNew(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	pair, err := LoadPair(path, "", ForClient, now)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := LoadAuthorities(path, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("a client's certificate is good for a server")
	}
	if _, err := LoadPair(filepath.Join(dir, ServerFile), "", ForServer, now); err != nil {
		t.Error(err)
	}
	list, err := Issued(dir)
	if err != nil || len(list) != 2 || Serial(list[1]) != Serial(cert) || len(Serial(cert)) != 32 {
		t.Errorf("issued: %d, %v", len(list), err)
	}
}

// TestInitIsWholeOrNothing: a folder with something in it stays as it is, an empty
// one is taken, and nothing is left beside.
func TestInitIsWholeOrNothing(t *testing.T) {
	_, dir := authority(t)
	before, err := os.ReadFile(filepath.Join(dir, KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir, year, now, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second authority in the folder: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, KeyFile)); err != nil || string(after) != string(before) {
		t.Errorf("the key has changed: %v", err)
	}
	empty := t.TempDir()
	if _, err := Init(empty, year, now, nil); err != nil {
		t.Errorf("an empty folder: %v", err)
	}
	for _, parent := range []string{filepath.Dir(dir), filepath.Dir(empty)} {
		left, err := filepath.Glob(filepath.Join(parent, ".swapback-cert-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left over: %q, %v", left, err)
		}
	}
	for _, hosts := range [][]string{nil, {""}, {"a b"}, {"a/b"}, {"a:1"}, {"user@a"}, {strings.Repeat("a", 300)}} {
		if CheckHosts(hosts) == nil {
			t.Errorf("hosts %q are taken", hosts)
		}
	}
	for _, name := range []string{"", "-a", ".a", "a/b", "a b", "ä", "a\n", strings.Repeat("a", 65)} {
		if CheckName(name) == nil {
			t.Errorf("the name %q is taken", name)
		}
	}
}

// TestFilesThatAreNotGood: each is refused with its path and what to do.
func TestFilesThatAreNotGood(t *testing.T) {
	a, dir := authority(t)
	_, text, err := a.IssueClient("host1", year, now)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := a.IssueClient("host2", year, now)
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	file := func(name string, text []byte, mode fs.FileMode) string {
		t.Helper()
		path := filepath.Join(tmp, name)
		if err := Replace(path, text, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good", text, 0o600)
	second := file("second", other, 0o600)
	caFile := filepath.Join(dir, AuthorityFile)
	if err := os.Mkdir(filepath.Join(tmp, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(tmp, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	pair := func(cert, key string, use Use, at time.Time) func() error {
		return func() error { _, err := LoadPair(cert, key, use, at); return err }
	}
	roots := func(path string, at time.Time) func() error {
		return func() error { _, err := LoadAuthorities(path, at); return err }
	}
	for _, tt := range []struct {
		what string
		do   func() error
		path string
		says string // "" when it is good
	}{
		{"good", pair(good, "", ForClient, now), good, ""},
		{"two files", pair(good, good, ForClient, now), good, ""},
		{"a link, as others renew certificates", pair(link, "", ForClient, now), link, ""},
		{"not there", pair(good+"x", "", ForClient, now), good + "x", "no such file"},
		{"a folder", pair(filepath.Join(tmp, "dir"), "", ForClient, now), "dir", "regular"},
		{"a pipe", pair("/dev/null", "", ForClient, now), "/dev/null", "regular"},
		{"a key that others read", pair(file("wide", text, 0o640), "", ForClient, now), "wide", "chmod 600"},
		{"a key that others write", pair(file("wide2", text, 0o602), "", ForClient, now), "wide2", "chmod 600"},
		{"a certificate that others write", pair(file("w", text, 0o666), good, ForClient, now), "/w", "chmod go-w"},
		{"no key", pair(file("nokey", encodeCert(a.cert), 0o600), "", ForClient, now), "nokey", "no private key"},
		{"another key", pair(good, second, ForClient, now), good, second},
		{"no certificate", pair(file("junk", []byte("junk"), 0o600), good, ForClient, now), "junk", "does not hold a certificate"},
		{"expired", pair(good, "", ForClient, now.Add(year+time.Minute)), good, "expired on 2027-03-01"},
		{"not yet", pair(good, "", ForClient, now.Add(-2*time.Hour)), good, "clock"},
		{"for a server", pair(filepath.Join(dir, ServerFile), "", ForClient, now), ServerFile, "not for a client"},
		{"for a client", pair(good, "", ForServer, now), good, "not for a server"},
		{"long", pair(file("long", make([]byte, maxFile+1), 0o600), "", ForClient, now), "long", "more than"},
		{"authorities", roots(caFile, now), caFile, ""},
		{"authorities in a client's file are not the client", roots(good, now), good, ""},
		{"no authority", roots(file("none", text[:strings.LastIndex(string(text), "-----BEGIN")], 0o600), now), "none", "no certificate of an authority"},
		{"an authority that has expired", roots(caFile, now.Add(11*year)), caFile, "expired"},
		{"a broken one", roots(file("broken", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600), now), "broken", "can't be read"},
		{"authorities that others write", roots(file("caw", encodeCert(a.cert), 0o664), now), "caw", "chmod go-w"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			err := tt.do()
			if tt.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || !strings.Contains(e.File, tt.path) || !strings.Contains(err.Error(), tt.says) || e.Remedy == "" {
				t.Errorf("got %#v, want %s and %q", err, tt.path, tt.says)
			}
		})
	}
	// Nobody's file decides here but root's and one's own.
	if os.Geteuid() == 0 {
		path := file("foreign", text, 0o600)
		if err := os.Chown(path, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadPrivate(path); err == nil || !strings.Contains(err.Error(), "user 12345") {
			t.Errorf("another user's file: %v", err)
		}
	}
	if err := WriteNew(good, text, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file was written over: %v", err)
	}
	if err := Replace(filepath.Join(tmp, "dir"), text, 0o600); err == nil {
		t.Error("a folder was replaced")
	}
	left, err := filepath.Glob(filepath.Join(tmp, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %q, %v", left, err)
	}
}

// TestOpenRefuses a folder that is not whole.
func TestOpenRefuses(t *testing.T) {
	_, dir := authority(t)
	_, other := authority(t)
	key, err := os.ReadFile(filepath.Join(other, KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{key, []byte("junk"), []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")} {
		if err := Replace(filepath.Join(dir, KeyFile), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), KeyFile) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	if _, err := Open(dir + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if _, err := Issued(dir + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if _, err := Lock(dir + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	a, err := Open(other)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.IssueClient("host1", year, now.Add(11*year)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an authority that has expired signs: %v", err)
	}
}
