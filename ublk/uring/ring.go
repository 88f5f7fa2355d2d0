// Package uring is io_uring on raw system calls: rings, registered files and
// buffers, and the few operations that a block server submits. It knows
// nothing of ublk.
//
// A Ring belongs to one goroutine at a time. With SetupSingleIssuer it belongs
// to one thread: create it on a goroutine that called runtime.LockOSThread, and
// never use it from another. Only Close may be called from elsewhere, once
// nobody uses the ring any more.
//
// Memory ordering (io_uring(7)): the kernel reads an entry after it saw the
// submission tail, so the tail is stored after the entry is filled; a completion
// is read after loading the completion tail, and its place is given back by
// storing the head, once per Enter. Go's sync/atomic is at least as strong as the acquire and
// release that this needs.
//
// Nothing in this package allocates after New, except the Register calls.
package uring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrTimeout is returned by EnterTimeout when the time passed first.
var ErrTimeout = errors.New("uring: timed out")

// Ring is one io_uring instance.
type Ring struct {
	fd int
	// What Enter names the ring by: its descriptor, or after RegisterSelf its
	// number with the thread.
	enterFD, enterFlags uintptr
	flags               SetupFlags
	features            uint32

	sqMem, cqMem, sqeMem []byte // mappings; cqMem is nil when shared with sqMem

	sqHead, sqTail *uint32 // shared with the kernel
	sqMask         uint32
	sqEntries      uint32
	sqeShift       uint // log2 of the size of one entry
	localTail      uint32

	cqHead, cqTail *uint32
	cqMask         uint32
	cqEntries      uint32
	cqes           unsafe.Pointer
	localHead      uint32 // completions taken; the kernel hears of it in publish
	seenTail       uint32 // cqTail when it was last loaded
	cqOverflow     *uint32

	// Arguments of EnterTimeout. They hold addresses as numbers, so they must
	// not lie on a stack, which can move.
	timeout    unix.Timespec
	timeoutArg getEventsArg
}

// New sets up a ring with room for entries submissions (rounded up to a power
// of two) and twice as many completions. The flags are taken as they are; see
// NewQueue for one that steps back on older kernels.
func New(entries uint32, flags SetupFlags) (*Ring, error) {
	return newRing(entries, 0, flags)
}

