// Package api is the control interface of swapbackd: the types that travel over
// its unix socket, the HTTP server that documents itself (OpenAPI 3.1 at
// /openapi.json), and the client that every command uses.
//
// The package knows nothing of how a volume is made. A [Service] does the work;
// package volume implements it. Sizes are bytes, times are RFC 3339, durations
// are seconds.
package api

import (
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// DefaultSocket is where swapbackd listens and where the client looks when
// neither a flag nor the environment names another place.
const DefaultSocket = "/run/swapback/swapbackd.sock"

// SocketEnv is the environment variable that names another socket.
const SocketEnv = "SWAPBACK_SOCKET"

// Info describes the daemon and the kernel it runs on.
type Info struct {
	Version      string   `json:"version" doc:"version of swapbackd"`
	PID          int      `json:"pid"`
	Kernel       string   `json:"kernel" doc:"release of the running kernel" example:"6.12.0-amd64"`
	UblkFeatures []string `json:"ublk_features" doc:"features the kernel's ublk driver reports"`
	DMVersion    string   `json:"dm_version" doc:"version of the device-mapper interface"`
	DMTargets    []string `json:"dm_targets" doc:"device-mapper targets that are loaded, with versions"`
	Pools        []string `json:"pools" doc:"names of the pools that are open"`
	// Failed lists pools that were found but could not be opened, and why.
	Failed []FailedPool `json:"failed_pools,omitempty" doc:"pools that were found but could not be opened"`
	// Caller is nil for a client of the daemon's own machine.
	Caller *Caller `json:"caller,omitempty" doc:"who asks, when that is a client from afar"`
}

// Caller is a client from afar, as the daemon knows it.
type Caller struct {
	Name  string   `json:"name"`
	Hosts []string `json:"hosts" doc:"names (NQN) of the NVMe hosts that it speaks for"`
}

// FailedPool is a pool that the daemon found but did not open.
type FailedPool struct {
	Name  string   `json:"name"`
	Disks []string `json:"disks,omitempty"`
	Error string   `json:"error"`
}

// Pool is a set of member disks with one shared metadata generation.
type Pool struct {
	Name        string    `json:"name"`
	UUID        string    `json:"uuid"`
	Created     time.Time `json:"created"`
	ExtentSize  int64     `json:"extent_size" doc:"bytes per extent"`
	Extents     int64     `json:"extents" doc:"extents on all members"`
	FreeExtents int64     `json:"free_extents"`
	Size        int64     `json:"size" doc:"bytes in all extents"`
	Free        int64     `json:"free" doc:"bytes in free extents"`
	Generation  uint64    `json:"generation" doc:"metadata generation, grows with every commit"`
	Members     []Member  `json:"members"`
	Volumes     int       `json:"volumes" doc:"number of volumes"`
	Degraded    bool      `json:"degraded" doc:"whether a member takes no part"`
}

// States of a member disk.
const (
	MemberOK      = "ok"
	MemberMissing = "missing" // no disk; extents on it answer errors
	MemberFailed  = "failed"  // its metadata can't be read or written
)

// Member is one disk of a pool.
type Member struct {
	Index       int    `json:"index"`
	UUID        string `json:"uuid"`
	Path        string `json:"path" doc:"block device that holds the member now, or held it last"`
	State       string `json:"state" enum:"ok,missing,failed"`
	Problem     string `json:"problem,omitempty" doc:"why a member takes no part"`
	Extents     int64  `json:"extents"`
	FreeExtents int64  `json:"free_extents"`
	DataOffset  int64  `json:"data_offset" doc:"byte on the disk where extent 0 begins"`
}

// Volume states, from the gate of its block device.
const (
	StateDetached = "detached" // no block device
	StateServing  = "serving"  // block device answers
	StateBusy     = "busy"     // a swap is under way; I/O is held or refused
	StateFailed   = "failed"   // should be attached but is not; Error says why
	StateDegraded = "degraded" // served, but extents on a member that is missing or failed; Error says which
)

// Volume is a name that a host sees, together with the position behind it now.
type Volume struct {
	Name         string   `json:"name"`
	Pool         string   `json:"pool"`
	UUID         string   `json:"uuid"`
	Size         int64    `json:"size"`
	State        string   `json:"state" enum:"detached,serving,busy,failed,degraded"`
	Error        string   `json:"error,omitempty" doc:"why a failed volume is not served, which member a degraded one lacks, or why one that is served is not as it should be"`
	Degraded     bool     `json:"degraded,omitempty" doc:"whether it has extents on a member that is missing or failed"`
	Attached     bool     `json:"attached" doc:"whether the volume is served whenever the daemon runs"`
	ReadOnly     bool     `json:"read_only"`
	Device       string   `json:"device,omitempty" doc:"block device" example:"/dev/ublkb0"`
	DeviceNumber int      `json:"device_number" doc:"N of /dev/ublkbN, -1 before the first attach"`
	Link         string   `json:"link,omitempty" doc:"stable name" example:"/dev/swapback/tank/db"`
	Backend      string   `json:"backend,omitempty" doc:"device-mapper device under the volume"`
	Queues       int      `json:"queues,omitempty" doc:"hardware queues of the block device"`
	Depth        int      `json:"depth,omitempty" doc:"requests in flight per queue"`
	MaxIO        int64    `json:"max_io,omitempty" doc:"bytes of the largest request"`
	DataPath     string   `json:"data_path,omitempty" enum:"copy,zero-copy,batch" doc:"how data gets from the block device to the backend"`
	UblkFlags    []string `json:"ublk_flags,omitempty" doc:"features of the kernel's driver that the device was made with"`
	Changed      *Changed `json:"changed,omitempty" doc:"what was written to the position"`
	Position     Position `json:"position"`
	NQN          string   `json:"nqn,omitempty" doc:"name by which other hosts connect to it, when it is exported"`
	Snapshot     bool     `json:"snapshot" doc:"whether a backup is reading a snapshot of the volume"`
	SnapshotFull bool     `json:"snapshot_full,omitempty" doc:"whether that snapshot has no room for old data any more, or met an error of a disk: it can't be read, and the backup fails"`
	IO           *IOStats `json:"io,omitempty" doc:"counters since the device was started or adopted"`
}

// Position is the content behind a volume. A swap exchanges the positions of
// two volumes and nothing else.
type Position struct {
	ID           string      `json:"id"`
	Generation   uint64      `json:"generation" doc:"counter of the position; a swap names the generations it expects"`
	Stripes      int         `json:"stripes"`
	StripeSize   int64       `json:"stripe_size,omitempty"`
	Segments     []Segment   `json:"segments" doc:"where the content lies"`
	DescendsFrom string      `json:"descends_from,omitempty" doc:"id of the backup that the content was last equal to"`
	Quarantine   *Quarantine `json:"quarantine,omitempty"`
}

// Segment is a run of extents of a position, in the order of the volume.
type Segment struct {
	Extents int64           `json:"extents" doc:"extents on each stripe"`
	Stripes []SegmentStripe `json:"stripes" doc:"one run for a linear segment"`
}

// SegmentStripe is where one stripe of a segment begins.
type SegmentStripe struct {
	Member int   `json:"member" doc:"index of the member disk"`
	Start  int64 `json:"start" doc:"first extent on the member"`
}

// MaxReason is how many characters [Quarantine.Reason] may have.
const MaxReason = 4096

// Quarantine labels a position that holds failed data. While it is there the
// volume that shows the position is read-only and cannot be swapped.
type Quarantine struct {
	Reason   string    `json:"reason" maxLength:"4096" pattern:"^\\P{C}*$" patternDescription:"text without control characters"`
	Time     time.Time `json:"time" required:"false" doc:"default now"`
	Volume   string    `json:"volume,omitempty" maxLength:"128" pattern:"^\\P{C}*$" patternDescription:"text without control characters" doc:"name under which the data failed"`
	Job      string    `json:"job,omitempty" maxLength:"128" pattern:"^\\P{C}*$" patternDescription:"text without control characters"`
	Step     string    `json:"step,omitempty" maxLength:"128" pattern:"^\\P{C}*$" patternDescription:"text without control characters"`
	ExitCode int       `json:"exit_code,omitempty"`
	Backup   string    `json:"backup,omitempty" maxLength:"128" pattern:"^\\P{C}*$" patternDescription:"text without control characters" doc:"backup that took the data's place"`
}

// Changed tells how much of a position was written, in whole blocks: since the
// backup that its change map counts from, or, without one, since the daemon first
// served the position.
type Changed struct {
	Since     time.Time `json:"since"`
	Bytes     int64     `json:"bytes"`
	BlockSize int64     `json:"block_size"`
	Base      string    `json:"base,omitempty" doc:"id of the backup that the change map counts from"`
	Why       string    `json:"why,omitempty" doc:"why it counts from none: the next backup is full"`
	Durable   bool      `json:"durable" doc:"whether the change map outlives the daemon and the machine"`
}

// IOStats counts the requests that a volume's block device answered.
type IOStats struct {
	Reads       uint64 `json:"reads"`
	ReadBytes   uint64 `json:"read_bytes"`
	Writes      uint64 `json:"writes"`
	WriteBytes  uint64 `json:"write_bytes"`
	Flushes     uint64 `json:"flushes"`
	Discards    uint64 `json:"discards"`
	WriteZeroes uint64 `json:"write_zeroes"`
	Errors      uint64 `json:"errors"`
	Held        uint64 `json:"held" doc:"requests held at the busy gate"`
	Refused     uint64 `json:"refused" doc:"requests answered EBUSY at the busy gate"`
}

// CreatePoolRequest names the disks of a new pool.
type CreatePoolRequest struct {
	Name       string   `json:"name" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_][A-Za-z0-9._-]*$" patternDescription:"letters, digits, '.', '_' and '-' with a letter, digit or '_' first"`
	Disks      []string `json:"disks" minItems:"1" maxItems:"1024" nullable:"false" doc:"block devices, each by a clean path from the root"`
	ExtentSize int64    `json:"extent_size,omitempty" minimum:"0" maximum:"1073741824" doc:"bytes, a power of two; default 4 MiB"`
	Force      bool     `json:"force,omitempty" doc:"overwrite what the disks carry"`
}

// CheckReport is the outcome of a pool's consistency check.
type CheckReport struct {
	Pool     string   `json:"pool"`
	OK       bool     `json:"ok"`
	Checked  []string `json:"checked" doc:"what was looked at"`
	Problems []string `json:"problems" doc:"what is wrong, after the repair if one was asked for"`
	// Of a repair:
	Found  []string `json:"found,omitempty" doc:"what was wrong before the repair"`
	Mended []string `json:"mended,omitempty" doc:"what the repair did"`
	Saved  string   `json:"metadata_saved,omitempty" doc:"file on the daemon's machine with the metadata before the repair"`
}

// PoolMetadata is a pool's metadata as text, for rescue (docs/formats.md).
type PoolMetadata struct {
	Pool       string `json:"pool"`
	Generation uint64 `json:"generation"`
	Dump       string `json:"dump" doc:"what swapback pool metadata restore reads"`
}

// CreateVolumeRequest describes a new volume.
type CreateVolumeRequest struct {
	Pool       string `json:"pool,omitempty" maxLength:"64" doc:"may be left out when only one pool is open"`
	Name       string `json:"name" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_][A-Za-z0-9._-]*$" patternDescription:"letters, digits, '.', '_' and '-' with a letter, digit or '_' first"`
	Size       int64  `json:"size" minimum:"4096" maximum:"1152921504606846976"`
	Stripes    int    `json:"stripes,omitempty" minimum:"0" maximum:"1024" doc:"members to stripe over; 0 or 1 is linear"`
	StripeSize int64  `json:"stripe_size,omitempty" minimum:"0" maximum:"1073741824" doc:"bytes; default 64 KiB"`
	Zero       bool   `json:"zero,omitempty" doc:"write zeroes over the whole volume"`
	Detached   bool   `json:"detached,omitempty" doc:"do not serve it yet"`
	// Like has the hosts of another volume use this one, too.
	Like string `json:"like,omitempty" maxLength:"129" doc:"a volume that is exported: the new one is exported to the same hosts, on the same terms"`
}

// GrowRequest gives a volume a new size.
type GrowRequest struct {
	Size int64 `json:"size" minimum:"4096" maximum:"1152921504606846976" doc:"new size in bytes, larger than the present one"`
}

// AttachRequest asks for a volume's block device.
type AttachRequest struct {
	ReadOnly bool `json:"read_only,omitempty"`
	Device   *int `json:"device,omitempty" minimum:"0" maximum:"1048575" doc:"wanted N of /dev/ublkbN; default the volume's last one"`
}

// QuarantineRequest labels a volume's position as failed data.
type QuarantineRequest struct {
	Quarantine
	// Generation, when not zero, is the position's generation that the caller
	// saw. The label is refused when it is another one by now.
	Generation uint64 `json:"generation,omitempty"`
}

// DescendsRequest records the backup that a volume's content is equal to.
type DescendsRequest struct {
	Backup     string `json:"backup" minLength:"1" maxLength:"128" pattern:"^\\P{C}*$" patternDescription:"text without control characters"`
	Generation uint64 `json:"generation,omitempty" doc:"expected generation of the position; 0 for any"`
	Cut        string `json:"cut,omitempty" maxLength:"64" doc:"of the snapshot that the backup was read from: the change map counts from the backup then"`
}

// Busy policies of a swap.
const (
	BusyHold   = "hold"   // I/O waits at the gate
	BusyRefuse = "refuse" // I/O is answered EBUSY
)

// SwapRequest asks for the exchange of positions. All pairs change in one
// metadata commit, or none does.
type SwapRequest struct {
	Pairs []SwapPair `json:"pairs" minItems:"1" maxItems:"1024" nullable:"false"`
	Busy  string     `json:"busy,omitempty" enum:"hold,refuse" doc:"what I/O meets while the swap is under way; default hold"`
	// HoldFor bounds a swap before its commit: when it runs out, the swap is
	// called off and held I/O goes on against the old positions.
	HoldFor      float64 `json:"hold_for,omitempty" minimum:"0" maximum:"3600" doc:"seconds; default that of the daemon, 10"`
	AllowHolders bool    `json:"allow_holders,omitempty" doc:"swap although somebody holds a device open"`
	// Released are hosts that may stay connected: the caller answers for it that nothing
	// there uses the volumes, or keeps pages of them, before the swap has ended. A client
	// from afar may name those that it speaks for.
	Released []string `json:"released,omitempty" maxItems:"256" doc:"names (NQN) of hosts that do not count as holders although they are connected: the caller has seen to it that nothing there uses the volumes"`
}

// TransformSchema bounds the names of the hosts.
func (SwapRequest) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	return boundHosts(s, "released")
}

