package dm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	opCreate = "create"

	headerSize = unix.SizeofDmIoctl
	// initialData is room for the answers of a handful of devices; a longer
	// answer makes the kernel set DM_BUFFER_FULL_FLAG, and the request is sent
	// again with more.
	initialData = 16 << 10
	maxData     = 64 << 20
)

// interfaceVersion is the oldest interface that has everything used here:
// 4.27 brought deferred removal (Linux 3.13). The kernel accepts a request for
// any minor version up to its own.
var interfaceVersion = [3]uint32{unix.DM_VERSION_MAJOR, 27, 0}

// ioctlFunc sends one command. Tests replace it.
type ioctlFunc func(cmd uint, buf []byte) error

// request is the buffer of one ioctl: struct dm_ioctl, then data.
type request struct {
	// words backs buf: struct dm_ioctl needs the alignment of a uint64.
	words []uint64
	buf   []byte
	sent  unix.DmIoctl // as it was sent, for sending again
}

func newRequest(ref Ref, data int) *request {
	r := &request{}
	r.alloc(headerSize + data)
	h := r.header()
	h.Version = interfaceVersion
	h.Data_size = uint32(len(r.buf))
	h.Data_start = headerSize
	copy(h.Name[:], ref.Name)
	copy(h.Uuid[:], ref.UUID)
	return r
}

func (r *request) alloc(size int) {
	r.words = make([]uint64, (size+7)/8)
	r.buf = unsafe.Slice((*byte)(unsafe.Pointer(&r.words[0])), size)
}

// header returns the struct at the head of the buffer.
func (r *request) header() *unix.DmIoctl { return (*unix.DmIoctl)(unsafe.Pointer(&r.words[0])) }

// data returns what follows the header: before the call what is sent, after it
// the answer. The kernel writes the answer's extent into the header.
func (r *request) data() []byte {
	h := r.header()
	start, end := int(h.Data_start), int(h.Data_size)
	if start < headerSize || start > len(r.buf) || end < start {
		return nil
	}
	return r.buf[start:min(end, len(r.buf))]
}

// grow makes the buffer four times as large and restores the header as it was
// sent, because the kernel has overwritten it with its answer.
func (r *request) grow() error {
	data := 4 * (len(r.buf) - headerSize)
	if data > maxData {
		return fmt.Errorf("answer is longer than %d bytes", maxData)
	}
	r.alloc(headerSize + data)
	*r.header() = r.sent
	r.header().Data_size = uint32(len(r.buf))
	return nil
}

func (r *request) info() Info {
	h := r.header()
	return Info{
		Name: unix.ByteSliceToString(h.Name[:]), UUID: unix.ByteSliceToString(h.Uuid[:]),
		Device: decodeDev(h.Dev), OpenCount: int(h.Open_count), Targets: int(h.Target_count), EventNr: h.Event_nr,
		Suspended:      h.Flags&unix.DM_SUSPEND_FLAG != 0,
		ReadOnly:       h.Flags&unix.DM_READONLY_FLAG != 0,
		Active:         h.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0,
		Inactive:       h.Flags&unix.DM_INACTIVE_PRESENT_FLAG != 0,
		DeferredRemove: h.Flags&unix.DM_DEFERRED_REMOVE != 0,
	}
}

// do sends a request until the answer fits.
func (c *Control) do(op string, cmd uint, r *request) error {
	r.sent = *r.header()
	for {
		// EINTR comes from signals that Go's runtime sends to its own threads.
		err := c.call(cmd, r.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			*r.header() = r.sent
			continue
		case err != nil:
			return ioctlError(op, &r.sent, err)
		case r.header().Flags&unix.DM_BUFFER_FULL_FLAG == 0:
			return nil
		}
		if err := r.grow(); err != nil {
			return fmt.Errorf("device-mapper: %s: %w", op, err)
		}
	}
}

