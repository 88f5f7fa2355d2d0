package backup

import (
	"log/slog"
	"time"
)

// VolumeRef says which volume, and which content of it, was backed up.
type VolumeRef struct {
	Pool string `json:"pool,omitempty"`
	Name string `json:"name"`
	UUID string `json:"uuid,omitempty"`
	// Size in bytes. A source may leave it 0, then the device's size counts.
	Size int64 `json:"size"`
	// Generation and PositionID name the position behind the volume at the
	// backup's instant.
	Generation uint64 `json:"generation,omitempty"`
	PositionID string `json:"position_id,omitempty"`
}

// Source is a volume to back up and where to read it: a snapshot's device, or a
// file. What Path shows must not change while it is read.
type Source struct {
	Volume VolumeRef
	Path   string
	// Changes, when not nil, says what may differ from an earlier backup.
	Changes *Changes

	from origin // instead of what is at Path
}

// Changes says which bytes of a source may differ from what a backup holds.
type Changes struct {
	Base   string  // full ID of the backup; empty: nothing is known, and Why says why
	Why    string  // for people
	Ranges []Range // in order, not overlapping, within the volume; everything else is as in Base

	// image names the volume in Base that was compared, by who knows its content and
	// need not go by what the volume is called.
	image string
}

// Backup is a point-in-time image of one or more volumes.
type Backup struct {
	ID string `json:"id"`
	// Created is the instant that the backup shows.
	Created time.Time      `json:"created"`
	Volumes []BackupVolume `json:"volumes"`
	Comment string         `json:"comment,omitempty"`
	Tags    []string       `json:"tags,omitempty"`
	Job     string         `json:"job,omitempty"`
	Step    string         `json:"step,omitempty"`
	// CopiedFrom is the backup that this one is a copy of, the first of all when it
	// was copied several times.
	CopiedFrom *CopyOf `json:"copied_from,omitempty"`
	// Seconds is how long the backup took to write.
	Seconds float64 `json:"seconds,omitempty"`
	// Damaged says why the manifest can't be read. Only [Repository.List]
	// returns such entries; they have an ID and nothing else.
	Damaged string `json:"damaged,omitempty"`
}

// Size is the sum of the volumes' sizes in bytes.
func (b Backup) Size() int64 { return b.sum(func(v BackupVolume) int64 { return v.Size }) }

// StoredBytes is what the backup added to the repository, in bytes.
func (b Backup) StoredBytes() int64 {
	return b.sum(func(v BackupVolume) int64 { return v.StoredBytes })
}

func (b Backup) sum(f func(BackupVolume) int64) (n int64) {
	for _, v := range b.Volumes {
		n += f(v)
	}
	return n
}

// BackupVolume is the image of one volume in a backup. All counts are bytes of
// the volume, except StoredBytes. DataBytes + ZeroBytes = Size.
type BackupVolume struct {
	VolumeRef
	ChunkSize   int64 `json:"chunk_size"`
	DataBytes   int64 `json:"data_bytes"`   // in chunks that are not all zero
	ZeroBytes   int64 `json:"zero_bytes"`   // in chunks that are all zero
	ReusedBytes int64 `json:"reused_bytes"` // of DataBytes: found in the repository
	StoredBytes int64 `json:"stored_bytes"` // added to packs, compressed, with table
	// Base is the ID of the backup that this one was made against. It need not be
	// there any more: an image has all that it needs. Empty for a full one.
	Base string `json:"base,omitempty"`
	// FullBecause says why the backup is a full one although it was to be made
	// against another. Empty for an incremental one, and when nobody asked for one.
	FullBecause string `json:"full_because,omitempty"`
	// ReadBytes is what was read of the volume, and ChangedBytes what of that was
	// in chunks that differ from Base's. Both are whole chunks, and 0 in the
	// manifests of earlier versions; without a base nothing is known of changes.
	ReadBytes    int64 `json:"read_bytes,omitempty"`
	ChangedBytes int64 `json:"changed_bytes,omitempty"`
	Table        Table `json:"table"`
}

// Table names the root of a volume's block table. Hash is the name of the root
// node by its content; it stands for the whole table and so for every byte of the volume.
type Table struct {
	Hash   string `json:"hash,omitempty"` // hex; empty when the volume is all zero
	Pack   string `json:"pack,omitempty"` // hex
	Offset uint32 `json:"offset,omitempty"`
	Stored uint32 `json:"stored,omitempty"` // bytes of payload in the pack
	Length uint32 `json:"length,omitempty"` // bytes of the node
	Codec  string `json:"codec,omitempty"`  // "raw" or "zstd"
	Seal   string `json:"seal,omitempty"`   // "aes-256-gcm", or empty
}

