package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap/dm"
)

const (
	floorRounds = 300
	floorName   = "swapback-pause-floor"
	floorSize   = 64 << 20 // bytes of the dm-linear device
	block       = 4096
	// floorBlock is where the FUA writes go: behind what a pool keeps at the
	// head of a member, so that they lie like a commit's.
	floorBlock = 1 << 20
)

// floor is the least that a swap can cost, in seconds per round.
type floor struct {
	suspend, resume      []float64
	sequential, together []float64 // one FUA write to each member
}

// suspended is the part of the device-mapper.
func (f *floor) suspended() []float64 { return sum(f.suspend, f.resume) }

// judged is the median floor in microseconds. The writes can be made one after
// the other or at once; what takes less counts.
func (f *floor) judged() float64 {
	return min(median(sum(f.suspended(), f.sequential)), median(sum(f.suspended(), f.together)))
}

func (f *floor) results() []result {
	dm := spread("floor: suspend and resume", 1, f.suspended())
	dm.Suspend, dm.Resume = median(f.suspend), median(f.resume)
	return []result{
		dm,
		spread("floor: FUA writes in turn", 1, f.sequential),
		spread("floor: FUA writes at once", 1, f.together),
		spread("floor: with writes in turn", 1, sum(f.suspended(), f.sequential)),
		spread("floor: with writes at once", 1, sum(f.suspended(), f.together)),
	}
}

func sum(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] + b[i]
	}
	return out
}

// measureFloor alternates all parts, so that what the machine does meanwhile
// hits them alike.
func measureFloor(ctx context.Context, disks []string) (f *floor, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	control, err := dm.Open()
	if err != nil {
		return nil, err
	}
	defer control.Close()
	files := make([]*os.File, len(disks))
	for i, path := range disks {
		if files[i], err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_EXCL, 0); err != nil {
			return nil, err
		}
		defer files[i].Close()
	}
	ref := dm.ByUUID("SWAPBACK-PAUSE-floor")
	if _, err := control.Create(floorName, ref.UUID); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, control.Remove(ref, false)) }()
	var st unix.Stat_t
	if err := unix.Stat(disks[0], &st); err != nil {
		return nil, fmt.Errorf("%s: %w", disks[0], err)
	}
	// The member itself is open exclusively: the device-mapper would be refused.
	files[0].Close()
	if files[0], err = os.OpenFile(disks[0], os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		return nil, err
	}
	table := dm.Table{{Start: 0, Length: floorSize / dm.SectorSize, Target: dm.Linear{Device: dm.DeviceOf(st.Rdev)}}}
	if err := errors.Join(control.Load(ref, table, false), control.Resume(ctx, ref)); err != nil {
		return nil, err
	}
	f = &floor{}
	for range floorRounds {
		if err := f.round(ctx, control, ref, files); err != nil {
			return nil, err
		}
		time.Sleep(time.Millisecond) // idle is what the device is to be
	}
	return f, nil
}

func (f *floor) round(ctx context.Context, control *dm.Control, ref dm.Ref, files []*os.File) error {
	start := time.Now()
	if err := control.Suspend(context.WithoutCancel(ctx), ref, dm.SuspendOptions{}); err != nil {
		return err
	}
	f.suspend = append(f.suspend, seconds(time.Since(start)))
	start = time.Now()
	if err := control.Resume(context.WithoutCancel(ctx), ref); err != nil {
		return err
	}
	f.resume = append(f.resume, seconds(time.Since(start)))

	start = time.Now()
	for _, file := range files {
		if err := writeFUA(file); err != nil {
			return err
		}
	}
	f.sequential = append(f.sequential, seconds(time.Since(start)))

	start = time.Now()
	errs := make([]error, len(files))
	var all sync.WaitGroup
	for i, file := range files[1:] {
		all.Go(func() { errs[1+i] = writeFUA(file) })
	}
	errs[0] = writeFUA(files[0])
	all.Wait()
	f.together = append(f.together, seconds(time.Since(start)))
	return errors.Join(append(errs, ctx.Err())...)
}

// zeroes is a block that O_DIRECT takes.
var zeroes = func() []byte {
	b := make([]byte, 2*block)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (block - 1))
	return b[skip : skip+block]
}()

func writeFUA(f *os.File) error {
	n, err := unix.Pwritev2(int(f.Fd()), [][]byte{zeroes}, floorBlock, unix.RWF_DSYNC)
	if err == nil && n != block {
		err = fmt.Errorf("%d bytes written", n)
	}
	if err != nil {
		return fmt.Errorf("FUA write to %s: %w", f.Name(), err)
	}
	return nil
}
