//go:build vm

package main

import (
	"testing"

	"github.com/swapback/swapback/soak/rig"
)

const MiB = rig.MiB

// process is the real swapbackd with what only these tests do to it.
type process struct {
	*rig.Daemon
	t *testing.T
}

func startDaemon(t *testing.T, args ...string) *process {
	t.Helper()
	return &process{rig.Start(t, args...), t}
}
