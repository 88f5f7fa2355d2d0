package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// flusherEnv marks the process that becomeIOFlusher has executed again.
const flusherEnv = "SWAPBACKD_IO_FLUSHER"

// becomeIOFlusher marks every thread of the daemon as one that block I/O
// depends on (PR_SET_IO_FLUSHER, Linux 5.6, needs CAP_SYS_RESOURCE): memory
// that such a thread allocates is never waited for by writing back to a block
// device, which could be our own. The mark belongs to a thread and is inherited
// by threads and programs that it starts. The Go runtime has started threads
// before main runs, so the marked thread executes the program once more, with
// the same process id.
func becomeIOFlusher() error {
	if os.Getenv(flusherEnv) == "1" {
		return os.Unsetenv(flusherEnv)
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_IO_FLUSHER: %w (needs CAP_SYS_RESOURCE)", err)
	}
	env := append(os.Environ(), flusherEnv+"=1")
	err := syscall.Exec("/proc/self/exe", os.Args, env)
	return fmt.Errorf("executing the daemon again: %w", err)
}
