package ublk

import (
	"context"
	"errors"
)

// Device is a running block device served by this process. All methods may be
// called from any goroutine.
type Device struct{}

var errNotYet = errors.New("ublk: not built yet")

// Start adds a device, starts its queues and makes /dev/ublkbN appear.
func Start(ctx context.Context, b *Backend, o Options) (*Device, error) { return nil, errNotYet }

// Adopt takes over device o.ID, whose server has died or abandoned it.
func Adopt(ctx context.Context, b *Backend, o Options) (*Device, error) { return nil, errNotYet }

// ID is N of /dev/ublkbN.
func (d *Device) ID() int { return 0 }

// Path is "/dev/ublkbN".
func (d *Device) Path() string { return "" }

// Info is what the kernel said about the device when it was started or adopted.
func (d *Device) Info() Info { return Info{} }

// Limits are those that the device shows to its clients.
func (d *Device) Limits() Limits { return Limits{} }

// Hold closes the gate: from now on requests are kept, unanswered, until
// Release or Refuse.
func (d *Device) Hold() {}

// Refuse closes the gate: requests, also those held, are answered with EBUSY.
func (d *Device) Refuse() {}

// Release opens the gate: held requests are issued in the order they came.
func (d *Device) Release() {}

// Drain waits, with the gate closed, until no request is in flight at the
// backend on any queue. ErrGateOpen if the gate is or becomes open.
func (d *Device) Drain(ctx context.Context) error { return errNotYet }

// SetReadOnly makes the server answer writes, discards and write-zeroes with
// an error (clients see EIO).
func (d *Device) SetReadOnly(on bool) {}

// Resize changes the size in bytes (kernel 6.16, else ErrUnsupported).
func (d *Device) Resize(ctx context.Context, size uint64) error { return errNotYet }

// Stats reads the counters, without locks.
func (d *Device) Stats() Stats { return Stats{} }

// Done is closed when the queues have ended: after Stop, Abandon, or when
// another process stopped the device.
func (d *Device) Done() <-chan struct{} { return nil }

// Stop ends the device and deletes it.
func (d *Device) Stop(ctx context.Context) error { return errNotYet }

// Abandon ends the queues and leaves the device in the kernel, quiesced, for
// a successor to Adopt.
func (d *Device) Abandon(ctx context.Context) error { return errNotYet }

// OpStats count one operation.
type OpStats struct {
	Ops    uint64 // requests answered, errors included
	Bytes  uint64 // of those answered well
	Errors uint64 // answered with an error (refused ones not counted here)
}

// Stats are a device's counters since it was started or adopted.
type Stats struct {
	Read, Write, Flush, Discard, WriteZeroes OpStats

	Held     uint64 // requests that a closed gate kept, ever
	Refused  uint64 // requests answered EBUSY by a closed gate, ever
	Retries  uint64 // backend operations issued again (EAGAIN, short results)
	Panics   uint64 // panics turned into EIO
	HeldNow  uint64 // kept right now
	InFlight uint64 // at the backend right now
}
