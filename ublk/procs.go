package ublk

import (
	"os"
	"runtime"
	"strings"
	"sync/atomic"
)

// spareProcs counts the processors of Go's scheduler that queues may keep while
// they wait; see ReserveProcs.
var spareProcs atomic.Int32

// ReserveProcs adds n processors to GOMAXPROCS, for queues to keep while they
// wait for the next request of a busy device: a queue then need not tell the
// scheduler of every wait. A queue that has waited for longer than about 10 ms
// gives its processor back, and those that find none left wait as Go programs
// ordinarily do. Call it at the start of a program that serves devices; as many
// as there are CPUs is a good n. It stops the world for a moment.
func ReserveProcs(n int) {
	if n <= 0 || strings.Contains(os.Getenv("GODEBUG"), "asyncpreemptoff=1") {
		return // the runtime could not interrupt a queue that waits
	}
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
	spareProcs.Add(int32(n))
}

// keepProc takes one of the reserved processors for the calling queue.
func keepProc() bool {
	for {
		n := spareProcs.Load()
		if n <= 0 {
			return false
		}
		if spareProcs.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

func returnProc() { spareProcs.Add(1) }
