package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/failpoint"
)

// Start adds a device, starts its queues and makes /dev/ublkbN appear. After an
// error nothing of it is left. ctx bounds the start only, not the device.
func Start(ctx context.Context, b *Backend, o Options) (*Device, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	have, err := b.Size() // the backend may have grown since it was opened
	if err != nil {
		return nil, err
	}
	limits := b.Limits()
	limits.Size = have &^ (uint64(limits.LogicalBlockSize) - 1)
	if o.Size != 0 {
		limits.Size = o.Size
	}
	if err := limits.validate(); err != nil {
		return nil, fmt.Errorf("ublk: backend %s: %w", b.path, err)
	}
	if limits.Size > have {
		return nil, fmt.Errorf("ublk: a device of %d bytes does not fit backend %s of %d", limits.Size, b.path, have)
	}
	limits.ReadOnly = limits.ReadOnly || o.ReadOnly

	d, err := newDevice(b, o)
	if err != nil {
		return nil, err
	}
	d.limits = limits
	if err := d.add(ctx, o); err != nil {
		d.closeControl()
		return nil, err
	}
	if err := d.start(ctx, o); err != nil {
		d.undo(err)
		return nil, err
	}
	d.log.Debug("ublk device started", "device", d.info.ID, "backend", b.path, "size", limits.Size,
		"queues", d.info.Queues, "depth", d.info.Depth, "data_path", d.info.Flags.DataPath())
	return d, nil
}

func newDevice(b *Backend, o Options) (*Device, error) {
	d := &Device{
		backend: b, log: o.Logger, ctl: o.Control,
		failed: o.Failed, ungated: o.Ungated, unregistrable: o.unregistrable,
		changed: make(chan struct{}, 1),
		done:    make(chan struct{}),
	}
	d.gate.changes.Store(o.ChangeMap)
	d.gate.setReserved(o.Reserved)
	if d.ctl == nil {
		ctl, err := OpenControl(ControlOptions{Logger: o.Logger})
		if err != nil {
			return nil, err
		}
		d.ctl, d.ownCtl = ctl, true
	}
	return d, nil
}

func (d *Device) closeControl() {
	if d.ownCtl {
		d.ctl.Close()
	}
}

// add negotiates the features and makes the device known to the driver.
func (d *Device) add(ctx context.Context, o Options) error {
	have, err := d.ctl.Features(ctx)
	if err != nil {
		return err
	}
	if !have.Has(required) {
		return fmt.Errorf("ublk: the driver has only %v: %w: needs kernel 6.4 or later", have, ErrUnsupported)
	}
	path, flags, err := o.DataPath.choose(have, d.backend)
	if err != nil {
		return err
	}
	if o.MaxIOBytes == 0 {
		o.MaxIOBytes = DefaultMaxIOBytes
		if path == DataPathCopy {
			o.MaxIOBytes = DefaultCopyBytes
		}
	}
	want := required | flags | have&UpdateSize
	if o.EndWithServer {
		want &^= UserRecovery | UserRecoveryReissue
	}
	if o.NoPartitionScan {
		want |= have & NoAutoPartScan
	}
	info := devInfo{
		NrHWQueues:    uint16(o.Queues),
		QueueDepth:    uint16(o.Depth),
		MaxIOBufBytes: uint32(o.MaxIOBytes),
		DevID:         anyID,
		UblksrvPID:    int32(os.Getpid()),
		Flags:         uint64(want),
		UblksrvFlags:  o.Tag,
	}
	if o.ID >= 0 {
		info.DevID = uint32(o.ID)
	}
	if err := d.ctl.addNumber(ctx, &info, o.ID); err != nil {
		return err
	}
	failpoint.Hit("ublk: device added")
	d.info, err = info.info()
	return err
}

func (d *Device) start(ctx context.Context, o Options) error {
	// The driver may have lowered the number of queues or the depth.
	o.MaxIOBytes = d.info.MaxIOBytes
	p := paramsFor(d.limits, o, d.info.Flags.DataPath() != DataPathCopy)
	if err := d.ctl.setParams(ctx, d.info.ID, p); err != nil {
		return err
	}
	if err := d.startQueues(ctx); err != nil {
		return err
	}
	if err := d.ctl.startDev(ctx, d.info.ID); err != nil {
		return err
	}
	d.unschedule()
	return d.afterStart(ctx)
}

