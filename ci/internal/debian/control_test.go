package debian

import (
	"regexp"
	"strings"
	"testing"
)

const sum1 = "7e3248d03a84dcdda88c567aa8c4038f2e7795d2dd167b112c56f8901b6f513f"

func TestParsePackages(t *testing.T) {
	index := `Package: linux-binary-7.3.4+deb13-amd64
Version: 7.3.4-1~bpo13+1
Description: kernel
 with a second line
 SHA256: not this one
Filename: pool/a.deb
Size: 12
SHA256: ` + sum1 + `

Package: other
Version: 1
`
	got, err := ParsePackages(index, regexp.MustCompile("^linux-"))
	if err != nil {
		t.Fatal(err)
	}
	want := Package{"linux-binary-7.3.4+deb13-amd64", "7.3.4-1~bpo13+1", "pool/a.deb", sum1, 12}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, broken := range []string{
		"Package: linux-x\nVersion: 1\nFilename: a\nSHA256: " + sum1 + "\n",
		"Package: linux-x\nVersion: 1\nFilename: a\nSize: 1\nSHA256: abc\n",
		"Package: linux-x\nFilename: a\nSize: 1\nSHA256: " + sum1 + "\n",
	} {
		if _, err := ParsePackages(broken, regexp.MustCompile("^linux-")); err == nil {
			t.Errorf("accepted:\n%s", broken)
		}
	}
}

func TestParseRelease(t *testing.T) {
	other := strings.Repeat("0", 64)
	release := "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nMD5Sum:\n " + other[:32] + " 1 main/binary-amd64/Packages.xz\nSHA256:\n " +
		other + " 5 main/binary-arm64/Packages.xz\n " + sum1 + "   311880 main/binary-amd64/Packages.xz\n"
	got, err := ParseRelease(release, "main/binary-amd64/Packages.xz")
	if err != nil || got != sum1 {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := ParseRelease(release, "main/binary-amd64/Packages.gz"); err == nil {
		t.Error("found a file that is not there")
	}
}

func TestCompareVersions(t *testing.T) {
	// From the rules of deb-version(7): each is older than the next.
	ascending := []string{
		"0~~", "0~", "0", "1.0~rc1", "1.0", "1.0-1", "1.0-1+deb12u1", "1.0-2", "1.0a", "1.0+", "1.2", "1.9", "1.10",
		"6.12.100-1~deb12u1", "6.12.117-1~deb12u1", "6.12.117-1", "7.2.12-1~bpo13+1", "7.3.4-1~bpo12+1", "7.3.4-1~bpo13+1", "7.3.4-1", "7.3.10-1", "1:0.1",
	}
	for i, a := range ascending {
		for j, b := range ascending {
			got := CompareVersions(a, b)
			if (i < j) != (got < 0) || (i == j) != (got == 0) {
				t.Errorf("CompareVersions(%s, %s) = %d", a, b, got)
			}
		}
	}
	if CompareVersions("1.00", "1.0") != 0 || CompareVersions("0:1", "1") != 0 {
		t.Error("equal versions differ")
	}
}

func FuzzParagraphs(f *testing.F) {
	f.Add("Package: a\nSHA256:\n x\n\n y\n:\n#c\nb")
	f.Fuzz(func(t *testing.T, text string) {
		for _, p := range paragraphs(text) {
			if len(p) == 0 {
				t.Error("an empty stanza")
			}
		}
		_, _ = ParsePackages(text, regexp.MustCompile(""))
		ParseList(text)
		ParseDeb822(text)
	})
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("1:2.3-4~a", "2.3+b")
	f.Fuzz(func(t *testing.T, a, b string) {
		if x, y := CompareVersions(a, b), CompareVersions(b, a); (x < 0) != (y > 0) || (x == 0) != (y == 0) {
			t.Errorf("%q and %q: %d and %d", a, b, x, y)
		}
		if CompareVersions(a, a) != 0 {
			t.Errorf("%q differs from itself", a)
		}
	})
}
