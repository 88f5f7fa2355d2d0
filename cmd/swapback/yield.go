package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// yieldNice is the niceness of a process that gives way.
	yieldNice = 10
	// yieldIO is the lowest priority of the best-effort class (ioprio_set(2)). The
	// idle class would stand still beside anybody who is always busy.
	yieldIO       = 2<<13 | 7
	whoProcess    = 1 // IOPRIO_WHO_PROCESS, a thread in fact
	selfThreads   = "/proc/self/task"
	yieldAttempts = 4
)

// yield makes this process give way to others at the processors, and at disks whose
// scheduler knows priorities. Both are a thread's own, and a new thread has those of
// the one that made it. What can't be done is left.
func yield() {
	done := make(map[string]bool)
	for range yieldAttempts { // threads may come while we look
		entries, err := os.ReadDir(selfThreads)
		if err != nil {
			return
		}
		fresh := false
		for _, e := range entries {
			tid, err := strconv.Atoi(e.Name())
			if err != nil || done[e.Name()] {
				continue
			}
			fresh, done[e.Name()] = true, true
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, yieldNice)
			_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(tid), yieldIO)
		}
		if !fresh {
			return
		}
	}
}
