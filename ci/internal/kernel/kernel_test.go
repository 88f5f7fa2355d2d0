package kernel

import (
	"regexp"
	"slices"
	"testing"

	"github.com/swapback/swapback/ci/internal/debian"
)

func TestFind(t *testing.T) {
	for name, want := range map[string]string{"": "7.3", "7.3": "7.3", "6.12": "6.12"} {
		if s, err := Find(name); err != nil || s.Name != want {
			t.Errorf("Find(%q) = %s, %v", name, s.Name, err)
		}
	}
	if _, err := Find("5.10"); err == nil {
		t.Error("found a kernel that is not there")
	}
}

// TestPins: what is pinned must be what would be looked for in its place.
func TestPins(t *testing.T) {
	for _, s := range All() {
		if got, ok := pick(s.Pin.Packages, s.Packages); !ok || len(got) != len(s.Pin.Packages) {
			t.Errorf("%s: the patterns do not match the pinned packages", s.Name)
		}
		for _, p := range s.Pin.Packages {
			if !regexp.MustCompile("^[0-9a-f]{64}$").MatchString(p.SHA256) {
				t.Errorf("%s: no SHA-256", p.Name)
			}
		}
	}
}

func TestPick(t *testing.T) {
	pkg := func(name, version string) debian.Package { return debian.Package{Name: name, Version: version} }
	list := []debian.Package{
		pkg("linux-binary-7.3.4+deb13-amd64", "7.3.4-1"), pkg("linux-modules-7.3.4+deb13-amd64", "7.3.4-1"), pkg("linux-base-7.3.4+deb13-amd64", "7.3.4-1"),
		pkg("linux-binary-7.3.10+deb13-amd64", "7.3.10-1"), pkg("linux-modules-7.3.10+deb13-amd64", "7.3.10-1"), pkg("linux-base-7.3.10+deb13-amd64", "7.3.10-1"),
		pkg("linux-binary-7.3.11+deb13-amd64", "7.3.11-1"), // its modules are not there yet
		pkg("linux-binary-7.3.12+deb13-cloud-amd64", "7.3.12-1"), pkg("linux-modules-7.3.12+deb13-cloud-amd64", "7.3.12-1"),
		pkg("linux-binary-7.4.1+deb13-amd64", "7.4.1-1"), pkg("linux-modules-7.4.1+deb13-amd64", "7.4.1-1"), pkg("linux-base-7.4.1+deb13-amd64", "7.4.1-1"),
		pkg("linux-image-6.12.9+deb12-amd64", "6.12.9-1"), pkg("linux-image-6.12.10+deb12-amd64", "6.12.10-1"), pkg("linux-image-6.12.11+deb12-rt-amd64", "6.12.11-1"),
	}
	newest, oldest := All()[0], All()[1]
	for _, tt := range []struct {
		patterns []string
		want     string
	}{
		{newest.Packages, "linux-binary-7.3.10+deb13-amd64"},
		{newest.Any, "linux-binary-7.4.1+deb13-amd64"},
		{oldest.Packages, "linux-image-6.12.10+deb12-amd64"},
		{oldest.Any, ""},
		{[]string{"^linux-(none)$"}, ""},
	} {
		got, ok := pick(list, tt.patterns)
		if ok != (tt.want != "") || ok && got[0].Name != tt.want {
			t.Errorf("%v: got %v", tt.patterns, got)
		}
	}
}

func TestOrder(t *testing.T) {
	m := ParseModules(`kernel/fs/9p/9p.ko: kernel/fs/netfs/netfs.ko kernel/net/9p/9pnet.ko
kernel/net/9p/9pnet.ko:
kernel/fs/netfs/netfs.ko:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko
kernel/drivers/md/dm-mod.ko:
kernel/drivers/md/dm-snapshot.ko: kernel/drivers/md/dm-bufio.ko kernel/drivers/md/dm-mod.ko
kernel/drivers/md/dm-bufio.ko: kernel/drivers/md/dm-mod.ko
`, "kernel/drivers/virtio/virtio_pci.ko\n")
	got, err := m.Order([]Want{
		{Name: "virtio_pci"}, {Name: "9pnet-virtio"}, {Name: "9p"}, {Name: "dm_snapshot"}, {Name: "dm-mod"}, {Name: "absent", Optional: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, f := range got {
		paths = append(paths, f.Path)
	}
	want := []string{
		"kernel/net/9p/9pnet.ko", "kernel/net/9p/9pnet_virtio.ko.xz",
		"kernel/fs/netfs/netfs.ko", "kernel/fs/9p/9p.ko",
		"kernel/drivers/md/dm-mod.ko", "kernel/drivers/md/dm-bufio.ko", "kernel/drivers/md/dm-snapshot.ko",
	}
	if !slices.Equal(paths, want) {
		t.Errorf("got  %v\nwant %v", paths, want)
	}
	if _, err := m.Order([]Want{{Name: "absent"}}); err == nil {
		t.Error("a required module that is missing was accepted")
	}
}
