package mount

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// User is a process that keeps a filesystem busy.
type User struct {
	PID     int
	Command string
	// How it uses the filesystem: "working directory /srv/db", "open file …".
	How string
}

func (u User) String() string { return fmt.Sprintf("%s (process %d): %s", u.Command, u.PID, u.How) }

// Users names the processes that have files of the filesystem with this device
// number open, mapped, as root or as working directory: one line for each
// process. Processes that may not be looked at are left out.
func Users(ctx context.Context, number uint64) ([]User, error) {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var list []User
	for _, dir := range procs {
		if err := ctx.Err(); err != nil {
			return list, err
		}
		how, found := usage(dir, number)
		if !found {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		name, _ := os.ReadFile(filepath.Join(dir, "comm")) // gone is nameless
		list = append(list, User{PID: pid, Command: strings.TrimSpace(string(name)), How: how})
	}
	return list, nil
}

// usage tells how the process of a folder in /proc uses the filesystem.
func usage(dir string, number uint64) (string, bool) {
	for _, link := range []struct{ name, what string }{{"cwd", "working directory"}, {"root", "root directory"}, {"exe", "program"}} {
		if path := filepath.Join(dir, link.name); onDevice(path, number) {
			return describe(link.what, path), true
		}
	}
	for _, sub := range []struct{ name, what string }{{"fd", "open file"}, {"map_files", "mapped file"}} {
		entries, err := os.ReadDir(filepath.Join(dir, sub.name))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if path := filepath.Join(dir, sub.name, e.Name()); onDevice(path, number) {
				return describe(sub.what, path), true
			}
		}
	}
	return "", false
}

// onDevice tells whether what a link of /proc leads to lies on the filesystem.
// It takes what the kernel has cached: a dead network filesystem somewhere else
// must not make us hang.
func onDevice(path string, number uint64) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	return err == nil && unix.Mkdev(st.Dev_major, st.Dev_minor) == number
}

func describe(what, link string) string {
	to, err := os.Readlink(link)
	if err != nil {
		return what
	}
	return what + " " + to
}
