package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/swapback/swapback/ci/internal/debian"
)

// archive is a small Debian mirror.
type archive struct {
	t     *testing.T
	mu    sync.Mutex
	files map[string][]byte
	gets  int
}

func newArchive(t *testing.T) *archive {
	t.Helper()
	for _, tool := range []string{"dpkg-deb", "xz"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("this host has no %s", tool)
		}
	}
	if _, err := os.Stat("/usr/sbin/depmod"); err != nil {
		t.Skip("this host has no depmod")
	}
	a := &archive{t: t, files: map[string][]byte{}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.gets++
		data, ok := a.files[strings.TrimPrefix(r.URL.Path, "/debian/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(s.Close)
	t.Setenv(debian.MirrorEnv, s.URL+"/debian")
	return a
}

// add builds a package of files and puts it into the archive.
func (a *archive) add(name, version string, files map[string]string) debian.Package {
	a.t.Helper()
	dir := a.t.TempDir()
	files["DEBIAN/control"] = fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: nobody <nobody@example.org>\nDescription: test\n", name, version)
	for f, text := range files {
		path := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			a.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			a.t.Fatal(err)
		}
	}
	deb := filepath.Join(a.t.TempDir(), "x.deb")
	if out, err := exec.Command("dpkg-deb", "-b", dir, deb).CombinedOutput(); err != nil {
		a.t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	data, err := os.ReadFile(deb)
	if err != nil {
		a.t.Fatal(err)
	}
	p := debian.Package{Name: name, Version: version, Filename: "pool/" + name + "_" + version + ".deb", SHA256: sum(data), Size: int64(len(data))}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files[p.Filename] = data
	return p
}

func (a *archive) publish(suite string, packages ...debian.Package) {
	a.t.Helper()
	var text strings.Builder
	for _, p := range packages {
		fmt.Fprintf(&text, "Package: %s\nVersion: %s\nFilename: %s\nSize: %d\nSHA256: %s\n\n", p.Name, p.Version, p.Filename, p.Size, p.SHA256)
	}
	cmd := exec.Command("xz", "-c")
	cmd.Stdin = strings.NewReader(text.String())
	packed, err := cmd.Output()
	if err != nil {
		a.t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files["dists/"+suite+"/main/binary-amd64/Packages.xz"] = packed
	a.files["dists/"+suite+"/InRelease"] = []byte("SHA256:\n " + sum(packed) + " 1 main/binary-amd64/Packages.xz\n")
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

func (a *archive) cache(dir string, notices *bytes.Buffer) *Cache {
	notice := func(format string, args ...any) { fmt.Fprintf(notices, format+"\n", args...) }
	return &Cache{Dir: dir, Notice: notice, Fetcher: &debian.Fetcher{Root: a.t.TempDir(), Keyrings: a.t.TempDir(), Notice: notice}}
}

// allBuiltIn is a modules.builtin with every module that the machine wants.
func allBuiltIn() string {
	var b strings.Builder
	for _, w := range slices.Concat(Early(), Late(), Network()) {
		fmt.Fprintf(&b, "kernel/%s.ko\n", w.Name)
	}
	return b.String()
}

func TestGet(t *testing.T) {
	a := newArchive(t)
	pinned := a.add("linux-image-6.12.1+deb12-amd64", "6.12.1-1", map[string]string{
		"boot/vmlinuz-6.12.1": "image 1", "lib/modules/6.12.1/modules.builtin": allBuiltIn(), "lib/modules/6.12.1/modules.order": "",
	})
	s := Series{
		Name: "6.12", Pin: Pin{debian.Main, []debian.Package{pinned}},
		Homes:    []Home{{debian.Main, "gone-suite"}, {debian.Main, "suite"}},
		Packages: []string{`^linux-image-(6\.12\.[0-9]+\+deb[0-9]+)-amd64$`},
	}
	var notices bytes.Buffer
	dir := t.TempDir()
	c := a.cache(dir, &notices)
	k, err := c.Get(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if image, _ := os.ReadFile(k.Image); k.Release != "6.12.1" || string(image) != "image 1" {
		t.Errorf("got %+v, image %q", k, image)
	}
	before := a.gets
	if _, err := c.Get(t.Context(), s); err != nil || a.gets != before {
		t.Errorf("the cache was not used: %v, %d requests", err, a.gets-before)
	}

	// The pin goes away: the newest takes its place, with a word about it. Its
	// package is laid out as newer ones are.
	newer := a.add("linux-image-6.12.9+deb12-amd64", "6.12.9-1", map[string]string{
		"usr/lib/modules/6.12.9/vmlinuz": "image 9", "usr/lib/modules/6.12.9/modules.builtin": allBuiltIn(), "usr/lib/modules/6.12.9/modules.order": "",
	})
	delete(a.files, pinned.Filename)
	a.publish("suite", newer)
	notices.Reset()
	dir = t.TempDir()
	c = a.cache(dir, &notices)
	k, err = c.Get(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if image, _ := os.ReadFile(k.Image); k.Release != "6.12.9" || string(image) != "image 9" {
		t.Errorf("got %+v, image %q", k, image)
	}
	if !strings.Contains(notices.String(), "gone from the mirror") || !strings.Contains(notices.String(), "6.12.9") {
		t.Errorf("notices:\n%s", notices.String())
	}
	before = a.gets
	if k, err := c.Get(t.Context(), s); err != nil || a.gets != before || k.Release != "6.12.9" {
		t.Errorf("the substitute was not remembered: %v, %d requests", err, a.gets-before)
	}

	// Nothing at all: an error, and no half-made cache entry.
	delete(a.files, newer.Filename)
	c = a.cache(t.TempDir(), &notices)
	if _, err := c.Get(t.Context(), s); err == nil {
		t.Error("a kernel from nowhere")
	}
	left, _ := filepath.Glob(filepath.Join(c.Dir, "kernels", "*"))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestExpand: modules that are wanted twice, and an interruption in the middle.
func TestExpand(t *testing.T) {
	a := newArchive(t)
	files := map[string]string{"boot/vmlinuz-6.12.1": "image", "lib/modules/6.12.1/modules.order": "", "lib/modules/6.12.1/modules.builtin": allBuiltIn()}
	// The smallest thing that depmod takes for a module.
	elf := "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x01\x00\x3e\x00\x01\x00\x00\x00" + strings.Repeat("\x00", 28) + "\x40\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00"
	for _, name := range []string{"brd", "xfs", "dm-zero"} {
		cmd := exec.Command("xz", "-c", "--check=crc32")
		cmd.Stdin = strings.NewReader(elf)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		files["lib/modules/6.12.1/kernel/"+name+".ko.xz"] = string(packed)
	}
	p := a.add("linux-image-6.12.1+deb12-amd64", "6.12.1-1", files)
	c := a.cache(t.TempDir(), new(bytes.Buffer))
	s := Series{Pin: Pin{debian.Main, []debian.Package{p}}}
	k, err := c.Get(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		dep, err := os.ReadFile(filepath.Join(k.Tree, "modules.dep"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"brd", "xfs", "dm-zero"} {
			if _, err := os.Stat(filepath.Join(k.Tree, "kernel", name+".ko")); err != nil {
				t.Errorf("not uncompressed: %v", err)
			}
			if !strings.Contains(string(dep), "kernel/"+name+".ko:") {
				t.Errorf("modules.dep does not know %s.ko:\n%s", name, dep)
			}
		}
	}
	check()
	dep := filepath.Join(k.Tree, "modules.dep")
	if err := os.WriteFile(dep, []byte("kernel/brd.ko.xz:\nkernel/xfs.ko:\nkernel/dm-zero.ko:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if k, err = c.Get(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	check()
}

func TestGetRefusesADamagedPackage(t *testing.T) {
	a := newArchive(t)
	p := a.add("linux-image-6.12.1+deb12-amd64", "6.12.1-1", map[string]string{"boot/vmlinuz-6.12.1": "image"})
	a.files[p.Filename] = append(a.files[p.Filename], 0)
	c := a.cache(t.TempDir(), new(bytes.Buffer))
	_, err := c.Get(t.Context(), Series{Pin: Pin{debian.Main, []debian.Package{p}}})
	if err == nil || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("got %v", err)
	}
}
