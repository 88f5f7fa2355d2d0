package dmswap

import (
	"context"
	"errors"
	"log/slog"
	"sync"
)

var errStub = errors.New("not built yet")

// CreateOptions describe a new pool.
type CreateOptions struct {
	Name string
	// Disks are the block devices that become members, in this order.
	Disks []string
	// ExtentSize in bytes, a power of two from 64 KiB to 1 GiB; 0 is 4 MiB.
	ExtentSize int64
	// Force overwrites what the disks carry. Disks in use are refused anyway.
	Force  bool
	Logger *slog.Logger
}

// OpenOptions name the disks of a pool.
type OpenOptions struct {
	// Disks are all members of one pool, in any order.
	Disks  []string
	Logger *slog.Logger
}

// ScanOptions say where to look for pools.
type ScanOptions struct {
	// Disks are looked at when there are any; else all block devices of the
	// machine.
	Disks  []string
	Logger *slog.Logger
}

// FoundPool is a pool whose labels were found.
type FoundPool struct {
	Name     string // "" when the label can't be read
	UUID     UUID
	Disks    []string // with a label of this pool
	Members  int      // how many disks it should have
	Missing  []int    // indexes of members that were not found
	Problems []string // what keeps it from being opened
}

// Create makes a pool of blank disks and opens it.
func Create(ctx context.Context, opt CreateOptions) (*Pool, error) { return nil, errStub }

// Open opens a pool and makes the kernel's tables agree with its metadata.
func Open(ctx context.Context, opt OpenOptions) (*Pool, error) { return nil, errStub }

// Scan looks for labels of pools.
func Scan(ctx context.Context, opt ScanOptions) ([]FoundPool, error) { return nil, errStub }

// Pool is an open pool. It is safe for concurrent use.
type Pool struct{ mu sync.Mutex }

// Close ends the use of the pool by this process; its devices stay.
func (p *Pool) Close() error { return errStub }

// Deactivate removes the volumes' devices from the kernel. The pool stays open.
func (p *Pool) Deactivate(ctx context.Context) error { return errStub }

// Destroy removes the volumes' devices, wipes the labels and closes the pool.
func (p *Pool) Destroy(ctx context.Context) error { return errStub }

// Info describes the pool.
func (p *Pool) Info() PoolInfo { return PoolInfo{} }

// Volumes lists the volumes by name.
func (p *Pool) Volumes() []VolumeInfo { return nil }

// Volume finds a volume by name or UUID.
func (p *Pool) Volume(ref string) (VolumeInfo, error) { return VolumeInfo{}, errStub }

// CreateVolume makes a volume.
func (p *Pool) CreateVolume(ctx context.Context, spec VolumeSpec) (VolumeInfo, error) {
	return VolumeInfo{}, errStub
}

// GrowVolume gives a volume a larger size in bytes.
func (p *Pool) GrowVolume(ctx context.Context, ref string, size int64) (VolumeInfo, error) {
	return VolumeInfo{}, errStub
}

// DeleteVolume removes a volume that nobody has open.
func (p *Pool) DeleteVolume(ctx context.Context, ref string) error { return errStub }

// SetVolume changes attributes of a volume.
func (p *Pool) SetVolume(ctx context.Context, ref string, set func(*VolumeAttrs)) error {
	return errStub
}

// SetPosition changes attributes of the position behind a volume.
func (p *Pool) SetPosition(ctx context.Context, ref string, set func(*PositionAttrs)) error {
	return errStub
}

// PrepareSwap checks a swap and preloads its tables.
func (p *Pool) PrepareSwap(ctx context.Context, pairs []SwapPair) (*Swap, error) {
	return nil, errStub
}

// Swap is a prepared swap.
type Swap struct{ mu sync.Mutex }

// Execute exchanges the positions.
func (s *Swap) Execute(ctx context.Context) error { return errStub }

// Abort gives the swap up; after Execute it does nothing.
func (s *Swap) Abort(ctx context.Context) error { return errStub }

// Timing tells how long the phases took.
func (s *Swap) Timing() SwapTiming { return SwapTiming{} }

// OpenSnapshot takes a snapshot of a volume.
func (p *Pool) OpenSnapshot(ctx context.Context, ref string, opt SnapshotOptions) (*Snapshot, error) {
	return nil, errStub
}

// OpenSnapshots takes a snapshot of several volumes at one instant.
func (p *Pool) OpenSnapshots(ctx context.Context, refs []string, opt SnapshotOptions) ([]*Snapshot, error) {
	return nil, errStub
}

// Snapshot is an open snapshot.
type Snapshot struct{ mu sync.Mutex }

// Device is the snapshot's read-only block device, /dev/dm-N.
func (s *Snapshot) Device() string { return "" }

// COWSize is how many bytes of old data the snapshot can keep.
func (s *Snapshot) COWSize() int64 { return 0 }

// Status tells how full the snapshot is.
func (s *Snapshot) Status(ctx context.Context) (SnapshotStatus, error) {
	return SnapshotStatus{}, errStub
}

// Close ends the snapshot.
func (s *Snapshot) Close(ctx context.Context) error { return errStub }

// Check compares labels, metadata and kernel tables. It changes nothing.
func (p *Pool) Check(ctx context.Context) (Report, error) { return Report{}, errStub }
