package debian

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestMirrors(t *testing.T) {
	const (
		deb822 = `# a comment
Types: deb
URIs: http://mirror.test/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: https://sec.test/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: https://other.test/node
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: bookworm
Components: main
`
		oneLine = `deb [arch=amd64 signed-by=/x.gpg] http://line.test/debian trixie main contrib # note
#deb http://comment.test/debian trixie main
deb-src http://src.test/debian trixie main
deb https://vendor.test/linux/debian bookworm stable
deb http://old.test/security bullseye/updates main
deb cdrom:[Debian]/ trixie main
`
	)
	tests := []struct {
		name     string
		files    map[string]string
		override string
		main     []string
		security []string
	}{
		{
			name:     "stanzas",
			files:    map[string]string{"sources.list.d/debian.sources": deb822},
			main:     []string{"http://mirror.test/debian", "https://sec.test/debian"},
			security: []string{"https://sec.test/debian-security", "http://mirror.test/debian-security"},
		},
		{
			name:     "lines",
			files:    map[string]string{"sources.list": oneLine},
			main:     []string{"http://line.test/debian"},
			security: []string{"http://old.test/security", "http://line.test/debian-security"},
		},
		{
			name: "a list of mirrors",
			files: map[string]string{
				"sources.list.d/x.sources": "Types: deb\nURIs: mirror+file:///etc/apt/mirrors.list\nSuites: trixie\nComponents: main\n",
				"mirrors.list":             "http://first.test/debian priority:1\n# no\nhttp://second.test/debian\n",
			},
			main:     []string{"http://first.test/debian", "http://second.test/debian"},
			security: []string{"http://first.test/debian-security", "http://second.test/debian-security"},
		},
		{
			name:     "override",
			files:    map[string]string{"sources.list": oneLine},
			override: "http://mine.test/debian/",
			main:     []string{"http://mine.test/debian"},
			security: []string{"http://mine.test/debian-security"},
		},
		{name: "none", files: map[string]string{"sources.list": "deb http://ubuntu.test/ubuntu noble main\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tt.files {
				path := filepath.Join(root, "etc/apt", name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for archive, want := range map[Archive][]string{Main: tt.main, Security: tt.security} {
				got, err := Mirrors(root, tt.override, archive)
				if (err != nil) != (want == nil) {
					t.Errorf("%s: error %v", archive, err)
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s: got %v, want %v", archive, got, want)
				}
			}
		})
	}
}
