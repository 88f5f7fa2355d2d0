//go:build vm

package ublk

import "testing"

// inTestMachine: io_uring is there, and its absence a failure.
const inTestMachine = true

// The host's tests once more, on the kernels that count.
func TestQueuesInTheMachine(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"backend":   TestQueueReadsAndWritesTheBackend,
		"errors":    TestQueueErrors,
		"gate":      TestQueueGate,
		"panic":     TestQueueSurvivesAPanic,
		"no allocs": TestQueueTurnsDoNotAllocate,
	} {
		t.Run(name, test)
	}
}
