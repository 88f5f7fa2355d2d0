package dmswap

import (
	"errors"
	"fmt"
	"strings"
)

// Kinds of errors, for errors.Is.
var (
	ErrInvalid     = errors.New("invalid request")
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("exists already")
	ErrBusy        = errors.New("busy: another operation is under way")
	ErrInUse       = errors.New("in use")
	ErrGeneration  = errors.New("unexpected generation")
	ErrNoSpace     = errors.New("not enough free extents")
	ErrQuarantined = errors.New("in quarantine")
	ErrSnapshot    = errors.New("a snapshot is open")
	ErrUnsupported = errors.New("not supported by this kernel")
	ErrNoPool      = errors.New("no pool on this disk")
	ErrDamaged     = errors.New("pool is damaged or incomplete")
	// ErrSplit means that members were used without each other. It is an
	// ErrDamaged too.
	ErrSplit = errors.New("pool is split")
	// ErrDegraded refuses an operation on a volume that lacks a member.
	ErrDegraded = errors.New("volume is degraded")
	ErrClosed   = errors.New("pool is closed")
	// ErrCommitted marks a failure after the point of no return: the change is
	// on the disks and will be finished when the pool is opened again.
	ErrCommitted = errors.New("committed, but not finished")
)

// Error is what operations of a pool return when the caller can do something
// about it.
type Error struct {
	Kind    error  // one of the kinds above
	Message string // what was attempted, on what, and what is wrong
	Remedy  string // what to do about it, or ""
	Err     error  // cause, or nil
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Remedy != "" {
		fmt.Fprintf(&b, " (%s)", e.Remedy)
	}
	return b.String()
}

// Is makes errors.Is find the kind.
func (e *Error) Is(target error) bool {
	return target == e.Kind || target == ErrDamaged && e.Kind == ErrSplit
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// DiskInUseError refuses a disk for a new pool because it carries or serves
// something. Creating the pool with Force overwrites what a disk carries, but
// never a disk that is in use now.
type DiskInUseError struct {
	Disk  string   // path as it was given
	Found []string // what is on it, or who uses it
	Held  bool     // somebody has the disk open exclusively; Force does not help
}

func (e *DiskInUseError) Error() string {
	s := fmt.Sprintf("disk %s carries %s", e.Disk, strings.Join(e.Found, ", "))
	if e.Held {
		s = fmt.Sprintf("disk %s is in use: %s", e.Disk, strings.Join(e.Found, ", "))
	}
	return s + " (" + e.remedy() + ")"
}

func (e *DiskInUseError) remedy() string {
	if e.Held {
		return "stop what uses it, or name another disk"
	}
	return "name another disk, or use --force to destroy what it carries"
}

// Is makes the error an [ErrInUse].
func (e *DiskInUseError) Is(target error) bool { return target == ErrInUse }

// GenerationError refuses an operation because a position is not the one that
// the caller saw.
type GenerationError struct {
	Volume     string
	Want, Have uint64
}

func (e *GenerationError) Error() string {
	return fmt.Sprintf("the position of volume %s has generation %d, not %d as expected (%s)", e.Volume, e.Have, e.Want, e.remedy())
}

func (e *GenerationError) remedy() string {
	return "it was swapped or grown meanwhile: look at it again and decide anew"
}

// Is makes the error an [ErrGeneration].
func (e *GenerationError) Is(target error) bool { return target == ErrGeneration }

// QuarantinedError refuses an operation because a position holds failed data.
type QuarantinedError struct {
	Volume     string
	Quarantine Quarantine
}

func (e *QuarantinedError) Error() string {
	return fmt.Sprintf("volume %s is in quarantine since %s: %s (%s)",
		e.Volume, e.Quarantine.Time.Format("2006-01-02T15:04:05Z07:00"), e.Quarantine.Reason, e.remedy())
}

func (e *QuarantinedError) remedy() string {
	return "it is evidence of a failure; release it from quarantine first"
}

// Is makes the error an [ErrQuarantined].
func (e *QuarantinedError) Is(target error) bool { return target == ErrQuarantined }

// SnapshotOpenError refuses an operation because a snapshot of the volume is
// open.
type SnapshotOpenError struct {
	Volume string
	Device string // the snapshot's device
}

func (e *SnapshotOpenError) Error() string {
	return fmt.Sprintf("volume %s has the snapshot %s open (%s)", e.Volume, e.Device, e.remedy())
}

func (e *SnapshotOpenError) remedy() string {
	return "a backup is reading it: wait until it has ended, or end it"
}

// Is makes the error an [ErrSnapshot] and an [ErrBusy].
func (e *SnapshotOpenError) Is(target error) bool { return target == ErrSnapshot || target == ErrBusy }

// DegradedError refuses an operation because some of a volume's extents are on
// a member that is missing or failed.
type DegradedError struct {
	Volume string
	Why    string // which member, and what is wrong with it
}

func (e *DegradedError) Error() string {
	return fmt.Sprintf("volume %s is degraded: %s (%s)", e.Volume, e.Why, e.remedy())
}

func (e *DegradedError) remedy() string {
	return "connect the disk and say swapback pool rejoin POOL; until then other volumes can be used"
}

// Is makes the error an [ErrDegraded].
func (e *DegradedError) Is(target error) bool { return target == ErrDegraded }

// Remedy returns what an error of this package tells the user to do, or "".
func Remedy(err error) string {
	var e *Error
	if errors.As(err, &e) && e.Remedy != "" {
		return e.Remedy
	}
	var r interface{ remedy() string }
	if errors.As(err, &r) {
		return r.remedy()
	}
	return ""
}

// errf makes an *Error without a cause.
func errf(kind error, remedy, format string, args ...any) error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}
