package dm

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Target is what a stretch of a device maps onto. The kinds of this package are
// Linear, Striped, SnapshotOrigin, Snapshot, ErrorTarget and, for every other
// kind, Other.
type Target interface {
	// Kind is the kernel's name of the target.
	Kind() string
	// Params are the parameters, in the form in which the kernel prints them in
	// a table. Two targets are equal when their kinds and parameters are.
	Params() string
}

// Entry is a stretch of a device.
type Entry struct {
	Start, Length uint64 // sectors
	Target        Target
}

func (e Entry) String() string {
	return strings.TrimRight(fmt.Sprintf("%d %d %s %s", e.Start, e.Length, e.Target.Kind(), e.Target.Params()), " ")
}

// Table is a whole device: entries in order, from sector 0, without gaps.
type Table []Entry

// String returns the table as `dmsetup table` prints it.
func (t Table) String() string {
	lines := make([]string, len(t))
	for i, e := range t {
		lines[i] = e.String()
	}
	return strings.Join(lines, "\n")
}

// Size returns the device's size in sectors.
func (t Table) Size() uint64 {
	if len(t) == 0 {
		return 0
	}
	return t[len(t)-1].Start + t[len(t)-1].Length
}

// Equal tells whether two tables map every sector alike, entry by entry.
func (t Table) Equal(other Table) bool {
	return slices.EqualFunc(t, other, func(a, b Entry) bool {
		return a.Start == b.Start && a.Length == b.Length &&
			a.Target.Kind() == b.Target.Kind() && a.Target.Params() == b.Target.Params()
	})
}

// Validate tells what the kernel would refuse a table for.
func (t Table) Validate() error {
	if len(t) == 0 {
		return fmt.Errorf("the table is empty")
	}
	at := uint64(0)
	for i, e := range t {
		switch {
		case e.Target == nil:
			return fmt.Errorf("entry %d has no target", i)
		case strings.Contains(e.Target.Params(), "\x00"):
			return fmt.Errorf("entry %d has a zero byte in its parameters", i)
		case e.Start != at:
			return fmt.Errorf("entry %d begins at sector %d, but the one before it ends at %d", i, e.Start, at)
		case e.Length == 0 || e.Length > math.MaxInt64-at:
			return fmt.Errorf("entry %d has a length of %d sectors", i, e.Length)
		}
		at += e.Length
	}
	return nil
}

// Linear maps onto a stretch of one device (drivers/md/dm-linear.c).
type Linear struct {
	Device Device
	Start  uint64 // sector on the device
}

// Kind implements [Target].
func (Linear) Kind() string { return "linear" }

// Params implements [Target].
func (l Linear) Params() string { return fmt.Sprintf("%s %d", l.Device, l.Start) }

// Striped maps chunks in turn onto several devices (drivers/md/dm-stripe.c).
// The entry's length has to be a multiple of the chunk times the stripes.
type Striped struct {
	Chunk   uint64 // sectors
	Stripes []Linear
}

// Kind implements [Target].
func (Striped) Kind() string { return "striped" }

// Params implements [Target].
func (s Striped) Params() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %d", len(s.Stripes), s.Chunk)
	for _, l := range s.Stripes {
		b.WriteString(" " + l.Params())
	}
	return b.String()
}

// SnapshotOrigin passes reads and writes on to Origin, and has what a write is
// about to overwrite copied into the snapshots of Origin first
// (drivers/md/dm-snap.c). It does not pass on discards.
type SnapshotOrigin struct{ Origin Device }

// Kind implements [Target].
func (SnapshotOrigin) Kind() string { return "snapshot-origin" }

// Params implements [Target].
func (s SnapshotOrigin) Params() string { return s.Origin.String() }

// Snapshot shows Origin as it was when the snapshot was resumed, with the old
// data from COW (drivers/md/dm-snap.c).
type Snapshot struct {
	Origin, COW Device
	// Persistent snapshots ("P") keep their table of exceptions on COW; others
	// ("N") in memory, and end with the device.
	Persistent bool
	Chunk      uint64 // sectors, a power of two
}

// Kind implements [Target].
func (Snapshot) Kind() string { return "snapshot" }

