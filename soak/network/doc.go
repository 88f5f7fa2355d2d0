// Package network has the other host on another machine: the storage machine runs the
// real daemon, the second one of ci/peer is a stock Debian kernel with nvme-cli, and
// what lies between them is a network and not the loopback device. Neither kernel may
// log an error of I/O.
//
// The tests need the machines of `make test-vm`.
package network
