package holders

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// patience bounds the wait for those who go by themselves: udev, which opens a
// device for a moment whenever somebody who wrote to it has closed it, and whom
// Finder.Passing names.
const (
	patience     = 2 * time.Second
	passingPause = 50 * time.Millisecond
)

// Lasting is Find, but waits a little for those who go by themselves.
func (f *Finder) Lasting(ctx context.Context, devices ...string) ([]Holder, error) {
	for start := time.Now(); ; time.Sleep(passingPause) {
		found, err := f.Find(ctx, devices...)
		if err != nil || !f.onlyPassing(found) || time.Since(start) > patience {
			return found, err
		}
	}
}

// Claim opens block devices as [Exclusive] does, and names whoever else holds one,
// after it has waited a little for those who go by themselves. A device that
// somebody has claimed is opened all the same. The files are the caller's to
// close: until then nobody can mount a device that has no holder here. After an
// error there are none.
func (f *Finder) Claim(ctx context.Context, devices ...string) (files []*os.File, found []Holder, err error) {
	for start := time.Now(); ; time.Sleep(passingPause) {
		var claimed []string // by somebody else
		files, claimed, err = openAll(devices)
		if err != nil {
			return nil, nil, err
		}
		found, err = f.Find(ctx, devices...)
		if err != nil {
			closeAll(files)
			return nil, nil, fmt.Errorf("who holds %s: %w", strings.Join(devices, ", "), err)
		}
		if len(found) == 0 {
			// One who is found by name says more than that there is somebody.
			for _, path := range claimed {
				found = append(found, Holder{Kind: KindExclusive, Device: path, Detail: "claimed by somebody (a mount, swap space, or a device on top)"})
			}
		}
		if !f.onlyPassing(found) || time.Since(start) > patience {
			return files, found, nil
		}
		closeAll(files)
	}
}

func openAll(devices []string) (files []*os.File, claimed []string, err error) {
	for _, path := range devices {
		f, err := Exclusive(path)
		if errors.Is(err, ErrInUse) {
			claimed = append(claimed, path)
			f, err = os.Open(path)
		}
		if err != nil {
			closeAll(files)
			return nil, nil, err
		}
		files = append(files, f)
	}
	return files, claimed, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// onlyPassing tells whether there are holders and all of them go by themselves.
func (f *Finder) onlyPassing(list []Holder) bool {
	for _, h := range list {
		if h.Kind != KindProcess || h.Command != "(udev-worker)" && h.Command != "systemd-udevd" && !slices.Contains(f.Passing, h.Command) {
			return false
		}
	}
	return len(list) > 0
}
