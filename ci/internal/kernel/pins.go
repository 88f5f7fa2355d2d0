// Package kernel keeps the Linux kernels that the tests run on: Debian's own
// packages, unpacked into a cache outside the checkout.
package kernel

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/swapback/swapback/ci/internal/debian"
)

// Series is one kernel to test on.
type Series struct {
	// Name is what KERNEL= says.
	Name string
	// Why says what this kernel is tested for.
	Why string
	// Pin is what is used as long as a mirror has it: tests should not change
	// under our feet.
	Pin Pin
	// Homes are where to look when the pin is gone, in this order.
	Homes []Home
	// Packages match the package names to take from a home, in the series
	// first and then, with Any, whatever the home has now. The part in
	// parentheses must be the same for all packages of one kernel.
	Packages []string
	Any      []string
}

// Pin is an exact set of packages of one archive.
type Pin struct {
	Archive  debian.Archive
	Packages []debian.Package
}

// Home is a suite of an archive.
type Home struct {
	Archive debian.Archive
	Suite   string
}

// All returns the kernels to test on, the newest first.
func All() []Series {
	return []Series{
		{
			Name: "7.3",
			Why:  "the newest kernel of Debian's backports, with every ublk feature there is",
			Pin: Pin{debian.Main, []debian.Package{
				{
					Name:     "linux-binary-7.3.4+deb13-amd64",
					Version:  "7.3.4-1~bpo13+1",
					Filename: "pool/main/l/linux-signed-amd64/linux-binary-7.3.4+deb13-amd64_7.3.4-1~bpo13+1_amd64.deb",
					SHA256:   "7e3248d03a84dcdda88c567aa8c4038f2e7795d2dd167b112c56f8901b6f513f",
					Size:     14138336,
				},
				{
					Name:     "linux-modules-7.3.4+deb13-amd64",
					Version:  "7.3.4-1~bpo13+1",
					Filename: "pool/main/l/linux/linux-modules-7.3.4+deb13-amd64_7.3.4-1~bpo13+1_amd64.deb",
					SHA256:   "b3ea01922c9f133767a83cf6891c19b3693858ded617bf22d1e34f95382c08ea",
					Size:     106862204,
				},
				{ // the lists of what is built into the kernel
					Name:     "linux-base-7.3.4+deb13-amd64",
					Version:  "7.3.4-1~bpo13+1",
					Filename: "pool/main/l/linux/linux-base-7.3.4+deb13-amd64_7.3.4-1~bpo13+1_amd64.deb",
					SHA256:   "5663505495b5c90be94af42105c7b28629802516779102dac48d5a00cc00fccf",
					Size:     1077476,
				},
			}},
			Homes: []Home{{debian.Main, "trixie-backports"}},
			Packages: []string{
				`^linux-binary-(7\.3\.[0-9]+\+deb[0-9]+)-amd64$`,
				`^linux-modules-(7\.3\.[0-9]+\+deb[0-9]+)-amd64$`,
				`^linux-base-(7\.3\.[0-9]+\+deb[0-9]+)-amd64$`,
			},
			Any: []string{
				`^linux-binary-([0-9.]+\+deb[0-9]+)-amd64$`,
				`^linux-modules-([0-9.]+\+deb[0-9]+)-amd64$`,
				`^linux-base-([0-9.]+\+deb[0-9]+)-amd64$`,
			},
		},
		{
			Name: "6.12",
			Why:  "the oldest supported kernel: Debian 13's",
			Pin: Pin{debian.Security, []debian.Package{
				{
					Name:     "linux-image-6.12.117+deb12-amd64",
					Version:  "6.12.117-1~deb12u1",
					Filename: "pool/updates/main/l/linux-signed-6.12-amd64/linux-image-6.12.117+deb12-amd64_6.12.117-1~deb12u1_amd64.deb",
					SHA256:   "803d36a7cda13355ae8152122470288b2636f19f1cb58162dd9d8b408af9b1b4",
					Size:     107179464,
				},
			}},
			Homes:    []Home{{debian.Security, "bookworm-security"}, {debian.Security, "trixie-security"}, {debian.Main, "trixie"}},
			Packages: []string{`^linux-image-(6\.12\.[0-9]+\+deb[0-9]+)-amd64$`},
		},
	}
}

// Find returns the series of a name. An empty name means the newest.
func Find(name string) (Series, error) {
	all := All()
	if name == "" {
		return all[0], nil
	}
	var names []string
	for _, s := range all {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Series{}, fmt.Errorf("no kernel %q: choose one of %s", name, strings.Join(names, ", "))
}

// pick chooses from a suite's packages the newest kernel for which every
// pattern has a match with the same version in its name.
func pick(list []debian.Package, patterns []string) ([]debian.Package, bool) {
	if len(patterns) == 0 {
		return nil, false
	}
	sets := make([]map[string]debian.Package, len(patterns))
	for i, p := range patterns {
		re := regexp.MustCompile(p)
		sets[i] = map[string]debian.Package{}
		for _, pkg := range list {
			if m := re.FindStringSubmatch(pkg.Name); m != nil {
				if old, ok := sets[i][m[1]]; !ok || debian.CompareVersions(pkg.Version, old.Version) > 0 {
					sets[i][m[1]] = pkg
				}
			}
		}
	}
	var best []debian.Package
	for key := range sets[0] {
		var set []debian.Package
		for _, s := range sets {
			if pkg, ok := s[key]; ok {
				set = append(set, pkg)
			}
		}
		if len(set) == len(patterns) && (best == nil || debian.CompareVersions(set[0].Version, best[0].Version) > 0) {
			best = set
		}
	}
	return best, best != nil
}
