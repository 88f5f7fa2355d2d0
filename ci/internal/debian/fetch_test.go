package debian

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mirror serves files and points the Fetcher at itself.
func mirror(t *testing.T, files map[string]string) *Fetcher {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(s.Close)
	t.Setenv(MirrorEnv, s.URL+"/debian")
	for _, name := range []string{"http_proxy", "HTTP_PROXY"} {
		t.Setenv(name, "")
	}
	return &Fetcher{Root: t.TempDir(), Keyrings: t.TempDir(), Notice: t.Logf}
}

func TestFile(t *testing.T) {
	f := mirror(t, map[string]string{"/debian/pool/a+b~1.deb": "hello", "/debian-security/pool/s.deb": "safe"})
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	if err := f.File(t.Context(), Main, "pool/a+b~1.deb", hexSum([]byte("hello")), path); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "hello" {
		t.Errorf("got %q", got)
	}
	if err := f.File(t.Context(), Security, "pool/s.deb", hexSum([]byte("safe")), filepath.Join(dir, "s")); err != nil {
		t.Error(err)
	}
	err := f.File(t.Context(), Main, "pool/gone.deb", hexSum(nil), filepath.Join(dir, "y"))
	if !errors.Is(err, ErrGone) {
		t.Errorf("a missing file: %v", err)
	}
	err = f.File(t.Context(), Main, "pool/a+b~1.deb", hexSum([]byte("other")), filepath.Join(dir, "z"))
	if err == nil || errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("a wrong hash: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("failed downloads left something behind: %v", entries)
	}
	// A file that was damaged in the cache is fetched again.
	if err := os.WriteFile(path, []byte("hell"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := f.File(t.Context(), Main, "pool/a+b~1.deb", hexSum([]byte("hello")), path); err != nil {
		t.Error(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "hello" {
		t.Errorf("got %q", got)
	}
}

func TestIndex(t *testing.T) {
	xz, err := exec.LookPath("xz")
	if err != nil {
		t.Skip("this host has no xz")
	}
	cmd := exec.Command(xz, "-c")
	cmd.Stdin = strings.NewReader("Package: linux-x\nVersion: 1\nFilename: pool/x.deb\nSize: 3\nSHA256: " + sum1 + "\n")
	packed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"/debian/dists/good/InRelease":                      "Suite: good\nSHA256:\n " + hexSum(packed) + " 1 main/binary-amd64/Packages.xz\n",
		"/debian/dists/good/main/binary-amd64/Packages.xz":  string(packed),
		"/debian/dists/wrong/InRelease":                     "Suite: wrong\nSHA256:\n " + sum1 + " 1 main/binary-amd64/Packages.xz\n",
		"/debian/dists/wrong/main/binary-amd64/Packages.xz": string(packed),
	}
	f := mirror(t, files)
	got, err := f.Index(t.Context(), Main, "good", "amd64", regexp.MustCompile("^linux-"))
	if err != nil || len(got) != 1 || got[0].Name != "linux-x" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := f.Index(t.Context(), Main, "wrong", "amd64", regexp.MustCompile("")); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("an index that is not what the release file says: %v", err)
	}
	if _, err := f.Index(t.Context(), Main, "none", "amd64", regexp.MustCompile("")); !errors.Is(err, ErrGone) {
		t.Errorf("a missing suite: %v", err)
	}
}
