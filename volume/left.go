package volume

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/ublk"
)

// left is the block device of a volume that nobody serves, as when it could not be
// adopted: it is in the kernel with whoever holds it, and what they do waits for a
// server. It is "" when there is none.
func (c *Controller) left(ctx context.Context, t target) (path string, err error) {
	if e := c.export(t); e != nil && e.dev != nil || t.info.DeviceNumber < 0 {
		return "", nil
	}
	info, err := c.ublk.Info(ctx, t.info.DeviceNumber)
	switch {
	case errors.Is(err, ublk.ErrNoDevice):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("ublk device %d: %w", t.info.DeviceNumber, err)
	case info.Tag != t.tag():
		return "", nil
	}
	return fmt.Sprintf("/dev/ublkb%d", t.info.DeviceNumber), nil
}

// refuseLeft returns an error that names who holds the device that is left of a
// volume.
func (c *Controller) refuseLeft(ctx context.Context, t target) error {
	path, err := c.left(ctx, t)
	if err != nil || path == "" {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil // it never got that far
	}
	found, err := c.holdersOf(ctx, path)
	if err != nil || len(found) == 0 {
		return err
	}
	return &api.Error{
		Code: api.CodeInUse, Message: fmt.Sprintf("volume %s is in use, though nobody serves it", t),
		Remedy: "pool check --repair serves it, or says why not; then unmount it", Holders: apiHolders(found),
	}
}

// removeLeft takes away what is left of a volume's block device, if nobody holds
// it.
func (c *Controller) removeLeft(ctx context.Context, t target) error {
	path, err := c.left(ctx, t)
	if err != nil || path == "" {
		return err
	}
	if err := c.refuseLeft(ctx, t); err != nil {
		return err
	}
	if err := c.ublk.Delete(ctx, t.info.DeviceNumber); err != nil {
		return fmt.Errorf("removing %s of volume %s: %w", path, t, err)
	}
	if err := os.Remove(c.linkPath(t)); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.Warn("link not removed", "volume", t.String(), "err", err)
	}
	return c.markQuarantine(t.info.DeviceNumber, false)
}
