//go:build vm && failpoint

package crash

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// world is what an operation may change, as the API and the block devices show
// it. A nil world is a machine without a pool.
type world map[string]volume

// volume is what somebody can see of a volume.
type volume struct {
	Size       int64
	Attached   bool
	ReadOnly   bool
	Quarantine string // reason
	Descends   string
	Hosts      string // that may use it from afar
	Sum        string // of all its bytes, read past the page cache; "mounted" when it is
}

func (w world) String() string {
	if w == nil {
		return "no pool\n"
	}
	b := &strings.Builder{}
	for _, name := range slices.Sorted(maps.Keys(w)) {
		fmt.Fprintf(b, "%s %+v\n", name, w[name])
	}
	return b.String() + "."
}

// with is the world with one volume changed.
func (w world) with(name string, change func(v *volume)) world {
	c := maps.Clone(w)
	v := c[name]
	change(&v)
	c[name] = v
	return c
}

// without is the world without a volume.
func (w world) without(name string) world {
	c := maps.Clone(w)
	delete(c, name)
	return c
}

// look sees the world as it is. It fails the test when the kernel, the links or
// the marks for udev are not what the volumes ask for.
func look(t *testing.T, d *rig.Daemon) world {
	t.Helper()
	d.Check()
	pools, err := d.Client.Pools(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, err := d.Client.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Failed) > 0 {
		t.Errorf("pools that can't be opened: %+v", info.Failed)
	}
	volumes, err := d.Client.Volumes(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	list, err := d.Client.Exports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exports := exportsSeen(t, list)
	lookAround(t, d, volumes)
	if len(pools) == 0 {
		return nil
	}
	w := world{}
	for _, v := range volumes {
		seen := volume{
			Size: v.Size, Attached: v.Attached, ReadOnly: v.ReadOnly,
			Descends: v.Position.DescendsFrom, Sum: sum(t, v),
			Hosts: strings.Join(exports[v.Pool+"/"+v.Name], " "),
		}
		if q := v.Position.Quarantine; q != nil {
			seen.Quarantine = q.Reason
		}
		if v.Snapshot {
			t.Errorf("volume %s has a snapshot that nobody has open", v.Name)
		}
		w[v.Name] = seen
	}
	return w
}

// sum reads a volume from the device that its users see, or, when it has none,
// from the one below.
func sum(t *testing.T, v api.Volume) string {
	t.Helper()
	path := v.Device
	if path == "" {
		path = v.Backend
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), path+" ") {
		return "mounted"
	}
	f := rig.OpenDirect(t, path, os.O_RDONLY)
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, int(v.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(buf)
	if n, err := f.ReadAt(buf, 0); err != nil || n != len(buf) {
		t.Fatalf("reading %s of volume %s: %d bytes, %v", path, v.Name, n, err)
	}
	return shortSum(buf)
}

func shortSum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b))[:16] }

// lookAround holds what swapback has in the kernel and in its folders against
// the volumes that there are.
func lookAround(t *testing.T, d *rig.Daemon, volumes []api.Volume) {
	t.Helper()
	var ublk, dm, links, marks []string
	for _, v := range volumes {
		dm = append(dm, filepath.Base(v.Backend))
		if v.State == api.StateDetached {
			continue
		}
		name := filepath.Base(v.Device)
		ublk = append(ublk, name)
		links = append(links, v.Pool+"/"+v.Name+" → "+v.Device)
		if v.Position.Quarantine != nil {
			marks = append(marks, name)
		}
		ro, err := os.ReadFile("/sys/block/" + name + "/ro")
		if err != nil {
			t.Error(err)
		} else if got := strings.TrimSpace(string(ro)) == "1"; got != v.ReadOnly {
			t.Errorf("volume %s: read-only is %v, but %s/ro says %v", v.Name, v.ReadOnly, name, got)
		}
	}
	same(t, "ublk devices", bases(t, "/sys/block/ublkb*"), ublk)
	same(t, "device-mapper devices", dmDevices(t), dm)
	same(t, "marks of quarantined devices", bases(t, d.RunDir()+"/quarantine/*"), marks)
	same(t, "links", linksBelow(t, d.LinkDir()), links)
	for _, link := range glob(t, "/dev/mapper/swapback-*") {
		if _, err := os.Stat(link); err != nil {
			t.Errorf("a link to nothing: %v", err)
		}
	}
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s are %q, the volumes ask for %q", what, got, want)
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func bases(t *testing.T, pattern string) []string {
	t.Helper()
	var list []string
	for _, path := range glob(t, pattern) {
		list = append(list, filepath.Base(path))
	}
	return list
}

func dmDevices(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, path := range glob(t, "/sys/block/dm-*/dm/uuid") {
		if uuid, _ := os.ReadFile(path); strings.HasPrefix(string(uuid), "SWAPBACK-") {
			list = append(list, filepath.Base(filepath.Dir(filepath.Dir(path))))
		}
	}
	return list
}

// linksBelow lists the daemon's links, hidden leftovers of their making too.
func linksBelow(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	for _, pattern := range []string{"/*/*", "/*/.*"} {
		for _, path := range glob(t, dir+pattern) {
			to, err := os.Readlink(path)
			if err != nil {
				t.Error(err)
			}
			name, _ := filepath.Rel(dir, path)
			list = append(list, name+" → "+to)
		}
	}
	return list
}