// SwapPair is two volumes of one pool.
type SwapPair struct {
	A       string `json:"a" minLength:"1" maxLength:"129"`
	B       string `json:"b" minLength:"1" maxLength:"129"`
	ExpectA uint64 `json:"expect_a,omitempty" doc:"generation expected of A's position; 0 for any"`
	ExpectB uint64 `json:"expect_b,omitempty" doc:"generation expected of B's position; 0 for any"`
	// Quarantine labels the content that A shows before the swap as failed, in
	// the commit of the swap: it is never under B's name without its label.
	Quarantine *Quarantine `json:"quarantine,omitempty" doc:"label of the content that goes from A to B; B is read-only from its first moment"`
}

// SwapResult tells what a swap did and how long each phase took.
type SwapResult struct {
	Pairs    []SwappedPair `json:"pairs"`
	Busy     string        `json:"busy"`
	Pause    float64       `json:"pause_seconds" doc:"from the volumes being busy to their held I/O being released"`
	Phases   SwapPhases    `json:"phases"`
	Held     uint64        `json:"held" doc:"requests held during the swap"`
	Refused  uint64        `json:"refused" doc:"requests refused during the swap"`
	Coherent bool          `json:"coherent" doc:"page cache and disk were compared after the swap and agree"`
	Started  time.Time     `json:"started"`
	// Warning is set when the swap is committed but something after it is not
	// as it should be, and says what to do.
	Warning string `json:"warning,omitempty"`
}

