package ublk

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loseRing takes away the numbers by which the queue's thread, which must call it,
// names its ring, and any that an earlier test has left with the thread:
// io_uring_enter fails from now on.
func loseRing(q *queue) error {
	const unregisterRingFDs = 21
	// struct io_uring_rsrc_update, and as many as a thread can have numbers.
	var u [16]struct {
		offset, resv uint32
		data         uint64
	}
	for i := range u {
		u[i].offset = uint32(i)
	}
	_, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(q.ring.FD()), unregisterRingFDs, uintptr(unsafe.Pointer(&u)), uintptr(len(u)), 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// counting serves every request and counts them by queue.
type counting struct {
	served [2]atomic.Int64
	before func(queue int)
}

func (c *counting) Handle(r *Request) unix.Errno {
	c.served[r.Queue].Add(1)
	c.before(r.Queue)
	return 0
}

// One queue can't go on, and the other has requests without end (see driven).
func TestBrokenQueueTakesTheOthersWithIt(t *testing.T) {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	// It has no commands.
	refusing, err := unix.MemfdCreate("refusing", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(refusing)
	for name, c := range map[string]struct {
		charFD int // of queue 0
		breaks func(q *queue) error
		says   string
	}{
		"the ring":    {null, loseRing, "queue 0: uring: io_uring_enter"},
		"the command": {refusing, func(*queue) error { return nil }, "queue 0: tag 0: the driver refused"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			d := idleDevice(t, 2)
			d.log = slog.New(slog.NewTextHandler(&log, nil))
			h := &counting{before: func(i int) {
				if i == 0 && d.queues[1].stats.ops[OpFlush].Load() > 0 {
					if err := c.breaks(d.queues[0]); err != nil {
						t.Error(err)
					}
				}
			}}
			b, err := NewHandlerBackend("test", h, Limits{Size: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			d.queues[0].charFD, d.queues[1].charFD = c.charFD, null
			errs := make([]error, 2)
			var running sync.WaitGroup
			for i, q := range d.queues {
				q.ioBytes, q.path, q.backend, q.log, q.broke = 4096, DataPathCopy, b, d.log, d.broke
				q.descs = make([]ioDesc, q.depth)
				for i := range q.descs {
					q.descs[i].OpFlags = uint32(OpFlush)
				}
				running.Go(func() {
					onOwnThread(func() {
						if errs[i] = q.setupRing(); errs[i] == nil {
							errs[i] = q.work()
						}
					})
					q.end()
				})
			}
			ended := make(chan struct{})
			go func() { running.Wait(); close(ended) }()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				d.setGate(gateLeave)
				<-ended
				t.Error("the other queue goes on")
			}
			if !inTestMachine && (errors.Is(errs[1], unix.EPERM) || errors.Is(errs[1], unix.ENOSYS)) {
				t.Skipf("io_uring is switched off on this host: %v", errs[1])
			}
			if errs[0] == nil || errs[1] != nil || !strings.Contains(errs[0].Error(), c.says) {
				t.Errorf("they ended with %v and %v", errs[0], errs[1])
			}
			if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), c.says) {
				t.Errorf("the log says:\n%s", log.String())
			}
			if n := h.served[1].Load(); name == "the ring" && n == 0 {
				t.Error("the other queue has served nothing")
			}
		})
	}
}
