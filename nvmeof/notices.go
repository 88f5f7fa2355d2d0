package nvmeof

import (
	"github.com/swapback/swapback/nvmeof/reserve"
	"github.com/swapback/swapback/nvmeof/wire"
)

// maxNotices is how many notices wait for a host to read them. What is more is lost, which
// the host sees: they are counted.
const maxNotices = 64

// notices are what a controller has to tell its host of reservations. They are guarded by
// the controller's mu, and go with a reset.
type notices struct {
	count   uint64
	waiting []wire.ReservationNotice
	masks   map[uint32]uint32 // by NSID: the kinds that the host does not want to hear of
}

// tellHosts notes for each controller of a host what another host has done to its
// reservations of the namespace.
func (n *Namespace) tellHosts(to reserve.Host, kind wire.NoticeKind) {
	for _, c := range n.subsys.listControllers() {
		if c.host.id == to && c.notice(n.id, kind) {
			c.notify(eventReservation)
		}
	}
}

// notice adds one, unless the host does not want to hear of such.
func (c *controller) notice(nsid uint32, kind wire.NoticeKind) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.events.notices
	if l.masks[nsid]&(1<<kind) != 0 {
		return false
	}
	l.count++
	if len(l.waiting) == maxNotices {
		return false
	}
	l.waiting = append(l.waiting, wire.ReservationNotice{Count: l.count, Kind: kind, NSID: nsid})
	return true
}

// nextNotice is the oldest, and is taken away unless it is to be kept.
func (c *controller) nextNotice(keep bool) (n wire.ReservationNotice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.events.notices
	if len(l.waiting) == 0 {
		return n
	}
	n = l.waiting[0]
	n.More = uint8(len(l.waiting) - 1)
	if !keep {
		l.waiting = l.waiting[1:]
		c.events.pending[eventReservation] = len(l.waiting) > 0
	}
	return n
}

// setReservationMask says which notices of a namespace, or of all, a host wants.
func (q *queue) setReservationMask(c *command) {
	mask := c.sqe.CDW11
	list, ok := q.reservable(c.sqe.NSID)
	if !ok || mask&^uint32(wire.AllNotices) != 0 {
		q.fail(c, wire.InvalidField|wire.DNR)
		return
	}
	q.ctrl.mu.Lock()
	l := &q.ctrl.events.notices
	if l.masks == nil {
		l.masks = map[uint32]uint32{}
	}
	for _, id := range list {
		l.masks[id] = mask
	}
	q.ctrl.mu.Unlock()
	q.answer(c, wire.Success, 0)
}

func (q *queue) getReservationMask(c *command) {
	if _, ok := q.reservable(c.sqe.NSID); !ok || c.sqe.NSID == allNamespaces {
		q.fail(c, wire.InvalidField|wire.DNR)
		return
	}
	q.ctrl.mu.Lock()
	mask := q.ctrl.events.notices.masks[c.sqe.NSID]
	q.ctrl.mu.Unlock()
	q.answer(c, wire.Success, uint64(mask))
}

// reservable are the namespaces that an NSID names; not ok: it names one that can't be
// reserved, or none.
func (q *queue) reservable(nsid uint32) (list []uint32, ok bool) {
	s := q.ctrl.subsys
	for _, id := range s.namespaceIDs(0) {
		if n := s.Namespace(id); n != nil && n.config.Reservations != nil && (id == nsid || nsid == allNamespaces) {
			list = append(list, id)
		}
	}
	return list, len(list) > 0 || nsid == allNamespaces
}