func newRing(entries, completions uint32, flags SetupFlags) (*Ring, error) {
	p := params{Flags: uint32(flags | SetupClamp)}
	if completions > 2*entries {
		p.Flags |= uint32(SetupCQSize)
		p.CQEntries = completions
	}
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if e != 0 {
		return nil, fmt.Errorf("uring: setting up a ring of %d entries with flags %#x: %w%s", entries, flags, e, setupHint(e))
	}
	r := &Ring{fd: int(fd), enterFD: fd, flags: flags, features: p.Features}
	unix.CloseOnExec(r.fd)
	if p.Features&featNoDrop == 0 || p.Features&featExtArg == 0 {
		r.Close()
		return nil, fmt.Errorf("uring: this kernel's io_uring is too old (features %#x): need 5.11", p.Features)
	}
	if err := r.mmap(&p); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// NewQueue sets up a ring for a thread that submits and reaps by itself:
// cooperative, single issuer, task work deferred until it waits. Kernels that
// lack a flag get a ring without it. It has room for that many completions, if
// that is more than New would give, and at most 65536. Call it on the locked
// thread.
func NewQueue(entries, completions uint32) (*Ring, error) {
	tries := []SetupFlags{
		SetupSubmitAll | SetupCoopTaskrun | SetupSingleIssuer | SetupDeferTaskrun | SetupNoSQArray,
		SetupSubmitAll | SetupCoopTaskrun | SetupSingleIssuer | SetupDeferTaskrun,
		SetupSubmitAll | SetupCoopTaskrun,
		0,
	}
	var err error
	for _, flags := range tries {
		var r *Ring
		if r, err = newRing(entries, completions, flags); err == nil {
			return r, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return nil, err
}

func setupHint(e unix.Errno) string {
	switch e {
	case unix.EPERM:
		return " (remedy: sysctl kernel.io_uring_disabled=0)"
	case unix.ENOSYS:
		return " (this kernel has no io_uring)"
	}
	return ""
}

func (r *Ring) mmap(p *params) error {
	mapRing := func(what string, off int64, size uint32) ([]byte, error) {
		m, err := unix.Mmap(r.fd, off, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return nil, fmt.Errorf("uring: mapping the %s: %w", what, err)
		}
		return m, nil
	}
	noArray := SetupFlags(p.Flags)&SetupNoSQArray != 0
	sqSize := p.SQOff.Array + p.SQEntries*4 // without an array, its offset is 0
	cqSize := p.CQOff.CQEs + p.CQEntries*uint32(unsafe.Sizeof(CQE{}))
	single := p.Features&featSingleMmap != 0
	if single {
		sqSize = max(sqSize, cqSize)
	}
	var err error
	if r.sqMem, err = mapRing("submission ring", offSQRing, sqSize); err != nil {
		return err
	}
	cq := r.sqMem
	if !single {
		if r.cqMem, err = mapRing("completion ring", offCQRing, cqSize); err != nil {
			return err
		}
		cq = r.cqMem
	}
	r.sqeShift = 6
	if SetupFlags(p.Flags)&SetupSQE128 != 0 {
		r.sqeShift = 7
	}
	if r.sqeMem, err = mapRing("submission entries", offSQEs, p.SQEntries<<r.sqeShift); err != nil {
		return err
	}

	r.sqHead = word(r.sqMem, p.SQOff.Head)
	r.sqTail = word(r.sqMem, p.SQOff.Tail)
	r.sqMask = *word(r.sqMem, p.SQOff.RingMask)
	r.sqEntries = p.SQEntries
	r.localTail = *r.sqTail
	if !noArray {
		// The index array is filled once: entry i is always at place i.
		array := unsafe.Slice(word(r.sqMem, p.SQOff.Array), p.SQEntries)
		for i := range array {
			array[i] = uint32(i)
		}
	}

	r.cqHead = word(cq, p.CQOff.Head)
	r.cqTail = word(cq, p.CQOff.Tail)
	r.cqMask = *word(cq, p.CQOff.RingMask)
	r.cqEntries = p.CQEntries
	r.cqOverflow = word(cq, p.CQOff.Overflow)
	r.cqes = unsafe.Pointer(&cq[p.CQOff.CQEs])
	r.localHead = *r.cqHead
	r.seenTail = r.localHead
	return nil
}

func word(mem []byte, off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&mem[off])) }

// FD is the ring's descriptor, the target of a MsgRing.
func (r *Ring) FD() int { return r.fd }

// Flags are those that the ring was set up with.
func (r *Ring) Flags() SetupFlags { return r.flags }

// Entries is how many submissions fit.
func (r *Ring) Entries() int { return int(r.sqEntries) }

// CQEntries is how many completions fit.
func (r *Ring) CQEntries() int { return int(r.cqEntries) }

// Space is how many entries NextSQE can still give out before an Enter.
func (r *Ring) Space() int {
	return int(r.sqEntries - (r.localTail - atomic.LoadUint32(r.sqHead)))
}

// NextSQE gives out the next free entry, cleared, or nil when the ring is full.
// It is submitted by the next Enter.
func (r *Ring) NextSQE() *SQE {
	p := r.next()
	if p == nil {
		return nil
	}
	s := (*SQE)(p)
	*s = SQE{}
	return s
}

// NextSQE128 is NextSQE for a ring set up with SetupSQE128.
func (r *Ring) NextSQE128() *SQE128 {
	if r.sqeShift != 7 {
		return nil
	}
	p := r.next()
	if p == nil {
		return nil
	}
	s := (*SQE128)(p)
	*s = SQE128{}
	return s
}

// next does not publish the entry: the tail that the kernel sees moves in
// publish, when every entry given out has been filled.
func (r *Ring) next() unsafe.Pointer {
	if r.localTail-atomic.LoadUint32(r.sqHead) >= r.sqEntries {
		return nil
	}
	i := r.localTail & r.sqMask
	r.localTail++
	return unsafe.Pointer(&r.sqeMem[i<<r.sqeShift])
}

// publish gives back the places of the completions taken, makes the filled
// entries visible and returns how many the kernel has not taken yet.
func (r *Ring) publish() uint32 {
	atomic.StoreUint32(r.cqHead, r.localHead)
	atomic.StoreUint32(r.sqTail, r.localTail)
	return r.localTail - atomic.LoadUint32(r.sqHead)
}

// Enter submits everything prepared and waits until at least wait completions
// are there. It returns after one system call: a partial submission or EINTR is
// no error, the caller's loop comes round again. Deferred task work runs even
// with wait 0.
func (r *Ring) Enter(wait uint32) error {
	n := r.publish()
	_, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, r.enterFD, uintptr(n), uintptr(wait), enterGetEvents|r.enterFlags, 0, 0)
	return enterError(e)
}

