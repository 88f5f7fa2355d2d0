package api

import "context"

// Service does what the API promises. Methods are safe for concurrent use,
// honour their context while they wait, and return an [*Error] wherever a
// caller can do something about it. A volume is named by NAME, when only one
// pool has such a volume, by POOL/NAME or by UUID.
//
// A method that changes something has changed all of it when it returns nil
// and nothing when it returns an error, unless the error says otherwise.
type Service interface {
	Info(ctx context.Context) (Info, error)

	Pools(ctx context.Context) ([]Pool, error)
	Pool(ctx context.Context, pool string) (Pool, error)
	CreatePool(ctx context.Context, req CreatePoolRequest) (Pool, error)
	// DeletePool wipes the labels of a pool without volumes, or of any pool
	// whose volumes nobody holds when force is set.
	DeletePool(ctx context.Context, pool string, force bool) error
	// CheckPool compares metadata, kernel tables and devices. It changes nothing.
	CheckPool(ctx context.Context, pool string) (CheckReport, error)
	// RepairPool checks and mends what needs no decision, after saving the old
	// metadata to a file.
	RepairPool(ctx context.Context, pool string) (CheckReport, error)
	// RejoinPool looks for members that are missing or failed and takes them
	// back, and opens a pool that was found and could not be opened.
	RejoinPool(ctx context.Context, pool string) (Pool, error)
	// PoolMetadata returns the committed metadata.
	PoolMetadata(ctx context.Context, pool string) (PoolMetadata, error)

	// Volumes lists the volumes of one pool, or of all when pool is empty.
	Volumes(ctx context.Context, pool string) ([]Volume, error)
	Volume(ctx context.Context, volume string) (Volume, error)
	CreateVolume(ctx context.Context, req CreateVolumeRequest) (Volume, error)
	// DeleteVolume frees the extents of a volume that nobody holds.
	// A volume in quarantine is evidence: deleting it needs force.
	DeleteVolume(ctx context.Context, volume string, force bool) error
	GrowVolume(ctx context.Context, volume string, size int64) (Volume, error)
	Attach(ctx context.Context, volume string, req AttachRequest) (Volume, error)
	// Detach removes the block device of a volume that nobody holds.
	Detach(ctx context.Context, volume string) (Volume, error)
	Quarantine(ctx context.Context, volume string, req QuarantineRequest) (Volume, error)
	// ReleaseQuarantine takes the label away; the volume is writable again.
	ReleaseQuarantine(ctx context.Context, volume string) (Volume, error)
	SetDescendsFrom(ctx context.Context, volume string, req DescendsRequest) (Volume, error)
	// Holders names everybody who holds the volume's block device.
	Holders(ctx context.Context, volume string) ([]Holder, error)

	// Exports lists the volumes that other hosts may use, Export shows one, with who is
	// connected.
	Exports(ctx context.Context) ([]Export, error)
	Export(ctx context.Context, volume string) (Export, error)
	// CreateExport lets other hosts use a volume, from now on and after a restart, too.
	CreateExport(ctx context.Context, volume string, req ExportRequest) (Export, error)
	ChangeExport(ctx context.Context, volume string, req ChangeExportRequest) (Export, error)
	// DeleteExport lets nobody use it any more. While hosts are connected it needs force.
	DeleteExport(ctx context.Context, volume string, force bool) error

	Swap(ctx context.Context, req SwapRequest) (SwapResult, error)

	// OpenSnapshot takes an instant. The caller ends it with the function that
	// comes back, exactly once.
	OpenSnapshot(ctx context.Context, req SnapshotRequest) (Snapshot, func(context.Context) error, error)
}
