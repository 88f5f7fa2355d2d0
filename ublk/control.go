package ublk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultCommandTimeout bounds one control command. It is longer than the 31
// seconds that kernel 6.12 may take to notice a dead server with every request
// in flight.
const DefaultCommandTimeout = 40 * time.Second

// pollInterval is how often states that the driver does not announce are asked
// for again.
const pollInterval = 10 * time.Millisecond

// numberPatience bounds the wait for the number of a device that is gone.
const numberPatience = 10 * time.Second

const (
	controlPath = "/dev/ublk-control"
	classPath   = "/sys/class/ublk-char"
	anyID       = ^uint32(0)
	noQueue     = ^uint16(0)
)

// Info is what the kernel knows of a device.
type Info struct {
	ID         int
	Queues     int
	Depth      int
	State      State
	MaxIOBytes int
	PID        int      // thread group of the server; of the last one when it is gone
	Flags      Features // that the device was added with
	Tag        uint64   // Options.Tag of whoever added it
}

// ControlOptions for OpenControl.
type ControlOptions struct {
	Timeout time.Duration // per command, 0: DefaultCommandTimeout
	Logger  *slog.Logger  // nil: none
}

// Control runs control commands, one at a time, on a thread of its own. One per
// process is enough; all methods may be called from any goroutine. It holds no
// device: closing it changes none.
type Control struct {
	worker *controlWorker
	log    *slog.Logger
}

// OpenControl opens /dev/ublk-control. ErrNoDriver when it is not there.
func OpenControl(o ControlOptions) (*Control, error) {
	if o.Timeout == 0 {
		o.Timeout = DefaultCommandTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoDriver
	}
	if err != nil {
		return nil, fmt.Errorf("ublk: opening the control device: %w", err)
	}
	w, err := startControlWorker(f, o.Timeout, o.Logger)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Control{worker: w, log: o.Logger}, nil
}

// Close ends the thread. Commands that come later fail with ErrClosed.
func (c *Control) Close() error { return c.worker.close() }

// Features asks what the driver can do (GET_FEATURES).
func (c *Control) Features(ctx context.Context) (Features, error) {
	buf := make([]byte, 8) // UBLK_FEATURES_LEN
	if err := c.do(ctx, "GET_FEATURES", cmdGetFeatures, 0, ctrlCmd{}, buf); err != nil {
		return 0, err
	}
	return *(*Features)(unsafe.Pointer(&buf[0])), nil
}

// Info of one device (GET_DEV_INFO); ErrNoDevice.
func (c *Control) Info(ctx context.Context, id int) (Info, error) {
	buf := make([]byte, unsafe.Sizeof(devInfo{}))
	answer := buf
	err := c.do(ctx, "GET_DEV_INFO", cmdGetDevInfo, id, ctrlCmd{}, buf)
	if errors.Is(err, unix.EINVAL) {
		// An unprivileged device: whoever asks has to name its char device, in
		// front of the answer (GET_DEV_INFO2). The other way does not serve for
		// all, because the node goes before the device does.
		path := charPath(id) + "\x00"
		buf = append([]byte(path), make([]byte, len(answer))...)
		answer = buf[len(path):]
		err = c.do(ctx, "GET_DEV_INFO2", cmdGetDevInfo2, id, ctrlCmd{DevPathLen: uint16(len(path))}, buf)
	}
	if err != nil {
		return Info{}, err
	}
	info, err := decodeInfo(answer)
	if err != nil {
		return Info{}, fmt.Errorf("ublk: device %d: %w", id, err)
	}
	return info, nil
}

