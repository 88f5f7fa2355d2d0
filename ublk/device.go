package ublk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/failpoint"
)

// Device is a running block device served by this process. It belongs to the
// caller of Start or Adopt, who ends it with Stop or Abandon and then closes
// the backend. All methods may be called from any goroutine.
type Device struct {
	info    Info
	limits  Limits
	size    atomic.Uint64
	backend *Backend
	log     *slog.Logger

	ctl    *Control
	ownCtl bool // closed with the device

	gate    gate
	queues  []*queue
	changed chan struct{} // see queueConfig
	drain   sync.Mutex    // one Drain at a time listens to changed
	waking  sync.Mutex    // guards the queues' wakeFD against finish

	ending sync.Mutex // one Stop or Abandon at a time
	gone   bool       // guarded by ending: Stop or Abandon has succeeded

	failed                 func(Failure, uint64) // see Options
	ungated, unregistrable bool                  // see Options

	done chan struct{} // closed when every queue has ended and ublkc is closed
	err  error         // why they ended; read after done
}

// ID is N of /dev/ublkbN.
func (d *Device) ID() int { return d.info.ID }

// Path is "/dev/ublkbN".
func (d *Device) Path() string { return blockPath(d.info.ID) }

// Info is what the kernel said when the device was started or adopted.
func (d *Device) Info() Info { return d.info }

// Limits are those that the device shows to its clients.
func (d *Device) Limits() Limits {
	l := d.limits
	l.Size = d.size.Load()
	return l
}

// Hold closes the gate: from now on requests are kept, unanswered, until
// Release or Refuse. It does not wait; Drain does.
func (d *Device) Hold() { d.setGate(gateHold) }

// Refuse closes the gate: requests, also those held, are answered with EBUSY.
// Callers that go through the page cache see EIO instead, as for any error.
func (d *Device) Refuse() { d.setGate(gateRefuse) }

// Release opens the gate: held requests are issued in the order they came.
func (d *Device) Release() { d.setGate(gateServe) }

func (d *Device) setGate(s gateState) {
	if d.gate.set(s) {
		d.wake()
	}
}

// SetReadOnly makes the server answer writes, discards and write-zeroes with
// an error, which clients see as EIO; reads and flushes go on. It takes no
// notice of what is in flight: hold and drain first where that matters.
func (d *Device) SetReadOnly(on bool) {
	if d.gate.setReadOnly(on) {
		d.wake()
	}
}

// SetReserved has what is reserved by somebody else answered with EBADE, which clients see
// as a reservation conflict. It takes no notice of what is in flight: hold and drain first
// where that matters.
func (d *Device) SetReserved(r Reserved) {
	if d.gate.setReserved(r) {
		d.wake()
	}
}

// SetChangeMap has writes, discards and write-zeroes recorded in m from now on;
// nil: nowhere. A request that is being issued meanwhile is recorded in the old
// or the new map: hold and drain first where that matters, as when the content
// behind the device changes.
func (d *Device) SetChangeMap(m *ChangeMap) {
	d.gate.setChanges(m)
	d.wake()
}

// wake makes the queues, and a Drain, look at the gate.
func (d *Device) wake() {
	d.waking.Lock()
	defer d.waking.Unlock()
	for _, q := range d.queues {
		q.wake()
	}
	tell(d.changed)
}

// rouse has one queue take a turn.
func (d *Device) rouse(q *queue) {
	d.waking.Lock()
	defer d.waking.Unlock()
	q.wake()
}

// Drain waits, with the gate closed, until no request is in flight at the
// backend on any queue; it stays so until Release. ErrGateOpen if the gate is
// open or is opened meanwhile.
func (d *Device) Drain(ctx context.Context) error {
	d.drain.Lock()
	defer d.drain.Unlock()
	for {
		drained, err := d.drained()
		if drained || err != nil {
			return err
		}
		select {
		case <-d.changed:
		case <-ctx.Done():
			return fmt.Errorf("ublk: draining device %d, %d requests still in flight: %w",
				d.info.ID, d.Stats().InFlight, ctx.Err())
		}
	}
}

func (d *Device) drained() (bool, error) {
	word := d.gate.word.Load()
	if stateOf(word) == gateServe {
		return false, fmt.Errorf("ublk: draining device %d: %w", d.info.ID, ErrGateOpen)
	}
	for _, q := range d.queues {
		// The acknowledgement before the count: see gate.
		if acked := q.acked.Load(); acked != word && acked != ackEnded {
			return false, nil
		}
		if q.stats.inFlight.Load() != 0 {
			return false, nil
		}
	}
	return d.gate.word.Load() == word, nil
}

