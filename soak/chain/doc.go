// Package chain makes a long chain of incremental backups of a volume under load,
// kills the daemon, the backup program and the agent in between, and restores every
// one of them.
//
// What a backup has to hold is read from its snapshot, all of it, while the backup
// stands still: neither the change map nor the backup has a part in that.
//
// The tests need the machine of `make test-vm`. SOAK_CHAIN is the number of
// backups, SOAK_SEED what is killed when.
package chain
