package ublk

import (
	"fmt"
	"log/slog"
	"math"
	"runtime"
)

// Defaults of Options and the bounds that Start enforces.
const (
	DefaultDepth      = 64
	DefaultMaxIOBytes = 1 << 20   // with zero copy
	DefaultCopyBytes  = 128 << 10 // where each tag pins a buffer of that size
	MaxDepth          = 4096      // UBLK_MAX_QUEUE_DEPTH
	MaxQueues         = 4096      // UBLK_MAX_NR_QUEUES
	minIOBytes        = 4096
	maxIOBytes        = 32 << 20 // UBLK_IO_BUF_BITS
)

// Options say how a device is served. The zero value of a field means its
// default, except ID, where -1 means any number.
type Options struct {
	// ID is the wanted device number: N of /dev/ublkbN. Start: -1 for any.
	// Adopt: the device to take over.
	ID int
	// Queues is the number of hardware queues, each served by one goroutine
	// locked to its thread. 0: as many as CPUs, at most 4. Adopt takes the
	// device's own number.
	Queues int
	// Depth is the number of requests per queue, 0: 64. Adopt takes the
	// device's own.
	Depth int
	// Size in bytes; 0: the backend's.
	Size uint64
	// ReadOnly makes the block device itself read-only (UBLK_ATTR_READ_ONLY):
	// the kernel then refuses writes before they reach the server. It cannot be
	// changed on a running device; SetReadOnly can.
	ReadOnly bool
	// Reserved is what may not be done from the first request on, see SetReserved.
	Reserved Reserved
	// NoPartitionScan asks the kernel not to look for partitions when the
	// device starts (kernel 7.0; ignored on older ones).
	NoPartitionScan bool
	// EndWithServer has the kernel remove the block device when its server ends
	// without Stop, however it does, and fail what is asked of it with EIO. Without
	// it the device waits for a successor, and so do its clients. What is left then
	// is a number, of a device that is StateDead, until somebody calls
	// Control.Delete. It can't be adopted, nor abandoned.
	EndWithServer bool
	// Tag is an opaque number kept with the device by the kernel
	// (ublksrv_flags). Adopt refuses a device whose tag differs, unless 0.
	Tag uint64
	// MaxIOBytes is the largest request, a power of two. On the copy path every
	// tag of every queue owns one buffer of this size, pinned:
	// Queues*Depth*MaxIOBytes bytes. 0: 1 MiB with zero copy, else 128 KiB.
	// Adopt takes the device's own.
	MaxIOBytes int
	// DataPath says how data and results travel; Device.Info.Flags.DataPath
	// tells which way it became. Adopt takes the device's own.
	DataPath DataPath
	// ChangeMap has every write, discard and write-zeroes recorded, from the first
	// on; nil: none. Device.SetChangeMap replaces it.
	ChangeMap *ChangeMap
	// Failed hears of every request that the backend has answered with an error,
	// in a goroutine of the device's own; nil: nobody does. It may take its time:
	// failures that find the list full are only counted, and missed says how many
	// there were since the last call. It is not called once Done is closed.
	Failed func(f Failure, missed uint64)
	// Ungated leaves the gate out of the queues, to measure what it costs: Hold,
	// Refuse, SetReadOnly and Abandon then have no effect. For benchmarks only.
	Ungated bool
	// unregistrable has the driver fail to register pages, to test what follows.
	unregistrable bool
	// Control runs the commands. nil: the device opens one for itself and
	// closes it at its end.
	Control *Control
	// Logger hears of life-cycle events, never of single requests. nil: none.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Queues == 0 {
		o.Queues = min(runtime.NumCPU(), 4)
	}
	if o.Depth == 0 {
		o.Depth = DefaultDepth
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	switch {
	case o.ID < -1 || o.ID > math.MaxInt32:
		return fmt.Errorf("ublk: device number %d is not valid (-1 means any)", o.ID)
	case o.Queues < 1 || o.Queues > MaxQueues:
		return fmt.Errorf("ublk: %d queues: want 1 to %d", o.Queues, MaxQueues)
	case o.Depth < 1 || o.Depth > MaxDepth:
		return fmt.Errorf("ublk: depth %d: want 1 to %d", o.Depth, MaxDepth)
	case o.MaxIOBytes == 0: // depends on the data path
	case o.MaxIOBytes < minIOBytes || o.MaxIOBytes > maxIOBytes || o.MaxIOBytes&(o.MaxIOBytes-1) != 0:
		return fmt.Errorf("ublk: MaxIOBytes %d: want a power of two from %d to %d", o.MaxIOBytes, minIOBytes, maxIOBytes)
	}
	return nil
}
