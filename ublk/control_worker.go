package ublk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"github.com/swapback/swapback/ublk/uring"
	"golang.org/x/sys/unix"
)

// controlSlice is how long the worker sleeps in the kernel before it looks at
// the caller's context again.
const controlSlice = 50 * time.Millisecond

// controlCall is one command on its way.
type controlCall struct {
	ctx  context.Context
	name string
	op   uint32
	id   int
	cmd  ctrlCmd
	buf  []byte
	err  error
	done chan struct{}
}

// controlWorker owns the ring: a goroutine on a thread of its own, because the
// driver ties commands to the task that submitted them, and because START_DEV
// waits for what the queue threads do.
type controlWorker struct {
	file    *os.File
	timeout time.Duration
	log     *slog.Logger

	calls chan *controlCall
	quit  chan struct{}
	ended chan struct{}
	once  sync.Once

	// Of the worker goroutine only:
	ring *uring.Ring
	next uint64
	// mem holds the buffers of commands, one per submission entry. It is mapped
	// memory, because the driver may write to a buffer long after its command
	// was given up: such a slot is lost until the answer comes, and the mapping
	// stays when the process closes the Control before.
	mem  []byte
	free []int          // slots not in use
	lost map[uint64]int // by user data
}

const (
	controlEntries = 32
	// controlSlot holds a path and the largest payload, ublk_params.
	controlSlot = 256
)

func startControlWorker(f *os.File, timeout time.Duration, log *slog.Logger) (*controlWorker, error) {
	w := &controlWorker{
		file: f, timeout: timeout, log: log,
		calls: make(chan *controlCall),
		quit:  make(chan struct{}),
		ended: make(chan struct{}),
		lost:  map[uint64]int{},
	}
	ready := make(chan error)
	go w.loop(ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return w, nil
}

func (w *controlWorker) close() error {
	w.once.Do(func() { close(w.quit) })
	<-w.ended
	return nil
}

// run hands the call to the worker and waits for it.
func (w *controlWorker) run(ctx context.Context, call *controlCall) error {
	call.done = make(chan struct{})
	select {
	case w.calls <- call:
	case <-ctx.Done():
		return fmt.Errorf("ublk %s: waiting for another command: %w", call.name, ctx.Err())
	case <-w.ended:
		return fmt.Errorf("ublk %s: control: %w", call.name, ErrClosed)
	}
	<-call.done
	return call.err
}

func (w *controlWorker) loop(ready chan<- error) {
	// Never unlocked: the thread ends with the goroutine, and the kernel then
	// cancels whatever a lost command left behind.
	runtime.LockOSThread()
	defer close(w.ended)
	defer w.file.Close()
	// Refused without CAP_SYS_RESOURCE, and only a help then.
	_ = SetIOFlusher()
	if err := w.setup(); err != nil {
		ready <- err
		return
	}
	defer w.end()
	ready <- nil
	for {
		select {
		case call := <-w.calls:
			call.err = w.execute(call)
			close(call.done)
		case <-w.quit:
			return
		}
	}
}

func (w *controlWorker) setup() error {
	mem, err := unix.Mmap(-1, 0, controlEntries*controlSlot, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("ublk: control buffers: %w", err)
	}
	ring, err := uring.New(controlEntries, uring.SetupSQE128)
	if err != nil {
		_ = unix.Munmap(mem)
		return fmt.Errorf("ublk: control ring: %w", err)
	}
	w.mem, w.ring = mem, ring
	for slot := range controlEntries {
		w.free = append(w.free, slot)
	}
	return nil
}

func (w *controlWorker) end() {
	w.ring.Close()
	if len(w.lost) == 0 {
		_ = unix.Munmap(w.mem)
	}
}

func (w *controlWorker) execute(call *controlCall) error {
	if err := call.ctx.Err(); err != nil {
		return fmt.Errorf("ublk %s: %w", call.name, err)
	}
	if len(call.buf) > controlSlot {
		return fmt.Errorf("ublk %s: payload of %d bytes", call.name, len(call.buf))
	}
	if len(w.free) == 0 {
		return fmt.Errorf("ublk %s: %d commands have not answered: %w", call.name, len(w.lost), ErrTimeout)
	}
	sqe := w.ring.NextSQE128()
	if sqe == nil {
		return fmt.Errorf("ublk %s: the control ring is full: %w", call.name, ErrTimeout)
	}
	slot := w.free[len(w.free)-1]
	w.free = w.free[:len(w.free)-1]
	mem := w.mem[slot*controlSlot:][:len(call.buf)]
	if len(mem) > 0 {
		copy(mem, call.buf)
		call.cmd.Addr = uint64(uintptr(unsafe.Pointer(&mem[0])))
		call.cmd.Len = uint16(len(mem))
	}
	w.next++
	id := w.next
	sqe.PrepCmd(int32(w.file.Fd()), call.op)
	sqe.UserData = id
	*(*ctrlCmd)(unsafe.Pointer(&sqe.Cmd[0])) = call.cmd

	res, err := w.await(call, id)
	if err != nil {
		w.lost[id] = slot
		w.log.Error("ublk control command did not answer", "command", call.name, "device", call.id, "error", err)
		return err
	}
	copy(call.buf, mem)
	w.free = append(w.free, slot)
	if res < 0 {
		return &CommandError{Command: call.name, ID: call.id, Errno: unix.Errno(-res)}
	}
	return nil
}

// await submits and waits for completion id, at most the timeout and the
// caller's patience. Late answers of earlier commands are taken on the way.
func (w *controlWorker) await(call *controlCall, id uint64) (int32, error) {
	deadline := time.Now().Add(w.timeout)
	for {
		err := w.ring.EnterTimeout(1, controlSlice)
		if err != nil && !errors.Is(err, uring.ErrTimeout) {
			return 0, fmt.Errorf("ublk %s: %w", call.name, err)
		}
		for cqe := w.ring.Peek(); cqe != nil; cqe = w.ring.Peek() {
			got, res := cqe.UserData, cqe.Res
			w.ring.Advance()
			if got == id {
				return res, nil
			}
			if slot, ok := w.lost[got]; ok {
				delete(w.lost, got)
				w.free = append(w.free, slot)
			}
		}
		if err := call.ctx.Err(); err != nil {
			return 0, fmt.Errorf("ublk %s of device %d: %w", call.name, call.id, err)
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("ublk %s of device %d: no answer for %v: %w", call.name, call.id, w.timeout, ErrTimeout)
		}
	}
}
