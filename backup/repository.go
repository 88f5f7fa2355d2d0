package backup

import (
	"context"
	"errors"
)

// Repository is an open repository. Its methods may be called concurrently, also
// by several processes.
type Repository struct{ id, location string }

var errNotYet = errors.New("not built yet")

// Init makes a repository at location, a path or file:// URL. The folder may be
// there already when it is empty.
func Init(ctx context.Context, location string, o InitOptions) (*Repository, error) {
	return nil, errNotYet
}

// Open opens the repository at location, a path or file:// URL.
func Open(ctx context.Context, location string) (*Repository, error) { return nil, errNotYet }

// ID is the repository's UUID.
func (r *Repository) ID() string { return r.id }

// Location is where the repository lies.
func (r *Repository) Location() string { return r.location }

// Create takes one backup of all sources. When it returns an error there is no
// backup.
func (r *Repository) Create(ctx context.Context, sources []Source, o CreateOptions) (Backup, error) {
	return Backup{}, errNotYet
}

// List returns all backups, oldest first.
func (r *Repository) List(ctx context.Context) ([]Backup, error) { return nil, errNotYet }

// Get finds a backup by its id, a unique beginning of it or of its part after
// the dash, or "latest".
func (r *Repository) Get(ctx context.Context, id string) (Backup, error) { return Backup{}, errNotYet }

// Latest returns the newest backup that holds the volume.
func (r *Repository) Latest(ctx context.Context, volumeUUID string) (Backup, error) {
	return Backup{}, errNotYet
}

// Restore brings a volume of a backup back onto a device or file.
func (r *Repository) Restore(ctx context.Context, o RestoreOptions) (RestoreResult, error) {
	return RestoreResult{}, errNotYet
}

// Delete removes a backup and the packs that nothing else needs.
func (r *Repository) Delete(ctx context.Context, id string) (PruneReport, error) {
	return PruneReport{}, errNotYet
}

// Prune removes packs that no backup needs, such as a crashed backup left.
func (r *Repository) Prune(ctx context.Context) (PruneReport, error) { return PruneReport{}, errNotYet }

// Verify reads backups back, all of them when no id is given.
func (r *Repository) Verify(ctx context.Context, o VerifyOptions, ids ...string) (VerifyReport, error) {
	return VerifyReport{}, errNotYet
}