// InitOptions describes a new repository.
type InitOptions struct {
	// ChunkSize in bytes, a power of two between 64 KiB and 16 MiB.
	// Default 1 MiB.
	ChunkSize int64
	// Secret and Recipients encrypt the repository: whoever has the passphrase of
	// one, or the identity of one of the age recipients ("age1…"), opens it. The
	// identities of Secret are not used. Without any nothing is encrypted.
	Secret     Secret
	Recipients []string
	Logger     *slog.Logger
}

// Reuse says when a chunk that an earlier backup stored is used again.
type Reuse int

const (
	// ReuseSampled uses a stored chunk again when its pack is whole, lists the
	// chunk, and the sampled chunks of that pack match their hashes.
	ReuseSampled Reuse = iota
	// ReuseVerified reads every chunk back before it is used again.
	ReuseVerified
	// ReuseNone stores everything anew.
	ReuseNone
)

// CreateOptions describes a backup.
type CreateOptions struct {
	// At is the instant that the sources show. Default now.
	At      time.Time
	Comment string
	Tags    []string
	Job     string
	Step    string
	Reuse   Reuse
	// Full reads all of every source, whatever its Changes say.
	Full bool
	// VerifyUnchanged reads all of every source and compares what its Changes call
	// unchanged with their base, by hash: the check on whoever keeps them. The
	// backup is made from what was read, so it is right whatever comes out, and it
	// is kept: throwing it away would leave an earlier one, made from the same
	// kind of list, as the newest. What was missed is a [MissedError] beside it.
	VerifyUnchanged bool
	// Parallel is the number of workers that read, hash and compress. Default
	// the number of CPUs plus two, at most 16, and less when chunks are so large
	// that their memory would be more than 256 MiB.
	Parallel int
	// Limit is how many bytes may be read in a second; 0 is no limit.
	Limit int64
	// FullSpeed reads as fast as it goes, also while others need the disks that
	// the sources lie on. Default is to give way, see package pace.
	FullSpeed bool
	// Progress is called from one goroutine at a time, at most four times a
	// second and once at the end. It must not block for long.
	Progress func(Progress)
	Logger   *slog.Logger

	copiedFrom *CopyOf // of a copy
}

// RestoreOptions says what to restore where.
type RestoreOptions struct {
	// Backup is an id, a unique beginning of one, or "latest".
	Backup string
	// Volume is the name, POOL/NAME or UUID of a volume in the backup. It may
	// be left empty when the backup has only one.
	Volume string
	// Target is a block device or file of the volume's size.
	Target string
	// CreateTarget makes Target a new file. What is there already is refused with
	// [ErrExists]. Zeroes become holes.
	CreateTarget bool
	// Delta reads the target and writes only what differs from the backup: a chunk
	// stays when its hash says that it is the backup's, zeroes when they are there.
	// Nothing else is taken for granted. It is also how an interrupted restore goes
	// on.
	Delta bool
	// AllowLarger accepts a larger target; the rest of it is zeroed.
	AllowLarger bool
	// Held says that the caller holds the block device exclusively already, so
	// that Restore does not claim it.
	Held bool
	// Ready, if not nil, is called when the target is open and, unless Held, held
	// exclusively, before the first write. Its error ends the restore.
	Ready func() error
	// StopAtDamage ends the restore at the first damaged chunk instead of
	// restoring everything else.
	StopAtDamage bool
	// VerifyAfter reads the target back, past the page cache, and compares
	// every chunk with its hash.
	VerifyAfter bool
	// Parallel is the number of workers that read and decode; see [CreateOptions].
	// From a repository in S3 the default is 16. Whatever is asked for, fewer are
	// taken when their buffers would be more than 192 MiB together.
	Parallel int
	Progress func(Progress)
	Logger   *slog.Logger
}

// RestoreResult tells what a restore did. It is filled as far as the restore
// came, also when it failed; the target holds the volume only when the error
// was nil. DataBytes, ZeroBytes, UnchangedBytes and MissingBytes are together the
// volume's size in the end.
type RestoreResult struct {
	Backup    string    `json:"backup"` // full id
	Created   time.Time `json:"created"`
	Volume    VolumeRef `json:"volume"`
	Target    string    `json:"target"`
	DataBytes int64     `json:"data_bytes"` // written from chunks
	ZeroBytes int64     `json:"zero_bytes"` // zeroed
	// UnchangedBytes are those of the target that Delta found to be right.
	UnchangedBytes int64 `json:"unchanged_bytes"`
	ReadBytes      int64 `json:"read_bytes"` // read from the repository
	Verified       bool  `json:"verified"`   // read back and compared
	// Incomplete says that the restore ended half-way, after it had begun to
	// write: the target is partly what it was and partly the backup. To go on
	// from there restore again with Delta.
	Incomplete bool    `json:"incomplete,omitempty"`
	Seconds    float64 `json:"seconds"`
	// VerifySeconds is the part of Seconds that reading back took.
	VerifySeconds float64 `json:"verify_seconds,omitempty"`
	// MissingBytes are damaged in the repository, and Bad says where. Of very
	// much damage Bad gives the whereabouts only: what is good between two damaged
	// ranges may be in there, and was restored.
	MissingBytes int64      `json:"missing_bytes,omitempty"`
	Bad          []BadRange `json:"bad,omitempty"`
}

