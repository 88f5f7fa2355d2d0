package volume

import (
	"context"
	"fmt"
	"time"

	"github.com/swapback/swapback/ublk"
)

// changeBlock is the unit in which writes are recorded, in bytes.
const changeBlock = 64 << 10

// changes is the change map of a position: which blocks were written since. It
// belongs to the content, so a swap moves it. It lives in the daemon's memory
// and begins anew with each daemon.
type changes struct {
	blocks *ublk.ChangeMap
	since  time.Time
}

// changesOf returns the change map of the position behind a volume, and begins
// one if there is none.
func (c *Controller) changesOf(t target) (*ublk.ChangeMap, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.changes[t.info.Position.ID]; ok {
		return have.blocks, nil
	}
	m, err := ublk.NewChangeMap(uint64(t.info.Size), changeBlock)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", t, err)
	}
	c.changes[t.info.Position.ID] = changes{m, time.Now().UTC()}
	return m, nil
}

// forgetChanges is for a position that is gone.
func (c *Controller) forgetChanges(position string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.changes, position)
}

// moveChanges gives the devices of swapped volumes the change maps of the
// positions that they show now. The gates are closed, and the maps are there
// (see swap.exchange).
func (c *Controller) moveChanges(targets []target) {
	for i := 0; i < len(targets); i += 2 {
		a, b := targets[i], targets[i+1]
		a.info.Position, b.info.Position = b.info.Position, a.info.Position
		for _, t := range []target{a, b} {
			if e := c.export(t); e != nil && e.dev != nil {
				c.mu.Lock()
				m := c.changes[t.info.Position.ID].blocks
				c.mu.Unlock()
				e.dev.SetChangeMap(m)
			}
		}
	}
}

// growChanges makes room in the change map of a volume that has grown. If it has
// a device, its I/O is held for the moment in which no mark may go to the old map.
func (c *Controller) growChanges(ctx context.Context, t target, dev *ublk.Device) error {
	if dev != nil {
		dev.Hold()
		defer dev.Release()
		if err := dev.Drain(ctx); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	have, ok := c.changes[t.info.Position.ID]
	if !ok {
		return nil
	}
	have.blocks = have.blocks.Grow(uint64(t.info.Size))
	c.changes[t.info.Position.ID] = have
	if dev != nil {
		dev.SetChangeMap(have.blocks)
	}
	return nil
}
