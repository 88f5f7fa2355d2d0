package backup

import (
	"errors"
	"fmt"
	"strings"
)

// What an error of this package is about, for errors.Is.
var (
	ErrNotRepository = errors.New("not a repository")
	ErrExists        = errors.New("already exists")
	ErrNotEmpty      = errors.New("folder is not empty")
	ErrVersion       = errors.New("format is newer than this program")
	ErrNotFound      = errors.New("no such backup")
	ErrNoVolume      = errors.New("no such volume in the backup")
	ErrAmbiguous     = errors.New("more than one backup matches")
	ErrDamaged       = errors.New("repository is damaged")
	ErrSize          = errors.New("sizes do not match")
	ErrInUse         = errors.New("device is in use")
	ErrNoSpace       = errors.New("no space left")
	ErrPermission    = errors.New("permission denied")
	ErrSource        = errors.New("source can't be read")
	ErrTarget        = errors.New("target can't be written")
	ErrInvalid       = errors.New("invalid request")
	ErrUnsupported   = errors.New("not supported")
	ErrSecret        = errors.New("no usable secret")
	ErrLocked        = errors.New("repository is encrypted, and the secret does not open it")
	ErrNotEncrypted  = errors.New("repository is not encrypted")
	ErrMissed        = errors.New("changes were missed")
)

// Error says what was attempted, on which object, what went wrong and what to
// do about it. errors.Is matches its Kind and whatever it wraps.
type Error struct {
	Kind   error  // one of the Err values above
	Op     string // "restore volume db of backup 2026…"
	Object string // file, device or object of the repository; may be empty
	Detail string // what exactly is wrong; may be empty
	Remedy string // what to do about it; may be empty
	Err    error  // cause; may be nil
}

// Error joins the parts; the remedy stands on a line of its own.
func (e *Error) Error() string {
	parts := make([]string, 0, 5)
	for _, s := range []string{e.Op, e.Object, e.Kind.Error(), e.Detail} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	s := strings.Join(parts, ": ")
	if e.Remedy != "" {
		s += "\n  " + e.Remedy
	}
	return s
}

// Unwrap returns the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// DamagedError lists the byte ranges of a volume that could not be read back
// from the repository. It matches [ErrDamaged].
type DamagedError struct {
	Op     string // "restore" or "verify"
	Backup string
	Volume string
	Ranges []BadRange
	// Bytes is how many are damaged; 0 when it is all of Ranges.
	Bytes int64
	// Stopped is set when the operation ended at the first damage, so that
	// more than Ranges may be damaged.
	Stopped bool
	// Kept is set when a restore left the ranges as the target had them.
	Kept bool
}

// damagedShown bounds how many ranges the text of a DamagedError names.
const damagedShown = 4

func (e *DamagedError) Error() string {
	var b strings.Builder
	var bytes int64
	for _, r := range e.Ranges {
		bytes += r.Length
	}
	if e.Bytes > 0 {
		bytes = e.Bytes
	}
	fmt.Fprintf(&b, "%s volume %s of backup %s: %v: %d bytes can't be read back",
		e.Op, e.Volume, e.Backup, ErrDamaged, bytes)
	for i, r := range e.Ranges {
		if i == damagedShown {
			fmt.Fprintf(&b, "\n  and %d more", len(e.Ranges)-i)
			break
		}
		fmt.Fprintf(&b, "\n  bytes %d-%d (object %s): %s", r.Offset, r.Offset+r.Length-1, r.Object, r.Reason)
	}
	if e.Op == "restore" {
		switch {
		case e.Stopped:
			b.WriteString("\n  the restore stopped there; the target holds no complete image")
		case e.Kept:
			b.WriteString("\n  everything else was restored, these ranges are as the target had them")
		default:
			b.WriteString("\n  everything else was restored, these ranges read as zeroes")
		}
	}
	if e.Op == "heal" {
		b.WriteString("\n  nothing that was asked has it; name what may with --from and --from-repo, or restore an earlier backup")
	} else {
		b.WriteString("\n  " + healRemedy + "; else restore an earlier backup")
	}
	return b.String()
}

// Unwrap returns ErrDamaged.
func (e *DamagedError) Unwrap() error { return ErrDamaged }

// MissedError says what [CreateOptions].VerifyUnchanged found: parts of volumes
// that differ from the backup they were compared with although Changes call them
// unchanged. It matches [ErrMissed]. The backup that comes with it is whole and
// right; earlier incremental ones of the volume may lack what was missed.
type MissedError struct {
	Backup  string
	Volumes []Missed
}

// Missed is what was missed of one volume.
type Missed struct {
	Volume string  `json:"volume"`
	Base   string  `json:"base"`   // the backup that it was compared with
	Bytes  int64   `json:"bytes"`  // in chunks that differ
	Ranges []Range `json:"ranges"` // the first of them, in order, in whole chunks
	More   bool    `json:"more"`   // there are more than Ranges
}

// add notes n bytes at off, behind everything noted so far.
func (m *Missed) add(off, n int64) {
	m.Bytes += n
	if last := len(m.Ranges) - 1; last >= 0 && m.Ranges[last].Offset+m.Ranges[last].Length == off {
		m.Ranges[last].Length += n
	} else if len(m.Ranges) < maxMissed {
		m.Ranges = append(m.Ranges, Range{off, n})
	} else {
		m.More = true
	}
}

func (e *MissedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "backup %s is complete and right, but %v:", e.Backup, ErrMissed)
	for _, m := range e.Volumes {
		fmt.Fprintf(&b, "\n  volume %s: %d bytes differ from backup %s and were said to be unchanged:", m.Volume, m.Bytes, m.Base)
		for _, r := range m.Ranges[:min(len(m.Ranges), damagedShown)] {
			fmt.Fprintf(&b, "\n    bytes %d-%d", r.Offset, r.Offset+r.Length-1)
		}
		if m.More || len(m.Ranges) > damagedShown {
			b.WriteString("\n    and more")
		}
	}
	b.WriteString("\n  keep this backup; incremental ones made before it may lack these changes. Until the reason is known make full ones: swapback backup create --full")
	return b.String()
}

// Unwrap returns ErrMissed.
func (e *MissedError) Unwrap() error { return ErrMissed }