// EnterRaw is Enter without telling Go's scheduler: while it waits, the thread
// keeps its processor (GOMAXPROCS counts them), and what is saved is two calls
// into the scheduler per turn, and its monitor, which otherwise looks at such a
// thread every 20 µs. It is for waits that are expected to be short. The runtime
// still can stop the world: it interrupts the thread by a signal, and so it does
// when the wait takes longer than 10 ms; EnterRaw then returns. (Not with
// GODEBUG=asyncpreemptoff=1: don't use it then.)
func (r *Ring) EnterRaw(wait uint32) error {
	n := r.publish()
	_, _, e := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, r.enterFD, uintptr(n), uintptr(wait), enterGetEvents|r.enterFlags, 0, 0)
	return enterError(e)
}

// EnterTimeout is Enter that waits no longer than d, then ErrTimeout.
func (r *Ring) EnterTimeout(wait uint32, d time.Duration) error {
	n := r.publish()
	r.timeout = unix.NsecToTimespec(int64(d))
	r.timeoutArg = getEventsArg{TS: uint64(uintptr(unsafe.Pointer(&r.timeout)))}
	_, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, r.enterFD, uintptr(n), uintptr(wait),
		enterGetEvents|enterExtArg|r.enterFlags, uintptr(unsafe.Pointer(&r.timeoutArg)), unsafe.Sizeof(r.timeoutArg))
	if e == unix.ETIME {
		return ErrTimeout
	}
	return enterError(e)
}

// enterError sorts out what io_uring_enter(2) answers. EAGAIN and EBUSY ask to
// reap completions first, which the caller's loop does anyway.
func enterError(e unix.Errno) error {
	switch e {
	case 0, unix.EINTR, unix.EAGAIN, unix.EBUSY:
		return nil
	}
	return enterErrno(e)
}

// enterErrno is split off so that the path without errors does not allocate.
//
//go:noinline
func enterErrno(e unix.Errno) error { return fmt.Errorf("uring: io_uring_enter: %w", e) }

// Peek looks at the oldest completion without taking it; nil when there is
// none. It stays valid until Advance.
func (r *Ring) Peek() *CQE {
	if r.localHead == r.seenTail {
		if r.seenTail = atomic.LoadUint32(r.cqTail); r.localHead == r.seenTail {
			return nil
		}
	}
	return (*CQE)(unsafe.Add(r.cqes, uintptr(r.localHead&r.cqMask)*unsafe.Sizeof(CQE{})))
}

// Advance takes the completion that Peek showed. The kernel may use its place
// again from the next Enter on.
func (r *Ring) Advance() { r.localHead++ }

// Overflows counts completions that the kernel could not place. With a ring
// sized for everything in flight it stays 0.
func (r *Ring) Overflows() uint32 { return atomic.LoadUint32(r.cqOverflow) }

// Close unmaps and closes the ring. The kernel cancels what is in flight, and
// drops the registered files and buffers, some time later by itself: memory in
// flight must outlive its operations, not only this call.
func (r *Ring) Close() error {
	var first error
	for _, m := range []*[]byte{&r.sqeMem, &r.cqMem, &r.sqMem} {
		if *m != nil {
			if err := unix.Munmap(*m); err != nil && first == nil {
				first = fmt.Errorf("uring: unmapping: %w", err)
			}
			*m = nil
		}
	}
	if r.fd >= 0 {
		if err := unix.Close(r.fd); err != nil && first == nil {
			first = fmt.Errorf("uring: closing: %w", err)
		}
		r.fd = -1
	}
	return first
}
