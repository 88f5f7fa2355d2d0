//go:build vm

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectAs connects to a socket with a user's rights, on a thread that ends with
// them.
func connectAs(path string, uid, gid int, groups ...uint32) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		result <- func() error {
			// Of this thread, not of the process as package syscall does it.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0); errno != 0 {
				return fmt.Errorf("setgroups: %w", errno)
			}
			if err := errors.Join(unix.Setfsgid(gid), unix.Setfsuid(uid)); err != nil {
				return err
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}()
	}()
	return <-result
}

// TestSocketLetsTheGroupIn: nobody else but root.
func TestSocketLetsTheGroupIn(t *testing.T) {
	name, gid := otherGroup(t)
	dir, err := os.MkdirTemp("/tmp", "socket") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sock")
	for _, group := range []string{name, "no-such-group"} {
		ln, err := listen(path, group)
		if err != nil {
			t.Fatal(err)
		}
		member := error(nil)
		if group != name {
			member = unix.EACCES
		}
		const uid, other = 4711, 4712 // nobody has them
		for _, tt := range []struct {
			who  string
			err  error
			want error
		}{
			{"a user of the group", connectAs(path, uid, gid), member},
			{"a user with the group among others", connectAs(path, uid, other, other, uint32(gid)), member},
			{"another user", connectAs(path, uid, other, other), unix.EACCES},
			{"a user with root's group", connectAs(path, uid, 0), unix.EACCES},
			{"root", connectAs(path, 0, 0), nil},
		} {
			if !errors.Is(tt.err, tt.want) {
				t.Errorf("group %s: %s: %v, want %v", group, tt.who, tt.err, tt.want)
			}
		}
		ln.Close()
	}
}
