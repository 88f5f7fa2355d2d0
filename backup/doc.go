// Package backup keeps point-in-time images of volumes in a repository.
//
// A repository is a set of objects in a folder or in an S3 bucket:
//
//	config               what this repository is: version, id, chunk size, hash
//	packs/AA/ID          chunks and table nodes, 32 MiB or so to an object
//	backups/ID           one manifest per backup, written last
//	interrupted/ID       what a backup left that did not get to its end
//	leases/ID            one per running operation, held open while it runs
//	gc/pending           packs that wait for running operations before removal
//
// # The way of a backup
//
// Workers read chunks in device order with O_DIRECT, skip those that are all
// zero, hash the rest and compress what can be compressed. One goroutine
// appends the results to packs in device order and keeps each volume's block
// table, a tree whose nodes go to packs as well. When every pack is durable the
// manifest is written, and only then does the backup exist: a crash before
// leaves packs that no manifest names, which [Repository.Prune] removes.
//
// A source may come with Changes: what may differ from an earlier backup, its base.
// Then only that is read, and the entries of the base's table are taken over for
// everything else, whole subtrees at once. Time, memory and requests follow what
// changed and not the size of the volume. See base.go for what has to be proved of
// the base; without that the backup is a full one, and says why.
//
// Every backup carries its whole table. Restoring never walks a chain of
// backups, and deleting one never breaks another; backups share chunks and
// nodes by naming the same place in the same pack.
//
// # The way of a restore
//
// One goroutine walks the table and makes tasks of it, a few MiB each, in the order
// of the volume. Workers read what the packs have of them, a run of neighbours by
// one read, decrypt, decompress and compare with the hash. What they have goes to
// the target in the order of its bytes, at most writeAhead tasks at once, past the
// page cache. A worker waits for its turn with what it has in its hands, so nothing
// piles up. With Delta it looks first what the target has, and fetches only chunks
// whose hash is another.
//
// An [Image] reads a volume of a backup at random without restoring it: see
// image.go, and image_ahead.go for what is fetched before it is asked for.
//
// # Rules
//
//   - Existence is not validity. A chunk of an earlier backup is used again
//     only when its pack is whole, lists the chunk, and a sample of it read back
//     matches its hash.
//   - Nothing read from a repository is believed: every object carries its
//     length and a CRC32C, every chunk is compared with the hash in the table,
//     and no length in an object makes a reader allocate more than the chunk
//     size or write outside the target.
//   - Removal goes by references and leases, never by clocks. See gc.go.
//   - Packs never change. What is damaged, or lies between what nobody needs, is
//     written to new packs, and manifests are exchanged. See moving.go.
//
// The formats are drawn in internal/format and in docs/formats.md.
package backup
