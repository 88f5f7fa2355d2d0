// Package dmswap keeps pools: member disks that share one set of metadata, the
// extents on them, the volumes made of extents, and the swap of two volumes'
// positions in one atomic step.
//
// A volume is a name. What it shows is its position: a list of extents. The
// kernel's device-mapper maps the one onto the other, and the metadata on the
// members says how. The committed metadata is the truth; the tables in the
// kernel are made to agree with it whenever a pool is opened. A swap therefore
// is one metadata commit between suspending and resuming the volumes' devices,
// and a crash at any instant leaves the old world or the new one.
//
// # Devices
//
// Every volume has a device-mapper device swapback-POOL-VOLUME with the UUID
// SWAPBACK-<pool>-<volume>. While a snapshot is open there are three more, with
// the endings -real, -cow and -snap. They stay when the pool is closed or the
// process dies, and the next Open takes them over. The package uses /dev/dm-N
// and needs no udev.
//
// # Disks
//
// A pool takes an exclusive flock(2) on every member for as long as it is open,
// so that no second process opens it; udev, by its own convention, does not
// probe a disk that is locked so.
//
// # Locks
//
// Pool.mu guards the metadata and the claims on volumes. A change holds it through
// its commit, but lets readers in while the commit waits for disks ([poolLock]). It is
// never held while a device is suspended or resumed on behalf of a
// volume. An operation first claims its volumes (under mu), then works on their
// devices without mu, and takes mu again for the commit. A commit may wait for a
// disk that hangs, for as long as it does: what can be refused takes mu by TryLock,
// and a claim is given back without waiting for a change. Snapshot.mu is taken
// before Pool.mu, Swap.mu too; nothing takes them the other way round.
package dmswap
