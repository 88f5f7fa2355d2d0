// Package mount mounts and unmounts filesystems by system call, finds out what
// filesystem a device carries, and names the processes that keep one busy.
// It never detaches lazily: a filesystem that is unmounted is gone.
package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// flags are the options that mount(2) takes as flags (linux/mount.h); all
// others go to the filesystem as text. False: the option clears the flag.
var flags = map[string]struct {
	bit uintptr
	set bool
}{
	"ro": {unix.MS_RDONLY, true}, "rw": {unix.MS_RDONLY, false},
	"nosuid": {unix.MS_NOSUID, true}, "suid": {unix.MS_NOSUID, false},
	"nodev": {unix.MS_NODEV, true}, "dev": {unix.MS_NODEV, false},
	"noexec": {unix.MS_NOEXEC, true}, "exec": {unix.MS_NOEXEC, false},
	"sync": {unix.MS_SYNCHRONOUS, true}, "async": {unix.MS_SYNCHRONOUS, false},
	"dirsync": {unix.MS_DIRSYNC, true},
	"noatime": {unix.MS_NOATIME, true}, "atime": {unix.MS_NOATIME, false},
	"nodiratime": {unix.MS_NODIRATIME, true}, "diratime": {unix.MS_NODIRATIME, false},
	"relatime": {unix.MS_RELATIME, true}, "norelatime": {unix.MS_RELATIME, false},
	"strictatime": {unix.MS_STRICTATIME, true},
	"lazytime":    {unix.MS_LAZYTIME, true}, "nolazytime": {unix.MS_LAZYTIME, false},
	"silent": {unix.MS_SILENT, true}, "loud": {unix.MS_SILENT, false},
}

// refused are options that belong to mount(8), or that make something else of
// the mount than a filesystem on a device.
var refused = []string{"bind", "rbind", "move", "remount", "loop", "auto", "noauto", "user", "users", "owner", "group", "_netdev", "nofail"}

// split separates flags from what the filesystem gets.
func split(options []string) (bits uintptr, data string, err error) {
	var rest []string
	for _, o := range options {
		switch f, known := flags[o]; {
		case o == "defaults" || o == "":
		case slices.Contains(refused, o):
			return 0, "", fmt.Errorf("option %q can't be used here", o)
		case !known:
			rest = append(rest, o)
		case f.set:
			bits |= f.bit
		default:
			bits &^= f.bit
		}
	}
	return bits, strings.Join(rest, ","), nil
}

// CheckOptions tells whether options make sense as far as this can be seen
// without the filesystem.
func CheckOptions(options []string) error {
	_, _, err := split(options)
	return err
}

// Mount mounts a block device on a directory that is no mount point yet. An
// empty fstype means what [Detect] finds.
func Mount(device, dir, fstype string, options []string) error {
	fail := func(err error) error { return fmt.Errorf("mount %s on %s: %w", device, dir, err) }
	bits, data, err := split(options)
	if err != nil {
		return fail(err)
	}
	if fstype == "" {
		if fstype, err = Detect(device); err != nil {
			return fail(err)
		}
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return fail(err)
	case !info.IsDir():
		return fail(errors.New("no directory"))
	}
	if at, err := At(dir); err != nil {
		return fail(err)
	} else if at != nil {
		return fail(fmt.Errorf("%s is mounted there already", at.Source))
	}
	if err := unix.Mount(device, dir, fstype, bits, data); err != nil {
		return fail(fmt.Errorf("as %s: %w%s", fstype, err, hint(err, fstype)))
	}
	return nil
}

func hint(err error, fstype string) string {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Sprintf(" (the kernel does not know %s: load its module)", fstype)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUCLEAN):
		return " (wrong filesystem or options, or it is damaged; dmesg may tell more)"
	case errors.Is(err, unix.EBUSY):
		return " (the device is in use)"
	}
	return ""
}

// Unmount unmounts what is mounted on a directory. While it is busy it tries
// again until ctx is over; the error is EBUSY then.
func Unmount(ctx context.Context, dir string) error {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("unmount %s: %w", dir, err)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}
