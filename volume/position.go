package volume

import (
	"context"
	"fmt"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/volume/changes"
)

// Quarantine implements [api.Service]. The device turns read-only before the
// label is committed: a label without the protection would be a lie.
func (c *Controller) Quarantine(ctx context.Context, ref string, req api.QuarantineRequest) (api.Volume, error) {
	t, release, err := c.claimOne("quarantining it", ref)
	if err != nil {
		return api.Volume{}, err
	}
	defer release()
	if err := checkGeneration(t.String(), t.info, req.Generation); err != nil {
		return api.Volume{}, err
	}
	if req.Time.IsZero() {
		req.Time = time.Now().UTC()
	}
	if err := c.setReadOnly(t, true, true); err != nil {
		return api.Volume{}, err
	}
	failpoint.Hit("quarantine: read-only")
	q := dmswap.Quarantine(req.Quarantine)
	err = t.pool.SetPosition(ctx, t.uuid(), func(a *dmswap.PositionAttrs) { a.Quarantine = &q })
	if err != nil {
		return api.Volume{}, fromPool(fmt.Sprintf("volume %s not quarantined", t), err)
	}
	failpoint.Hit("quarantine: labelled")
	c.log.Info("volume quarantined", "volume", t.String(), "reason", q.Reason, "job", q.Job, "step", q.Step)
	return c.refreshed(t)
}

// ReleaseQuarantine implements [api.Service]. A device that was made while the
// label was there is read-only for the driver too, for as long as it lives: it
// is made anew, if nobody holds it.
func (c *Controller) ReleaseQuarantine(ctx context.Context, ref string) (api.Volume, error) {
	t, release, err := c.claimOne("releasing it", ref)
	if err != nil {
		return api.Volume{}, err
	}
	defer release()
	if t.info.Position.Quarantine == nil {
		return api.Volume{}, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("volume %s is not in quarantine", t)}
	}
	e, released := c.export(t), t
	released.info.Position.Quarantine = nil
	restart := e != nil && e.madeReadOnly(released)
	if restart {
		if err := c.refuseHolders(ctx, "its device was made read-only and has to be made anew: unmount it first", e); err != nil {
			return api.Volume{}, err
		}
	}
	err = t.pool.SetPosition(ctx, t.uuid(), func(a *dmswap.PositionAttrs) { a.Quarantine = nil })
	if err != nil {
		return api.Volume{}, fromPool(fmt.Sprintf("volume %s not released", t), err)
	}
	failpoint.Hit("release: label removed")
	t = released
	if restart {
		err = c.restart(ctx, t, e)
		if r := c.door(t); r != nil {
			r.ns.SetReadOnly(t.readOnly())
		}
	} else {
		err = c.setReadOnly(t, t.readOnly(), false)
	}
	if err != nil {
		return api.Volume{}, fmt.Errorf("volume %s is out of quarantine, but its device is still read-only (detach and attach it): %w", t, err)
	}
	failpoint.Hit("release: writable")
	c.log.Info("volume released from quarantine", "volume", t.String())
	return c.refreshed(t)
}

// setReadOnly makes a volume read-only or writable at both doors; its block device in the
// server and in the kernel. It sets the mark for udev.
func (c *Controller) setReadOnly(t target, readOnly, quarantined bool) error {
	if r := c.door(t); r != nil {
		r.ns.SetReadOnly(readOnly)
	}
	e := c.export(t)
	if e == nil || e.dev == nil {
		return nil
	}
	e.dev.SetReadOnly(readOnly)
	if err := setBlockReadOnly(e.dev.Path(), readOnly); err != nil {
		return fmt.Errorf("volume %s: %w", t, err)
	}
	c.mu.Lock()
	e.readOnly = readOnly
	c.mu.Unlock()
	return c.markQuarantine(e.dev.ID(), quarantined)
}

// SetDescendsFrom implements [api.Service].
func (c *Controller) SetDescendsFrom(ctx context.Context, ref string, req api.DescendsRequest) (api.Volume, error) {
	t, release, err := c.claimOne("recording its backup", ref)
	if err != nil {
		return api.Volume{}, err
	}
	defer release()
	if err := checkGeneration(t.String(), t.info, req.Generation); err != nil {
		return api.Volume{}, err
	}
	if err := c.recordBackup(ctx, t, req); err != nil {
		return api.Volume{}, fromPool(fmt.Sprintf("volume %s", t), err)
	}
	return c.refreshed(t)
}

// recordBackup records a backup with a position, in the metadata and, when it is
// the one of the last cut of the change map, there.
func (c *Controller) recordBackup(ctx context.Context, t target, req api.DescendsRequest) error {
	m := c.mapOf(t.info.Position.ID)
	if m != nil && req.Cut != "" {
		done, err := m.Confirm(req.Cut, req.Backup, func(base dmswap.Base) (dmswap.Base, error) {
			return c.recordBase(ctx, t, m, base)
		})
		if done || err != nil {
			return err
		}
	}
	if req.Cut != "" {
		// The daemon has begun anew, or there was another backup, or a grow. What
		// the map counts from still holds.
		c.log.Info("change map does not count from this backup: its cut is not known any more", "volume", t.String(), "backup", req.Backup)
	}
	return t.pool.SetPosition(ctx, t.uuid(), func(a *dmswap.PositionAttrs) { a.DescendsFrom = req.Backup })
}

func (c *Controller) recordBase(ctx context.Context, t target, m *changes.Map, base dmswap.Base) (dmswap.Base, error) {
	durable := m.Info().Durable
	err := t.pool.SetPosition(ctx, t.uuid(), func(a *dmswap.PositionAttrs) {
		a.DescendsFrom = base.Backup
		if durable {
			a.Base = base
		}
	})
	if err != nil || !durable {
		return base, err
	}
	now, err := t.pool.Volume(t.uuid())
	return now.Position.Base, err
}

// checkGeneration refuses when the content is not the one the caller saw; a
// want of 0 takes any.
func checkGeneration(name string, info dmswap.VolumeInfo, want uint64) error {
	if have := info.Position.Generation; want != 0 && have != want {
		return &api.Error{
			Code:    api.CodeGeneration,
			Message: fmt.Sprintf("volume %s: its position has generation %d, not %d: it was swapped or grown meanwhile", name, have, want),
			Remedy:  "look at the volume again (swapback volume show) and decide anew",
		}
	}
	return nil
}
