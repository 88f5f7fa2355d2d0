//go:build vm

package uring

// inTestMachine: io_uring is there, and its absence a failure.
const inTestMachine = true
