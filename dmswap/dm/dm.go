// Package dm speaks the ioctl interface of the kernel's device-mapper
// (linux/dm-ioctl.h, Documentation/admin-guide/device-mapper). It knows how to
// make, load, suspend, resume and look at mapped devices, and the parameters of
// the targets linear, striped, snapshot-origin, snapshot and error. It knows
// nothing of what they are used for.
//
// The package does not talk to udev: no cookies are used and no nodes are made
// under /dev/mapper. The kernel's own /dev/dm-N, which devtmpfs makes before the
// ioctl returns, names a device.
//
// All sizes and offsets in tables are in sectors of 512 bytes, as the kernel
// counts them.
package dm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit of all sizes and offsets in tables, in bytes.
const SectorSize = 512

// MaxName and MaxUUID are the longest name and UUID the kernel takes, in bytes
// (DM_NAME_LEN and DM_UUID_LEN without the terminating zero).
const (
	MaxName = unix.DM_NAME_LEN - 1
	MaxUUID = unix.DM_UUID_LEN - 1
)

// Kinds of errors, for errors.Is.
var (
	ErrNotFound    = errors.New("no such device-mapper device")
	ErrExists      = errors.New("device-mapper device exists already")
	ErrBusy        = errors.New("device is in use")
	ErrUnsupported = errors.New("not supported by this kernel")
)

// Control is the open control node of the device-mapper. It holds no state of
// devices and is safe for concurrent use; ioctls on one device are serialised
// by the kernel.
type Control struct {
	f    *os.File
	call ioctlFunc
}

// Version is the version of the ioctl interface, or of a target.
type Version struct{ Major, Minor, Patch uint32 }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// TargetVersion is a kind of target that the running kernel has loaded.
type TargetVersion struct {
	Name    string
	Version Version
}

// Ref names a device. Exactly one of the fields is set; ByName and ByUUID make
// one.
type Ref struct{ Name, UUID string }

// ByName refers to the device with that name.
func ByName(name string) Ref { return Ref{Name: name} }

// ByUUID refers to the device with that UUID.
func ByUUID(uuid string) Ref { return Ref{UUID: uuid} }

func (r Ref) String() string {
	if r.UUID != "" {
		return r.UUID
	}
	return r.Name
}

// Device is the number of a block device.
type Device struct{ Major, Minor uint32 }

// DeviceOf splits a device number as stat(2) gives it.
func DeviceOf(rdev uint64) Device { return Device{unix.Major(rdev), unix.Minor(rdev)} }

func (d Device) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// Info is the state of a device.
type Info struct {
	Name, UUID string
	Device     Device
	OpenCount  int // openers, mounts and devices on top
	Targets    int // entries of the active table
	EventNr    uint32
	Suspended  bool
	ReadOnly   bool
	Active     bool // has an active table
	Inactive   bool // has a loaded table that waits for a resume
	// DeferredRemove is set when the device goes away with its last opener.
	DeferredRemove bool
}

// Path returns the device's node, /dev/dm-N.
func (i Info) Path() string { return fmt.Sprintf("/dev/dm-%d", i.Device.Minor) }

// Error is a failed ioctl.
type Error struct {
	Op     string // what was attempted
	Object string // name or UUID of the device, or ""
	Errno  unix.Errno
	Hint   string // what this errno means here, or ""
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("device-mapper: " + e.Op)
	if e.Object != "" {
		b.WriteString(" " + e.Object)
	}
	b.WriteString(": " + e.Errno.Error())
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// Is makes errors.Is find the package's kinds of errors.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Errno == unix.ENXIO
	case ErrExists:
		return e.Errno == unix.EBUSY && e.Op == opCreate
	case ErrBusy:
		return e.Errno == unix.EBUSY && e.Op != opCreate
	case ErrUnsupported:
		return e.Errno == unix.ENOTTY
	}
	return false
}

