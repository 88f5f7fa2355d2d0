package nvmeof

import "github.com/swapback/swapback/ublk/uring"

// ReserveProcs adds n processors to GOMAXPROCS, for queues with a ring to keep while they
// wait for the next command of a busy host; see [uring.ReserveProcs]. A program that
// has called it for block devices has done so for these, too.
func ReserveProcs(n int) { uring.ReserveProcs(n) }
