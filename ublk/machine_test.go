//go:build !vm

package ublk

// inTestMachine: on a host, io_uring may be switched off. The same tests run in
// the test machine, where it is not.
const inTestMachine = false
