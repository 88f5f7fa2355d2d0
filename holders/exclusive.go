package holders

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInUse is what an exclusive open of a device that somebody has claimed
// comes back with: a mount, swap space, a stacked device or another exclusive
// open. [Finder.Find] tells who.
var ErrInUse = errors.New("device is in use")

// Exclusive opens a block device read-only and claims it: until the file is
// closed no filesystem can be mounted from it and nobody else can claim it or
// one of its partitions. Plain opens stay possible. Closing the file, or the
// end of the process, gives the claim up.
func Exclusive(path string) (*os.File, error) {
	// O_NONBLOCK because opening a node of another type may wait, and only
	// the open file tells the type for sure.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("claim %s: %w", path, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("claim %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		unix.Close(fd)
		return nil, fmt.Errorf("claim %s: not a block device", path)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// tryClaim claims a device for a moment.
func tryClaim(path string) error {
	f, err := Exclusive(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// statDevice returns the number of the block device at a path, and whether it
// is one. It takes what the kernel has cached: a server that does not answer
// must not make the search hang.
func statDevice(path string) (devno, bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	if errors.Is(err, unix.EACCES) && withoutDevices(path) {
		return devno{}, false, nil
	}
	if err != nil {
		return devno{}, false, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return devno{}, false, nil
	}
	return devno{st.Rdev_major, st.Rdev_minor}, true, nil
}

// withoutDevices tells whether a file that shows nothing, to root neither, lies
// on a filesystem that was mounted without device nodes. A filesystem in user space
// is one for everybody but its user, who may mount it in no other way; it is
// not asked anything (fuse_allow_current_process in the kernel's fs/fuse/dir.c).
func withoutDevices(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Flags&unix.ST_NODEV != 0
}

// vanished tells an error that means "gone" from one that means "not allowed"
// or "broken". ENXIO and ENODEV come from descriptors of removed devices.
func vanished(err error) bool {
	for _, e := range []error{fs.ErrNotExist, unix.ESRCH, unix.ENXIO, unix.ENODEV, unix.EBADF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
