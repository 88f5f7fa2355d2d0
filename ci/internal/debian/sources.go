// Package debian takes single packages from a Debian mirror: whichever mirror
// this machine's apt is set up with. It never installs anything.
package debian

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Archive is one of the archives that a Debian mirror carries.
type Archive string

const (
	Main     Archive = "debian"
	Security Archive = "debian-security"
)

// Source is one line (or stanza) of apt's sources.
type Source struct {
	URIs, Suites, Components []string
}

// MirrorEnv names the variable that overrides apt's sources: the address of
// the main archive, such as http://HOST/debian.
const MirrorEnv = "DEBIAN_MIRROR"

// Mirrors returns addresses to try for an archive, best first, without a
// trailing slash. root is "/" except in tests; override is the value of
// MirrorEnv, or empty.
func Mirrors(root, override string, archive Archive) ([]string, error) {
	var list []string
	if override != "" {
		list = ofArchive([]Source{{URIs: []string{override}, Suites: []string{"stable"}, Components: []string{"main"}}}, archive)
	} else {
		sources, err := ReadSources(root)
		if err != nil {
			return nil, err
		}
		list = ofArchive(resolveMirrorLists(root, sources), archive)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("apt's sources name no Debian mirror for %s; set %s to the address of one (http://HOST/debian)", archive, MirrorEnv)
	}
	return list, nil
}

// ReadSources reads /etc/apt/sources.list and sources.list.d. A missing file is no error.
func ReadSources(root string) ([]Source, error) {
	apt := filepath.Join(root, "etc/apt")
	files := []string{filepath.Join(apt, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(apt, "sources.list.d", pattern))
		if err != nil {
			return nil, fmt.Errorf("list apt's sources: %w", err)
		}
		files = append(files, more...)
	}
	var all []Source
	for _, name := range files {
		data, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read apt's sources: %w", err)
		}
		if strings.HasSuffix(name, ".sources") {
			all = append(all, ParseDeb822(string(data))...)
		} else {
			all = append(all, ParseList(string(data))...)
		}
	}
	return all, nil
}

// ParseList reads the one-line format: deb [options] URI suite component...
// Lines that are not understood are left out: they are apt's business.
func ParseList(text string) []Source {
	var out []Source
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			_, after, ok := strings.Cut(rest, "]")
			if !ok {
				continue
			}
			rest = after
		}
		if f := strings.Fields(rest); len(f) >= 2 {
			out = append(out, Source{URIs: f[:1], Suites: f[1:2], Components: f[2:]})
		}
	}
	return out
}

// ParseDeb822 reads the stanza format of *.sources files.
func ParseDeb822(text string) []Source {
	var out []Source
	for _, p := range paragraphs(text) {
		if strings.EqualFold(p["enabled"], "no") {
			continue
		}
		isDeb := false
		for _, t := range strings.Fields(p["types"]) {
			isDeb = isDeb || t == "deb"
		}
		s := Source{
			URIs:       strings.Fields(p["uris"]),
			Suites:     strings.Fields(p["suites"]),
			Components: strings.Fields(p["components"]),
		}
		if isDeb && len(s.URIs) > 0 && len(s.Suites) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// resolveMirrorLists follows mirror+file: addresses (cloud images have them).
func resolveMirrorLists(root string, sources []Source) []Source {
	out := make([]Source, 0, len(sources))
	for _, s := range sources {
		var uris []string
		for _, u := range s.URIs {
			name, ok := strings.CutPrefix(u, "mirror+file:")
			if !ok {
				uris = append(uris, u)
				continue
			}
			data, err := os.ReadFile(filepath.Join(root, strings.TrimPrefix(name, "//")))
			if err != nil {
				continue
			}
			for _, line := range strings.Split(string(data), "\n") {
				line, _, _ = strings.Cut(line, "#")
				if f := strings.Fields(line); len(f) > 0 {
					uris = append(uris, f[0])
				}
			}
		}
		s.URIs = uris
		out = append(out, s)
	}
	return out
}

// suites are the names under which Debian itself publishes. They tell Debian's
// own sources from third parties that follow the same layout.
var suites = map[string]bool{
	"stable": true, "oldstable": true, "testing": true, "unstable": true, "sid": true,
	"bullseye": true, "bookworm": true, "trixie": true, "forky": true, "duke": true,
}

// ofArchive picks the addresses that carry an archive. A machine that has only
// the main archive in its sources has the security archive beside it: every
// full mirror keeps the two next to each other.
func ofArchive(sources []Source, archive Archive) []string {
	var exact, derived []string
	for _, s := range sources {
		if !contains(s.Components, "main") {
			continue
		}
		for _, suite := range s.Suites {
			base, _, _ := strings.Cut(suite, "/")
			base, kind, _ := strings.Cut(base, "-")
			if !suites[base] {
				continue
			}
			isSecurity := kind == "security" || strings.HasSuffix(suite, "/updates")
			for _, u := range s.URIs {
				u = strings.TrimRight(u, "/")
				if !strings.HasPrefix(u, "http://") && !strings.HasPrefix(u, "https://") {
					continue
				}
				switch {
				case isSecurity == (archive == Security):
					exact = append(exact, u)
				case archive == Security && strings.HasSuffix(u, "/debian"):
					derived = append(derived, u+"-security")
				case archive == Main && strings.HasSuffix(u, "/debian-security"):
					derived = append(derived, strings.TrimSuffix(u, "-security"))
				}
			}
		}
	}
	var out []string
	for _, u := range append(exact, derived...) {
		if !contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
