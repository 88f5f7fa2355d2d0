package volume

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/swapback/swapback/ublk"
	"github.com/swapback/swapback/volume/changes"
)

// doors are the ways to some volumes: their block devices on this machine, and their
// namespaces for other hosts. Their gates are closed and opened together.
type doors struct {
	log     *slog.Logger
	devices []*ublk.Device
	remotes []*remote

	mu     sync.Mutex
	timers []*time.Timer // tell hosts that the pause is a long one; nil: the gates are open
	told   bool          // tellHosts has
	turned bool          // turnHostsAway has
}

// doorsOf are those of volumes, of which some may have none.
func (c *Controller) doorsOf(targets ...target) *doors {
	d := &doors{log: c.log}
	for _, t := range targets {
		if e := c.export(t); e != nil && e.dev != nil {
			d.devices = append(d.devices, e.dev)
		}
		if r := c.door(t); r != nil {
			d.remotes = append(d.remotes, r)
		}
	}
	return d
}

// hold closes the gates: what comes waits.
func (d *doors) hold() {
	ublk.HoldAll(d.devices...)
	for _, r := range d.remotes {
		r.ns.Hold()
	}
	if len(d.remotes) > 0 {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.timers = []*time.Timer{time.AfterFunc(yieldAfter, d.tellHosts), time.AfterFunc(turnAwayAfter, d.turnHostsAway)}
	}
}

// tellHosts tells hosts that the volumes can't be reached for now, before they lose
// their patience.
func (d *doors) tellHosts() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timers == nil {
		return // the gates are open again
	}
	d.told = true
	d.unreachable(true)
}

// turnHostsAway ends the connections of hosts that can't be told, before they lose their
// patience for good.
func (d *doors) turnHostsAway() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timers == nil {
		return
	}
	d.turned = true
	for _, r := range d.remotes {
		r.subsys.TurnAway(true)
	}
}

func (d *doors) unreachable(on bool) {
	for _, r := range d.remotes {
		if err := r.unreachable(on); err != nil {
			d.log.Error("hosts not told of a pause", "volume", r.name, "err", err)
		}
	}
}

// refuse closes the gates: what comes is told to come again.
func (d *doors) refuse() {
	ublk.RefuseAll(d.devices...)
	for _, r := range d.remotes {
		r.ns.Refuse()
	}
}

// release opens the gates.
func (d *doors) release() {
	d.mu.Lock()
	for _, t := range d.timers {
		t.Stop()
	}
	d.timers = nil
	if d.told {
		d.told = false
		d.unreachable(false)
	}
	if d.turned {
		d.turned = false
		for _, r := range d.remotes {
			r.subsys.TurnAway(false)
		}
	}
	d.mu.Unlock()
	ublk.ReleaseAll(d.devices...)
	for _, r := range d.remotes {
		r.ns.Release()
	}
}

// drain waits until nothing is in flight below the closed gates.
func (d *doors) drain(ctx context.Context) error {
	for _, dev := range d.devices {
		if err := dev.Drain(ctx); err != nil {
			return fmt.Errorf("draining %s: %w", dev.Path(), err)
		}
	}
	for _, r := range d.remotes {
		if err := r.ns.Drain(ctx); err != nil {
			return fmt.Errorf("draining volume %s: %w", r.name, err)
		}
	}
	return nil
}

// stopped is how many requests the gates have held and refused, ever.
func (d *doors) stopped() (held, refused uint64) {
	for _, dev := range d.devices {
		s := dev.Stats()
		held, refused = held+s.Held, refused+s.Refused
	}
	for _, r := range d.remotes {
		s := r.ns.Stats()
		held, refused = held+s.Held, refused+s.Refused
	}
	return held, refused
}

// record has what is written from now on recorded in a change map, by whatever door it
// comes. The gates are closed.
func (d *doors) record(m *changes.Map) {
	for _, dev := range d.devices {
		dev.SetChangeMap(m.Blocks())
	}
	for _, r := range d.remotes {
		r.ns.SetChanges(hostChanges{m.Blocks()})
	}
}