// Version returns the version of the kernel's ioctl interface.
func (c *Control) Version() (Version, error) {
	req := newRequest(Ref{}, 0)
	if err := c.do("version", unix.DM_VERSION, req); err != nil {
		return Version{}, err
	}
	h := req.header()
	return Version{h.Version[0], h.Version[1], h.Version[2]}, nil
}

// Targets lists the kinds of targets that the kernel has loaded. A kind that is
// a module not yet loaded is missing; loading a table that names it loads it.
func (c *Control) Targets() ([]TargetVersion, error) {
	req := newRequest(Ref{}, initialData)
	if err := c.do("list targets", unix.DM_LIST_VERSIONS, req); err != nil {
		return nil, err
	}
	return decodeVersions(req.data())
}

// Create makes a device without a table. Both name and uuid have to be new; if
// one is taken the error is [ErrExists].
func (c *Control) Create(name, uuid string) (Info, error) {
	if err := checkName(name, uuid); err != nil {
		return Info{}, err
	}
	req := newRequest(Ref{Name: name, UUID: uuid}, 0)
	if err := c.do(opCreate, unix.DM_DEV_CREATE, req); err != nil {
		return Info{}, err
	}
	return req.info(), nil
}

// Load puts a table into the device's inactive slot, in place of one that is
// there. The table comes into force with the next Resume. A read-only table
// makes the device read-only.
func (c *Control) Load(ref Ref, table Table, readOnly bool) error {
	data, err := encodeTable(table)
	if err != nil {
		return fmt.Errorf("device-mapper: table for %s: %w", ref, err)
	}
	req := newRequest(ref, len(data))
	copy(req.data(), data)
	req.header().Target_count = uint32(len(table))
	if readOnly {
		req.header().Flags |= unix.DM_READONLY_FLAG
	}
	return c.do("load table of", unix.DM_TABLE_LOAD, req)
}

// Clear drops the table in the inactive slot, if there is one.
func (c *Control) Clear(ref Ref) error {
	return c.do("clear inactive table of", unix.DM_TABLE_CLEAR, newRequest(ref, 0))
}

// SuspendOptions are the options of [Control.Suspend].
type SuspendOptions struct {
	// LockFS freezes a filesystem that is mounted on the device. Without it the
	// device is suspended below whatever the filesystem has in flight.
	LockFS bool
	// NoFlush does not wait for I/O that targets hold back by themselves.
	NoFlush bool
}

// Suspend waits until the I/O in flight is done and holds new I/O back until
// Resume. Suspending a suspended device does nothing. When ctx ends first the
// device is as before and the context's error comes back.
func (c *Control) Suspend(ctx context.Context, ref Ref, opt SuspendOptions) error {
	req := newRequest(ref, 0)
	flags := uint32(unix.DM_SUSPEND_FLAG)
	if !opt.LockFS {
		flags |= unix.DM_SKIP_LOCKFS_FLAG
	}
	if opt.NoFlush {
		flags |= unix.DM_NOFLUSH_FLAG
	}
	req.header().Flags |= flags
	return c.doInterruptible(ctx, "suspend", unix.DM_DEV_SUSPEND, req)
}

// Resume puts the inactive table into force, if there is one, and lets I/O go
// on. A device that is not suspended is suspended for the change of tables,
// without freezing a filesystem.
func (c *Control) Resume(ctx context.Context, ref Ref) error {
	req := newRequest(ref, 0)
	req.header().Flags |= unix.DM_SKIP_LOCKFS_FLAG
	return c.doInterruptible(ctx, "resume", unix.DM_DEV_SUSPEND, req)
}

// Remove removes a device. A device that is open is [ErrBusy], or with deferred
// goes away with its last opener.
func (c *Control) Remove(ref Ref, deferred bool) error {
	req := newRequest(ref, 0)
	if deferred {
		req.header().Flags |= unix.DM_DEFERRED_REMOVE
	}
	return c.do("remove", unix.DM_DEV_REMOVE, req)
}

