package ublk

import (
	"fmt"
	"os"
	"unsafe"

	"github.com/swapback/swapback/ublk/uring"
	"golang.org/x/sys/unix"
)

// setup builds the ring on the queue's own thread and gives the driver all tags.
func (q *queue) setup() error {
	// Refused without CAP_SYS_RESOURCE, and only a help then.
	_ = SetIOFlusher()
	if q.cpus.Count() > 0 {
		// Where the requests come from, caches are warm. A cpuset that forbids
		// it has the last word.
		_ = unix.SchedSetaffinity(0, &q.cpus)
	}
	page := os.Getpagesize()
	var err error
	q.descMem, err = unix.Mmap(q.charFD, descOffset(q.id, page), descLength(q.depth, page),
		unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("mapping the I/O descriptors: %w", err)
	}
	q.descs = unsafe.Slice((*ioDesc)(unsafe.Pointer(&q.descMem[0])), q.depth)
	return q.setupRing()
}

// setupRing makes the ring and what requests need in it.
func (q *queue) setupRing() error {
	// Most requests take one entry at a time. For the others see entry.
	var err error
	if q.ring, err = uring.NewQueue(uint32(q.depth)+4, q.completions()); err != nil {
		return err
	}
	// Saves a little per turn; without, the ring goes by its descriptor.
	_ = q.ring.RegisterSelf()
	files := []int32{fileChar: int32(q.charFD), fileBackend: -1, fileWake: int32(q.wakeFD)}
	if q.backend.file != nil {
		files[fileBackend] = int32(q.backend.file.Fd())
	}
	if err := q.ring.RegisterFiles(files); err != nil {
		return err
	}
	if q.path == DataPathCopy {
		err = q.makeBuffers()
	} else if err = q.ring.RegisterSparseBuffers(q.depth); err == nil {
		q.registered = true
	}
	if err != nil {
		return err
	}
	q.armWake()
	if q.path == DataPathBatch {
		if err := q.startBatch(); err != nil {
			return err
		}
	} else {
		for tag := range q.depth {
			q.command(uint16(tag), ioFetchReq, 0)
		}
		q.live = q.depth
	}
	if err := q.ring.Enter(0); err != nil {
		return err
	}
	if n := q.ring.Entries() - q.ring.Space(); n != 0 {
		return fmt.Errorf("the ring did not take %d of its commands", n)
	}
	return nil
}

// completions is how many can be there at once. A tag has one for each piece of
// its request, or two when its pages have to be registered by hand; the lists of a
// batch and the wake come on top.
func (q *queue) completions() uint32 {
	pieces := 1
	if q.maxPiece > 0 {
		pieces = int((uint64(q.ioBytes) + q.maxPiece - 1) / q.maxPiece)
	}
	return uint32(q.depth*max(pieces, 2) + fetchBuffers + 4)
}

// makeBuffers maps the copy path's buffers, one per tag.
func (q *queue) makeBuffers() error {
	var err error
	// Not heap: the garbage collector must not own memory that the kernel
	// writes to, and touching it must not depend on the runtime.
	q.mem, err = unix.Mmap(-1, 0, q.depth*q.ioBytes,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("reserving %d I/O buffers of %d bytes: %w", q.depth, q.ioBytes, err)
	}
	_ = unix.Madvise(q.mem, unix.MADV_HUGEPAGE)
	// Best effort, and without touching the pages: swapping these out could go
	// to the very device that they serve.
	_, _, _ = unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(&q.mem[0])), uintptr(len(q.mem)), unix.MLOCK_ONFAULT)
	if q.backend.file != nil {
		q.registerBuffers()
	}
	return nil
}

// registerBuffers pins the buffers for reads and writes through the ring. Where
// that is not permitted (RLIMIT_MEMLOCK without CAP_IPC_LOCK) plain reads and
// writes do the same more slowly.
func (q *queue) registerBuffers() {
	bufs := make([][]byte, q.depth)
	for tag := range bufs {
		bufs[tag] = q.buffer(uint16(tag))
	}
	if err := q.ring.RegisterBuffers(bufs); err != nil {
		q.log.Warn("ublk I/O buffers are not registered; requests will be slower", "queue", q.id, "error", err)
		return
	}
	q.registered = true
}

func (q *queue) buffer(tag uint16) []byte {
	start := int(tag) * q.ioBytes
	return q.mem[start : start+q.ioBytes : start+q.ioBytes]
}

// bufferAddr is where a request's data lies: in the tag's buffer, or with zero
// copy in the request's own pages, which are addressed by offset.
func (q *queue) bufferAddr(tag uint16) uintptr {
	if q.mem == nil {
		return 0
	}
	return uintptr(unsafe.Pointer(&q.mem[int(tag)*q.ioBytes]))
}
