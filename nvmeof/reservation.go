package nvmeof

import (
	"context"
	"slices"

	"github.com/swapback/swapback/nvmeof/wire"
)

func isReservation(o wire.Opcode) bool {
	switch o {
	case wire.OpResvRegister, wire.OpResvAcquire, wire.OpResvRelease, wire.OpResvReport:
		return true
	}
	return false
}

// expectReservation returns how many bytes a reservation command transfers.
func (q *queue) expectReservation(c *command) (n uint32, status wire.Status) {
	n = c.sqe.SGL.Length
	switch {
	case c.att.ns.config.Reservations == nil:
		return 0, wire.InvalidOpcode | wire.DNR
	case c.sqe.Opcode == wire.OpResvReport && uint64(n) != 4*(uint64(c.sqe.CDW10)+1):
		return 0, wire.InvalidSGLLength | wire.DNR
	case c.sqe.Opcode != wire.OpResvReport && n < uint32(c.sqe.ReservationBytes()):
		return 0, wire.InvalidSGLLength | wire.DNR
	case n > uint32(q.target.opt.MaxData):
		return 0, wire.InvalidField | wire.DNR
	}
	return n, q.transport(c)
}

// reservation carries out a reservation command. It has nothing to do with the
// content, and passes no gate.
func (q *queue) reservation(c *command) {
	d := c.att.ns.config.Reservations
	if c.sqe.Opcode == wire.OpResvReport {
		q.reportReservations(c)
		return
	}
	r, err := c.sqe.Reservation(c.data)
	if err != nil {
		q.failIO(c, wire.InvalidSGLLength|wire.DNR)
		return
	}
	switch status := d.Do(c.sqe.Opcode, q.ctrl.host.id, r, c.att.ns.tellHosts); {
	case status != wire.Success:
		q.failIO(c, status)
	case c.sqe.Opcode == wire.OpResvAcquire && r.Action == wire.ResvPreemptAbort:
		q.afterOthers(c)
	default:
		q.answer(c, wire.Success, 0)
	}
}

func (q *queue) reportReservations(c *command) {
	if c.sqe.CDW11&wire.ReportExtended == 0 {
		q.failIO(c, wire.HostIDInconsistent|wire.DNR) // identifiers have 128 bits here
		return
	}
	s := c.att.ns.config.Reservations.State()
	page := wire.ReservationStatus{Generation: s.Generation, Type: s.Type, Persist: s.Persist}
	controllers := q.ctrl.subsys.listControllers()
	for _, g := range s.Registrants {
		id := uint16(wire.DynamicController)
		if i := slices.IndexFunc(controllers, func(o *controller) bool { return o.host.id == g.Host }); i >= 0 {
			id = controllers[i].id
		}
		page.Registrants = append(page.Registrants, wire.Registrant{CNTLID: id, Holder: g.Holder, Key: g.Key, HostID: g.Host})
	}
	c.data = q.bufferOf(c, c.sqe.SGL.Length)
	clear(c.data[copy(c.data, page.Append(nil)):])
	q.answerData(c, c.data)
}

// afterOthers answers a command when the queues of all other hosts have carried out
// what had arrived on them by now, so that nothing of a host that was preempted comes
// after the answer. It takes a goroutine; preemption is rare.
func (q *queue) afterOthers(c *command) {
	var others []*queue
	g := &c.att.ns.gate
	g.mu.Lock()
	for a := range g.attached {
		if a.queue.ctrl.host != q.ctrl.host {
			others = append(others, a.queue)
		}
	}
	g.mu.Unlock()
	c.phase = phaseOthers
	index := c.index
	q.target.running.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), fencePatience)
		defer cancel()
		awaitFences(ctx, others, "another host has preempted its reservation, and this connection does not move")
		q.post(mail{command: index})
	})
}