// Info returns the state of a device.
func (c *Control) Info(ref Ref) (Info, error) {
	req := newRequest(ref, 0)
	if err := c.do("look at", unix.DM_DEV_STATUS, req); err != nil {
		return Info{}, err
	}
	return req.info(), nil
}

// Table returns the active table, or the inactive one when asked. A device
// without such a table has an empty one.
func (c *Control) Table(ref Ref, inactive bool) (Table, error) {
	flags := uint32(unix.DM_STATUS_TABLE_FLAG | unix.DM_NOFLUSH_FLAG)
	if inactive {
		flags |= unix.DM_QUERY_INACTIVE_TABLE_FLAG
	}
	lines, err := c.targets("read table of", ref, flags)
	if err != nil {
		return nil, err
	}
	table := make(Table, len(lines))
	for i, l := range lines {
		t, err := ParseTarget(l.kind, l.params)
		if err != nil {
			return nil, fmt.Errorf("device-mapper: table of %s: %w", ref, err)
		}
		table[i] = Entry{Start: l.start, Length: l.length, Target: t}
	}
	return table, nil
}

// Status is the status line of one entry of the active table.
type Status struct {
	Start, Length uint64 // sectors
	Kind          string // of the target
	Text          string // as the target wrote it; see ParseSnapshotStatus
}

// Status returns the status of every entry of the active table.
func (c *Control) Status(ref Ref) ([]Status, error) {
	lines, err := c.targets("read status of", ref, unix.DM_NOFLUSH_FLAG)
	if err != nil {
		return nil, err
	}
	list := make([]Status, len(lines))
	for i, l := range lines {
		list[i] = Status{Start: l.start, Length: l.length, Kind: l.kind, Text: l.params}
	}
	return list, nil
}

func (c *Control) targets(op string, ref Ref, flags uint32) ([]targetLine, error) {
	req := newRequest(ref, initialData)
	req.header().Flags |= flags
	if err := c.do(op, unix.DM_TABLE_STATUS, req); err != nil {
		return nil, err
	}
	lines, err := decodeTargets(req.data(), req.header().Target_count)
	if err != nil {
		return nil, fmt.Errorf("device-mapper: %s %s: %w", op, ref, err)
	}
	return lines, nil
}

// Message sends a message to the target at a sector of the active table, as
// `dmsetup message` does. Words are separated by spaces; a backslash keeps one
// that follows (dm_split_args in drivers/md/dm-table.c). What a target answers
// is dropped.
func (c *Control) Message(ref Ref, sector uint64, text string) error {
	if strings.Contains(text, "\x00") {
		return fmt.Errorf("device-mapper: message %q to %s: %w", text, ref, unix.EINVAL)
	}
	// struct dm_target_msg: the sector, then the text with its final zero.
	const head = 8
	req := newRequest(ref, head+len(text)+1)
	native.PutUint64(req.data(), sector)
	copy(req.data()[head:], text)
	return c.do("send a message to", unix.DM_TARGET_MSG, req)
}

// Deps lists the devices that the active table maps onto.
func (c *Control) Deps(ref Ref) ([]Device, error) {
	req := newRequest(ref, initialData)
	if err := c.do("read dependencies of", unix.DM_TABLE_DEPS, req); err != nil {
		return nil, err
	}
	return decodeDeps(req.data())
}

// Listed is a device in a list of all.
type Listed struct {
	Name   string
	UUID   string // "" when it has none
	Device Device
}

// List lists all devices. It needs interface 4.41 (Linux 5.2), which puts the
// UUIDs into the list.
func (c *Control) List() ([]Listed, error) {
	req := newRequest(Ref{}, initialData)
	req.header().Flags |= unix.DM_UUID_FLAG
	if err := c.do("list devices", unix.DM_LIST_DEVICES, req); err != nil {
		return nil, err
	}
	return decodeNames(req.data())
}