// BadRange is a run of bytes of a volume that could not be read back.
type BadRange struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Object string `json:"object"` // object of the repository that is damaged, or the target
	Reason string `json:"reason"`
}

// VerifyOptions says how to verify.
type VerifyOptions struct {
	// StructureOnly checks manifests, tables and packs' directories, and reads
	// no chunk.
	StructureOnly bool
	// Sample is the share of the chunks to read, above 0 and at most 1; 0 means 1:
	// all. Manifests, tables and directories are always read.
	Sample float64
	// Seed chooses which chunks are in a sample, always the same for the same
	// seed. Runs with the seeds n, n+1 and so on read one part after the other,
	// until 1/Sample of them have read everything that was there all the time.
	Seed     uint64
	Parallel int
	Progress func(Progress)
	Logger   *slog.Logger
}

// VerifyReport is the outcome of a verification.
type VerifyReport struct {
	Backups int `json:"backups"`
	// Chunks counts the distinct chunks that the backups have, as far as their
	// tables can be read, and ChunksRead those of them that were read; ChunkBytes
	// and BytesRead are their bytes in volumes.
	Chunks     int64 `json:"chunks"`
	ChunksRead int64 `json:"chunks_read"`
	ChunkBytes int64 `json:"chunk_bytes"`
	BytesRead  int64 `json:"bytes_read"`
	// Nodes counts the distinct table nodes, which are all read.
	Nodes int64 `json:"nodes"`
	Bytes int64 `json:"bytes"` // of volumes that these stand for
	// Sample and Seed are those of the options, when chunks were left out.
	Sample  float64         `json:"sample,omitempty"`
	Seed    uint64          `json:"seed,omitempty"`
	Damage  []*DamagedError `json:"damage,omitempty"`
	Other   []string        `json:"other,omitempty"` // objects that can't be read at all
	Seconds float64         `json:"seconds"`
}

// PruneOptions says how to prune. The zero value removes whole packs only.
type PruneOptions struct {
	// Repack writes what backups need of packs to new ones, so that no more than
	// MaxUnused of all bytes, between 0 and 1, are needed by nobody.
	Repack    bool
	MaxUnused float64
	// DryRun only tells what would be done. What crashed writers left in the middle
	// of an object is not told.
	DryRun bool
	Logger *slog.Logger
}

// PruneReport tells what a removal freed.
type PruneReport struct {
	Packs   int   `json:"packs"`   // removed
	Bytes   int64 `json:"bytes"`   // freed
	Waiting int   `json:"waiting"` // packs kept because an operation is running
	Leases  int   `json:"leases"`  // operations running now
	// Repacked counts packs whose blobs moved to new ones, of Moved bytes; they are
	// among those that were removed or wait.
	Repacked int   `json:"repacked,omitempty"`
	Moved    int64 `json:"moved,omitempty"`
	// Unused is what nobody needs of packs that stay. Only a prune that repacks, or
	// is a dry run, knows it.
	Unused int64 `json:"unused,omitempty"`
	DryRun bool  `json:"dry_run,omitempty"`
}

// Phases of [Progress].
const (
	PhaseBackup  = "backup"
	PhaseRestore = "restore"
	PhaseVerify  = "verify"
	PhaseCopy    = "copy"
)

// Progress is how far an operation has come. Counts are bytes.
type Progress struct {
	Phase     string        `json:"phase"`
	Done      int64         `json:"done"`
	Total     int64         `json:"total"`
	Stored    int64         `json:"stored"`    // written to (backup) or read from (restore) the repository
	Zero      int64         `json:"zero"`      // of Done: in chunks that are all zero
	Reused    int64         `json:"reused"`    // of Done: in chunks that were there already
	Changed   int64         `json:"changed"`   // of Done: in chunks that are not what the base has; without one, that are new
	Rate      float64       `json:"rate"`      // bytes of Done per second, smoothed
	Remaining time.Duration `json:"remaining"` // nanoseconds; 0 when not known yet
}
