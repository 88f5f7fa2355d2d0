package holders

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// devno is the number of a block device.
type devno struct{ major, minor uint32 }

func (n devno) String() string { return fmt.Sprintf("%d:%d", n.major, n.minor) }

func fromRdev(rdev uint64) devno { return devno{unix.Major(rdev), unix.Minor(rdev)} }

// parseDevno parses "major:minor".
func parseDevno(s string) (devno, error) {
	a, b, ok := strings.Cut(strings.TrimSpace(s), ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return devno{}, fmt.Errorf("%q is not a device number (major:minor)", s)
	}
	return devno{uint32(major), uint32(minor)}, nil
}

// mount is what counts of a line of mountinfo.
type mount struct {
	id     int
	dev    devno
	point  string
	fsType string
	source string
}

// parseMountinfo parses /proc/PID/mountinfo (proc_pid_mountinfo(5)). Lines that
// cannot be understood end up in the error; the others are returned all the
// same, because a mount that was read is a holder whatever stands beside it.
func parseMountinfo(text string) ([]mount, error) {
	var list []mount
	var errs []error
	for line := range strings.Lines(text) {
		m, err := parseMount(line)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, m)
	}
	return list, errors.Join(errs...)
}

// parseMount parses one line:
//
//	36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/vda rw
//	id parent dev root point options optional...  - type source superoptions
func parseMount(line string) (mount, error) {
	fields := strings.Fields(line)
	bad := fmt.Errorf("mountinfo line %q is not understood", strings.TrimSpace(line))
	if len(fields) < 6 {
		return mount{}, bad
	}
	id, err := strconv.Atoi(fields[0])
	if err != nil {
		return mount{}, bad
	}
	dev, err := parseDevno(fields[2])
	if err != nil {
		return mount{}, bad
	}
	m := mount{id: id, dev: dev, point: unescape(fields[4])}
	sep := slices.Index(fields[6:], "-")
	if sep < 0 || len(fields) < 6+sep+2 {
		return mount{}, bad
	}
	m.fsType = unescape(fields[6+sep+1])
	// The source may be an empty string, and then the field is not there.
	if len(fields) > 6+sep+3 {
		m.source = unescape(fields[6+sep+2])
	}
	return m, nil
}

// unescape undoes the octal escapes (\040 for a space) that the kernel's
// seq_file uses in paths.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parseSwaps returns the paths in /proc/swaps: a heading, then lines that begin
// with an escaped path.
func parseSwaps(text string) []string {
	var paths []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) > 0 && strings.HasPrefix(fields[0], "/") {
			paths = append(paths, strings.TrimSuffix(unescape(fields[0]), " (deleted)"))
		}
	}
	return paths
}

// parseOpenMode reads the flags of /proc/PID/fdinfo/FD. It returns "for
// reading" or "for writing", and nothing for a descriptor of a path only.
// Flags that cannot be read count as writing, the worse case.
func parseOpenMode(text string) string {
	for line := range strings.Lines(text) {
		value, ok := strings.CutPrefix(line, "flags:")
		if !ok {
			continue
		}
		flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 64)
		switch {
		case err != nil:
			return "for writing"
		case flags&unix.O_PATH != 0:
			return ""
		case flags&unix.O_ACCMODE == unix.O_RDONLY:
			return "for reading"
		}
		return "for writing"
	}
	return "for writing"
}

// parseRingFiles returns the paths in the table of registered files in the
// fdinfo of a ring (io_uring/fdinfo.c):
//
//	UserFiles:	2
//	    0: /dev/nvme0n1
//	    1: <none>
//	UserBufs:	0
func parseRingFiles(text string) []string {
	var paths []string
	inTable := false
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, " ") {
			inTable = strings.HasPrefix(line, "UserFiles:")
			continue
		}
		_, path, ok := strings.Cut(strings.TrimRight(line, "\n"), ": ")
		if inTable && ok && strings.HasPrefix(path, "/") {
			paths = append(paths, unescape(path))
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// parseMapped returns the mapped paths below /dev in /proc/PID/maps. That file
// gives the number of the filesystem that the node lies on, not the node's own,
// so that the caller has to look at the path.
func parseMapped(text string) []string {
	if !strings.Contains(text, " /dev/") {
		return nil
	}
	var paths []string
	for line := range strings.Lines(text) {
		_, path, ok := strings.Cut(strings.TrimRight(line, "\n"), " /dev/")
		if !ok {
			continue
		}
		path = strings.TrimSuffix(unescape("/dev/"+path), " (deleted)")
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}