// doInterruptible sends a request that may wait long, and calls it off when ctx
// ends.
//
// The kernel waits interruptibly and undoes a suspend on a signal (dm_suspend in
// drivers/md/dm.c), so the waiting thread is sent SIGURG, which Go programs get
// all the time and ignore. Older kernels then return EINTR. Newer ones (seen in
// 7.3) restart the call after the signal, since Go's handlers ask for that; the
// restarted call reads the request again. So before the signal the name is taken
// out of the request: a call that is restarted finds no device and ends.
func (c *Control) doInterruptible(ctx context.Context, op string, cmd uint, r *request) error {
	sent := *r.header()
	calledOff := func() error {
		return fmt.Errorf("device-mapper: %s %s: %w", op, object(&sent), context.Cause(ctx))
	}
	if ctx.Err() != nil {
		return calledOff()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := waker{request: r, pid: unix.Getpid(), tid: unix.Gettid()}
	stop := w.watch(ctx)
	defer stop()
	for {
		err := c.call(cmd, r.buf)
		switch {
		case err == nil:
			return nil
		case !w.restore(&sent):
			return calledOff()
		case !errors.Is(err, unix.EINTR):
			return ioctlError(op, &sent, err)
		}
	}
}

// waker ends a thread's wait in an ioctl.
type waker struct {
	request  *request
	pid, tid int

	mu    sync.Mutex
	spent bool // the request no longer names a device
}

// watch wakes the thread when ctx is done, until the returned function is
// called. A signal that arrives before the thread waits is lost, so there are
// many.
func (w *waker) watch(ctx context.Context) (stop func()) {
	quit, gone := make(chan struct{}), make(chan struct{})
	// No goroutine unless ctx ends: swaps wait for nothing they can spare.
	never := context.AfterFunc(ctx, func() {
		defer close(gone)
		w.mu.Lock()
		w.spent = true
		h := w.request.header()
		h.Name[0], h.Uuid[0] = 0, 0
		w.mu.Unlock()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			// A failure means that the thread is gone, and so is the wait.
			_ = unix.Tgkill(w.pid, w.tid, unix.SIGURG)
			select {
			case <-quit:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		if !never() {
			close(quit)
			<-gone
		}
	}
}

// restore makes the request ready to be sent again, unless it is called off.
func (w *waker) restore(sent *unix.DmIoctl) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.spent {
		*w.request.header() = *sent
	}
	return !w.spent
}

func ioctl(f *os.File, cmd uint, buf []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(cmd), uintptr(unsafe.Pointer(&buf[0])))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}

func ioctlError(op string, sent *unix.DmIoctl, err error) error {
	e := &Error{Op: op, Object: object(sent)}
	if !errors.As(err, &e.Errno) {
		return fmt.Errorf("device-mapper: %s %s: %w", op, e.Object, err)
	}
	switch {
	case e.Errno == unix.ENXIO:
		e.Hint = "no such device"
	case e.Errno == unix.EBUSY && op == opCreate:
		e.Hint = "a device with this name or UUID exists"
	case e.Errno == unix.EBUSY:
		e.Hint = "somebody has it open"
	case e.Errno == unix.EINVAL && strings.HasPrefix(op, "load"):
		e.Hint = "the kernel log says what is wrong with the table; a target that is missing needs its module"
	}
	return e
}

func object(h *unix.DmIoctl) string {
	if name := unix.ByteSliceToString(h.Name[:]); name != "" {
		return name
	}
	return unix.ByteSliceToString(h.Uuid[:])
}

func checkName(name, uuid string) error {
	switch {
	case name == "" || len(name) > MaxName || strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("device-mapper: name %q: must have 1 to %d bytes and no '/': %w", name, MaxName, unix.EINVAL)
	case len(uuid) > MaxUUID || strings.Contains(uuid, "\x00"):
		return fmt.Errorf("device-mapper: UUID %q: must have at most %d bytes: %w", uuid, MaxUUID, unix.EINVAL)
	}
	return nil
}

// decodeDev splits the kernel's encoding of a device number in this interface
// (huge_encode_dev, linux/kdev_t.h), which is that of stat(2).
func decodeDev(dev uint64) Device { return DeviceOf(dev) }
