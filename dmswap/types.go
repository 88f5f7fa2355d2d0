package dmswap

import (
	"slices"
	"time"
)

// UUID is the text form of an RFC 4122 UUID, in lower case.
type UUID = string

// PoolInfo describes an open pool.
type PoolInfo struct {
	Name        string
	UUID        UUID
	Created     time.Time
	ExtentSize  int64  // bytes
	Extents     int64  // on all members
	FreeExtents int64  // on all members
	Generation  uint64 // of the metadata; grows with every commit
	Members     []MemberInfo
}

// Degraded tells whether a member takes no part.
func (i PoolInfo) Degraded() bool {
	return slices.ContainsFunc(i.Members, func(m MemberInfo) bool { return m.State != MemberOK })
}

// States of a member.
const (
	MemberOK = "ok"
	// MemberMissing has no disk; what lies on it answers I/O with errors.
	MemberMissing = "missing"
	// MemberFailed has a disk whose metadata could not be read or written. What
	// lies on it is served as far as the disk does, unless it failed before the
	// pool was opened.
	MemberFailed = "failed"
)

// MemberInfo describes one disk of a pool.
type MemberInfo struct {
	Index       int
	UUID        UUID
	Path        string // where the disk is now, or was last seen
	State       string // MemberOK, MemberMissing or MemberFailed
	Problem     string // why the state is not MemberOK
	Size        int64  // bytes of the disk; 0 when it is missing
	DataOffset  int64  // byte on the disk at which extent 0 begins
	Extents     int64
	FreeExtents int64 // none on a member that takes no part
}

// VolumeInfo describes a volume at one moment. It shares nothing with the pool.
type VolumeInfo struct {
	Name         string
	UUID         UUID
	Size         int64 // bytes
	Created      time.Time
	Device       string        // the volume's device-mapper device, /dev/dm-N
	DeviceNumber int           // number of the block device it is served as, -1 for none yet
	Attached     bool          // it is to be served
	ReadOnly     bool          // it is to be served read-only
	Export       *Export       // which other hosts may use it; nil: none
	Reservations *Reservations // what they have reserved; nil: nothing
	Busy         string        // what operation is under way on it, or ""
	Snapshot     bool          // a snapshot is open
	// Degraded says which member that takes no part has extents of the volume, or
	// is "". What lies on a missing member answers errors; the rest can be read
	// and written. The volume is not swapped, grown or taken a snapshot of.
	Degraded string
	Position Position
}

// Position is the content behind a volume.
type Position struct {
	ID           UUID
	Generation   uint64 // what a volume shows only grows: with each swap or grow of it
	Stripes      int    // 1 is linear
	StripeSize   int64  // bytes; 0 when linear
	Segments     []Segment
	DescendsFrom string // id of the backup the content was last equal to
	Base         Base   // zero until a backup has been made
	Quarantine   *Quarantine
}

// LiesOn tells whether extents of the position are on a member.
func (p *Position) LiesOn(member int) bool { return liesOn(p.Segments, member) }

func liesOn(list []Segment, member int) bool {
	return slices.ContainsFunc(list, func(s Segment) bool {
		return slices.ContainsFunc(s.Stripes, func(t SegmentStripe) bool { return t.Member == member })
	})
}

// Segment is a run of extents of a position, in the order of the volume.
type Segment struct {
	Extents int64 // on each stripe
	Stripes []SegmentStripe
}

// SegmentStripe is where one stripe of a segment begins.
type SegmentStripe struct {
	Member int   // index of the member
	Start  int64 // first extent on the member
}

// Quarantine labels a position that holds failed data. A position in
// quarantine is not swapped.
type Quarantine struct {
	Reason   string    `json:"reason"`
	Time     time.Time `json:"time"`
	Volume   string    `json:"volume,omitempty"` // name under which the data failed
	Job      string    `json:"job,omitempty"`
	Step     string    `json:"step,omitempty"`
	ExitCode int       `json:"exit_code,omitempty"`
	Backup   string    `json:"backup,omitempty"` // backup that took the data's place
}

// VolumeSpec describes a new volume.
type VolumeSpec struct {
	// UUID of the volume, from [NewUUID]; "" lets the pool choose one.
	UUID UUID
	Name string
	// Size in bytes, rounded up to 4096.
	Size int64
	// Stripes is how many members to stripe over; 0 and 1 are linear.
	Stripes int
	// StripeSize in bytes, a power of two from 4 KiB to the extent size;
	// 0 is 64 KiB.
	StripeSize int64
	// Zero writes zeroes over the whole volume. Without it the first and the
	// last MiB are zeroed, where signatures of old content would be found, and
	// the rest shows whatever the disks held.
	Zero bool
	// Attached is the attribute's first value, see [VolumeAttrs].
	Attached bool
	// Export has other hosts use the volume from its beginning; nil: none may.
	Export *Export
}

// VolumeAttrs are what [Pool.SetVolume] can change.
type VolumeAttrs struct {
	DeviceNumber int
	Attached     bool
	ReadOnly     bool
}

// PositionAttrs are what [Pool.SetPosition] can change.
type PositionAttrs struct {
	DescendsFrom string
	// Base has its generation from the pool.
	Base       Base
	Quarantine *Quarantine
}

// SwapPair names two volumes, each by name or UUID, whose positions are to be
// exchanged. ExpectA and ExpectB are the generations that the positions behind
// A and B must have; 0 accepts any. Quarantine, if not nil, labels the position
// that A gives away, in the same commit.
type SwapPair struct {
	A, B             string
	ExpectA, ExpectB uint64
	Quarantine       *Quarantine
}

// SwapTiming is how long each phase of a swap took. Suspend, Commit and Resume
// add up to the pause that the volumes' users see.
type SwapTiming struct {
	Preload, Suspend, Commit, Resume time.Duration
}

// SnapshotOptions are the options of [Pool.OpenSnapshot].
type SnapshotOptions struct {
	// COWSize is how many bytes of old data the snapshot can keep, rounded up
	// to extents. 0 is the volume's size and some overhead, but at most half of
	// the free extents. A snapshot that runs full turns invalid; the volume
	// goes on.
	COWSize int64
	// Around, if not nil, is called once when all is ready, with the function that
	// takes the instant. What it does before and after is within the pause of
	// whoever it has made wait; an error of it is the snapshot's.
	Around func(take func() error) error
}

// SnapshotStatus tells how full a snapshot is.
type SnapshotStatus struct {
	Used, Total int64 // bytes of old data
	// Invalid is set when the snapshot ran full or met an I/O error. It can't
	// be read any more.
	Invalid bool
}

// Report is the outcome of [Pool.Check] and [Pool.Repair].
type Report struct {
	Checked  []string // what was looked at
	Problems []string // what is wrong, after the repair if there was one; each names the object
	Found    []string // what was wrong before the repair
	Mended   []string // what the repair did
	Kept     string   // file with the metadata before the repair; "" if nothing was written
}

// OK tells whether no problem was found.
func (r Report) OK() bool { return len(r.Problems) == 0 }
