package ublk

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// SetIOFlusher marks the calling thread as one that serves block I/O
// (PR_SET_IO_FLUSHER with 1, prctl(2)): its memory allocations then never wait
// for I/O, which could be I/O to its own device. Lock the goroutine to its
// thread first. Threads made by this one inherit the mark. Needs
// CAP_SYS_RESOURCE.
func SetIOFlusher() error {
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("ublk: marking the thread as an I/O flusher: %w", err)
	}
	return nil
}

// reexecMark tells the second life of the process that it is one, so that a
// kernel which drops the mark in execve does not make it loop.
const reexecMark = "UBLK_IO_FLUSHER_REEXEC=1"

// ReexecIOFlusher marks every thread of the process as an I/O flusher: it marks
// the calling one and executes the program again, whose threads all descend
// from it. Call it first thing in main, before anything is opened. It returns
// nil in the second life, and an error, without having executed anything, when
// the mark is not permitted. Threads of the Go runtime (garbage collector,
// sysmon) are otherwise out of reach, and one of them waiting for I/O to the
// process's own device stops the whole program.
func ReexecIOFlusher() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	env := os.Environ()
	for _, e := range env {
		if e == reexecMark {
			os.Unsetenv("UBLK_IO_FLUSHER_REEXEC")
			return nil
		}
	}
	if err := SetIOFlusher(); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("ublk: executing the program again: %w", err)
	}
	if err := unix.Exec(exe, os.Args, append(env, reexecMark)); err != nil {
		return fmt.Errorf("ublk: executing %s again: %w", exe, err)
	}
	return nil
}
