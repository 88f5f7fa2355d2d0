package volume

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/nvmeof/reserve"
	"github.com/swapback/swapback/nvmeof/wire"
	"github.com/swapback/swapback/ublk"
)

// Hosts can reserve an exported volume (NVM Express Base 8.19). What they reserve holds at
// both doors: whoever uses the block device of this machine is to them a host that has
// not registered.

// reservePatience bounds what a host waits for when it reserves a volume.
const reservePatience = 5 * time.Second

// reservationsOf are the reservations of an exported volume; nil for another. What was
// saved holds from the first moment, whether or not hosts can come.
func (c *Controller) reservationsOf(t target) (*reserve.Disk, error) {
	if t.info.Export == nil {
		return nil, nil
	}
	c.mu.Lock()
	have := c.reservations[t.uuid()]
	c.mu.Unlock()
	if have != nil {
		return have, nil
	}
	saved, err := reserveState(t.info.Reservations)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", t, err)
	}
	disk, err := reserve.New(saved, func(s reserve.State) error { return c.saveReservations(t, s) }, localDoor{c, t.uuid()})
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", t, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reservations[t.uuid()] = disk
	return disk, nil
}

// forgetReservations is for a volume that is not exported any more.
func (c *Controller) forgetReservations(t target) {
	c.mu.Lock()
	delete(c.reservations, t.uuid())
	c.mu.Unlock()
	if e := c.export(t); e != nil && e.dev != nil {
		e.dev.SetReserved(ublk.Reserved{})
	}
}

// reservedOf is what hosts do not let be done on this machine.
func reservedOf(d *reserve.Disk) ublk.Reserved {
	if d == nil {
		return ublk.Reserved{}
	}
	local := reserve.Host{}
	return ublk.Reserved{NoReads: !d.Access(local, false), NoWrites: !d.Access(local, true)}
}

func (c *Controller) saveReservations(t target, s reserve.State) error {
	ctx, cancel := context.WithTimeout(context.Background(), reservePatience)
	defer cancel()
	err := t.pool.SetReservations(ctx, t.uuid(), savedReservations(s))
	if err != nil {
		c.log.Error("reservations not saved", "volume", t.String(), "err", err)
	}
	return err
}

// localDoor is a volume's block device, as its reservations see it.
type localDoor struct {
	c      *Controller
	volume string // UUID
}

// Let implements [reserve.Other]. It claims the volume, for it closes the gate of the
// device: a swap would be disturbed by that, and has the host come again.
func (l localDoor) Let(read, write bool) error {
	t, release, err := l.c.claimOne("reserving it", l.volume)
	if err != nil {
		return err
	}
	defer release()
	e := l.c.export(t)
	if e == nil || e.dev == nil {
		return nil
	}
	if !read || !write {
		ctx, cancel := context.WithTimeout(context.Background(), reservePatience)
		defer cancel()
		e.dev.Hold()
		defer e.dev.Release()
		if err := e.dev.Drain(ctx); err != nil {
			return fmt.Errorf("volume %s: %w", t, err)
		}
	}
	e.dev.SetReserved(ublk.Reserved{NoReads: !read, NoWrites: !write})
	l.c.log.Info("reservation by a host", "volume", t.String(), "local_reads", read, "local_writes", write)
	return nil
}

func reserveState(r *dmswap.Reservations) (s reserve.State, err error) {
	if r == nil {
		return s, nil
	}
	s.Type, s.Persist = wire.ReservationType(r.Type), true
	for _, g := range r.Registrants {
		host, err := uuid.Parse(g.Host)
		if err != nil {
			return s, fmt.Errorf("saved reservations: host %q: %w", g.Host, err)
		}
		s.Registrants = append(s.Registrants, reserve.Registrant{Host: reserve.Host(host), Key: g.Key, Holder: g.Holder})
	}
	return s, nil
}

func savedReservations(s reserve.State) *dmswap.Reservations {
	if len(s.Registrants) == 0 {
		return nil
	}
	r := &dmswap.Reservations{Type: int(s.Type)}
	for _, g := range s.Registrants {
		r.Registrants = append(r.Registrants, dmswap.Registrant{Host: uuid.UUID(g.Host).String(), Key: g.Key, Holder: g.Holder})
	}
	return r
}

// describeReservations tells who has registered and reserved.
func describeReservations(d *reserve.Disk) *api.Reservations {
	if d == nil {
		return nil
	}
	s := d.State()
	if len(s.Registrants) == 0 {
		return nil
	}
	out := &api.Reservations{Type: s.Type.String(), Persist: s.Persist}
	for _, g := range s.Registrants {
		out.Registrants = append(out.Registrants, api.Registrant{HostID: uuid.UUID(g.Host).String(), Key: fmt.Sprintf("%#x", g.Key), Holder: g.Holder})
	}
	return out
}
