package ublk

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOwnThreadIsGoneAfterwards(t *testing.T) {
	// Many at once, so that some of them are first put on the main thread.
	for range 50 {
		tids := make(chan int)
		ended := make(chan struct{})
		go func() {
			onOwnThread(func() {
				tids <- unix.Gettid()
				runtime.Gosched()
				tids <- unix.Gettid()
			})
			close(ended)
		}()
		tid, later := <-tids, <-tids
		if tid != later || tid == unix.Getpid() {
			t.Fatalf("ran on thread %d, then on %d; the main one is %d", tid, later, unix.Getpid())
		}
		<-ended
		if err := unix.Tgkill(unix.Getpid(), tid, 0); err != unix.ESRCH {
			t.Fatalf("thread %d afterwards: %v", tid, err)
		}
	}
}