// SwapPhases are the durations of a swap's phases in seconds.
type SwapPhases struct {
	Preflight float64 `json:"preflight_seconds"`
	Preload   float64 `json:"preload_seconds"`
	Drain     float64 `json:"drain_seconds"`
	Suspend   float64 `json:"suspend_seconds"`
	Commit    float64 `json:"commit_seconds"`
	Resume    float64 `json:"resume_seconds"`
	Verify    float64 `json:"verify_seconds" doc:"dropping and checking caches, after the pause"`
}

// SwappedPair is one pair after its swap.
type SwappedPair struct {
	A           string `json:"a"`
	B           string `json:"b"`
	GenerationA uint64 `json:"generation_a" doc:"generation of the position that A shows now"`
	GenerationB uint64 `json:"generation_b" doc:"generation of the position that B shows now"`
}

// SnapshotRequest asks for one instant of one or more volumes of one pool.
type SnapshotRequest struct {
	Volumes []string `json:"volumes" minItems:"1" nullable:"false" maxItems:"64"`
	COWSize int64    `json:"cow_size,omitempty" minimum:"0" maximum:"1152921504606846976" doc:"bytes for old data per volume; default: the volume's size, at most half of what is free"`
	// ToHosts has the hosts that an exported volume is for see its snapshot, too, as
	// a read-only NVMe namespace.
	ToHosts bool `json:"to_hosts,omitempty" doc:"serve the snapshot of a volume that is exported to the volume's hosts, too"`
}

