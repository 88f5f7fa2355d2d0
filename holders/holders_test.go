package holders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// machine is a /proc and a /sys made of ordinary files. Device nodes are kept
// in a map, because making real ones takes privileges.
type machine struct {
	root  string
	nodes map[string]devno // path of a node, or where a link in /proc/PID/fd leads
	loops map[string]devno
	find  Finder
}

// newMachine makes a machine with the disk nvme0n1 (259:0), its partition
// nvme0n1p1 (259:1), and PID 1 in the machine's own mount namespace.
func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{root: t.TempDir(), nodes: map[string]devno{}, loops: map[string]devno{}}
	m.find = Finder{Proc: m.path("proc"), Sys: m.path("sys"), stat: m.stat, loopBacking: func(p string) (devno, error) {
		if no, ok := m.loops[p]; ok {
			return no, nil
		}
		return devno{}, fs.ErrPermission
	}}
	m.device(t, "nvme0n1", "devices/pci0/nvme0n1", devno{259, 0})
	m.device(t, "nvme0n1p1", "devices/pci0/nvme0n1/nvme0n1p1", devno{259, 1})
	m.file(t, "sys/devices/pci0/nvme0n1/nvme0n1p1/partition", "1\n")
	m.file(t, "proc/swaps", "Filename Type Size Used Priority\n")
	m.link(t, "proc/self", "1")
	m.process(t, 1, "init", "mnt:[1]", "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
	return m
}

func (m *machine) path(p string) string { return filepath.Join(m.root, p) }

// stat follows a link of the fixture once, as the kernel does for /proc/PID/fd.
func (m *machine) stat(path string) (devno, bool, error) {
	if to, err := os.Readlink(path); err == nil {
		path = to
	}
	if no, ok := m.nodes[path]; ok {
		return no, true, nil
	}
	// /proc/PID/root leads back to the machine's root.
	if rest, ok := strings.CutPrefix(path, m.path("proc")); ok {
		if _, inside, ok := strings.Cut(rest, "/root/"); ok {
			return m.stat("/" + inside)
		}
	}
	return devno{}, false, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
}

