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
	open, err := targets[0].pool.OpenSnapshots(ctx, uuids, dmswap.SnapshotOptions{COWSize: req.COWSize})
	if err != nil {
		return api.Snapshot{}, nil, fromPool("snapshot of "+strings.Join(names, ", "), err)
	}
	failpoint.Hit("snapshot: open")
	snap := api.Snapshot{Time: time.Now().UTC()}
	for i, t := range targets {
		snap.Volumes = append(snap.Volumes, api.SnapshotVolume{Volume: c.describe(t), Device: open[i].Device(), COWSize: open[i].COWSize()})
	}
	c.log.Info("snapshot opened", "volumes", names)
	end := func(ctx context.Context) error {
		var errs []error
		for _, s := range open {
			errs = append(errs, s.Close(ctx))
			failpoint.Hit("snapshot close: closed")
		}
		c.log.Info("snapshot closed", "volumes", names)
		return errors.Join(errs...)
	}
	return snap, end, nil
}

// snapshotFull tells whether the open snapshot of a volume can't be read any more.
func snapshotFull(t target) bool {
	st, err := t.pool.SnapshotStatus(context.Background(), t.uuid())
	return err == nil && st.Invalid // an error: it is just going
}
