// Package holders finds out who uses a block device, so that a swap, a restore
// or a deletion can be refused with the names of everybody in the way.
//
// No single place in the kernel knows all of them. An exclusive open fails for
// mounts, swap space and stacked devices but names nobody, and it succeeds
// beside a plain open. So the package looks at all of:
//
//   - the mounts of every mount namespace, by device number (/proc/PID/mountinfo)
//   - filesystems that are active without a visible mount (/sys/fs/TYPE/DEVICE)
//   - swap space (/proc/swaps)
//   - devices stacked on top: device-mapper, md, bcache (/sys/.../holders)
//   - loop devices, and NVMe and SCSI targets, that export it
//   - open and mapped files of every process, by device number
//
// Partitions of the device count, and so does whatever stands on a holder.
// The package imports nothing of swapback.
package holders

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// Kinds of [Holder].
const (
	KindMount     = "mount"     // a filesystem on the device is mounted
	KindSwap      = "swap"      // it is swap space
	KindDevice    = "device"    // another kernel device or target stands on it
	KindProcess   = "process"   // a process has it open or mapped
	KindLoop      = "loop"      // a loop device is backed by it
	KindExclusive = "exclusive" // somebody unseen has claimed it
)

// Holder is one user of a device.
type Holder struct {
	Kind    string
	Device  string // the device asked for, its partition, or a device stacked on it
	PID     int    // process, or a process inside the mount's namespace; 0 where there is none
	Command string // name of that process
	Detail  string // a sentence without a subject: "mounted on /data (ext4)"
}

func (h Holder) String() string { return h.Device + ": " + h.Detail }

// Finder looks for holders. Its zero value looks at the running machine.
// It keeps no state between calls and is safe for concurrent use.
type Finder struct {
	Proc string // root of procfs, default /proc
	Sys  string // root of sysfs, default /sys

	// Ignore are processes whose open files do not count, usually the
	// caller itself. Their mounts count.
	Ignore []int

	// Probe also tries to open each device exclusively when nothing else
	// explains a claim, and reports KindExclusive when that fails. It must
	// be off while the caller itself holds an [Exclusive] open.
	Probe bool

	// Passing are names of processes, besides those of udev, that let go of a device
	// by themselves before long: Lasting and Claim wait for them.
	Passing []string

	// Tests replace these: device nodes and loop devices need privileges.
	stat        func(path string) (devno, bool, error)
	loopBacking func(path string) (devno, error)
	claim       func(path string) error
}

// IncompleteError says that some places could not be looked at. The holders
// that came with it are real, but there may be more: a caller that needs proof
// that nobody holds the device has none.
type IncompleteError struct {
	Reasons []string
}

func (e *IncompleteError) Error() string {
	n := len(e.Reasons)
	s := e.Reasons[0]
	if n > 1 {
		s = fmt.Sprintf("%s, and %d more", s, n-1)
	}
	return "looking for who holds the device was not possible everywhere (" + s + "); run as root"
}

// Find names everybody who holds any of the devices, each given as a path of a
// block device or as "major:minor". The order is: mounts, swap, devices, loops,
// processes, claims. When it could not look everywhere it returns what it found
// together with an [*IncompleteError].
func (f *Finder) Find(ctx context.Context, devices ...string) ([]Holder, error) {
	s := f.newSearch(ctx)
	for _, d := range devices {
		if err := s.addNamed(d); err != nil {
			return nil, err
		}
	}
	if err := s.run(); err != nil {
		return nil, err
	}
	found := s.holders()
	if len(s.unseen) > 0 {
		return found, &IncompleteError{Reasons: s.unseen}
	}
	return found, nil
}

// search is one call of Find: the devices that count so far, and what was found.
type search struct {
	ctx       context.Context
	f         *Finder
	proc, sys string
	stat      func(string) (devno, bool, error)

	devices []*device
	byNo    map[devno]*device
	found   []Holder
	unseen  []string // places that could not be looked at
}

// device is a device whose users count.
type device struct {
	no      devno
	path    string // what Holder.Device says
	kname   string // name in sysfs
	sysDir  string
	named   bool // asked for by the caller, not found on the way
	claimed bool // a holder that explains a failing exclusive open was found
}

