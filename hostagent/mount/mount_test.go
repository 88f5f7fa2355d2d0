package mount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		options string
		bits    uintptr
		data    string
	}{
		{"", 0, ""},
		{"defaults", 0, ""},
		{"ro,noload", unix.MS_RDONLY, "noload"},
		{"ro,rw,noatime,nodev,commit=5,nouuid", unix.MS_NOATIME | unix.MS_NODEV, "commit=5,nouuid"},
	} {
		bits, data, err := split(strings.Split(c.options, ","))
		if err != nil || bits != c.bits || data != c.data {
			t.Errorf("%s: %#x %q %v", c.options, bits, data, err)
		}
	}
	for _, bad := range refused {
		if err := CheckOptions([]string{"ro", bad}); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func TestParse(t *testing.T) {
	text := `22 1 0:20 / / rw,relatime - tmpfs tmpfs rw,size=100k
36 22 98:300 /sub\040dir /mnt/a\011b rw,noatime,nodev master:1 shared:2 - ext4 /dev/ublkb0 rw,errors=continue
37 22 0:5 / /proc rw - proc proc rw
`
	got, err := parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := Entry{
		Major: 98, Minor: 300, Root: "/sub dir", Dir: "/mnt/a\tb", FSType: "ext4", Source: "/dev/ublkb0",
		Options: []string{"rw", "noatime", "nodev"}, FSOptions: []string{"rw", "errors=continue"},
	}
	if len(got) != 3 {
		t.Fatalf("%d mounts", len(got))
	}
	if diff := cmp.Diff(want, got[1]); diff != "" {
		t.Error(diff)
	}
	if got[1].Device() != unix.Mkdev(98, 300) {
		t.Errorf("device number %#x", got[1].Device())
	}
	if all := got[1].AllOptions(); !slices.Equal(all, []string{"rw", "noatime", "nodev", "errors=continue"}) {
		t.Errorf("options to mount it again: %q", all)
	}
	for _, bad := range []string{"", "a b c", "1 2 3 / / rw - ext4 x rw", "1 2 3:x / / rw - ext4 x rw", "1 2 3:4 / / rw - ext4 x"} {
		if _, err := parse(strings.NewReader(bad + "\n")); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// FuzzParse reads the kernel's list of mounts, where others choose folders and
// sources, and what a volume begins with.
func FuzzParse(f *testing.F) {
	f.Add(`36 22 98:300 /sub\040dir /mnt/a\011b rw,noatime,nodev master:1 - ext4 /dev/ublkb0 rw,errors=continue`)
	f.Fuzz(func(t *testing.T, text string) {
		var unknown *UnknownError
		fstype, err := detect("/dev/x", []byte(text))
		if !slices.Contains([]string{"", "ext4", "xfs", "btrfs", "f2fs"}, fstype) || (fstype == "") != errors.As(err, &unknown) {
			t.Errorf("found %q, %v", fstype, err)
		}
		list, err := parse(strings.NewReader(text))
		if n := strings.Count(text, "\n") + 1; len(list) > n || err != nil && list != nil {
			t.Errorf("%d mounts in %d lines, %v", len(list), n, err)
		}
		for _, e := range list {
			for _, o := range e.AllOptions() {
				// The last field is the rest of the line, whatever that is.
				if strings.Contains(o, ",") || strings.Contains(o, " ") && !slices.Contains(e.FSOptions, o) {
					t.Errorf("%q is one option of %+v", o, e)
				}
			}
		}
	})
}

func TestOwnMounts(t *testing.T) {
	list, err := List()
	if err != nil || len(list) == 0 {
		t.Fatalf("%d mounts, %v", len(list), err)
	}
	e, err := At("/proc/../proc")
	if err != nil || e == nil || e.FSType != "proc" {
		t.Fatalf("what is on /proc: %+v %v", e, err)
	}
	if same, err := OfDevice(e.Device()); err != nil || !slices.ContainsFunc(same, func(o Entry) bool { return o.Dir == "/proc" }) {
		t.Errorf("mounts of its device: %+v %v", same, err)
	}
	if e, err := At(t.TempDir()); err != nil || e != nil {
		t.Errorf("what is on a plain folder: %+v %v", e, err)
	}
	if _, err := At("/no/such"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestDetect(t *testing.T) {
	at := func(offset int, magic string) []byte {
		b := make([]byte, offset, probeBytes)
		return append(b, magic...)
	}
	for _, c := range []struct {
		name string
		head []byte
		want string
		err  string
	}{
		{"ext4", at(0x438, "\x53\xef"), "ext4", ""},
		{"xfs", at(0, "XFSB...."), "xfs", ""},
		{"btrfs", at(0x10040, "_BHRfS_M"), "btrfs", ""},
		{"f2fs", at(0x400, "\x10\x20\xf5\xf2"), "f2fs", ""},
		{"nothing", make([]byte, probeBytes), "", "no filesystem"},
		{"too short", []byte("XFS"), "", "no filesystem"},
		{"luks", at(0, "LUKS\xba\xbe"), "", "LUKS"},
		{"swap", at(4086, "SWAPSPACE2"), "", "swap space"},
		{"lvm over ext4", append(at(512, "LABELONE"), at(0x438-520, "\x53\xef")...), "", "LVM"},
	} {
		path := filepath.Join(t.TempDir(), c.name)
		if err := os.WriteFile(path, c.head, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Detect(path)
		if got != c.want || (err == nil) != (c.err == "") {
			t.Errorf("%s: %q %v", c.name, got, err)
		}
		var unknown *UnknownError
		if c.err != "" && (!errors.As(err, &unknown) || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestUsersNamesUs(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "held"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	users, err := Users(context.Background(), st.Dev)
	if err != nil || !slices.ContainsFunc(users, func(u User) bool { return u.PID == os.Getpid() }) {
		t.Errorf("%v %v", users, err)
	}
	if users, err := Users(context.Background(), unix.Mkdev(4000, 77)); err != nil || len(users) > 0 {
		t.Errorf("users of a device that is not there: %v %v", users, err)
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, make([]byte, probeBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"no filesystem", Mount(file, dir, "", nil), "no filesystem"},
		{"no folder", Mount(file, dir+"/none", "ext4", nil), "no such file"},
		{"a file as folder", Mount(file, file, "ext4", nil), "no directory"},
		{"mounted already", Mount(file, "/proc", "ext4", nil), "already"},
		{"bad option", Mount(file, dir, "ext4", []string{"remount"}), "remount"},
		{"nothing to unmount", Unmount(t.Context(), dir), "unmount"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, c.err)
		}
	}
}