// unschedule takes the I/O scheduler away that the block layer gives to every
// device of one queue (mq-deadline). The disks below have their own: sorting
// requests twice doubles the path and orders nothing. Whoever wants one can set
// it again (queue/scheduler in sysfs, or a udev rule).
func (d *Device) unschedule() {
	path := fmt.Sprintf("/sys/block/ublkb%d/queue/scheduler", d.info.ID)
	// The kernel looks for a module of the name that is written, also for "none",
	// by starting modprobe: not for nothing.
	have, err := os.ReadFile(path)
	if err == nil && !bytes.Contains(have, []byte("[none]")) {
		// EBUSY: somebody else, such as udev, is about to change it.
		for range 10 {
			if err = os.WriteFile(path, []byte("none"), 0); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(pollInterval)
		}
	}
	if err != nil {
		d.log.Warn("I/O scheduler of a ublk device not taken away; requests will be slower", "device", d.info.ID, "error", err)
	}
}

// afterStart reads back what the kernel made of the device.
func (d *Device) afterStart(ctx context.Context) error {
	p, err := d.ctl.getParams(ctx, d.info.ID)
	if err != nil {
		return err
	}
	if d.limits, err = limitsOf(p); err != nil {
		return fmt.Errorf("ublk: device %d: %w", d.info.ID, err)
	}
	d.size.Store(d.limits.Size)
	d.info, err = d.ctl.Info(ctx, d.info.ID)
	return err
}

