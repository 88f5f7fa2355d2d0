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
	// lost keeps the buffers of commands that did not answer in time: the
	// driver may still write to them. They are let go when the answer comes.
	lost map[uint64]*runtime.Pinner
}

func startControlWorker(f *os.File, timeout time.Duration, log *slog.Logger) (*controlWorker, error) {
	w := &controlWorker{
		file: f, timeout: timeout, log: log,
		calls: make(chan *controlCall),
		quit:  make(chan struct{}),
		ended: make(chan struct{}),
		lost:  map[uint64]*runtime.Pinner{},
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
	ring, err := uring.New(32, uring.SetupSQE128)
	if err != nil {
		ready <- fmt.Errorf("ublk: control ring: %w", err)
		return
	}
	w.ring = ring
	defer ring.Close()
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

func (w *controlWorker) execute(call *controlCall) error {
	if err := call.ctx.Err(); err != nil {
		return fmt.Errorf("ublk %s: %w", call.name, err)
	}
	sqe := w.ring.NextSQE128()
	if sqe == nil {
		return fmt.Errorf("ublk %s: control ring is full of commands without an answer: %w", call.name, ErrTimeout)
	}
	pin := &runtime.Pinner{}
	if len(call.buf) > 0 {
		pin.Pin(&call.buf[0])
		call.cmd.Addr = uint64(uintptr(unsafe.Pointer(&call.buf[0])))
		call.cmd.Len = uint16(len(call.buf))
	}
	w.next++
	id := w.next
	sqe.PrepCmd(int32(w.file.Fd()), call.op)
	sqe.UserData = id
	*(*ctrlCmd)(unsafe.Pointer(&sqe.Cmd[0])) = call.cmd

	res, err := w.await(call, id)
	if err != nil {
		w.lost[id] = pin
		w.log.Error("ublk control command did not answer", "command", call.name, "device", call.id, "error", err)
		return err
	}
	pin.Unpin()
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
			if pin := w.lost[got]; pin != nil {
				pin.Unpin()
				delete(w.lost, got)
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
