package hostagent

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/hostagent/mount"
)

// flush writes back what the kernel keeps in memory for a block device: the
// filesystems on it that are mounted here, and the device's own page cache. It
// returns when the device has it all, or when ctx is over. A frozen filesystem
// makes the kernel wait, and that cannot be interrupted: the goroutine that
// waits stays behind then, until the filesystem is thawed.
func flush(ctx context.Context, device string) error {
	done := make(chan error, 1)
	go func() { done <- flushNow(device) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("write back %s: %w (is its filesystem frozen?)", device, context.Cause(ctx))
	}
}

func flushNow(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("write back: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("write back %s: %w", device, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		if err := syncMounts(st.Rdev); err != nil {
			return err
		}
		// Since 6.6 BLKFLSBUF also syncs a filesystem that is mounted where
		// we can't see it, in another mount namespace. It tells no errors of
		// the filesystem's, which is what syncMounts is for.
		if _, err := unix.IoctlRetInt(int(f.Fd()), unix.BLKFLSBUF); err != nil && !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("write back: BLKFLSBUF on %s: %w", device, err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write back: %w", err)
	}
	return nil
}

// syncMounts writes back every filesystem of a device that is mounted in our
// namespace. One mount of each is enough: they share the filesystem.
func syncMounts(rdev uint64) error {
	mounts, err := mount.OfDevice(rdev)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if done, err := syncMount(m.Dir, rdev); done {
			return err
		}
	}
	return nil
}

// syncMount writes back the filesystem at a path, if it is still the one of the
// device: the mount may have gone since it was looked up, or another may hide
// it, and then the path leads to the host's own filesystem.
func syncMount(path string, rdev uint64) (done bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, nil
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Dev != rdev {
		return false, nil
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return true, fmt.Errorf("write back the filesystem at %s: %w", path, err)
	}
	return true, nil
}
