// Package hostagent is what a host does with the volumes it is served: it takes
// backups of them, restores, and recovers a volume whose content went bad. The
// daemon gives a snapshot to read and a second volume to write; the repository
// is this side's.
//
// # A recovery
//
//  1. choose: the volumes, the backup, and for each volume an unused one of the
//     same pool and size. Everything that can be refused is refused here.
//  2. restore the backup onto the unused volumes.
//  3. swap: one request with all pairs, which names the generations that were
//     seen at 1, so a volume that somebody swapped meanwhile is left alone.
//  4. quarantine the failed data, which the unused volume's name shows now.
//
// Up to the swap the volumes are not touched in any way. A recovery that fails
// before it deletes the spares that it created.
//
// # Unused volumes
//
// A recovery overwrites a volume, so it never guesses. A volume is unused when
//
//   - this recovery has created it, or
//   - the caller names it ([RecoverOptions.Onto], --onto, "spare:" in a job), or
//   - it is called NAME-spare or NAME-spare… after the volume NAME to recover,
//     is neither in quarantine nor read-only, and nobody holds it.
//
// The last rule makes "swapback volume release db-spare" mean: the evidence has
// been looked at and may be overwritten.
//
// # Packages
//
// Package job reads job files; package step runs one command and stops all it
// leaves behind; package mount mounts; package story writes the log; package
// runner puts them together to a job with save points and recoveries.
package hostagent
