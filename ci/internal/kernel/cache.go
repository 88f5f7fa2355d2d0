package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/ci/internal/debian"
)

// Kernel is an unpacked kernel.
type Kernel struct {
	// Release is what uname -r will say.
	Release string
	// Image is the path of vmlinuz.
	Image string
	// Tree is the folder of its modules, as /lib/modules/RELEASE would be.
	Tree string
}

// Cache is the folder in which kernels are kept.
type Cache struct {
	Dir     string
	Fetcher *debian.Fetcher
	Notice  func(format string, args ...any)
}

// layout is part of every cache key: raise it when unpack does something else.
const layout = "1"

// CacheDir is where swapback's harness keeps downloads:
// $SWAPBACK_CACHE, else swapback/ in the user's cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv("SWAPBACK_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		// A CI job may run without HOME.
		return filepath.Join("/var/cache", "swapback"), nil
	}
	return filepath.Join(dir, "swapback"), nil
}

// Get returns a kernel, from the cache or the mirror. Several processes may
// call it at once; one of them does the work.
func (c *Cache) Get(ctx context.Context, s Series) (*Kernel, error) {
	if err := os.MkdirAll(filepath.Join(c.Dir, "debs"), 0o755); err != nil {
		return nil, fmt.Errorf("make the cache %s: %w", c.Dir, err)
	}
	unlock, err := c.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()

	if k, err := c.open(ctx, s.Pin); err == nil {
		return k, nil
	}
	substitute := filepath.Join(c.Dir, "instead-of-"+c.key(s.Pin)+".json")
	if pin, err := readPin(substitute); err == nil {
		if k, err := c.open(ctx, pin); err == nil {
			return k, nil
		}
	}
	k, err := c.fetch(ctx, s.Pin)
	if err == nil || !errors.Is(err, debian.ErrGone) {
		return k, err
	}
	pin, err := c.resolve(ctx, s)
	if err != nil {
		return nil, err
	}
	if k, err = c.fetch(ctx, pin); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(pin, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(substitute, data, 0o644); err != nil {
		return nil, fmt.Errorf("remember which kernel stands for %s: %w", s.Name, err)
	}
	return k, nil
}

// resolve finds what to use now that the pin is gone.
func (c *Cache) resolve(ctx context.Context, s Series) (Pin, error) {
	c.Notice("the pinned %s is gone from the mirror; looking for the newest in its place", s.Pin.Packages[0].Filename)
	interesting := regexp.MustCompile("^linux-(image|binary|modules|base)-[0-9]")
	var errs []error
	var found []struct {
		home Home
		list []debian.Package
	}
	for _, home := range s.Homes {
		list, err := c.Fetcher.Index(ctx, home.Archive, home.Suite, "amd64", interesting)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, struct {
			home Home
			list []debian.Package
		}{home, list})
	}
	for _, patterns := range [][]string{s.Packages, s.Any} {
		for _, f := range found {
			if pkgs, ok := pick(f.list, patterns); ok {
				c.Notice("using %s %s of %s for KERNEL=%s", pkgs[0].Name, pkgs[0].Version, f.home.Suite, s.Name)
				return Pin{f.home.Archive, pkgs}, nil
			}
		}
	}
	errs = append(errs, fmt.Errorf("no kernel %s in any of the suites it could be in: the pin in ci/internal/kernel/pins.go needs a new value", s.Name))
	return Pin{}, errors.Join(errs...)
}

