//go:build vm

package ublk

// inTestMachine: io_uring is there, and its absence a failure.
const inTestMachine = true
