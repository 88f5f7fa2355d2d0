package holders

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// walkProcesses looks at every process once: the mounts of its namespace and
// what it has open.
func (s *search) walkProcesses() error {
	entries, err := os.ReadDir(s.proc)
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	ownNS, _ := os.Readlink(filepath.Join(s.proc, "self/ns/mnt"))
	views := map[string]bool{} // namespace and root directory that were read
	mounts := map[int]bool{}   // mount ids that were reported
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if err := s.ctx.Err(); err != nil {
			return err
		}
		p := process{s: s, pid: pid, dir: filepath.Join(s.proc, e.Name())}
		p.findMounts(ownNS, views, mounts)
		if !slices.Contains(s.f.Ignore, pid) {
			p.findOpen()
			p.findMapped()
		}
	}
	return nil
}

// process is one directory of procfs.
type process struct {
	s   *search
	pid int
	dir string
}

func (p process) command() string { return readLine(filepath.Join(p.dir, "comm")) }

func (p process) String() string { return fmt.Sprintf("PID %d (%s)", p.pid, p.command()) }

// inRoot returns a path of the process's own view as one of ours.
func (p process) inRoot(path string) string { return filepath.Join(p.dir, "root", path) }

// findMounts reads the mounts that a process sees, unless another process with
// the same view was read before. A process in a chroot sees only a part of its
// namespace, so namespace and root make a view together.
func (p process) findMounts(ownNS string, views map[string]bool, mounts map[int]bool) {
	ns, err := os.Readlink(filepath.Join(p.dir, "ns/mnt"))
	if err != nil {
		p.s.missed(fmt.Sprintf("mount namespace of PID %d", p.pid), err)
		return
	}
	root, err := os.Readlink(filepath.Join(p.dir, "root"))
	if err != nil {
		p.s.missed(fmt.Sprintf("root directory of PID %d", p.pid), err)
		return
	}
	view := ns + root
	if views[view] {
		return
	}
	b, err := os.ReadFile(filepath.Join(p.dir, "mountinfo"))
	if errors.Is(err, unix.EINVAL) {
		return // a process that is ending has no mounts any more
	}
	if err != nil {
		p.s.missed(fmt.Sprintf("mounts of PID %d", p.pid), err)
		return
	}
	views[view] = true
	list, err := parseMountinfo(string(b))
	p.s.missed(fmt.Sprintf("mounts of PID %d", p.pid), err)
	for _, m := range list {
		d := p.s.byNo[p.deviceOf(m)]
		if d == nil || mounts[m.id] {
			continue
		}
		mounts[m.id] = true
		h := Holder{Kind: KindMount, Detail: fmt.Sprintf("mounted on %s (%s)", m.point, m.fsType)}
		if ns != ownNS {
			h.PID, h.Command = p.pid, p.command()
			h.Detail += " in the mount namespace of " + p.String()
		}
		p.s.report(d, h)
	}
}

// deviceOf returns the number of the device that a mount shows. Filesystems
// that span devices (btrfs) have a number of their own; for them only the
// source tells.
func (p process) deviceOf(m mount) devno {
	if m.dev.major != 0 || !strings.HasPrefix(m.source, "/") {
		return m.dev
	}
	// Only such a filesystem has a device as its source. Asking for the source
	// of a network mount may block, so the answer has to be in /dev.
	if !strings.HasPrefix(m.source, "/dev/") {
		return m.dev
	}
	no, block, err := p.s.stat(p.inRoot(m.source))
	if err != nil || !block {
		return m.dev
	}
	return no
}

// findOpen looks at open descriptors and at the files registered in rings.
func (p process) findOpen() {
	entries, err := os.ReadDir(filepath.Join(p.dir, "fd"))
	if err != nil {
		p.s.missed(fmt.Sprintf("open files of PID %d", p.pid), err)
		return
	}
	for _, e := range entries {
		link := filepath.Join(p.dir, "fd", e.Name())
		target, err := os.Readlink(link)
		switch {
		case err != nil:
			p.s.missed(fmt.Sprintf("open files of PID %d", p.pid), err)
		case target == "anon_inode:[io_uring]":
			p.findRegistered(e.Name())
		case strings.HasPrefix(target, "/"):
			// Sockets, pipes and the like have no path.
			p.checkOpen(e.Name(), link, target)
		}
	}
}

func (p process) checkOpen(fd, link, target string) {
	no, block, err := p.s.stat(link)
	if err != nil || !block {
		p.s.missed(fmt.Sprintf("open file %s of PID %d", target, p.pid), err)
		return
	}
	d := p.s.byNo[no]
	if d == nil {
		return
	}
	info, err := os.ReadFile(filepath.Join(p.dir, "fdinfo", fd))
	if err != nil && vanished(err) {
		return // closed meanwhile
	}
	mode := parseOpenMode(string(info))
	if mode == "" {
		return // a path only (O_PATH): it can neither read nor write
	}
	p.report(d, fmt.Sprintf("open %s by %s as %s", mode, p, target))
}

// findRegistered looks at a ring's registered files: they stay open after
// their descriptor is closed.
func (p process) findRegistered(fd string) {
	for _, path := range parseRingFiles(readLine(filepath.Join(p.dir, "fdinfo", fd))) {
		p.checkPath(path, "registered in an io_uring by %s as %s")
	}
}

// findMapped looks at memory mappings: they outlive their descriptor too.
func (p process) findMapped() {
	b, err := os.ReadFile(filepath.Join(p.dir, "maps"))
	if err != nil {
		p.s.missed(fmt.Sprintf("mappings of PID %d", p.pid), err)
		return
	}
	for _, path := range parseMapped(string(b)) {
		p.checkPath(path, "mapped into memory by %s as %s")
	}
}

func (p process) checkPath(path, format string) {
	no, block, err := p.s.stat(p.inRoot(path))
	if err != nil || !block {
		return // gone, or a path of another namespace
	}
	if d := p.s.byNo[no]; d != nil {
		p.report(d, fmt.Sprintf(format, p, path))
	}
}

// report names a process once for each way in which it uses a device.
func (p process) report(d *device, detail string) {
	p.s.report(d, Holder{Kind: KindProcess, PID: p.pid, Command: p.command(), Detail: detail})
}

func (s *search) findSwaps() {
	b, err := os.ReadFile(filepath.Join(s.proc, "swaps"))
	if err != nil {
		s.missed("swap space", err)
		return
	}
	for _, path := range parseSwaps(string(b)) {
		no, block, err := s.stat(path)
		if err != nil || !block {
			continue
		}
		if d := s.byNo[no]; d != nil {
			s.report(d, Holder{Kind: KindSwap, Detail: "in use as swap space"})
		}
	}
}
