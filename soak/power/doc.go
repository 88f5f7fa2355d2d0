// Package power cuts the power of a pool's disks at thousands of moments and
// looks at what a machine that comes up again finds.
//
// The real daemon runs under load on disks whose writes are logged by
// dm-log-writes, below volumes, metadata and filesystems alike. The log is then
// replayed: up to each chosen entry what was flushed or written with FUA is on
// the disk, and of the rest nothing, all, or any blocks by chance. The pool is
// opened on that, by the library and now and then by the whole daemon, and has to
// show one of the two worlds of the operation that was under way, and every write
// that was acknowledged as durable. A pool is made and deleted on such disks, too,
// and then its power is cut around every write to a label or header.
//
// The tests need the machine of `make test-vm`. SOAK_SEED, SOAK_POINTS and
// SOAK_ROUNDS make them longer.
package power
