package dm

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// controlPath is where the kernel (by devtmpfs) or udev puts the control node.
var controlPath = filepath.Join("/dev", unix.DM_DIR, unix.DM_CONTROL_NODE)

// miscMajor is the major number of "misc" character devices (linux/major.h).
const miscMajor = 10

// Open opens the control node, and makes it first where the kernel has a
// device-mapper but /dev lacks the node. Without a device-mapper in the kernel
// the error is [ErrUnsupported].
func Open() (*Control, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err := makeNode(controlPath, "/proc/misc"); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(controlPath, os.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, noDriver()
	}
	if err != nil {
		return nil, fmt.Errorf("device-mapper: %w", err)
	}
	c := &Control{f: f}
	c.call = func(cmd uint, buf []byte) error { return ioctl(f, cmd, buf) }
	// The kernel refuses an interface that it does not know here, not later.
	if _, err := c.Version(); err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

// Close closes the control node. Devices stay.
func (c *Control) Close() error { return c.f.Close() }

func noDriver() error {
	return fmt.Errorf("device-mapper: this kernel has no dm_mod, or it is not loaded (modprobe dm_mod): %w", ErrUnsupported)
}

// makeNode makes the control node from the minor number in misc (/proc/misc).
func makeNode(path, misc string) error {
	f, err := os.Open(misc)
	if err != nil {
		return fmt.Errorf("device-mapper: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 2 || fields[1] != "device-mapper" {
			continue
		}
		minor, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			return fmt.Errorf("device-mapper: %s: %w", misc, err)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("device-mapper: %w", err)
		}
		dev := unix.Mkdev(miscMajor, uint32(minor))
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(dev)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("device-mapper: making %s: %w", path, err)
		}
		return nil
	}
	return noDriver()
}
