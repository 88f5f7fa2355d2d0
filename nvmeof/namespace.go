package nvmeof

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/reserve"
	"github.com/swapback/swapback/nvmeof/wire"
)

// NamespaceConfig is what a namespace is made of. Its identity belongs to the name
// that it stands for, not to the content behind it: give it the same one each time.
type NamespaceConfig struct {
	ID      uint32 // NSID; 0: the lowest that is free
	Backend *Backend
	UUID    [16]byte // one of UUID, NGUID and EUI64 at least
	NGUID   [16]byte
	EUI64   [8]byte
	// ANAGroup is the group whose state the namespace shares (1).
	ANAGroup uint32
	ReadOnly bool
	Changes  Changes // nil: nobody wants to know
	// Failed hears of every request that the backend has answered with an error, from all
	// queues at once; it must not wait. nil: nobody does.
	Failed func(Failure)
	// Reservations of the disk, the same for every namespace that it is served as;
	// nil: hosts cannot reserve it. Whoever serves it elsewhere, too, has to ask it there.
	Reservations *reserve.Disk
}

// Failure is a request that the backend has answered with an error.
type Failure struct {
	Op             Op
	Offset, Length uint64 // bytes; a flush has none
	Errno          unix.Errno
}

// Changes hears of every write, discard and write-zeroes before it is carried out.
type Changes interface {
	// Touch is told of n bytes at off, of which there may be some behind the end. It says
	// yes, or no with an errno that the command fails with, or, with 0, not yet: then it
	// wakes w when it is worth asking again, and the command waits for that. It is called
	// from all queues at once, again for what it has said yes to, and must not wait.
	Touch(off, n uint64, w Waker) (yes bool, no unix.Errno)
}

// Waker is who waits for a [Changes]. Wake may be called at any time, and does not wait.
type Waker interface{ Wake() }

// Namespace is a disk of a subsystem. All methods may be called from any
// goroutine.
type Namespace struct {
	id      uint32
	name    string // for messages
	subsys  *Subsystem
	backend *Backend
	config  NamespaceConfig
	shift   uint8 // log2 of the block size
	size    atomic.Uint64
	changes atomic.Pointer[Changes]
	gate    gate
	total   counters // of queues that have gone; guarded by gate.mu
}

func newNamespace(s *Subsystem, cfg NamespaceConfig) *Namespace {
	n := &Namespace{
		id: cfg.ID, subsys: s, backend: cfg.Backend, config: cfg,
		name: fmt.Sprintf("namespace %d of %s", cfg.ID, s.config.NQN),
	}
	n.gate.attached, n.gate.changed = map[*attachment]struct{}{}, make(chan struct{}, 1)
	for n.blockSize() < uint64(cfg.Backend.limits.LogicalBlockSize) {
		n.shift++
	}
	n.size.Store(cfg.Backend.limits.Size)
	if cfg.Changes != nil {
		n.changes.Store(&cfg.Changes)
	}
	if cfg.ReadOnly || cfg.Backend.limits.ReadOnly {
		n.gate.word.Store(gateReadOnly)
	}
	return n
}

// ID is its NSID.
func (n *Namespace) ID() uint32 { return n.id }

// Size in bytes.
func (n *Namespace) Size() uint64 { return n.size.Load() }

func (n *Namespace) blockSize() uint64 { return 1 << n.shift }

// Hold closes the gate: from now on commands are kept, unanswered, until Release
// or Refuse; one that has waited for Options.HoldFor is answered as Refuse does.
// Hold does not wait; Drain does.
func (n *Namespace) Hold() { n.gate.setState(gateHold) }

// Refuse closes the gate: commands, also those held, are answered with Namespace
// Not Ready, and that they may be tried again after the first of
// Options.RetryDelays. Linux tries five times.
func (n *Namespace) Refuse() { n.gate.setState(gateRefuse) }

// Release opens the gate: every queue carries out what it holds, in the order it
// came.
func (n *Namespace) Release() { n.gate.setState(gateServe) }

// Drain waits, with the gate closed, until no command is in flight at the backend
// on any queue; it stays so until Release. ErrGateOpen if the gate is open or is
// opened meanwhile.
func (n *Namespace) Drain(ctx context.Context) error { return n.gate.drain(ctx, n.name) }

// SetReadOnly makes writes, discards and write-zeroes fail; reads and flushes go
// on. Hosts are told, and look again. It takes no notice of what is in flight:
// hold and drain first where that matters.
func (n *Namespace) SetReadOnly(on bool) {
	n.gate.setBit(gateReadOnly, on || n.backend.limits.ReadOnly)
	n.subsys.namespaceChanged(n.id)
}

