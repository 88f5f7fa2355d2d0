// Package changes keeps the change map of one position: which blocks were written
// since the backup that it counts from.
//
// The map has two halves. The fine one has a bit per block of 64 KiB and lies in
// a file in memory (tmpfs): it outlives the daemon, and ends with the machine. The
// coarse one has a bit per extent and lies on the disks themselves (package
// extmap): it outlives both, and is what the fine one is made of anew when that is
// gone, by whole extents.
//
// # Order
//
//   - The first write to a granule (an extent of each stripe) since the last cut
//     waits until its coarse bit is on the disks; the fine bit is set after that,
//     and the write is issued after that. So a fine bit that is set promises the
//     coarse one, and nobody has to ask again.
//   - A backup cuts the map: while no write is in flight, what was marked goes to
//     the frozen half of the file, the active half begins anew, and a snapshot is
//     taken. Frozen and active together are what has changed since the base.
//   - When the backup is complete it is recorded with the position as the new base.
//     That commit flushes the caches of all members, so what the snapshot showed is
//     on the disks. Only then the frozen half is dropped, and the coarse bits of
//     granules that were not written since the cut are taken back.
//
// A crash between any two of these leaves more marked than has changed.
//
// # Locks
//
// Map.recording is taken before Map.mu, and held over commits of the metadata;
// mu is held for moments. The locks of the coarse map come below mu.
package changes
