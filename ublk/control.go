package ublk

import (
	"context"
	"log/slog"
	"time"
)

// Features are the bits that GET_FEATURES answers (UBLK_F_ in ublk_cmd.h).
type Features uint64

// State of a device in the kernel (UBLK_S_DEV_ in ublk_cmd.h).
type State uint16

// Info is what the kernel knows of a device.
type Info struct {
	ID         int
	Queues     int
	Depth      int
	State      State
	MaxIOBytes int
	PID        int // thread group of the server, -1 without one
	Flags      Features
	Tag        uint64
}

// ControlOptions for OpenControl.
type ControlOptions struct {
	Timeout time.Duration // per command, 0: 30 s
	Logger  *slog.Logger  // nil: none
}

// Control runs control commands, one at a time, on a thread of its own. One per
// process is enough; all methods may be called from any goroutine.
type Control struct{}

// OpenControl opens /dev/ublk-control. ErrNoDriver when it is not there.
func OpenControl(o ControlOptions) (*Control, error) { return nil, errNotYet }

// Close ends the thread. Devices live on.
func (c *Control) Close() error { return nil }

// Features asks what the driver can do.
func (c *Control) Features(ctx context.Context) (Features, error) { return 0, errNotYet }

// List tells of every ublk device of this machine, whoever serves it.
func (c *Control) List(ctx context.Context) ([]Info, error) { return nil, errNotYet }

// Info of one device; ErrNoDevice.
func (c *Control) Info(ctx context.Context, id int) (Info, error) { return Info{}, errNotYet }

// Delete stops a device (what is in flight without a server fails with EIO)
// and removes it.
func (c *Control) Delete(ctx context.Context, id int) error { return errNotYet }
