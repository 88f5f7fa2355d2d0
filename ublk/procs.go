package ublk

import "github.com/swapback/swapback/ublk/uring"

// ReserveProcs adds n processors to GOMAXPROCS, for queues to keep while they
// wait for the next request of a busy device: a queue then need not tell the
// scheduler of every wait. A queue that has waited for longer than about 10 ms
// gives its processor back, and those that find none left wait as Go programs
// ordinarily do. Call it at the start of a program that serves devices; as many
// as there are CPUs is a good n. It stops the world for a moment.
func ReserveProcs(n int) { uring.ReserveProcs(n) }
