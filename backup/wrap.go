package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// wrap gives an error from below its kind and remedy. Errors that have one
// already, and those of an ended context, keep it.
func wrap(op string, err error) error {
	var e *Error
	var d *DamagedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e), errors.As(err, &d):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", op, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return &Error{Kind: ErrNoSpace, Op: op, Err: err,
			Remedy: "free space on that file system, or delete old backups; the backups that are there are unharmed"}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return &Error{Kind: ErrPermission, Op: op, Err: err, Remedy: "run as a user who may, or mount it writable"}
	case errors.Is(err, format.ErrVersion):
		return &Error{Kind: ErrVersion, Op: op, Err: err, Remedy: "use a newer swapback"}
	case pack.IsDamage(err):
		return &Error{Kind: ErrDamaged, Op: op, Err: err,
			Remedy: "see what is affected with: swapback backup verify --all"}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// wrapSource is wrap for the device or file that a backup reads.
func wrapSource(op, path string, err error) error {
	e := &Error{Kind: ErrSource, Op: op, Object: path, Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Remedy = "name an existing block device or file"
	case errors.Is(err, fs.ErrPermission):
		e.Kind, e.Remedy = ErrPermission, "run as a user who may read it"
	case errors.Is(err, device.ErrKind):
		e.Remedy = "name a block device or a regular file"
	case errors.Is(err, unix.EIO):
		e.Remedy = "look into the kernel log"
	}
	return e
}

// wrapTarget is wrap for the device or file that a restore writes.
func wrapTarget(op, path string, err error) error {
	e := &Error{Kind: ErrTarget, Op: op, Err: err}
	if !strings.HasSuffix(op, path) {
		e.Object = path
	}
	switch {
	case errors.Is(err, device.ErrInUse):
		e.Kind, e.Remedy = ErrInUse, "unmount it, or end what holds it; nothing was written"
	case errors.Is(err, fs.ErrExist):
		e.Kind, e.Remedy = ErrExists, "name a new file, or say that this one may be written over; nothing was written"
	case errors.Is(err, fs.ErrNotExist):
		e.Remedy = "name an existing block device or file; nothing was written"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		e.Kind, e.Remedy = ErrPermission, "run as a user who may write it, on a device that is not read-only"
	case errors.Is(err, device.ErrKind):
		e.Remedy = "name a block device or a regular file; nothing was written"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		e.Kind, e.Remedy = ErrNoSpace, "free space where the target lies; it does not hold a complete image"
	}
	return e
}
