package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/volume/changes"
)

// OpenSnapshot implements [api.Service]. All volumes are suspended at once, so
// that no write of one volume that follows a write of another is in the
// snapshot without the one it follows.
func (c *Controller) OpenSnapshot(ctx context.Context, req api.SnapshotRequest) (api.Snapshot, func(context.Context) error, error) {
	targets, release, err := c.claim("taking a snapshot", req.Volumes...)
	if err != nil {
		return api.Snapshot{}, nil, err
	}
	defer release()
	var uuids, names []string
	for _, t := range targets {
		if t.pool != targets[0].pool {
			return api.Snapshot{}, nil, &api.Error{
				Code:    api.CodeInvalid,
				Message: fmt.Sprintf("snapshot: volumes %s and %s are in different pools, which have no instant in common", targets[0], t),
				Remedy:  "take a snapshot of each pool",
			}
		}
		uuids, names = append(uuids, t.uuid()), append(names, t.String())
	}
	instant, err := c.instantOf(targets)
	if err != nil {
		return api.Snapshot{}, nil, err
	}
	open, err := targets[0].pool.OpenSnapshots(ctx, uuids, dmswap.SnapshotOptions{
		COWSize: req.COWSize, Around: func(take func() error) error { return instant.take(ctx, take) },
	})
	if err != nil {
		instant.void()
		if instant.held {
			return api.Snapshot{}, nil, instant.calledOff()
		}
		return api.Snapshot{}, nil, fromPool("snapshot of "+strings.Join(names, ", "), err)
	}
	failpoint.Hit("snapshot: open")
	snap := api.Snapshot{Time: time.Now().UTC()}
	for i, t := range targets {
		s := api.SnapshotVolume{Volume: c.describe(t), Device: open[i].Device(), COWSize: open[i].COWSize()}
		base, blocks := instant.maps[i].Frozen()
		if s.Changes, err = api.NewChanges(t.info.Size, changes.Block, blocks); err != nil {
			base = dmswap.Base{Why: fmt.Sprintf("its change map could not be grown with it: %v", err)}
		}
		s.Changes.Base, s.Changes.Why, s.Changes.Cut = base.Backup, base.Why, instant.tokens[i]
		snap.Volumes = append(snap.Volumes, s)
	}
	c.log.Info("snapshot opened", "volumes", names)
	var hosts []*shown
	end := func(ctx context.Context) error {
		var errs []error
		for _, s := range hosts {
			errs = append(errs, s.hide(ctx))
		}
		for _, s := range open {
			errs = append(errs, s.Close(ctx))
			failpoint.Hit("snapshot close: closed")
		}
		c.log.Info("snapshot closed", "volumes", names)
		return errors.Join(errs...)
	}
	for i, t := range targets {
		r := c.door(t)
		if r == nil || !req.ToHosts {
			continue
		}
		s, err := r.show(open[i].Device())
		if err != nil {
			instant.void()
			return api.Snapshot{}, nil, errors.Join(err, end(context.WithoutCancel(ctx)))
		}
		hosts = append(hosts, s)
		snap.Volumes[i].NamespaceUUID = s.uuid.String()
	}
	return snap, end, nil
}

// instant is the moment of a snapshot: no write is in flight, and the change maps
// of all volumes are cut.
type instant struct {
	c      *Controller
	doors  *doors
	maps   []*changes.Map // of all
	tokens []string       // of the cuts, once they are made
	held   bool           // it failed because requests stayed in flight
}

func (c *Controller) instantOf(targets []target) (*instant, error) {
	i := &instant{c: c, doors: c.doorsOf(targets...)}
	for _, t := range targets {
		m, err := c.changesOf(t)
		if err != nil {
			return nil, err
		}
		i.maps = append(i.maps, m)
	}
	return i, nil
}

// take takes the snapshot behind closed gates. A write that was marked before the
// cut and reached the disks after the snapshot would be in neither map.
func (i *instant) take(ctx context.Context, take func() error) error {
	i.doors.hold()
	defer i.doors.release()
	failpoint.Hit("snapshot: holding")
	limit, cancel := context.WithTimeoutCause(ctx, i.c.opt.HoldFor, errHoldOver)
	defer cancel()
	if err := i.doors.drain(limit); err != nil {
		i.held = errors.Is(context.Cause(limit), errHoldOver)
		return err
	}
	failpoint.Hit("snapshot: drained")
	now := time.Now().UTC()
	for _, m := range i.maps {
		i.tokens = append(i.tokens, m.Cut(now))
	}
	failpoint.Hit("snapshot: change maps cut")
	return take()
}

// void has cuts without a snapshot never be confirmed.
func (i *instant) void() {
	for k, token := range i.tokens {
		i.maps[k].Void(token)
	}
}

func (i *instant) calledOff() error {
	return &api.Error{
		Code:    api.CodeBusy,
		Message: fmt.Sprintf("snapshot called off: requests were still in flight after %v; nothing has changed and I/O goes on", i.c.opt.HoldFor),
		Remedy:  "try again when there is less I/O",
	}
}

// snapshotFull tells whether the open snapshot of a volume can't be read any more.
func snapshotFull(t target) bool {
	st, err := t.pool.SnapshotStatus(context.Background(), t.uuid())
	return err == nil && st.Invalid // an error: it is just going
}