func (f *Finder) newSearch(ctx context.Context) *search {
	s := &search{ctx: ctx, f: f, proc: f.Proc, sys: f.Sys, stat: f.stat, byNo: map[devno]*device{}}
	if s.proc == "" {
		s.proc = "/proc"
	}
	if s.sys == "" {
		s.sys = "/sys"
	}
	if s.stat == nil {
		s.stat = statDevice
	}
	return s
}

// addNamed takes up a device that the caller asked for.
func (s *search) addNamed(name string) error {
	no, err := parseDevno(name)
	if err != nil {
		var block bool
		no, block, err = s.stat(name)
		if err != nil {
			return fmt.Errorf("find holders of %s: %w", name, err)
		}
		if !block {
			return fmt.Errorf("find holders of %s: not a block device", name)
		}
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(s.sys, "dev/block", no.String()))
	if err != nil {
		return fmt.Errorf("find holders of %s: sysfs does not know block device %s: %w", name, no, err)
	}
	path := name
	if !strings.HasPrefix(name, "/") {
		path = devPath(filepath.Base(dir))
	}
	s.add(&device{no: no, path: path, kname: filepath.Base(dir), sysDir: dir, named: true})
	return nil
}

// add makes a device count, once.
func (s *search) add(d *device) {
	if s.byNo[d.no] == nil {
		s.byNo[d.no] = d
		s.devices = append(s.devices, d)
	}
}

func (s *search) run() error {
	// Devices first: every one that stands on another makes the set grow,
	// and the later steps look for users of the whole set.
	if err := s.walkDevices(); err != nil {
		return err
	}
	s.findTargets()
	if err := s.walkProcesses(); err != nil {
		return err
	}
	s.findSwaps()
	s.findFilesystems()
	if s.f.Probe {
		s.probe()
	}
	return nil
}

// report adds a holder of d.
func (s *search) report(d *device, h Holder) {
	h.Device = d.path
	h.Command, h.Detail = oneLine(h.Command), oneLine(h.Detail)
	if h.Kind != KindProcess {
		d.claimed = true
	}
	// A process often has the same device open more than once.
	if !slices.Contains(s.found, h) {
		s.found = append(s.found, h)
	}
}

// oneLine keeps a name that somebody else has given, of a process or of a file,
// from looking like more than a name.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '·'
		}
		return r
	}, s)
}

// missed notes a place that could not be looked at. What vanished meanwhile
// (a process that ended, a device that went away) holds nothing.
func (s *search) missed(what string, err error) {
	if err == nil || vanished(err) {
		return
	}
	s.unseen = append(s.unseen, what+": "+reason(err))
}

// probe tries an exclusive open where nothing found so far explains a claim.
// A claim on a partition or a stacked device reaches down to the named one.
func (s *search) probe() {
	for _, d := range s.devices {
		if d.claimed {
			return
		}
	}
	claim := s.f.claim
	if claim == nil {
		claim = tryClaim
	}
	for _, d := range s.devices {
		if !d.named {
			continue
		}
		switch err := claim(d.path); {
		case errors.Is(err, ErrInUse):
			s.report(d, Holder{Kind: KindExclusive, Detail: "claimed exclusively by something in the kernel or by a process that cannot be seen from here"})
		default:
			s.missed("exclusive open of "+d.path, err)
		}
	}
}

// holders returns what was found, in a stable order.
func (s *search) holders() []Holder {
	order := []string{KindMount, KindSwap, KindDevice, KindLoop, KindProcess, KindExclusive}
	slices.SortStableFunc(s.found, func(a, b Holder) int {
		if n := slices.Index(order, a.Kind) - slices.Index(order, b.Kind); n != 0 {
			return n
		}
		if n := strings.Compare(a.Device, b.Device); n != 0 {
			return n
		}
		return a.PID - b.PID
	})
	return s.found
}

// devPath turns a kernel name into the path of its node; the kernel writes
// "cciss!c0d0" for what lives in a subdirectory.
func devPath(kname string) string { return "/dev/" + strings.ReplaceAll(kname, "!", "/") }

// reason shortens a path error to what went wrong; the place is named already.
func reason(err error) string {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}
