package debian

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Package is one binary package of an archive.
type Package struct {
	Name, Version string
	// Filename is relative to the archive's address.
	Filename string
	// SHA256 is in lower-case hexadecimal.
	SHA256 string
	// Size is in bytes.
	Size int64
}

// paragraphs splits a control file into its stanzas. Field names come out in
// lower case; continuation lines are joined with a newline.
func paragraphs(text string) []map[string]string {
	var out []map[string]string
	cur := map[string]string{}
	last := ""
	flush := func() {
		if len(cur) > 0 {
			out = append(out, cur)
		}
		cur, last = map[string]string{}, ""
	}
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, "\r")
		switch {
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				cur[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				last = ""
				continue
			}
			last = strings.ToLower(strings.TrimSpace(name))
			cur[last] = strings.TrimSpace(value)
		}
	}
	flush()
	return out
}

// ParsePackages reads an archive's Packages index and keeps the packages whose
// name matches.
func ParsePackages(text string, name *regexp.Regexp) ([]Package, error) {
	var out []Package
	for _, p := range paragraphs(text) {
		if !name.MatchString(p["package"]) {
			continue
		}
		size, err := strconv.ParseInt(p["size"], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("package index: size of %s: %w", p["package"], err)
		}
		pkg := Package{Name: p["package"], Version: p["version"], Filename: p["filename"], SHA256: p["sha256"], Size: size}
		if pkg.Version == "" || pkg.Filename == "" || len(pkg.SHA256) != 64 {
			return nil, fmt.Errorf("package index: the entry of %s is incomplete", pkg.Name)
		}
		out = append(out, pkg)
	}
	return out, nil
}

// ParseRelease finds the SHA-256 of one index file in a Release or InRelease file.
func ParseRelease(text, file string) (string, error) {
	for _, p := range paragraphs(text) {
		for _, line := range strings.Split(p["sha256"], "\n") {
			if f := strings.Fields(line); len(f) == 3 && f[2] == file && len(f[0]) == 64 {
				return f[0], nil
			}
		}
	}
	return "", fmt.Errorf("release file: it names no SHA-256 for %s", file)
}

// Newest returns the package of the highest version, and false for an empty list.
func Newest(list []Package) (Package, bool) {
	var best Package
	for i, p := range list {
		if i == 0 || CompareVersions(p.Version, best.Version) > 0 {
			best = p
		}
	}
	return best, len(list) > 0
}

// CompareVersions orders two Debian versions (deb-version(7)): below zero when
// a is older than b.
func CompareVersions(a, b string) int {
	ea, ua, ra := splitVersion(a)
	eb, ub, rb := splitVersion(b)
	if ea != eb {
		return ea - eb
	}
	if c := comparePart(ua, ub); c != 0 {
		return c
	}
	return comparePart(ra, rb)
}

// splitVersion is [epoch:]upstream[-revision].
func splitVersion(v string) (epoch int, upstream, revision string) {
	if e, rest, ok := strings.Cut(v, ":"); ok {
		epoch, _ = strconv.Atoi(e)
		v = rest
	}
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		return epoch, v[:i], v[i+1:]
	}
	return epoch, v, ""
}

// comparePart compares alternating runs of other characters and digits.
func comparePart(a, b string) int {
	for a != "" || b != "" {
		for (a != "" && !digit(a[0])) || (b != "" && !digit(b[0])) {
			oa, ob := order(a), order(b)
			if oa != ob {
				return oa - ob
			}
			a, b = a[1:], b[1:]
		}
		var na, nb string
		na, a = cutNumber(a)
		nb, b = cutNumber(b)
		if len(na) != len(nb) {
			return len(na) - len(nb)
		}
		if c := strings.Compare(na, nb); c != 0 {
			return c
		}
	}
	return 0
}

// order gives a string's first character its place: a tilde before the end,
// the end (and a digit) before letters, letters before everything else.
func order(s string) int {
	switch {
	case s == "" || digit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case s[0] >= 'a' && s[0] <= 'z' || s[0] >= 'A' && s[0] <= 'Z':
		return int(s[0])
	default:
		return int(s[0]) + 256
	}
}

// cutNumber takes the digits off the front of s, without leading zeroes.
func cutNumber(s string) (number, rest string) {
	i := 0
	for i < len(s) && digit(s[i]) {
		i++
	}
	return strings.TrimLeft(s[:i], "0"), s[i:]
}

func digit(c byte) bool { return c >= '0' && c <= '9' }