// startQueues opens the char device and waits until every queue has its FETCHes
// in. If one fails, all of them end before it returns.
func (d *Device) startQueues(ctx context.Context) error {
	fd, err := openChar(ctx, d.info.ID)
	if err != nil {
		close(d.done)
		return err
	}
	failures := newFailures(d.failed)
	for i := range d.info.Queues {
		cpus, err := d.ctl.queueAffinity(ctx, d.info.ID, i)
		if err != nil {
			// Only a matter of speed: let the scheduler choose.
			d.log.Warn("processors of a ublk queue not known", "device", d.info.ID, "queue", i, "error", err)
		}
		q, err := newQueue(queueConfig{
			id: i, depth: d.info.Depth, ioBytes: d.info.MaxIOBytes, charFD: fd, path: d.info.Flags.DataPath(), cpus: cpus,
			backend: d.backend, gate: &d.gate, log: d.log, changed: d.changed, rouse: d.rouse,
			failures: failures, broke: d.broke, ungated: d.ungated, unregistrable: d.unregistrable,
		})
		if err != nil {
			for _, q := range d.queues {
				q.closeWake()
			}
			d.queues = nil
			failures.close()
			unix.Close(fd)
			close(d.done)
			return err
		}
		d.queues = append(d.queues, q)
	}
	ready := make(chan error, len(d.queues))
	errs := make([]error, len(d.queues))
	var running sync.WaitGroup
	for i, q := range d.queues {
		running.Go(func() {
			onOwnThread(func() { errs[i] = q.serve(ready) })
			q.end()
		})
	}
	go func() {
		running.Wait()
		failures.close()
		unix.Close(fd)
		d.err = errors.Join(errs...)
		if d.err != nil {
			d.log.Error("ublk device has no server any more", "device", d.info.ID, "error", d.err)
		}
		close(d.done)
	}()
	var first error
	for range d.queues {
		if err := <-ready; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// broke ends a device of which one queue can't go on, while the others can: its
// clients would wait without anybody knowing. It is left as by Abandon.
func (d *Device) broke(err error) {
	d.log.Error("ublk queue failed; its device is left to a successor", "device", d.info.ID, "error", err)
	d.setGate(gateLeave)
}

// undo removes what a failed start has made.
func (d *Device) undo(cause error) {
	ctx, cancel := context.WithTimeout(context.Background(), d.ctl.worker.timeout)
	defer cancel()
	d.leaveQueues(ctx)
	if err := d.ctl.Delete(ctx, d.info.ID); err != nil && !errors.Is(err, ErrNoDevice) {
		d.log.Error("ublk device of a failed start is left over", "device", d.info.ID, "start", cause, "error", err)
	}
	d.finish()
}

// leaveQueues makes the queues end by themselves, which cancels their FETCHes.
func (d *Device) leaveQueues(ctx context.Context) {
	if d.queues == nil {
		return
	}
	d.setGate(gateLeave)
	select {
	case <-d.done:
	case <-ctx.Done():
	}
}

// Adopt takes over device o.ID, whose server has died or abandoned it, and
// serves it from b, which must hold what the predecessor's backend held. Queues,
// depth, buffer size and parameters are the device's own. While the predecessor
// is still going down it waits, as long as ctx allows, else one command timeout
// (kernel 6.12 takes 31 seconds when every request was in flight), then ErrBusy.
// ErrNotRecoverable means that the device can only be deleted. After an error
// the device is as it was, and can be adopted again.
func Adopt(ctx context.Context, b *Backend, o Options) (*Device, error) {
	o = o.withDefaults()
	if o.ID < 0 || o.ID > math.MaxInt32 {
		return nil, fmt.Errorf("ublk: adopting: device number %d is not valid", o.ID)
	}
	d, err := newDevice(b, o)
	if err != nil {
		return nil, err
	}
	if err := d.adopt(ctx, o); err != nil {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.ctl.worker.timeout)
		defer cancel()
		d.leaveQueues(limited)
		d.finish()
		return nil, err
	}
	d.log.Debug("ublk device adopted", "device", d.info.ID, "backend", b.path)
	return d, nil
}

func (d *Device) adopt(ctx context.Context, o Options) error {
	info, err := d.ctl.Info(ctx, o.ID)
	if err != nil {
		return err
	}
	if o.Tag != 0 && info.Tag != o.Tag {
		return fmt.Errorf("ublk: device %d has tag %#x, not %#x: %w", o.ID, info.Tag, o.Tag, ErrWrongTag)
	}
	if info.State == StateDead || !info.Flags.Has(UserRecovery) {
		return fmt.Errorf("ublk: device %d is %v with flags %v: %w (remedy: delete it)", o.ID, info.State, info.Flags, ErrNotRecoverable)
	}
	if info.Flags.DataPath() != DataPathCopy && !d.backend.zeroCopy() {
		return fmt.Errorf("ublk: device %d was added for zero copy, and backend %s handles data in this process: %w (remedy: delete the device)",
			o.ID, d.backend.path, ErrNotRecoverable)
	}
	d.info = info
	p, err := d.ctl.getParams(ctx, o.ID)
	if err != nil {
		return err
	}
	limits, err := limitsOf(p)
	if err != nil {
		return fmt.Errorf("ublk: device %d: %w", o.ID, err)
	}
	have, err := d.backend.Size()
	if err != nil {
		return err
	}
	if have < limits.Size {
		return fmt.Errorf("ublk: device %d has %d bytes, backend %s only %d", o.ID, limits.Size, d.backend.path, have)
	}
	if err := d.beginRecovery(ctx); err != nil {
		return err
	}
	if err := d.startQueues(ctx); err != nil {
		return err
	}
	if err := d.ctl.endRecovery(ctx, o.ID); err != nil {
		return err
	}
	return d.afterStart(ctx)
}

// settle is how long a device has been quiesced before it is adopted. Kernel
// 6.12 queues its quiesce work once per dying queue; a straggler that ran after
// the recovery would quiesce the successor.
const settle = 2 * pollInterval

// beginRecovery asks until the driver has seen the predecessor go.
func (d *Device) beginRecovery(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.ctl.worker.timeout)
	defer cancel()
	wait := pollInterval
	for {
		info, err := d.ctl.Info(ctx, d.info.ID)
		switch {
		case err == nil && info.State != StateLive && wait == settle:
			err = d.ctl.startRecovery(ctx, d.info.ID)
			if err == nil {
				return nil
			}
		case err == nil && info.State != StateLive:
			wait = settle
		}
		if err != nil && !errors.Is(err, ErrBusy) && ctx.Err() == nil {
			return fmt.Errorf("ublk: adopting device %d: %w", d.info.ID, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ublk: adopting device %d: its server, process %d, has not let go of it: %w (%w)",
				d.info.ID, d.info.PID, ErrBusy, ctx.Err())
		case <-time.After(wait):
		}
	}
}
