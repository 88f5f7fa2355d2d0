//go:build vm

package uring

import "testing"

// inTestMachine: io_uring is there, and its absence a failure.
const inTestMachine = true

// The host's tests once more, on the kernels that count.
func TestRingsInTheMachine(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"nop":       TestNopRoundTripsManyTimesAroundTheRing,
		"full ring": TestFullRingGivesNoEntry,
		"fixed":     TestFixedFilesAndBuffers,
		"eventfd":   TestEventfdWakesAWaitingRing,
		"timeout":   TestEnterTimeout,
		"msg ring":  TestMsgRing,
		"wide":      TestWideEntries,
		"no allocs": TestHotPathDoesNotAllocate,
		"self":      TestRegisteredRing,
		"raw":       TestRawWaitIsInterrupted,
		"buffers":   TestBufferRing,
		"sparse":    TestSparseBuffersAreEmpty,
	} {
		t.Run(name, test)
	}
}

func TestQueueRingsAreDeferred(t *testing.T) {
	r := queueRing(t, 8, 0)
	if want := SetupSingleIssuer | SetupDeferTaskrun | SetupCoopTaskrun; r.Flags()&want != want {
		t.Errorf("flags %#x: this kernel should have given %#x", r.Flags(), want)
	}
}
