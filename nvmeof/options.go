package nvmeof

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Options of a Target. The zero value is usable: every field that is 0 gets the
// default in its comment.
type Options struct {
	// Logger hears of connections and controllers that come, go and fail; nil:
	// nobody does.
	Logger *slog.Logger

	// MaxConnections are open at once; more are closed as soon as they are
	// accepted (1024).
	MaxConnections int
	// MaxControllers a subsystem has at once, of all hosts (256).
	MaxControllers int
	// MaxQueues is how many I/O queues a controller gives its host (16).
	MaxQueues int
	// QueueDepth is how many commands an I/O queue has room for (128, at most
	// 1024). With MaxData it bounds the memory of a queue.
	QueueDepth int
	// MaxData is how many bytes a command may carry: a power of two from 4096
	// (128 KiB). Each I/O queue reserves QueueDepth times as much address space,
	// and takes as much of it as its commands have filled.
	MaxData int
	// MaxMemory is how much address space the I/O queues of all hosts reserve
	// together; a queue that is too much is told to try again (4 GiB).
	MaxMemory int64
	// InCapsule is how many bytes of a write may come along with the command, at
	// most MaxData; a write that is larger waits for its turn (16 KiB).
	InCapsule int

	// Handshake is how long a connection may take to become a queue (10 s).
	Handshake time.Duration
	// Patience is how long a peer may take to send the rest of a PDU, or to take
	// what it is sent, before it is given up (30 s).
	Patience time.Duration
	// HoldFor is how long a command may wait at a closed gate before it is
	// answered with a status that the host retries (20 s). Linux gives commands
	// up after 30 s.
	HoldFor time.Duration
	// RetryDelays are those that a host may be asked to wait for. The first goes
	// with every refused command (100 ms, 10 s, 0: none). In steps of 100 ms.
	RetryDelays [3]time.Duration
	// ANATransition is how long a host may find a namespace in transition before it
	// resets the controller, in whole seconds up to 255 (30 s).
	ANATransition time.Duration

	// Incomplete tells whether subsystems may still come that are not there yet. While it
	// does, a host that asks for one that is not there is not told to give up. It is called
	// by many goroutines and must not wait. nil: there are always all.
	Incomplete func() bool

	// NoRing has files served by system calls that wait, one at a time on each
	// queue, even where io_uring is there. It is for machines where rings are
	// many, but little memory may be locked, and for tests.
	NoRing bool

	ringAlways bool // in tests: also without files
}

// maxAdminCapsule is what hosts send along with an admin or Fabrics command,
// whatever IOCCSZ says (Linux: NVME_TCP_ADMIN_CCSZ).
const maxAdminCapsule = 8192

// adminDepth is how many commands an admin queue has room for.
const adminDepth = 32

func (o Options) withDefaults() Options {
	number := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	span := func(v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	number(&o.MaxConnections, 1024)
	number(&o.MaxControllers, 256)
	number(&o.MaxQueues, 16)
	number(&o.QueueDepth, 128)
	number(&o.MaxData, 128<<10)
	if o.MaxMemory == 0 {
		o.MaxMemory = 4 << 30
	}
	number(&o.InCapsule, min(16<<10, o.MaxData))
	span(&o.Handshake, 10*time.Second)
	span(&o.Patience, 30*time.Second)
	span(&o.HoldFor, 20*time.Second)
	span(&o.ANATransition, 30*time.Second)
	if o.RetryDelays == [3]time.Duration{} {
		o.RetryDelays = [3]time.Duration{100 * time.Millisecond, 10 * time.Second}
	}
	return o
}

func (o Options) validate() error {
	switch {
	case o.MaxConnections < 1 || o.MaxControllers < 1 || o.MaxControllers > 0xfff0:
		return errors.New("nvmeof: a target needs room for connections, and for 1 to 65520 controllers")
	case o.MaxQueues < 1 || o.MaxQueues > 0xfffe:
		return fmt.Errorf("nvmeof: %d queues for a controller: want 1 to 65534", o.MaxQueues)
	case o.QueueDepth < 2 || o.QueueDepth > 1024:
		return fmt.Errorf("nvmeof: queues of %d commands: want 2 to 1024", o.QueueDepth)
	case o.MaxData < 4096 || o.MaxData&(o.MaxData-1) != 0 || o.MaxData > 1<<20:
		return fmt.Errorf("nvmeof: commands of %d bytes: want a power of two from 4 KiB to 1 MiB", o.MaxData)
	case o.MaxMemory < 0:
		return errors.New("nvmeof: a negative limit of memory")
	case o.InCapsule < 0 || o.InCapsule > o.MaxData || o.InCapsule%16 != 0:
		return fmt.Errorf("nvmeof: %d bytes in a capsule: want a multiple of 16 up to %d", o.InCapsule, o.MaxData)
	case o.Handshake < 0 || o.Patience < 0 || o.HoldFor < 0:
		return errors.New("nvmeof: a negative time limit")
	case o.ANATransition < time.Second || o.ANATransition > 255*time.Second:
		return fmt.Errorf("nvmeof: a transition of %v: want 1 s to 255 s", o.ANATransition)
	}
	for _, d := range o.RetryDelays {
		if d < 0 || d > 6553500*time.Millisecond {
			return fmt.Errorf("nvmeof: a retry delay of %v: want up to 6553.5 s", d)
		}
	}
	return nil
}
