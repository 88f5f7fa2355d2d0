package uring

import (
	"os"
	"runtime"
	"strings"
	"sync/atomic"
)

// spareProcs counts the processors of Go's scheduler that threads may keep while they
// wait for their rings; see ReserveProcs.
var spareProcs atomic.Int32

// ReserveProcs adds n processors to GOMAXPROCS, for threads to keep while they wait for
// the next completion of a busy ring, by EnterRaw: they then need not tell the
// scheduler of every wait. One that has waited for longer than about 10 ms should give
// its processor back, and those that find none left wait as Go programs ordinarily do.
// Call it at the start of a program; as many as there are CPUs is a good n. It stops the
// world for a moment.
func ReserveProcs(n int) {
	if n <= 0 || strings.Contains(os.Getenv("GODEBUG"), "asyncpreemptoff=1") {
		return // the runtime could not interrupt a thread that waits
	}
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
	spareProcs.Add(int32(n))
}

// KeepProc takes one of the reserved processors for the calling thread.
func KeepProc() bool {
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

// ReturnProc gives it back.
func ReturnProc() { spareProcs.Add(1) }
