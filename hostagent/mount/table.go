package mount

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is one mount in our namespace, from proc_pid_mountinfo(5).
type Entry struct {
	Major, Minor uint32
	Root         string // what of the filesystem is mounted; "/" for all
	Dir          string
	FSType       string
	Source       string
	Options      []string // of this mount
	FSOptions    []string // of the filesystem
}

// Device is the number of the device as stat(2) gives it.
func (e Entry) Device() uint64 { return unix.Mkdev(e.Major, e.Minor) }

// AllOptions are the options that would mount it the same way again.
func (e Entry) AllOptions() []string {
	all := append([]string{}, e.Options...)
	for _, o := range e.FSOptions {
		if _, isFlag := flags[o]; !isFlag {
			all = append(all, o)
		}
	}
	return all
}

// List returns all mounts, in the order in which they were made.
func List() ([]Entry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	defer f.Close()
	return parse(f)
}

// OfDevice returns the mounts of a block device.
func OfDevice(number uint64) ([]Entry, error) {
	all, err := List()
	if err != nil {
		return nil, err
	}
	var found []Entry
	for _, e := range all {
		if e.Device() == number {
			found = append(found, e)
		}
	}
	return found, nil
}

// At returns what is mounted on a directory, the topmost of several, or nil.
func At(dir string) (*Entry, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	all, err := List()
	if err != nil {
		return nil, err
	}
	var found *Entry
	for i, e := range all {
		if e.Dir == real {
			found = &all[i]
		}
	}
	return found, nil
}

func parse(r io.Reader) ([]Entry, error) {
	var list []Entry
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		e, err := parseLine(s.Text())
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, s.Err()
}

// parseLine reads a line such as
//
//	36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda1 rw,errors=continue
func parseLine(line string) (Entry, error) {
	bad := fmt.Errorf("mount line %q is not understood", line)
	left, right, ok := strings.Cut(line, " - ")
	if !ok {
		return Entry{}, bad
	}
	l, r := strings.Fields(left), strings.SplitN(right, " ", 3)
	if len(l) < 6 || len(r) < 3 {
		return Entry{}, bad
	}
	major, minor, ok := strings.Cut(l[2], ":")
	ma, err1 := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return Entry{}, bad
	}
	return Entry{
		Major: uint32(ma), Minor: uint32(mi), Root: unescape(l[3]), Dir: unescape(l[4]),
		FSType: unescape(r[0]), Source: unescape(r[1]),
		Options: strings.Split(l[5], ","), FSOptions: strings.Split(strings.TrimSpace(r[2]), ","),
	}, nil
}

// unescape undoes the kernel's \040 for blanks and the like.
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
