package volume

import (
	"context"
	"fmt"

	"github.com/swapback/swapback/api"
)

// preflight makes sure that nobody would see the contents change under his
// feet, and that nothing dirty is left in the page cache to be written to the
// wrong position later.
func (s *swap) preflight(ctx context.Context) error {
	defer s.phase(&s.result.Phases.Preflight)()
	var paths []string
	for i, t := range s.targets {
		e := s.c.export(t)
		if e == nil {
			continue
		}
		if err := e.trouble(); err != nil {
			return &api.Error{
				Code:    api.CodeInternal,
				Message: fmt.Sprintf("swap: volume %s should be served but is not: %v", t, err),
				Remedy:  "pool check --repair serves it, or says why not; or detach it to swap it while nobody uses it",
			}
		}
		s.served = append(s.served, i)
		s.devices = append(s.devices, e.dev)
		paths = append(paths, e.dev.Path())
	}
	if err := s.remotesServe(); err != nil {
		return err
	}
	s.doors = s.c.doorsOf(s.targets...)
	if err := s.suited(); err != nil {
		return err
	}
	if len(paths) > 0 {
		if err := s.openHelper(ctx, paths); err != nil {
			return fmt.Errorf("swap refused: %w", err)
		}
		if err := s.findHolders(ctx, paths); err != nil {
			return err
		}
	}
	s.held = append(s.held, s.c.hostsOf(s.req.Released, s.targets...)...)
	if len(s.held) > 0 && !s.req.AllowHolders {
		e := &api.Error{
			Code: api.CodeInUse, Message: "swap refused: a device is in use",
			Remedy: "unmount or stop what is named above, on other hosts disconnect, too; --allow-holders is for raw users that can stand a change of content",
		}
		e.Holders = s.held
		return e
	}
	if len(s.req.Released) > 0 {
		s.c.log.Info("hosts released for a swap", "hosts", s.req.Released)
	}
	if len(paths) == 0 {
		return nil
	}
	return s.writeBack(ctx)
}

// remotesServe refuses a volume of which it is not known whether something of another
// host is still in flight.
func (s *swap) remotesServe() error {
	for _, t := range s.targets {
		if r := s.c.remote(t); r != nil && r.failed != nil {
			return &api.Error{
				Code:    api.CodeInternal,
				Message: fmt.Sprintf("swap: volume %s should be served to other hosts but is not: %v", t, r.failed),
				Remedy:  "pool check --repair serves it, or says why not; or delete its export",
			}
		}
	}
	return nil
}

// suited makes sure that each device has told its users what the disks need that
// it is about to get. A device from before a disk was known, or changed its
// cache, has not: without flushes what they wrote would not be safe.
func (s *swap) suited() error {
	for _, i := range s.served {
		t, gets := s.targets[i], s.targets[i^1]
		if err := s.c.export(t).unsuited(gets.pool, &gets.info.Position); err != nil {
			return &api.Error{
				Code:    api.CodeInvalid,
				Message: fmt.Sprintf("swap refused: the device of %s is not made for what %s lies on: %v", t, gets, err),
				Remedy:  fmt.Sprintf("detach %s and attach it: its new device will be", t),
			}
		}
	}
	for i, t := range s.targets {
		gets := s.targets[i^1]
		r := s.c.door(t)
		if r == nil {
			continue
		}
		if err := r.unsuited(gets.pool, &gets.info.Position); err != nil {
			return &api.Error{
				Code:    api.CodeInvalid,
				Message: fmt.Sprintf("swap refused: the hosts of %s were not told what the disks of %s need: %v", t, gets, err),
				Remedy:  fmt.Sprintf("delete the export of %s and create it again", t),
			}
		}
	}
	return nil
}

// writeBack empties the page cache of the devices. What can't be written is gone
// from it as well: the kernel drops a dirty page whose write failed
// (end_buffer_async_write in fs/buffer.c), so that it can't reach the other
// position after the swap. For content that failed, or lies on a dead disk, that
// is a warning; from other content nothing may be lost without an error.
func (s *swap) writeBack(ctx context.Context) error {
	lost, err := s.emptyCaches(ctx)
	if err != nil {
		return fmt.Errorf("swap refused: writing back what is cached: %w", err)
	}
	for i, err := range lost {
		t := s.targets[s.served[i]]
		switch {
		case err == nil:
		case t.info.Degraded != "" || s.failedContent(s.served[i]):
			s.warn(fmt.Sprintf("what was written last to the content that %s gave away could not be written back and is lost: %v", t, err))
		default:
			return fmt.Errorf("swap refused: writing back what was written to %s: %w", t, err)
		}
	}
	return nil
}

// openHelper starts what has the devices open for this swap.
func (s *swap) openHelper(ctx context.Context, paths []string) (err error) {
	ctx, cancel := s.whileServed(ctx)
	defer cancel()
	s.helper, err = s.c.startHelper(ctx, paths)
	return err
}

func (s *swap) closeHelper() {
	if s.helper != nil {
		s.c.endHelper(s.helper)
	}
}

// emptyCaches is [pagecache.WriteBack] of the served devices.
func (s *swap) emptyCaches(ctx context.Context) (lost []error, err error) {
	ctx, cancel := s.whileServed(ctx)
	defer cancel()
	return s.helper.WriteBack(ctx)
}

// whileServed is a context that ends when the server of one of the devices does:
// what waits for the device then waits for a successor, which waits for the swap.
func (s *swap) whileServed(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	for _, d := range s.devices {
		go func() {
			select {
			case <-d.Done():
				cancel(fmt.Errorf("the server of %s has ended", d.Path()))
			case <-ctx.Done():
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}

// failedContent tells whether a target's content is labelled by this swap as
// what failed.
func (s *swap) failedContent(target int) bool {
	return target%2 == 0 && s.req.Pairs[target/2].Quarantine != nil
}

// findHolders opens the devices exclusively and names whoever else holds one.
// The open files are kept through the swap: nobody can mount a device before
// it has ended.
func (s *swap) findHolders(ctx context.Context, paths []string) error {
	finder := s.c.finder()
	guards, found, err := finder.Claim(ctx, paths...)
	if err != nil {
		return fmt.Errorf("swap: %w", err)
	}
	s.guards, s.held = guards, apiHolders(found)
	return nil
}

func (s *swap) closeGuards() {
	for _, f := range s.guards {
		f.Close()
	}
	s.guards = nil
}
