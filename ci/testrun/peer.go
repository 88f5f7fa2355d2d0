package main

import (
	"fmt"
	"net"
	"os"

	"github.com/swapback/swapback/ci/peer"
)

// servePeer is what the second machine does: what tests in the first tell it to.
func servePeer() error {
	l, err := net.Listen("tcp", net.JoinHostPort(os.Getenv(peer.AddressEnv), peer.Port))
	if err != nil {
		return fmt.Errorf("serve the other machine: %w", err)
	}
	return peer.Serve(l)
}