// Params implements [Target].
func (s Snapshot) Params() string {
	store := "N"
	if s.Persistent {
		store = "P"
	}
	return fmt.Sprintf("%s %s %s %d", s.Origin, s.COW, store, s.Chunk)
}

// ErrorTarget answers every request with an I/O error
// (drivers/md/dm-target.c).
type ErrorTarget struct{}

// Kind implements [Target].
func (ErrorTarget) Kind() string { return "error" }

// Params implements [Target].
func (ErrorTarget) Params() string { return "" }

// Other is a target of a kind that this package has no type for, or whose
// parameters have more to them.
type Other struct{ Name, Text string }

// Kind implements [Target].
func (o Other) Kind() string { return o.Name }

// Params implements [Target].
func (o Other) Params() string { return o.Text }

// ParseTarget reads parameters as the kernel prints them. A target with
// optional features, which this package never sets, comes back as Other.
func ParseTarget(kind, params string) (Target, error) {
	f := strings.Fields(params)
	var t Target
	var err error
	switch kind {
	case "linear":
		if len(f) == 2 {
			t, err = parseLinear(f)
		}
	case "striped":
		t, err = parseStriped(f)
	case "snapshot-origin":
		if len(f) == 1 {
			var d Device
			d, err = parseDevice(f[0])
			t = SnapshotOrigin{d}
		}
	case "snapshot":
		t, err = parseSnapshot(f)
	case "error":
		if len(f) == 0 {
			t = ErrorTarget{}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("target %s %q: %w", kind, params, err)
	}
	if t == nil {
		t = Other{Name: kind, Text: params}
	}
	return t, nil
}

func parseLinear(f []string) (Linear, error) {
	d, err := parseDevice(f[0])
	if err != nil {
		return Linear{}, err
	}
	start, err := strconv.ParseUint(f[1], 10, 64)
	return Linear{d, start}, err
}

func parseStriped(f []string) (Target, error) {
	if len(f) < 2 {
		return nil, nil
	}
	count, err := strconv.ParseUint(f[0], 10, 16)
	if err != nil {
		return nil, err
	}
	chunk, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return nil, err
	}
	s := Striped{Chunk: chunk}
	f = f[2:]
	if uint64(len(f)) != 2*count {
		return nil, nil
	}
	for ; len(f) > 0; f = f[2:] {
		l, err := parseLinear(f)
		if err != nil {
			return nil, err
		}
		s.Stripes = append(s.Stripes, l)
	}
	return s, nil
}

func parseSnapshot(f []string) (Target, error) {
	if len(f) != 4 || f[2] != "P" && f[2] != "N" {
		return nil, nil
	}
	s := Snapshot{Persistent: f[2] == "P"}
	var err error
	if s.Origin, err = parseDevice(f[0]); err != nil {
		return nil, err
	}
	if s.COW, err = parseDevice(f[1]); err != nil {
		return nil, err
	}
	s.Chunk, err = strconv.ParseUint(f[3], 10, 64)
	return s, err
}

func parseDevice(s string) (Device, error) {
	major, minor, ok := strings.Cut(s, ":")
	if !ok {
		return Device{}, fmt.Errorf("%q is not MAJOR:MINOR", s)
	}
	a, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return Device{}, err
	}
	b, err := strconv.ParseUint(minor, 10, 32)
	return Device{uint32(a), uint32(b)}, err
}

// SnapshotStatus is the status of a snapshot target.
type SnapshotStatus struct {
	Used, Total, Metadata uint64 // sectors of COW
	// Invalid is set when the snapshot ran full or met an I/O error.
	Invalid bool
}

// ParseSnapshotStatus reads the status text of a snapshot target.
func ParseSnapshotStatus(text string) (SnapshotStatus, error) {
	switch text {
	case "Invalid", "Overflow", "Merge failed":
		return SnapshotStatus{Invalid: true}, nil
	}
	f := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '/' })
	if len(f) != 3 {
		return SnapshotStatus{}, fmt.Errorf("status %q of a snapshot: want USED/TOTAL METADATA", text)
	}
	var n [3]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(f[i], 10, 64); err != nil {
			return SnapshotStatus{}, fmt.Errorf("status %q of a snapshot: %w", text, err)
		}
	}
	return SnapshotStatus{Used: n[0], Total: n[1], Metadata: n[2]}, nil
}