// Snapshot is an instant of some volumes, readable as block devices. It lives
// as long as the connection that asked for it.
type Snapshot struct {
	Time    time.Time        `json:"time" doc:"the instant"`
	Volumes []SnapshotVolume `json:"volumes"`
}

// SnapshotVolume is one volume in a snapshot.
type SnapshotVolume struct {
	Volume Volume `json:"volume" doc:"the volume as it was at the instant"`
	Device string `json:"device" doc:"read-only block device with the content of the instant"`
	// NamespaceUUID is empty unless it was asked for and the volume is exported. A host
	// sees the namespace some time after the answer.
	NamespaceUUID string  `json:"namespace_uuid,omitempty" doc:"identity of the read-only NVMe namespace that hosts of the volume see the snapshot as"`
	COWSize       int64   `json:"cow_size" doc:"bytes of old data that the snapshot has room for"`
	Changes       Changes `json:"changes" doc:"what has changed since the last backup"`
}

// Changes are what of a volume has changed between a backup and the instant of a
// snapshot.
type Changes struct {
	Base string `json:"base,omitempty" doc:"id of the backup; empty when everything may have changed"`
	Why  string `json:"why,omitempty" doc:"why there is no base"`
	Cut  string `json:"cut,omitempty" doc:"name it when the backup of this snapshot is recorded, and the next changes are those since it"`
	// BlockSize is the unit of the bitmap in bytes, a power of two.
	BlockSize int64 `json:"block_size,omitempty"`
	// Bitmap has a bit for each block, from the lowest bit of the first byte on,
	// compressed with zstd. Ranges reads it.
	Bitmap []byte `json:"bitmap,omitempty" doc:"a bit for each block that has changed, the lowest bit of the first byte first; zstd"`
}

// Holder is somebody who uses a block device.
type Holder struct {
	Kind    string `json:"kind" enum:"mount,swap,device,process,loop,exclusive,nvme"`
	Device  string `json:"device"`
	PID     int    `json:"pid,omitempty"`
	Command string `json:"command,omitempty"`
	Detail  string `json:"detail" doc:"mount point, holding device, open path, or connected host"`
	Host    string `json:"host,omitempty" doc:"name (NQN) of a connected host"`
}

func (h Holder) String() string { return h.Detail }
