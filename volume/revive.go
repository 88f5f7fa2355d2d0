package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/swapback/swapback/api"
)

// reviveEvery is how often one volume is served again at most. An error that is
// there at once each time must not keep the daemon busy.
const reviveEvery = time.Minute

// revivePatience bounds one try.
const revivePatience = 2 * time.Minute

// trouble is why nobody serves the volume, or nil.
func (e *export) trouble() error {
	if e.dev == nil {
		return e.failed
	}
	if err := e.dev.Err(); err != nil {
		return fmt.Errorf("its server has ended, and begins again at once or within a minute: %w", err)
	}
	return nil
}

// server is what is watched of a [ublk.Device].
type server interface {
	Done() <-chan struct{}
	Err() error
}

// watch serves a volume again when its server ends by itself: its device is in the
// kernel still, and its users wait for a successor.
func (c *Controller) watch(t target, e *export) {
	c.watching.Go(func() {
		last := func() time.Time { return c.lastRevival(t.uuid()) }
		afterFailure(c.closing, e.dev, last, func() (again time.Duration) {
			e, again = c.revive(t.uuid(), e)
			return again
		})
	})
}

func (c *Controller) lastRevival(uuid string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.revived[uuid]
}

// afterFailure calls revive when the server has ended with an error, but not within
// reviveEvery of the last time (none is the zero time), and then as often as revive
// wants, 0 for no more.
func afterFailure(ctx context.Context, s server, last func() time.Time, revive func() (again time.Duration)) {
	select {
	case <-s.Done():
	case <-ctx.Done():
		return
	}
	if s.Err() == nil {
		return // it was stopped, or left to the next daemon
	}
	for again := max(reviveEvery-time.Since(last()), 0); ; {
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return
		}
		if again = revive(); again == 0 {
			return
		}
	}
}

// revive serves a volume again whose export has failed. When it can't, it says when
// to try again, and with which export.
func (c *Controller) revive(uuid string, e *export) (_ *export, again time.Duration) {
	t, release, err := c.claimOne("serving it again", uuid)
	if err != nil {
		var refused *api.Error
		if errors.As(err, &refused) && refused.Code == api.CodeBusy {
			return e, time.Second
		}
		return e, 0 // it is gone
	}
	defer release()
	if c.export(t) != e || !t.info.Attached {
		return e, 0 // somebody has seen to it
	}
	c.mu.Lock()
	c.revived[uuid] = time.Now()
	c.mu.Unlock()
	// Close waits for this rather than to leave it half done, but not for ever: the
	// device may be gone, or somebody else's.
	ctx, cancel := context.WithTimeout(context.Background(), revivePatience)
	defer cancel()
	if err := c.serveAnew(ctx, t, e); err != nil {
		return c.export(t), reviveEvery
	}
	return e, 0
}

// serveAnew serves a volume again whose export, if it has one, serves nothing.
func (c *Controller) serveAnew(ctx context.Context, t target, e *export) error {
	if e != nil && e.dev != nil {
		c.log.Warn("adopting a block device whose server has ended", "volume", t.String(), "device", e.dev.Path(), "err", e.dev.Err())
		if err := e.abandon(ctx); err != nil {
			c.log.Warn("ended server not closed", "volume", t.String(), "err", err)
		}
	}
	return c.serveAgain(ctx, t)
}
