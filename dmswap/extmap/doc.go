// Package extmap keeps the durable half of the change map: one bit per extent of
// a member disk, on that disk. A bit is set, and on the disk, before anything is
// written to its extent; it says nothing of who owns the extent. So it is with the
// content: a swap of two positions needs no change here, and a disk that is
// carried to another machine takes its bits along.
//
// A bit may be set though nothing was written. It is never clear though something
// was: what can't be read counts as set.
//
// # Locks
//
// Map.mu guards all of a Map and is never held over I/O. Callbacks are called
// without it.
package extmap