func (m *machine) file(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.path(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.path(path), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) link(t *testing.T, path, target string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.path(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, m.path(path)); err != nil {
		t.Fatal(err)
	}
}

// device adds a block device whose sysfs directory is dir.
func (m *machine) device(t *testing.T, kname, dir string, no devno) {
	t.Helper()
	m.nodes["/dev/"+kname] = no
	m.file(t, filepath.Join("sys", dir, "dev"), no.String()+"\n")
	if err := os.MkdirAll(m.path(filepath.Join("sys", dir, "holders")), 0o755); err != nil {
		t.Fatal(err)
	}
	m.link(t, "sys/dev/block/"+no.String(), m.path(filepath.Join("sys", dir)))
	m.link(t, "sys/class/block/"+kname, m.path(filepath.Join("sys", dir)))
	m.link(t, "sys/block/"+kname, m.path(filepath.Join("sys", dir)))
}

// stack puts one device on top of another.
func (m *machine) stack(t *testing.T, topDir, lowDir string) {
	t.Helper()
	m.link(t, filepath.Join("sys", lowDir, "holders", filepath.Base(topDir)), m.path(filepath.Join("sys", topDir)))
}

func (m *machine) process(t *testing.T, pid int, comm, ns, mountinfo string) {
	t.Helper()
	dir := fmt.Sprintf("proc/%d/", pid)
	m.file(t, dir+"comm", comm+"\n")
	m.file(t, dir+"mountinfo", mountinfo)
	m.file(t, dir+"maps", "")
	m.link(t, dir+"ns/mnt", ns)
	m.link(t, dir+"root", "/")
	for _, d := range []string{"fd", "fdinfo"} {
		if err := os.MkdirAll(m.path(dir+d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *machine) open(t *testing.T, pid, fd int, target, info string) {
	t.Helper()
	m.link(t, fmt.Sprintf("proc/%d/fd/%d", pid, fd), target)
	m.file(t, fmt.Sprintf("proc/%d/fdinfo/%d", pid, fd), info)
}

const (
	readWrite = "pos:\t0\nflags:\t0100002\n"
	readOnly  = "pos:\t0\nflags:\t0100000\n"
	pathOnly  = "pos:\t0\nflags:\t010000000\n"
)

func TestFind(t *testing.T) {
	const disk, part = "devices/pci0/nvme0n1", "devices/pci0/nvme0n1/nvme0n1p1"
	tests := []struct {
		name  string
		setUp func(t *testing.T, m *machine)
		want  []Holder
	}{
		{name: "nobody", setUp: func(*testing.T, *machine) {}},
		{name: "mounted here", setUp: func(t *testing.T, m *machine) {
			m.file(t, "proc/1/mountinfo", "21 20 259:0 / /my\\040data rw - ext4 /dev/nvme0n1 rw\n")
		}, want: []Holder{{KindMount, "/dev/nvme0n1", 0, "", "mounted on /my data (ext4)"}}},
		{name: "partition mounted", setUp: func(t *testing.T, m *machine) {
			m.file(t, "proc/1/mountinfo", "21 20 259:1 / /data rw - xfs /dev/nvme0n1p1 rw\n")
		}, want: []Holder{{KindMount, "/dev/nvme0n1p1", 0, "", "mounted on /data (xfs)"}}},
		{name: "mounted in another namespace, seen by two processes", setUp: func(t *testing.T, m *machine) {
			mounts := "91 90 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n"
			m.process(t, 70, "container", "mnt:[2]", mounts)
			m.process(t, 71, "shell", "mnt:[2]", mounts)
		}, want: []Holder{{KindMount, "/dev/nvme0n1", 70, "container",
			"mounted on /data (ext4) in the mount namespace of PID 70 (container)"}}},
		{name: "same namespace, other root", setUp: func(t *testing.T, m *machine) {
			m.process(t, 70, "jail", "mnt:[1]", "33 20 259:0 / /in/jail rw - ext4 /dev/nvme0n1 rw\n")
			if err := os.Remove(m.path("proc/70/root")); err != nil {
				t.Fatal(err)
			}
			m.link(t, "proc/70/root", "/srv/jail")
		}, want: []Holder{{KindMount, "/dev/nvme0n1", 0, "", "mounted on /in/jail (ext4)"}}},
		{name: "btrfs has its own device number", setUp: func(t *testing.T, m *machine) {
			m.file(t, "proc/1/mountinfo", "21 20 0:42 /vol /data rw - btrfs /dev/nvme0n1 rw\n")
		}, want: []Holder{{KindMount, "/dev/nvme0n1", 0, "", "mounted on /data (btrfs)"}}},
		{name: "second member of btrfs", setUp: func(t *testing.T, m *machine) {
			m.link(t, "sys/fs/btrfs/1234-abcd/devices/nvme0n1", m.path("sys/"+disk))
		}, want: []Holder{{KindMount, "/dev/nvme0n1", 0, "", "member of the active btrfs filesystem 1234-abcd"}}},
		{name: "unmounted lazily", setUp: func(t *testing.T, m *machine) {
			m.file(t, "sys/fs/ext4/nvme0n1/lifetime_write_kbytes", "1")
		}, want: []Holder{{KindMount, "/dev/nvme0n1", 0, "",
			"ext4 filesystem is active on it without a visible mount (unmounted lazily?)"}}},
		{name: "swap space", setUp: func(t *testing.T, m *machine) {
			m.file(t, "proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n")
		}, want: []Holder{{KindSwap, "/dev/nvme0n1p1", 0, "", "in use as swap space"}}},
		{name: "logical volume on a partition, mounted", setUp: func(t *testing.T, m *machine) {
			m.device(t, "dm-3", "devices/virtual/block/dm-3", devno{253, 3})
			m.file(t, "sys/devices/virtual/block/dm-3/dm/name", "vg-home\n")
			m.stack(t, "devices/virtual/block/dm-3", part)
			m.file(t, "proc/1/mountinfo", "21 20 253:3 / /home rw - ext4 /dev/mapper/vg-home rw\n")
		}, want: []Holder{
			{KindMount, "/dev/dm-3", 0, "", "mounted on /home (ext4)"},
			{KindDevice, "/dev/nvme0n1p1", 0, "", "device-mapper device /dev/dm-3 (vg-home) stands on it"},
		}},
		{name: "md array and another device", setUp: func(t *testing.T, m *machine) {
			m.device(t, "md0", "devices/virtual/block/md0", devno{9, 0})
			m.file(t, "sys/devices/virtual/block/md0/md/level", "raid1\n")
			m.stack(t, "devices/virtual/block/md0", disk)
			m.device(t, "bcache0", "devices/virtual/block/bcache0", devno{251, 0})
			m.stack(t, "devices/virtual/block/bcache0", disk)
		}, want: []Holder{
			{KindDevice, "/dev/nvme0n1", 0, "", "block device /dev/bcache0 stands on it"},
			{KindDevice, "/dev/nvme0n1", 0, "", "md array /dev/md0 (raid1) stands on it"},
		}},
		{name: "loop device by number, with a user", setUp: func(t *testing.T, m *machine) {
			m.device(t, "loop0", "devices/virtual/block/loop0", devno{7, 0})
			m.file(t, "sys/devices/virtual/block/loop0/loop/backing_file", "/elsewhere/node\n")
			m.loops["/dev/loop0"] = devno{259, 0}
			m.process(t, 80, "dd", "mnt:[1]", "")
			m.open(t, 80, 1, "/dev/loop0", readWrite)
		}, want: []Holder{
			{KindLoop, "/dev/nvme0n1", 0, "", "loop device /dev/loop0 is backed by it"},
			{KindProcess, "/dev/loop0", 80, "dd", "open for writing by PID 80 (dd) as /dev/loop0"},
		}},
		{name: "loop device by path", setUp: func(t *testing.T, m *machine) {
			m.device(t, "loop0", "devices/virtual/block/loop0", devno{7, 0})
			m.file(t, "sys/devices/virtual/block/loop0/loop/backing_file", "/dev/nvme0n1 (deleted)\n")
		}, want: []Holder{{KindLoop, "/dev/nvme0n1", 0, "", "loop device /dev/loop0 is backed by it"}}},
		{name: "loop device on a file", setUp: func(t *testing.T, m *machine) {
			m.device(t, "loop0", "devices/virtual/block/loop0", devno{7, 0})
			m.file(t, "sys/devices/virtual/block/loop0/loop/backing_file", "/var/disk.img\n")
		}},
		{name: "NVMe target", setUp: func(t *testing.T, m *machine) {
			ns := "sys/kernel/config/nvmet/subsystems/nqn.x/namespaces/"
			m.file(t, ns+"1/device_path", "/dev/nvme0n1\n")
			m.file(t, ns+"1/enable", "1\n")
			m.file(t, ns+"2/device_path", "/dev/nvme0n1\n")
			m.file(t, ns+"2/enable", "0\n")
			m.file(t, ns+"3/device_path", "(null)\n")
		}, want: []Holder{{KindDevice, "/dev/nvme0n1", 0, "", "exported by the NVMe target as namespace 1 of nqn.x"}}},
		{name: "SCSI target", setUp: func(t *testing.T, m *machine) {
			m.file(t, "sys/kernel/config/target/core/iblock_0/db/udev_path", "/dev/nvme0n1\n")
		}, want: []Holder{{KindDevice, "/dev/nvme0n1", 0, "", "exported by the SCSI target as iblock_0/db"}}},
		{name: "open files", setUp: func(t *testing.T, m *machine) {
			m.nodes["/srv/own-node"] = devno{259, 0}
			m.nodes["/dev/other"] = devno{8, 0}
			m.process(t, 80, "fio", "mnt:[1]", "")
			m.open(t, 80, 0, "/dev/null", readWrite)
			m.open(t, 80, 3, "/dev/nvme0n1", readWrite)
			m.open(t, 80, 4, "/dev/nvme0n1", readWrite)
			m.open(t, 80, 5, "/dev/nvme0n1", pathOnly)
			m.open(t, 80, 6, "/dev/other", readWrite)
			m.open(t, 80, 7, "socket:[77]", readWrite)
			m.process(t, 81, "cat", "mnt:[1]", "")
			m.open(t, 81, 3, "/srv/own-node", readOnly)
		}, want: []Holder{
			{KindProcess, "/dev/nvme0n1", 80, "fio", "open for writing by PID 80 (fio) as /dev/nvme0n1"},
			{KindProcess, "/dev/nvme0n1", 81, "cat", "open for reading by PID 81 (cat) as /srv/own-node"},
		}},
		{name: "mapped and registered after closing", setUp: func(t *testing.T, m *machine) {
			m.process(t, 80, "db", "mnt:[1]", "")
			m.file(t, "proc/80/maps", "7f00-7f01 rw-s 0 00:05 9 /dev/nvme0n1\n")
			m.open(t, 80, 9, "anon_inode:[io_uring]", "pos:\t0\nUserFiles:\t1\n    0: /dev/nvme0n1p1\nUserBufs:\t0\n")
		}, want: []Holder{
			{KindProcess, "/dev/nvme0n1", 80, "db", "mapped into memory by PID 80 (db) as /dev/nvme0n1"},
			{KindProcess, "/dev/nvme0n1p1", 80, "db", "registered in an io_uring by PID 80 (db) as /dev/nvme0n1p1"},
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			tc.setUp(t, m)
			got, err := m.find.Find(t.Context(), "/dev/nvme0n1")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("holders (-want +got):\n%s", d)
			}
			byNumber, err := m.find.Find(t.Context(), "259:0")
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, byNumber) {
				t.Errorf("by number: %v, by path: %v", byNumber, got)
			}
		})
	}
}

func TestFindIgnoresOnlyOpenFilesOfIgnoredProcesses(t *testing.T) {
	m := newMachine(t)
	m.process(t, 90, "swapbackd", "mnt:[5]", "21 20 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n")
	m.open(t, 90, 3, "/dev/nvme0n1", readWrite)
	m.find.Ignore = []int{90}
	got, err := m.find.Find(t.Context(), "/dev/nvme0n1")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Kind != KindMount {
		t.Errorf("got %v, want the mount alone", got)
	}
}

func TestFindSeveralDevices(t *testing.T) {
	m := newMachine(t)
	m.device(t, "sdb", "devices/pci1/sdb", devno{8, 16})
	m.file(t, "proc/1/mountinfo", "21 20 259:0 / /a rw - ext4 /dev/nvme0n1 rw\n22 20 8:16 / /b rw - ext4 /dev/sdb rw\n")
	got, err := m.find.Find(t.Context(), "/dev/nvme0n1", "/dev/sdb")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Device != "/dev/nvme0n1" || got[1].Device != "/dev/sdb" {
		t.Errorf("got %v", got)
	}
}

func TestFindRefusesWhatIsNoDevice(t *testing.T) {
	m := newMachine(t)
	m.find.stat = func(path string) (devno, bool, error) {
		if path == "/etc/passwd" {
			return devno{}, false, nil
		}
		return m.stat(path)
	}
	for device, want := range map[string]string{
		"/etc/passwd":  "not a block device",
		"/dev/missing": "not exist",
		"77:7":         "sysfs does not know block device 77:7",
	} {
		_, err := m.find.Find(t.Context(), device)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), device) {
			t.Errorf("%s: error %v, want %q", device, err, want)
		}
	}
}

