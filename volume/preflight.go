package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/holders"
)

// preflight makes sure that nobody would see the contents change under his
// feet, and that nothing dirty is left in the page cache to be written to the
// wrong position later.
func (s *swap) preflight(ctx context.Context) error {
	defer s.phase(&s.result.Phases.Preflight)()
	var paths []string
	for _, t := range s.targets {
		e := s.c.export(t)
		if e == nil {
			continue
		}
		if e.dev == nil {
			return &api.Error{
				Code:    api.CodeInternal,
				Message: fmt.Sprintf("swap: volume %s should be served but is not: %v", t, e.failed),
				Remedy:  "attach it, or detach it to swap it while nobody uses it",
			}
		}
		s.devices = append(s.devices, e.dev)
		paths = append(paths, e.dev.Path())
	}
	if len(paths) == 0 {
		return nil
	}
	if err := s.findHolders(ctx, paths); err != nil {
		return err
	}
	if len(s.held) > 0 && !s.req.AllowHolders {
		e := &api.Error{
			Code: api.CodeInUse, Message: "swap refused: a device is in use",
			Remedy: "unmount or stop what is named above; --allow-holders is for raw users that can stand a change of content",
		}
		e.Holders = apiHolders(s.held)
		return e
	}
	for _, f := range s.guards {
		if err := flushBuffers(f); err != nil {
			return fmt.Errorf("swap: %w", err)
		}
	}
	return nil
}

// udevPatience bounds the wait for udev, which opens a device for a moment
// whenever somebody who wrote to it has closed it.
const (
	udevPatience = 2 * time.Second
	udevPause    = 50 * time.Millisecond
)

// findHolders opens the devices exclusively and names whoever else holds one.
// The open files are kept through the swap: nobody can mount a device before
// it has ended.
func (s *swap) findHolders(ctx context.Context, paths []string) error {
	for start := time.Now(); ; {
		s.closeGuards()
		s.held = nil
		claimed := map[string]bool{} // by somebody else
		for _, path := range paths {
			f, err := holders.Exclusive(path)
			if errors.Is(err, holders.ErrInUse) {
				claimed[path] = true
				f, err = os.Open(path)
			}
			if err != nil {
				return fmt.Errorf("swap: %w", err)
			}
			s.guards = append(s.guards, f)
		}
		finder := s.c.finder()
		found, err := finder.Find(ctx, paths...)
		if err != nil {
			return fmt.Errorf("swap: who holds %s: %w", strings.Join(paths, ", "), err)
		}
		s.held = found
		for path := range claimed {
			// One who is found by name says more than that there is somebody.
			if len(found) == 0 {
				s.held = append(s.held, holders.Holder{Kind: holders.KindExclusive, Device: path, Detail: "claimed by somebody (a mount, swap space, or a device on top)"})
			}
		}
		if !onlyUdev(s.held) || time.Since(start) > udevPatience {
			return nil
		}
		time.Sleep(udevPause)
	}
}

// onlyUdev tells whether there are holders and all of them are udev's workers.
func onlyUdev(list []holders.Holder) bool {
	for _, h := range list {
		if h.Kind != holders.KindProcess || h.Command != "(udev-worker)" && h.Command != "systemd-udevd" {
			return false
		}
	}
	return len(list) > 0
}

func (s *swap) closeGuards() {
	for _, f := range s.guards {
		f.Close()
	}
	s.guards = nil
}