// List tells of every ublk device of this machine, whoever serves it, in the
// order of their numbers.
func (c *Control) List(ctx context.Context) ([]Info, error) {
	ids, err := listIDs(classPath)
	if err != nil {
		return nil, err
	}
	var infos []Info
	for _, id := range ids {
		info, err := c.Info(ctx, id)
		if errors.Is(err, ErrNoDevice) {
			continue // gone since
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// listIDs reads the numbers of the char devices in a /sys/class directory.
func listIDs(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoDriver
	}
	if err != nil {
		return nil, fmt.Errorf("ublk: listing devices: %w", err)
	}
	var ids []int
	for _, e := range entries {
		digits, ok := strings.CutPrefix(filepath.Base(e.Name()), "ublkc")
		if !ok {
			continue
		}
		if id, err := strconv.Atoi(digits); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Delete stops a device and removes it, whoever added it. Requests that wait
// for a server fail with EIO. It waits until the device is gone, which needs
// every opener of the block device to let go and its server to end; ErrBusy
// when ctx, or the command timeout, ends first. The removal then happens
// later, by itself.
func (c *Control) Delete(ctx context.Context, id int) error {
	if err := c.stopDev(ctx, id); err != nil {
		return err
	}
	return c.delDev(ctx, id)
}

func (c *Control) addDev(ctx context.Context, d *devInfo) error {
	buf := make([]byte, unsafe.Sizeof(*d))
	*(*devInfo)(unsafe.Pointer(&buf[0])) = *d
	id := -1
	if d.DevID != anyID {
		id = int(d.DevID)
	}
	if err := c.do(ctx, "ADD_DEV", cmdAddDev, id, ctrlCmd{}, buf); err != nil {
		return err
	}
	*d = *(*devInfo)(unsafe.Pointer(&buf[0]))
	return nil
}

// addNumber adds a device. A number outlives its device for a moment: the driver
// frees it when the last reference is gone (ublk_cdev_rel in drivers/block/ublk_drv.c),
// and nobody can look at the device any more by then. Only a number whose device
// can be seen is taken.
func (c *Control) addNumber(ctx context.Context, info *devInfo, id int) error {
	deadline := time.Now().Add(numberPatience)
	for {
		err := c.addDev(ctx, info)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		_, seen := c.Info(ctx, id)
		if !errors.Is(seen, ErrNoDevice) || time.Now().After(deadline) {
			return fmt.Errorf("ublk: number %d: %w (%w)", id, ErrExists, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ublk: number %d: %w (%w)", id, ErrExists, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

func (c *Control) setParams(ctx context.Context, id int, p params) error {
	buf := make([]byte, unsafe.Sizeof(p))
	*(*params)(unsafe.Pointer(&buf[0])) = p
	return c.do(ctx, "SET_PARAMS", cmdSetParams, id, ctrlCmd{}, buf)
}

func (c *Control) getParams(ctx context.Context, id int) (params, error) {
	buf := make([]byte, unsafe.Sizeof(params{}))
	head := (*params)(unsafe.Pointer(&buf[0]))
	head.Len = paramsLen
	head.Types = paramTypeBasic | paramTypeDiscard | paramTypeDevt | paramTypeDMAAlign | paramTypeSegment
	if err := c.do(ctx, "GET_PARAMS", cmdGetParams, id, ctrlCmd{}, buf); err != nil {
		return params{}, err
	}
	return decodeParams(buf)
}

// startDev needs every FETCH of every queue to be there; it waits for them.
func (c *Control) startDev(ctx context.Context, id int) error {
	return c.do(ctx, "START_DEV", cmdStartDev, id, ctrlCmd{Data: uint64(os.Getpid())}, nil)
}

func (c *Control) stopDev(ctx context.Context, id int) error {
	return c.do(ctx, "STOP_DEV", cmdStopDev, id, ctrlCmd{}, nil)
}

// delDev deletes without blocking in the driver (DEL_DEV_ASYNC, 6.9): DEL_DEV
// would keep every other command waiting behind the last opener. Then it asks
// until the number is free.
func (c *Control) delDev(ctx context.Context, id int) error {
	if err := c.do(ctx, "DEL_DEV_ASYNC", cmdDelDevAsync, id, ctrlCmd{}, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.worker.timeout)
	defer cancel()
	for {
		_, err := c.Info(ctx, id)
		if errors.Is(err, ErrNoDevice) {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ublk: device %d is deleted but not gone, somebody still has %s or its server's descriptors open: %w (%w)",
				id, blockPath(id), ErrBusy, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

// queueAffinity tells which processors submit to a hardware queue
// (GET_QUEUE_AFFINITY).
func (c *Control) queueAffinity(ctx context.Context, id, queue int) (unix.CPUSet, error) {
	var set unix.CPUSet
	buf := make([]byte, unsafe.Sizeof(set))
	if err := c.do(ctx, "GET_QUEUE_AFFINITY", cmdGetQueueAffinity, id, ctrlCmd{Data: uint64(queue)}, buf); err != nil {
		return set, err
	}
	return *(*unix.CPUSet)(unsafe.Pointer(&buf[0])), nil
}

func (c *Control) startRecovery(ctx context.Context, id int) error {
	return c.do(ctx, "START_USER_RECOVERY", cmdStartUserRecovery, id, ctrlCmd{}, nil)
}

func (c *Control) endRecovery(ctx context.Context, id int) error {
	return c.do(ctx, "END_USER_RECOVERY", cmdEndUserRecovery, id, ctrlCmd{Data: uint64(os.Getpid())}, nil)
}

func (c *Control) updateSize(ctx context.Context, id int, sectors uint64) error {
	return c.do(ctx, "UPDATE_SIZE", cmdUpdateSize, id, ctrlCmd{Data: sectors}, nil)
}

// do fills in the common parts of a command and runs it. buf travels both ways.
func (c *Control) do(ctx context.Context, name string, op uint32, id int, cmd ctrlCmd, buf []byte) error {
	cmd.DevID = uint32(id)
	if id < 0 {
		cmd.DevID = anyID
	}
	cmd.QueueID = noQueue
	return c.worker.run(ctx, &controlCall{ctx: ctx, name: name, op: op, id: id, cmd: cmd, buf: buf})
}

func charPath(id int) string  { return "/dev/ublkc" + strconv.Itoa(id) }
func blockPath(id int) string { return "/dev/ublkb" + strconv.Itoa(id) }