func (c *Cache) key(p Pin) string {
	h := sha256.New()
	fmt.Fprintln(h, layout)
	for _, pkg := range p.Packages {
		fmt.Fprintln(h, pkg.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

func (c *Cache) dir(p Pin) string { return filepath.Join(c.Dir, "kernels", c.key(p)) }

// open finds an unpacked kernel, and brings it up to date with the lists of
// modules in this checkout.
func (c *Cache) open(ctx context.Context, p Pin) (*Kernel, error) {
	dir := c.dir(p)
	trees, err := filepath.Glob(filepath.Join(dir, "lib/modules/*"))
	if err != nil || len(trees) != 1 {
		return nil, fmt.Errorf("%s does not hold one unpacked kernel", dir)
	}
	if err := expand(ctx, trees[0], dir, filepath.Base(trees[0])); err != nil {
		return nil, err
	}
	return &Kernel{Release: filepath.Base(trees[0]), Image: filepath.Join(dir, "vmlinuz"), Tree: trees[0]}, nil
}

func (c *Cache) fetch(ctx context.Context, p Pin) (*Kernel, error) {
	var debs []string
	for _, pkg := range p.Packages {
		deb := filepath.Join(c.Dir, "debs", pkg.SHA256[:16]+"_"+filepath.Base(pkg.Filename))
		if err := c.Fetcher.File(ctx, p.Archive, pkg.Filename, pkg.SHA256, deb); err != nil {
			return nil, err
		}
		debs = append(debs, deb)
	}
	dir := c.dir(p)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	c.Notice("unpacking %s", p.Packages[0].Name)
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".unpack-*")
	if err != nil {
		return nil, fmt.Errorf("unpack a kernel: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := unpack(ctx, debs, tmp); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("replace an unusable cache entry: %w", err)
	}
	if err := os.Rename(filepath.Join(tmp, "out"), dir); err != nil {
		return nil, fmt.Errorf("put the unpacked kernel into the cache: %w", err)
	}
	for _, deb := range debs {
		os.Remove(deb) // 107 MB each, and never needed again
	}
	return c.open(ctx, p)
}

// unpack makes tmp/out hold vmlinuz and lib/modules/RELEASE, indexed for modprobe.
func unpack(ctx context.Context, debs []string, tmp string) error {
	raw := filepath.Join(tmp, "raw")
	for _, deb := range debs {
		if err := command(ctx, "dpkg-deb", "-x", deb, raw); err != nil {
			return err
		}
	}
	// Debian 13's kernel packages have all under usr/lib/modules/RELEASE, older ones
	// the modules under lib/ and the image in boot/.
	trees, _ := filepath.Glob(filepath.Join(raw, "usr/lib/modules/*"))
	if len(trees) == 0 {
		trees, _ = filepath.Glob(filepath.Join(raw, "lib/modules/*"))
	}
	if len(trees) != 1 {
		return fmt.Errorf("unpack %s: found %d module folders, expected one", strings.Join(debs, ", "), len(trees))
	}
	release := filepath.Base(trees[0])
	out := filepath.Join(tmp, "out")
	if err := os.MkdirAll(filepath.Join(out, "lib/modules"), 0o755); err != nil {
		return fmt.Errorf("unpack a kernel: %w", err)
	}
	image := filepath.Join(trees[0], "vmlinuz")
	if _, err := os.Stat(image); err != nil {
		image = filepath.Join(raw, "boot/vmlinuz-"+release)
	}
	if err := os.Rename(image, filepath.Join(out, "vmlinuz")); err != nil {
		return fmt.Errorf("find the kernel's image: %w", err)
	}
	if err := os.Rename(trees[0], filepath.Join(out, "lib/modules", release)); err != nil {
		return fmt.Errorf("unpack a kernel: %w", err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("unpack a kernel: %w", err)
	}
	return command(ctx, "depmod", "-b", out, release)
}

// expand uncompresses the modules that the tests use (the emulated machine
// would take seconds for it) and indexes again.
func expand(ctx context.Context, tree, out, release string) error {
	mods, err := ReadModules(tree)
	if err != nil {
		return err
	}
	order, err := mods.Order(slices.Concat(Early(), Late(), Network(), OnDemand()))
	if err != nil {
		return err
	}
	packed := false
	var files []string
	for _, m := range order {
		if !strings.HasSuffix(m.Path, ".xz") {
			continue
		}
		packed = true
		// It may be gone: somebody was interrupted between the two commands.
		path := filepath.Join(tree, m.Path)
		if _, err := os.Stat(path); err == nil {
			files = append(files, path)
		}
	}
	if !packed {
		return nil
	}
	if len(files) > 0 {
		if err := command(ctx, "xz", append([]string{"-d", "-f", "--"}, files...)...); err != nil {
			return err
		}
	}
	return command(ctx, "depmod", "-b", out, release)
}

// lock keeps two processes from filling the same cache.
func (c *Cache) lock() (func(), error) {
	f, err := os.OpenFile(filepath.Join(c.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		c.Notice("waiting for another process that fills %s", c.Dir)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the cache %s: %w", c.Dir, err)
	}
	return func() { f.Close() }, nil
}

func readPin(path string) (Pin, error) {
	var p Pin
	data, err := os.ReadFile(path)
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal(data, &p)
}

func command(ctx context.Context, name string, args ...string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		// depmod is in /usr/sbin, which is not on every user's PATH.
		path = filepath.Join("/usr/sbin", name)
	}
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}
