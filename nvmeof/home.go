package nvmeof

import (
	"sync"

	"golang.org/x/sys/unix"
)

// lookHome is after how many receives a queue looks where its input arrives.
const lookHome = 128

// homes are the processors that a queue of this process has for itself.
var homes struct {
	sync.Mutex
	taken unix.CPUSet
}

// home keeps a thread on the processor on which the kernel receives its connection's
// segments: each would otherwise wake another processor, and its data be fetched from
// that one's cache. The kernel's own target does the same (so_incoming_cpu). A
// processor is home to one queue only, lest all of them end on the one that serves a
// network card with a single queue; the others run where the scheduler puts them. It is
// for one goroutine, which is locked to its thread.
//
// It is for queues that mostly have one command at a time, whose answer somebody waits
// for. One with many keeps two processors busy, one that receives and one that serves.
type home struct {
	receives int
	alone    int // of them, when there was no other command
	seen     int // where input arrived at the last look
	at       int // -1: nowhere
	allowed  unix.CPUSet
	stays    bool // it can't move
}

// begin notes where the thread may run. It moves nowhere else.
func (h *home) begin() {
	h.seen, h.at = -1, -1
	h.stays = unix.SchedGetaffinity(0, &h.allowed) != nil || h.allowed.Count() < 2
}

// received is called after each receive from the socket, with how many commands there
// were before it. When two looks have found input to arrive at the same processor the
// thread moves there.
func (h *home) received(socket, commands int) {
	if commands <= 1 {
		h.alone++
	}
	if h.receives++; h.receives < lookHome || h.stays {
		return
	}
	alone := h.alone
	h.receives, h.alone = 0, 0
	if alone < lookHome/2 {
		h.seen = -1
		h.leave()
		return
	}
	cpu, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_INCOMING_CPU)
	if err != nil || cpu < 0 {
		h.stays = err != nil
		return
	}
	before := h.seen
	h.seen = cpu
	if cpu != before || cpu == h.at {
		return
	}
	if h.leave(); !h.allowed.IsSet(cpu) || !claim(cpu) {
		return
	}
	var only unix.CPUSet
	only.Set(cpu)
	if h.at = cpu; unix.SchedSetaffinity(0, &only) != nil {
		h.leave()
	}
}

// leave lets the thread run anywhere again.
func (h *home) leave() {
	if h.at < 0 {
		return
	}
	homes.Lock()
	homes.taken.Clear(h.at)
	homes.Unlock()
	h.at = -1
	// It can only fail when the processors were taken away meanwhile, and then the
	// kernel has chosen others.
	_ = unix.SchedSetaffinity(0, &h.allowed)
}

func claim(cpu int) bool {
	homes.Lock()
	defer homes.Unlock()
	if homes.taken.IsSet(cpu) {
		return false
	}
	homes.taken.Set(cpu)
	return true
}
