package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// ErrGone means that no mirror has the file (any more).
var ErrGone = errors.New("the mirror does not have it")

// Fetcher downloads from the mirrors that apt is set up with.
type Fetcher struct {
	// Root is "/" except in tests.
	Root string
	// Notice receives sentences for the person at the terminal.
	Notice func(format string, args ...any)
	// Keyrings is where Debian's archive keys lie, "" for the usual folder.
	Keyrings string
}

// File downloads a file of an archive into path, which appears only when it is
// whole and its SHA-256 is right. A file that is already there is checked and kept.
func (f *Fetcher) File(ctx context.Context, archive Archive, name, sum, path string) error {
	if got, err := fileSum(path); err == nil && got == sum {
		return nil
	}
	return f.each(archive, func(mirror string) error {
		f.Notice("downloading %s", filepath.Base(name))
		return download(ctx, f.client(ctx), mirror+"/"+escape(name), sum, path)
	})
}

// Index downloads the index of a suite's main component and returns the
// packages whose name matches. The index is checked against the suite's
// release file, and that against Debian's keys where gpgv and the keys are there.
func (f *Fetcher) Index(ctx context.Context, archive Archive, suite, arch string, name *regexp.Regexp) ([]Package, error) {
	var out []Package
	err := f.each(archive, func(mirror string) error {
		dist := mirror + "/dists/" + suite
		release, err := get(ctx, f.client(ctx), dist+"/InRelease", 4<<20)
		if err != nil {
			return err
		}
		release, err = f.verify(ctx, release, suite)
		if err != nil {
			return err
		}
		index := "main/binary-" + arch + "/Packages.xz"
		sum, err := ParseRelease(string(release), index)
		if err != nil {
			return fmt.Errorf("%s: %w", suite, err)
		}
		packed, err := get(ctx, f.client(ctx), dist+"/"+index, 256<<20)
		if err != nil {
			return err
		}
		if got := hexSum(packed); got != sum {
			return fmt.Errorf("%s of %s: SHA-256 is %s, the release file says %s", index, suite, got, sum)
		}
		xz := exec.CommandContext(ctx, "xz", "-dc")
		xz.Stdin = bytes.NewReader(packed)
		text, err := xz.Output()
		if err != nil {
			return fmt.Errorf("unpack %s of %s: %w", index, suite, err)
		}
		out, err = ParsePackages(string(text), name)
		return err
	})
	return out, err
}

// each calls try with one mirror after the other until one succeeds. When
// none does, ErrGone is returned only if every mirror said so.
func (f *Fetcher) each(archive Archive, try func(mirror string) error) error {
	mirrors, err := Mirrors(f.Root, os.Getenv(MirrorEnv), archive)
	if err != nil {
		return err
	}
	var errs []error
	gone := true
	for _, m := range mirrors {
		err := try(m)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
		gone = gone && errors.Is(err, ErrGone)
	}
	if gone {
		return errs[0]
	}
	for _, err := range errs {
		if !errors.Is(err, ErrGone) {
			return err
		}
	}
	return errors.Join(errs...)
}

// verify checks a release file's signature, if this machine can, and returns
// the part of it that is signed.
func (f *Fetcher) verify(ctx context.Context, release []byte, suite string) ([]byte, error) {
	dir := f.Keyrings
	if dir == "" {
		dir = filepath.Join(f.Root, "usr/share/keyrings")
	}
	rings, _ := filepath.Glob(filepath.Join(dir, "debian-archive-*.[gp][pg][gp]"))
	gpgv, err := exec.LookPath("gpgv")
	if err != nil || len(rings) == 0 {
		f.Notice("the signature of %s is not checked: gpgv or Debian's archive keys are missing", suite)
		return release, nil
	}
	args := []string{"--status-fd", "2", "--output", "-"}
	for _, r := range rings {
		if !strings.Contains(r, "removed") {
			args = append(args, "--keyring", r)
		}
	}
	var signed, status bytes.Buffer
	cmd := exec.CommandContext(ctx, gpgv, append(args, "-")...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(release), &signed, &status
	err = cmd.Run()
	// gpgv fails when it lacks one of the keys, and an older keyring does lack
	// the newest. One good signature is enough, as it is for apt; a bad one is not.
	good := bytes.Contains(status.Bytes(), []byte("[GNUPG:] VALIDSIG "))
	bad := bytes.Contains(status.Bytes(), []byte("[GNUPG:] BADSIG "))
	if !good || bad {
		return nil, fmt.Errorf("the release file of %s is not signed by a key in %s (gpgv: %w)\n%s", suite, dir, err, status.String())
	}
	return signed.Bytes(), nil
}

// client goes through apt's proxy, where apt has one and the environment does not.
func (f *Fetcher) client(ctx context.Context) *http.Client {
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: time.Minute}
	out, err := exec.CommandContext(ctx, "apt-config", "shell", "P", "Acquire::http::Proxy").Output()
	if err == nil {
		if _, v, ok := strings.Cut(strings.TrimSpace(string(out)), "="); ok {
			if u, err := url.Parse(strings.Trim(v, "'\"")); err == nil && u.Host != "" {
				t.Proxy = http.ProxyURL(u)
			}
		}
	}
	return &http.Client{Transport: t}
}

// escape makes a file name of an archive part of an address. Plus signs stay:
// they are ordinary in a path, and mirrors expect them so.
func escape(name string) string {
	return (&url.URL{Path: name}).EscapedPath()
}

func open(ctx context.Context, c *http.Client, address string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("download %s: %w", address, err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("download: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return resp.Body, nil
	case http.StatusNotFound, http.StatusGone:
		err = ErrGone
	default:
		err = errors.New(resp.Status)
	}
	resp.Body.Close()
	return nil, fmt.Errorf("download %s: %w", address, err)
}

func get(ctx context.Context, c *http.Client, address string, limit int64) ([]byte, error) {
	body, err := open(ctx, c, address)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, limit))
	if err != nil {
		return nil, fmt.Errorf("download %s: %w", address, err)
	}
	return data, nil
}

func download(ctx context.Context, c *http.Client, address, sum, path string) error {
	body, err := open(ctx, c, address)
	if err != nil {
		return err
	}
	defer body.Close()
	tmp, err := os.CreateTemp(filepath.Dir(path), ".download-*")
	if err != nil {
		return fmt.Errorf("download %s: %w", address, err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(tmp, h), body); err != nil {
		return fmt.Errorf("download %s: %w", address, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return fmt.Errorf("download %s: SHA-256 is %s, it should be %s", address, got, sum)
	}
	if err := tmp.Close(); err != nil {
		return fmt.Errorf("download %s: %w", address, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("download %s: %w", address, err)
	}
	return nil
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
