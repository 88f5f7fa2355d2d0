package ublk

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f on a thread that serves nothing else, and returns when f
// has returned and the thread is gone.
//
// Gone, not only free: a ring must be closed when its thread has ended. While
// the thread lives, the kernel hands requests that come in during the closing
// to it; kernel 6.12 then waits for their commits for ever, with the device's
// lock held (ublk_wait_tagset_rqs_idle). Those of a thread that is exiting it
// gives back to the queue. A killed process is safe by the same order: its
// threads exit before its files are closed.
func onOwnThread(f func()) {
	ended := make(chan int, 1)
	go lockedTo(f, ended)
	tid := <-ended
	for unix.Tgkill(unix.Getpid(), tid, 0) == nil {
		time.Sleep(time.Millisecond)
	}
}

// lockedTo tells the id of the thread that f has run on; the thread ends then,
// because the goroutine does so without having unlocked it.
func lockedTo(f func(), ended chan<- int) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread is never ended by the runtime. Sit on it, so that
		// the next try gets another.
		defer runtime.UnlockOSThread()
		again := make(chan int, 1)
		go lockedTo(f, again)
		ended <- <-again
		return
	}
	f()
	ended <- unix.Gettid()
}
