package ublk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Errors that callers tell apart with errors.Is. What they wrap says which
// command failed, on which device, with which errno.
var (
	// ErrUnsupported: the running kernel, or the device as it was added, lacks
	// what was asked for. The message names the kernel that has it.
	ErrUnsupported = errors.New("not supported by this kernel")
	// ErrNoDriver: /dev/ublk-control does not exist.
	ErrNoDriver = errors.New("ublk driver is not loaded (remedy: modprobe ublk_drv)")
	// ErrNoDevice: no ublk device has this number.
	ErrNoDevice = errors.New("no such ublk device")
	// ErrExists: the wanted device number is taken.
	ErrExists = errors.New("ublk device number is taken")
	// ErrBusy: somebody else still holds the device (a live server, or an
	// opener that has not let go).
	ErrBusy = errors.New("ublk device is busy")
	// ErrTimeout: the driver did not answer a control command in time.
	ErrTimeout = errors.New("ublk control command timed out")
	// ErrNotRecoverable: the device has no server and cannot be given one,
	// because it never started or was stopped. Delete it instead.
	ErrNotRecoverable = errors.New("ublk device cannot be adopted")
	// ErrWrongTag: the device carries another owner's tag.
	ErrWrongTag = errors.New("ublk device belongs to another owner")
	// ErrGateOpen: Drain was called while requests are being let through.
	ErrGateOpen = errors.New("gate is open")
	// ErrClosed: the Control or the Device has ended.
	ErrClosed = errors.New("closed")
)

// CommandError is a control command that the driver refused.
type CommandError struct {
	Command string     // for example "ADD_DEV"
	ID      int        // device number, -1 when the command names none
	Errno   unix.Errno // what the driver answered
}

func (e *CommandError) Error() string {
	if e.ID < 0 {
		return fmt.Sprintf("ublk %s: %v", e.Command, e.Errno)
	}
	return fmt.Sprintf("ublk %s of device %d: %v", e.Command, e.ID, e.Errno)
}

// Unwrap gives the errno, so that errors.Is(err, unix.EBUSY) works.
func (e *CommandError) Unwrap() error { return e.Errno }

// Is maps the errnos that have one meaning for every command onto the errors
// of this package.
func (e *CommandError) Is(target error) bool {
	switch target {
	case ErrNoDevice:
		return e.Errno == unix.ENODEV
	case ErrExists:
		return e.Errno == unix.EEXIST
	case ErrBusy:
		return e.Errno == unix.EBUSY
	case ErrUnsupported:
		return e.Errno == unix.EOPNOTSUPP
	}
	return false
}
