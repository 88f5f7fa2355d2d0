// Package ublk serves block devices from user space through the kernel's
// ublk_drv: /dev/ublkbN appears, and its requests reach a file, a block device,
// or Go code. It knows nothing of what the devices are for.
//
// # Ownership
//
// Start adds a device and Adopt takes one over; whoever called them ends it with
// Stop (the device is deleted) or Abandon (it waits in the kernel for a
// successor), and closes the Backend after that. Killing the process is an
// Abandon without notice. A Control may be shared by all devices of a process,
// and outlives them; a device that was given none has its own.
//
// # The way of one request
//
// One goroutine per hardware queue is locked to its thread for life, because
// the driver takes a commit only from the task that fetched, and runs on the
// processors that submit to the queue. It owns one ring, which carries the
// driver's commands, the backend's I/O, and a read from an eventfd by which
// others wake it. Each turn is one io_uring_enter: it submits what the last turn
// prepared and waits for at least one completion.
//
// How data and results travel is the device's [DataPath]:
//
//	copy       one FETCH or COMMIT_AND_FETCH per tag; the driver copies between
//	           the client's pages and a buffer of the tag
//	zero-copy  the same commands; the driver puts the client's pages into the
//	           tag's slot of the ring's buffer table (AUTO_BUF_REG), and the
//	           backend reads or writes them
//	batch      zero copy; one multishot command delivers lists of tags, and one
//	           command per turn answers all that are done (BATCH_IO)
//
//	driver fills the tag's descriptor
//	  -> completion of a fetch: decode, gate, change map, prepare the backend operation
//	  -> completion of that: short? ask for the rest. Else prepare the answer
//	  -> driver answers the client
//
// Where the driver cannot put the pages into the table it says so in the
// descriptor; the queue then does it by a command before the backend operation
// and one after it. A request larger than the backend takes (Limits.MaxIOSize) is
// cut into pieces that go out together.
//
// Nothing on this way allocates, locks, waits for another thread or logs. With
// zero copy a device takes a few pages per queue. The copy path has one buffer of
// MaxIOBytes per tag, mapped memory and not heap, registered with the ring:
// Queues*Depth*MaxIOBytes bytes of pinned memory (8 MiB per queue by default).
//
//	read          READ_FIXED
//	write         WRITE_FIXED; with RWF_DSYNC when the request has FUA
//	flush         FSYNC with DATASYNC
//	discard       BLOCK_URING_CMD_DISCARD (6.12), on files a hole
//	write-zeroes  FALLOCATE: PUNCH_HOLE, then ZERO_RANGE; with NOUNMAP only the latter
//
// The last three run on worker threads of io_uring where they may block.
//
// A Handler is called on the queue's thread instead, and so is an AsyncHandler,
// which may answer later: its answers come over a list with a lock of its own, and
// the queue is woken for the first of them.
//
// # The gate
//
// A change map may have a guard, which has to make a change durable before it is
// written. The first write to a granule of such a map is set aside until the guard
// lets it pass: it is neither held by the gate nor in flight, and a Drain does not
// wait for it. The guard may take a lock for a moment.
//
// Each device has a gate that its queues look at once per turn. Hold keeps
// requests of every kind (flushes and discards, too) without answering them,
// Refuse answers them and those held with EBUSY, Release issues what is held in
// the order it came. These return at once; Drain waits, behind a closed gate,
// until every queue has acknowledged it and nothing is in flight at the backend.
// The comment on type gate says why nothing can slip through.
//
// A held request blocks its client in the kernel without a time limit, and with
// it, when it is a read of the partition scan that follows START_DEV, everybody
// who opens the device. Closing the gate for as long as a swap takes is what it
// is for.
//
// # Errors
//
// Every request is answered: a short result is completed or becomes EIO, as does
// whatever reaches past the end of a block device that has become shorter; EAGAIN
// and EINTR from the backend are tried again, a panic becomes EIO. Clients that
// bypass the page cache see EBUSY, EIO, ENOSPC, ENOMEM, ETIMEDOUT, ENODEV,
// EINVAL, EREMOTEIO, ENOLINK, EILSEQ and ENODATA as they are, and EIO for the
// rest; the others see EIO. The block layer retries none of them. EAGAIN and
// EOPNOTSUPP are never committed for a read or write: on kernel 7.3 a client that
// uses io_uring would wait for ever.
//
// # The death of a server
//
// Devices are added with USER_RECOVERY and USER_RECOVERY_REISSUE: when the server
// goes, by kill -9 or Abandon, the driver quiesces the device, keeps its requests
// and gives those that were not answered to the successor again. The backend may
// thus see a write twice. The char device is registered with each queue's ring,
// which the kernel takes down only when the backend I/O in it has landed, and
// recovery cannot start before: an old write does not land after a new one.
//
// The driver notices by the FETCH commands that the death cancels. With every
// tag of every queue in flight there is none, and kernel 6.12 needs up to 31
// seconds; 7.3 does not wait.
//
// A queue that can't go on (its ring breaks, the driver refuses a command of one
// tag) says so in the log and has all queues end as Abandon does: with them the
// char device is closed, which makes the driver give the unanswered requests to a
// successor. Until then they would wait beside queues that serve. Done is closed,
// and Err says why.
//
// A device of Options.EndWithServer has none of this: the driver removes its disk,
// fails its requests with EIO, and keeps a dead entry for the number.
//
// STOP_DEV fails what is in the page cache of the device; sync first. Teardown
// keeps to this order: STOP_DEV, serve until every tag was aborted, end the queue
// threads, close rings and mappings and the char device, DEL_DEV_ASYNC, wait until
// the number is free. onOwnThread says why no ring is closed before its thread has
// ended.
//
// # Memory and deadlock
//
// A thread that serves block I/O must not wait for block I/O of its own device,
// and in Go one thread's page fault can stop the others. Queue and control
// threads are marked with PR_SET_IO_FLUSHER; ReexecIOFlusher does it for the
// whole process. Do not put swap, logs or the program itself on devices that it
// serves.
//
// # Locks
//
// Device.ending (Stop, Abandon) before Device.waking; Device.drain alone;
// gate.mu innermost. The queues take none, but for those of a [Guard]; one that
// fails takes gate.mu and Device.waking, one after the other. A guard wakes queues,
// which takes Device.waking, without its own locks.
//
// # Go's scheduler
//
// A thread that blocks in a system call keeps its processor (its share of
// GOMAXPROCS) until the runtime's monitor takes it away, for which the monitor
// wakes up every 20 µs; and getting one back costs locks. A program that calls
// ReserveProcs gives busy queues processors of their own: they wait without
// telling the scheduler, and go back to the ordinary way when a wait lasts.
//
// # Kernels
//
// 6.12 is the oldest that is tested. Newer features are negotiated by
// GET_FEATURES; what a kernel lacks comes back as ErrUnsupported with the version
// that has it (Resize: 6.16; zero copy: 6.16; batch: 7.0).
package ublk
