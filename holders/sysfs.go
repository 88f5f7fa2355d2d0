package holders

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// walkDevices follows partitions, stacked devices and loop devices upwards
// until nothing new turns up.
func (s *search) walkDevices() error {
	for i := 0; ; {
		for ; i < len(s.devices); i++ {
			if err := s.ctx.Err(); err != nil {
				return err
			}
			s.partitionsOf(s.devices[i])
			s.stackedOn(s.devices[i])
		}
		// Loop devices don't show up in holders/ of what they are backed by.
		s.findLoops()
		if i == len(s.devices) {
			return nil
		}
	}
}

func (s *search) partitionsOf(d *device) {
	entries, err := os.ReadDir(d.sysDir)
	s.missed("partitions of "+d.path, err)
	for _, e := range entries {
		dir := filepath.Join(d.sysDir, e.Name())
		if !e.IsDir() || !exists(filepath.Join(dir, "partition")) {
			continue
		}
		if p := s.deviceAt(dir); p != nil {
			s.add(p)
		}
	}
}

func (s *search) stackedOn(d *device) {
	dir := filepath.Join(d.sysDir, "holders")
	entries, err := os.ReadDir(dir)
	s.missed("devices stacked on "+d.path, err)
	for _, e := range entries {
		s.report(d, Holder{Kind: KindDevice, Detail: s.describe(e.Name()) + " stands on it"})
		top, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
		if err != nil {
			s.missed(e.Name(), err)
			continue
		}
		if h := s.deviceAt(top); h != nil {
			s.add(h)
		}
	}
}

// describe names a stacked device in the words its owner knows it by.
func (s *search) describe(kname string) string {
	dir := filepath.Join(s.sys, "class/block", kname)
	if name := readLine(filepath.Join(dir, "dm/name")); name != "" {
		return fmt.Sprintf("device-mapper device %s (%s)", devPath(kname), name)
	}
	if level := readLine(filepath.Join(dir, "md/level")); level != "" {
		return fmt.Sprintf("md array %s (%s)", devPath(kname), level)
	}
	return "block device " + devPath(kname)
}

// deviceAt reads the device that a sysfs directory describes, nil when it has
// just gone.
func (s *search) deviceAt(dir string) *device {
	no, err := parseDevno(readLine(filepath.Join(dir, "dev")))
	if err != nil {
		return nil
	}
	kname := filepath.Base(dir)
	return &device{no: no, path: devPath(kname), kname: kname, sysDir: dir}
}

func (s *search) findLoops() {
	dirs, err := filepath.Glob(filepath.Join(s.sys, "block/loop*"))
	s.missed("loop devices", err)
	for _, dir := range dirs {
		file := readLine(filepath.Join(dir, "loop/backing_file"))
		if file == "" {
			continue // not set up
		}
		loop := s.deviceAt(dir)
		if loop == nil || s.byNo[loop.no] != nil {
			continue
		}
		d := s.byNo[s.backingOf(loop, file)]
		if d == nil {
			continue
		}
		s.report(d, Holder{Kind: KindLoop, Detail: "loop device " + loop.path + " is backed by it"})
		s.add(loop)
	}
}

// backingOf returns the device behind a loop device, the zero number when it
// is an ordinary file. The ioctl knows the number itself; the path in sysfs is
// only as good as the mount namespace that it was opened in.
func (s *search) backingOf(loop *device, file string) devno {
	get := s.f.loopBacking
	if get == nil {
		get = loopBacking
	}
	if no, err := get(loop.path); err == nil {
		return no
	}
	no, block, err := s.stat(strings.TrimSuffix(file, " (deleted)"))
	if err != nil || !block {
		return devno{}
	}
	return no
}

// loopBacking asks the loop driver (LOOP_GET_STATUS64, linux/loop.h).
func loopBacking(path string) (devno, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return devno{}, err
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return devno{}, err
	}
	return fromRdev(info.Rdevice), nil
}

// findTargets looks at the kernel's storage targets: they open a device
// themselves and show up neither as processes nor in holders/.
func (s *search) findTargets() {
	config := filepath.Join(s.sys, "kernel/config")
	s.configured(filepath.Join(config, "nvmet/subsystems/*/namespaces/*/device_path"), func(file string) string {
		ns := filepath.Dir(file)
		if readLine(filepath.Join(ns, "enable")) == "0" {
			return ""
		}
		subsystem := filepath.Base(filepath.Dir(filepath.Dir(ns)))
		return fmt.Sprintf("exported by the NVMe target as namespace %s of %s", filepath.Base(ns), subsystem)
	})
	s.configured(filepath.Join(config, "target/core/*/*/udev_path"), func(file string) string {
		dir := filepath.Dir(file)
		if readLine(filepath.Join(dir, "enable")) == "0" {
			return ""
		}
		return fmt.Sprintf("exported by the SCSI target as %s/%s", filepath.Base(filepath.Dir(dir)), filepath.Base(dir))
	})
}

// configured reports a holder for every configfs file that names one of the
// devices; detail returns the empty string for an entry that is switched off.
func (s *search) configured(pattern string, detail func(file string) string) {
	files, err := filepath.Glob(pattern)
	s.missed(pattern, err)
	for _, file := range files {
		path := strings.Trim(readLine(file), `"`)
		if !strings.HasPrefix(path, "/") {
			continue
		}
		no, block, err := s.stat(path)
		if err != nil || !block {
			continue
		}
		d := s.byNo[no]
		if d == nil {
			continue
		}
		if text := detail(file); text != "" {
			s.report(d, Holder{Kind: KindDevice, Detail: text})
		}
	}
}

// findFilesystems names filesystems that are alive although no mount of them
// was found: unmounted lazily and still in use, or mounted in a namespace that
// no process is in any more. It also finds all members of a btrfs filesystem,
// whose mounts name only one device and never its number.
func (s *search) findFilesystems() {
	for _, d := range s.devices {
		if s.mounted(d) {
			continue
		}
		for _, fs := range []string{"ext4", "xfs", "f2fs"} {
			if exists(filepath.Join(s.sys, "fs", fs, d.kname)) {
				s.report(d, Holder{Kind: KindMount, Detail: fs + " filesystem is active on it without a visible mount (unmounted lazily?)"})
			}
		}
		members, err := filepath.Glob(filepath.Join(s.sys, "fs/btrfs/*/devices", d.kname))
		s.missed("btrfs filesystems", err)
		for _, m := range members {
			s.report(d, Holder{Kind: KindMount, Detail: "member of the active btrfs filesystem " + filepath.Base(filepath.Dir(filepath.Dir(m)))})
		}
	}
}

func (s *search) mounted(d *device) bool {
	for _, h := range s.found {
		if h.Kind == KindMount && h.Device == d.path {
			return true
		}
	}
	return false
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// readLine returns a sysfs attribute without its newline, or nothing.
func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