// ReadOnly tells whether writes fail.
func (n *Namespace) ReadOnly() bool { return n.gate.word.Load()&gateReadOnly != 0 }

// SetChanges has writes told to c from now on; nil: to nobody. Hold and drain first
// where it matters to which of two a write is told.
func (n *Namespace) SetChanges(c Changes) {
	if c == nil {
		n.changes.Store(nil)
		return
	}
	n.changes.Store(&c)
}

// Resize changes the size in bytes, and tells the hosts. The backend must have
// it, and it must be whole blocks. Shrinking is the caller's responsibility.
func (n *Namespace) Resize(size uint64) error {
	if size == 0 || size%n.blockSize() != 0 {
		return fmt.Errorf("nvmeof: resizing %s to %d bytes: not a positive multiple of its %d-byte blocks", n.name, size, n.blockSize())
	}
	if n.backend.file != nil {
		have, err := n.backend.Size()
		if err != nil {
			return err
		}
		if size > have {
			return fmt.Errorf("nvmeof: resizing %s to %d bytes: backend %s has only %d", n.name, size, n.backend.name, have)
		}
	}
	if n.size.Swap(size) != size {
		n.subsys.namespaceChanged(n.id)
	}
	return nil
}

// Stats reads the counters.
func (n *Namespace) Stats() (s Stats) {
	n.gate.mu.Lock()
	defer n.gate.mu.Unlock()
	n.total.addTo(&s)
	for a := range n.gate.attached {
		a.counters.addTo(&s)
		s.InFlight += uint64(a.inFlight.Load())
	}
	s.Queues = len(n.gate.attached)
	return s
}

// identify is CNS 00h.
func (n *Namespace) identify() wire.IdentifyNamespace {
	l := &n.backend.limits
	blocks := n.size.Load() >> n.shift
	page := wire.IdentifyNamespace{
		Size: blocks, Capacity: blocks, Used: blocks, NMIC: wire.NMICShared, ANAGroup: n.config.ANAGroup,
		NGUID: n.config.NGUID, EUI64: n.config.EUI64, BlockShift: n.shift,
		Features: wire.NSFEATOptimal,
		NPWG:     uint16(l.PhysicalBlockSize>>n.shift) - 1,
		NPWA:     uint16(l.PhysicalBlockSize>>n.shift) - 1,
	}
	if l.OptimalIOSize > 0 {
		page.NOWS = uint16(min(max(l.OptimalIOSize>>n.shift, 1)-1, 0xffff))
	}
	if l.Discard {
		page.Features |= wire.NSFEATThin
		page.NPDG, page.NPDA = page.NPWG, page.NPWA
	}
	if n.config.Reservations != nil {
		page.RESCAP = wire.RescapAll | wire.RescapIEKEY13
		if n.config.Reservations.Persists() {
			page.RESCAP |= wire.RescapPersist
		}
	}
	if n.ReadOnly() {
		page.Attributes = wire.NSATTRReadOnly
	}
	return page
}

// common is CNS 08h.
func (n *Namespace) common() wire.NamespaceCommon {
	page := n.identify()
	return wire.NamespaceCommon{NMIC: page.NMIC, RESCAP: page.RESCAP, ANAGroup: page.ANAGroup, Attributes: page.Attributes, State: 1}
}

func (n *Namespace) descriptors() wire.NamespaceID {
	return wire.NamespaceID{EUI64: n.config.EUI64, NGUID: n.config.NGUID, UUID: n.config.UUID}
}

// statusOf is what a host gets to see of an errno. Only what will be no better when
// it is tried again says so: a host that is told not to retry gives the disk up.
func statusOf(op Op, e unix.Errno) wire.Status {
	switch e {
	case 0:
		return wire.Success
	case unix.EBUSY, unix.EAGAIN:
		return wire.NamespaceNotReady.WithDelay(1)
	case unix.ENOSPC, unix.EDQUOT:
		return wire.CapacityExceeded | wire.DNR
	case unix.EROFS, unix.EPERM, unix.EACCES:
		return wire.NamespaceProtected | wire.DNR
	case unix.EOPNOTSUPP:
		return wire.InvalidOpcode | wire.DNR
	case unix.EINVAL:
		return wire.InvalidField | wire.DNR
	case unix.EIO, unix.ENODATA, unix.EILSEQ:
		if op == OpRead {
			return wire.UnrecoveredRead
		}
		return wire.WriteFault
	}
	return wire.InternalError
}