// What cannot be looked at must not pass for "nobody".
func TestFindSaysWhenItIsIncomplete(t *testing.T) {
	m := newMachine(t)
	m.file(t, "proc/1/mountinfo", "gibberish\n21 20 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n")
	m.process(t, 70, "hidden", "mnt:[1]", "")
	m.open(t, 70, 3, "/secret", readWrite)
	m.find.stat = func(path string) (devno, bool, error) {
		if strings.HasSuffix(path, "70/fd/3") {
			return devno{}, false, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrPermission}
		}
		return m.stat(path)
	}
	got, err := m.find.Find(t.Context(), "/dev/nvme0n1")
	var incomplete *IncompleteError
	if !errors.As(err, &incomplete) || len(incomplete.Reasons) != 2 {
		t.Fatalf("error %v, want two places that could not be looked at", err)
	}
	if len(got) != 1 {
		t.Errorf("what was found is lost: %v", got)
	}
}

func TestProbe(t *testing.T) {
	inUse := func(string) error { return fmt.Errorf("claim: %w", ErrInUse) }
	t.Run("unexplained claim", func(t *testing.T) {
		m := newMachine(t)
		m.find.Probe, m.find.claim = true, inUse
		got, err := m.find.Find(t.Context(), "/dev/nvme0n1")
		if err != nil || len(got) != 1 || got[0].Kind != KindExclusive {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("explained by a mounted partition", func(t *testing.T) {
		m := newMachine(t)
		m.find.Probe, m.find.claim = true, inUse
		m.file(t, "proc/1/mountinfo", "21 20 259:1 / /data rw - xfs /dev/nvme0n1p1 rw\n")
		got, err := m.find.Find(t.Context(), "/dev/nvme0n1")
		if err != nil || len(got) != 1 || got[0].Kind != KindMount {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("beside a plain open", func(t *testing.T) {
		m := newMachine(t)
		m.find.Probe, m.find.claim = true, inUse
		m.open(t, 1, 3, "/dev/nvme0n1", readOnly)
		got, err := m.find.Find(t.Context(), "/dev/nvme0n1")
		if err != nil || len(got) != 2 || got[1].Kind != KindExclusive {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("not possible", func(t *testing.T) {
		m := newMachine(t)
		m.find.Probe, m.find.claim = true, func(string) error { return fs.ErrPermission }
		_, err := m.find.Find(t.Context(), "/dev/nvme0n1")
		var incomplete *IncompleteError
		if !errors.As(err, &incomplete) {
			t.Errorf("got %v, want incomplete", err)
		}
	})
}

func TestFindStopsWithItsContext(t *testing.T) {
	m := newMachine(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.find.Find(ctx, "/dev/nvme0n1"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestExclusiveRefusesOtherFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{file: "not a block device", "/dev/null": "not a block device", file + "x": "no such file"} {
		f, err := Exclusive(path)
		if err == nil {
			f.Close()
			t.Errorf("%s was claimed", path)
			continue
		}
		if !strings.Contains(err.Error(), want) || errors.Is(err, ErrInUse) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestNamesStayOnTheirLine: a process and a mount point are named by their users.
// In a refusal neither may look like another line of it.
func TestNamesStayOnTheirLine(t *testing.T) {
	m := newMachine(t)
	m.nodes["/dev/nvme0n1"] = devno{259, 0}
	m.process(t, 7, "a\nb\x1b[2J", "mnt:[1]", "")
	m.link(t, "proc/7/fd/3", "/dev/nvme0n1")
	m.file(t, "proc/7/fdinfo/3", "flags:\t0100002\n")
	m.process(t, 8, "x", "mnt:[2]", `30 1 259:0 / /mnt/c\012d\011e rw - ext4 /dev/nvme0n1 rw`+"\n")
	got, err := m.find.Find(t.Context(), "259:0")
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v %v", got, err)
	}
	for _, h := range got {
		if strings.ContainsAny(h.Command+h.Detail+h.String(), "\n\t\x1b") || !strings.ContainsAny(h.Detail, "·") {
			t.Errorf("%+q", h)
		}
	}
}
