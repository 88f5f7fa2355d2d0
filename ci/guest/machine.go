package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/ci/internal/guestcfg"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return fmt.Errorf("make the mount point %s: %w", m.target, err)
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", m.source, m.fstype, m.target, err)
	}
	return nil
}

// loadModules inserts modules in the given order. One that is already there is fine.
func loadModules(modules []guestcfg.Module) error {
	for _, m := range modules {
		f, err := os.Open(m.Path)
		if err != nil {
			return fmt.Errorf("open module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), m.Args, 0)
		f.Close()
		// ENODEV is a driver's way to say that the machine lacks its hardware
		// (the processor's CRC instruction, for one).
		if err != nil && err != unix.EEXIST && err != unix.ENODEV {
			return fmt.Errorf("insert module %s: %w", filepath.Base(m.Path), err)
		}
	}
	return nil
}

// startProcessors starts all processors but the first, which the kernel was
// told to leave alone while it booted.
func startProcessors() error {
	files, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/online")
	if err != nil {
		return fmt.Errorf("look for processors: %w", err)
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte("1"), 0); err != nil {
			return fmt.Errorf("start a processor: %w", err)
		}
	}
	return nil
}

// mountRoot puts the host's root under "/": read-only through 9p, with an
// overlay in memory on top, so that commands may write anywhere and the host
// never notices. It is done by process 1 in the root that all kernel threads
// share, so that the kernel's own calls of modprobe work too.
func mountRoot(cfg *guestcfg.Config) error {
	const nine = "trans=virtio,version=9p2000.L,msize=524288"
	for _, m := range []mount{
		{guestcfg.TagRoot, "/host", "9p", unix.MS_RDONLY, nine + ",cache=loose"},
		{"memory", "/memory", "tmpfs", 0, "mode=0755"},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/memory/upper", "/memory/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("prepare the overlay: %w", err)
		}
	}
	root := mount{"swapback-root", "/root", "overlay", 0, "lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work"}
	if err := root.do(); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := os.MkdirAll("/root"+dir, 0o755); err != nil {
			return fmt.Errorf("make the mount point %s: %w", dir, err)
		}
		if err := unix.Mount(dir, "/root"+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s into the host's root: %w", dir, err)
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return fmt.Errorf("enter the host's root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the host's root to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	shown, err := openShown(cfg)
	if err != nil {
		return err
	}
	mounts := []mount{
		{"devpts", "/dev/pts", "devpts", 0, "mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777"},
		{"tmpfs", "/tmp", "tmpfs", 0, "mode=1777,size=75%"},
		{"tmpfs", "/run", "tmpfs", 0, "mode=0755"},
		{"tmpfs", "/mnt", "tmpfs", 0, "mode=0755,size=75%"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"debugfs", "/sys/kernel/debug", "debugfs", 0, ""},
		{"tracefs", "/sys/kernel/tracing", "tracefs", 0, ""},
		{"configfs", "/sys/kernel/config", "configfs", 0, ""},
	}
	if cfg.Out {
		mounts = append(mounts, mount{guestcfg.TagOut, "/out", "9p", 0, nine})
	}
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	for _, s := range shown {
		if err := s.put(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/run/lock", 0o1777); err != nil {
		return fmt.Errorf("prepare /run: %w", err)
	}
	links := map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"}
	for name, target := range links {
		if err := os.Symlink(target, name); err != nil && !os.IsExist(err) {
			return fmt.Errorf("prepare /dev: %w", err)
		}
	}
	// From here on the kernel's log shows everything, such as the stack of a task
	// that hangs; printing all of the boot would only slow it down.
	if err := os.WriteFile("/proc/sys/kernel/printk", []byte("7"), 0); err != nil {
		return fmt.Errorf("set the kernel's log level: %w", err)
	}
	if err := unix.Sethostname([]byte(cfg.Host)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return nil
}

// tree is a folder that is about to be hidden by a mount, held open.
type tree struct {
	fd   int
	path string
}

// openShown takes hold of the host's folders that must stay in sight: the
// checkout, which may lie under /tmp, and the kernel's modules.
func openShown(cfg *guestcfg.Config) ([]tree, error) {
	paths := map[string]string{"/lib/modules/" + cfg.Release: cfg.ModuleTree}
	for _, p := range cfg.Shown {
		for _, own := range []string{"/tmp/", "/run/", "/mnt/", "/dev/shm/"} {
			if strings.HasPrefix(p, own) {
				paths[p] = p
			}
		}
	}
	var out []tree
	for to, from := range paths {
		fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("take hold of the host's %s: %w", from, err)
		}
		out = append(out, tree{fd, to})
	}
	return out, nil
}

func (t tree) put() error {
	defer unix.Close(t.fd)
	if err := os.MkdirAll(t.path, 0o755); err != nil {
		return fmt.Errorf("make the mount point %s: %w", t.path, err)
	}
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("show the host's folder as %s: %w", t.path, err)
	}
	return nil
}

// bindDisks gives the NVMe driver its disks one after another. Left alone it
// takes them all at once, and nvme0 is now one disk, now another.
func bindDisks() error {
	devices, err := filepath.Glob("/sys/bus/pci/devices/*/class")
	if err != nil {
		return fmt.Errorf("look for disks: %w", err)
	}
	for _, class := range devices { // sorted by address, which is QEMU's order
		text, err := os.ReadFile(class)
		if err != nil {
			return fmt.Errorf("look for disks: %w", err)
		}
		if !strings.HasPrefix(string(text), "0x0108") { // mass storage, NVM
			continue
		}
		address := filepath.Base(filepath.Dir(class))
		if err := os.WriteFile("/sys/bus/pci/drivers/nvme/bind", []byte(address), 0); err != nil {
			return fmt.Errorf("give the disk at %s to its driver: %w", address, err)
		}
	}
	return setAutoprobe("1")
}

// setAutoprobe says whether a driver takes the devices it knows by itself.
func setAutoprobe(value string) error {
	if err := os.WriteFile("/sys/bus/pci/drivers_autoprobe", []byte(value), 0); err != nil {
		return fmt.Errorf("set how drivers find their devices: %w", err)
	}
	return nil
}

// waitForDisks waits until the kernel has found n NVMe namespaces and made
// their nodes: it looks for them on its own time, after the driver is loaded.
func waitForDisks(n int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		seen := 0
		for i := range n {
			if _, err := os.Stat(fmt.Sprintf("/dev/nvme%dn1", i)); err == nil {
				seen++
			}
		}
		if seen == n {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("only %d of %d NVMe disks appeared within %s", seen, n, limit)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// portDevice finds a virtio-serial port's node by the name that the host gave it.
func portDevice(name string) (string, bool) {
	files, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, f := range files {
		got, err := os.ReadFile(f)
		if err == nil && strings.TrimSpace(string(got)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(f)), true
		}
	}
	return "", false
}