// Resize changes the size in bytes (UPDATE_SIZE, kernel 6.16, else
// ErrUnsupported). The driver validates nothing, so this does: the backend must
// be large enough, and whole blocks. Shrinking is the caller's responsibility.
func (d *Device) Resize(ctx context.Context, size uint64) error {
	if !d.info.Flags.Has(UpdateSize) {
		return fmt.Errorf("ublk: resizing device %d: %w: needs kernel 6.16 or later, also when the device was added",
			d.info.ID, ErrUnsupported)
	}
	l := d.limits
	l.Size = size
	if err := l.validate(); err != nil {
		return fmt.Errorf("ublk: resizing device %d: %w", d.info.ID, err)
	}
	have, err := d.backend.Size()
	if err != nil {
		return err
	}
	if d.backend.file != nil && size > have {
		return fmt.Errorf("ublk: resizing device %d to %d bytes: backend %s has only %d", d.info.ID, size, d.backend.path, have)
	}
	if err := d.ctl.updateSize(ctx, d.info.ID, size/sectorSize); err != nil {
		return err
	}
	d.size.Store(size)
	return nil
}

// Stats reads the counters, without locks.
func (d *Device) Stats() Stats {
	var s Stats
	for _, q := range d.queues {
		q.stats.addTo(&s)
	}
	return s
}

// Done is closed when the queues have ended: in Stop and Abandon, when another
// process stops the device, or when one of them can't go on, as when its ring
// breaks. Err then tells why. After such an error the device waits for a successor,
// as after Abandon, which is still to be called.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err is nil until Done is closed, and after an orderly end.
func (d *Device) Err() error {
	select {
	case <-d.done:
		return d.err
	default:
		return nil
	}
}

// Stop ends the device and deletes it: requests that are under way are
// answered, held ones are refused with EBUSY, and it returns when /dev/ublkbN
// and everything behind it are gone. The kernel does not write back what lies
// in the page cache of a stopped device: whoever wrote must have synced or
// closed it. An error leaves the device in a state where Stop can be called
// again; with ErrBusy it is gone for clients, and its number is freed when the
// last of them closes it.
func (d *Device) Stop(ctx context.Context) error {
	d.ending.Lock()
	defer d.ending.Unlock()
	if d.gone {
		return nil
	}
	d.gate.stop()
	d.wake()
	err := d.ctl.stopDev(ctx, d.info.ID)
	if errors.Is(err, ErrNoDevice) {
		err = nil // somebody else has deleted it
	}
	if err != nil {
		return err
	}
	// The driver aborts every tag once the disk is gone; ublkc must be closed
	// before the device can be deleted.
	select {
	case <-d.done:
	case <-ctx.Done():
		return fmt.Errorf("ublk: stopping device %d: waiting for its queues: %w", d.info.ID, ctx.Err())
	}
	failpoint.Hit("ublk: device stopped")
	if err := d.ctl.delDev(ctx, d.info.ID); err != nil && !errors.Is(err, ErrNoDevice) {
		return err
	}
	d.log.Debug("ublk device deleted", "device", d.info.ID)
	d.finish()
	return nil
}

// Abandon ends the queues and leaves the device in the kernel for a successor
// to Adopt: what is in flight at the backend is answered, what is held or comes
// later stays with the kernel, and clients notice only a pause. It returns when
// the last descriptor is closed. If ctx ends first the queues go on ending by
// themselves.
func (d *Device) Abandon(ctx context.Context) error {
	d.ending.Lock()
	defer d.ending.Unlock()
	if d.gone {
		return nil
	}
	if d.ungated {
		return fmt.Errorf("ublk: abandoning device %d: it was started without a gate (remedy: stop it)", d.info.ID)
	}
	if !d.info.Flags.Has(UserRecovery) {
		return fmt.Errorf("ublk: abandoning device %d: it was started to end with its server (remedy: stop it)", d.info.ID)
	}
	d.setGate(gateLeave)
	select {
	case <-d.done:
	case <-ctx.Done():
		return fmt.Errorf("ublk: abandoning device %d: waiting for its queues: %w", d.info.ID, ctx.Err())
	}
	d.log.Debug("ublk device left to a successor", "device", d.info.ID)
	d.finish()
	return nil
}

func (d *Device) finish() {
	d.gone = true
	// The eventfds stay open until here because wake may be called any time.
	d.waking.Lock()
	for _, q := range d.queues {
		q.closeWake()
	}
	d.waking.Unlock()
	if d.ownCtl {
		d.ctl.Close()
	}
}

// openChar opens /dev/ublkcN. The driver lets one opener in: a udev rule may be
// that for a moment, and after a crash the predecessor's ring, which the kernel
// takes down in the background.
func openChar(ctx context.Context, id int) (int, error) {
	for {
		fd, err := unix.Open(charPath(id), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINTR) {
			return -1, fmt.Errorf("ublk: opening %s: %w", charPath(id), err)
		}
		select {
		case <-ctx.Done():
			return -1, fmt.Errorf("ublk: opening %s: %w (%w)", charPath(id), err, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}
