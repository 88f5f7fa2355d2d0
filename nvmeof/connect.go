package nvmeof

import (
	"fmt"
	"net"
	"time"

	"github.com/swapback/swapback/nvmeof/wire"
)

// firstCommand has to be Connect, which makes the connection a queue (Base 6.3). A
// host whose Connect fails may try another on the same connection.
func (q *queue) firstCommand(c *command) error {
	if c.sqe.Opcode != wire.OpFabrics || c.sqe.FCType != wire.FCConnect {
		q.answer(c, wire.SequenceError|wire.DNR, 0)
		return nil
	}
	data, err := wire.ParseConnectData(c.data)
	if err != nil {
		field, _ := err.(*wire.FieldError)
		q.answer(c, wire.ConnectInvalid|wire.DNR, wire.InvalidConnect(field.Offset, true))
		return nil
	}
	conn := c.sqe.Connect()
	q.sqHead = 0
	status, result := q.connect(conn, data)
	if status != wire.Success {
		q.log.Warn("nvmeof: connect refused", "host", data.HostName, "subsystem", data.Subsys, "queue", conn.QID, "status", status.String())
		q.answer(c, status, result)
		return nil
	}
	q.size = int(conn.SQSize) + 1
	q.sqHead = 1 % q.size
	q.answer(c, wire.Success, uint64(q.ctrl.id)|q.requireAuthentication())
	q.openCommands(q.size)
	if q.id == 0 {
		q.state, q.heard = stateAdmin, time.Now()
		q.aers = make([]uint16, 0, maxEventRequests)
		return nil
	}
	q.state = stateIO
	if q.target.opt.ringAlways {
		q.ringPlan = ringWanted
	}
	return q.openMemory()
}

// connect finds or makes the controller that a host asks for, and joins it.
func (q *queue) connect(conn wire.Connect, data wire.ConnectData) (wire.Status, uint64) {
	invalid := func(off uint16, inData bool) (wire.Status, uint64) {
		return wire.ConnectInvalid | wire.DNR, wire.InvalidConnect(off, inData)
	}
	if conn.Format != 0 {
		return wire.ConnectFormat | wire.DNR, 0
	}
	most := adminDepth
	if conn.QID != 0 {
		most = q.target.opt.QueueDepth
	}
	if conn.SQSize == 0 || int(conn.SQSize) >= most {
		return invalid(44, false)
	}
	if data.HostID == [16]byte{} {
		return invalid(0, true) // hosts are told apart by it
	}
	s := q.target.subsystem(data.Subsys, data.HostName)
	if s == nil {
		if q.target.exists(data.Subsys) {
			return wire.ConnectInvalidHost | wire.DNR, 0
		}
		status, result := invalid(256, true)
		if later := q.target.opt.Incomplete; later != nil && later() {
			status &^= wire.DNR
		}
		return status, result
	}
	q.noFlow = conn.Attributes&wire.ConnectNoSQFlow != 0
	h := host{data.HostName, data.HostID}
	if conn.QID == 0 {
		return q.connectAdmin(s, h, conn, data.CNTLID)
	}
	ctrl := s.controller(data.CNTLID)
	switch {
	case s == q.target.discovery:
		return invalid(42, false)
	case ctrl == nil:
		return invalid(16, true)
	case ctrl.host.name != h.name:
		return invalid(512, true)
	case ctrl.host.id != h.id:
		return invalid(0, true)
	}
	reserved := int64(q.target.queueMemory(int(conn.SQSize) + 1))
	if !q.target.reserve(reserved) {
		return wire.ConnectBusy, 0
	}
	status, result := ctrl.addQueue(q, conn.QID)
	if status != wire.Success {
		q.target.memory.Add(-reserved)
		return status, result
	}
	q.ctrl, q.id, q.reserved = ctrl, conn.QID, reserved
	return wire.Success, 0
}

func (q *queue) connectAdmin(s *Subsystem, h host, conn wire.Connect, id uint16) (wire.Status, uint64) {
	if id != wire.DynamicController {
		return wire.ConnectInvalid | wire.DNR, wire.InvalidConnect(16, true)
	}
	if s.isAway(h) {
		return wire.ConnectBusy, 0
	}
	ctrl, err := newController(s, h, q, time.Duration(conn.KATO)*time.Millisecond)
	if err != nil {
		// It may be otherwise in a while, so the host is not told to give up.
		q.log.Warn("nvmeof: no controller for a host", "host", h.name, "subsystem", s.config.NQN, "err", err)
		return wire.ConnectBusy, 0
	}
	q.ctrl = ctrl
	if !s.config.AnyHost && !s.allows(h.name) {
		ctrl.end("the host may not use the subsystem any more")
	}
	ctrl.fenceOthers()
	q.log.Info("nvmeof: controller begins", "controller", ctrl.id, "subsystem", s.config.NQN, "host", h.name, "keep_alive", ctrl.kato)
	return wire.Success, 0
}

// exists tells whether there is such a subsystem at all.
func (t *Target) exists(nqn string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.subsystems[nqn] != nil
}

// fabricsCommand is one of a queue that is connected.
func (q *queue) fabricsCommand(c *command) {
	switch c.sqe.FCType {
	case wire.FCPropertyGet:
		p := c.sqe.Property()
		v, ok := q.ctrl.register(p.Offset)
		if !ok || p.Wide != (p.Offset == wire.RegCAP) {
			q.fail(c, wire.InvalidField|wire.DNR)
			return
		}
		q.answer(c, wire.Success, v)
	case wire.FCPropertySet:
		p := c.sqe.Property()
		if p.Offset != wire.RegCC || p.Wide {
			q.fail(c, wire.InvalidField|wire.DNR)
			return
		}
		if status := q.ctrl.configure(uint32(p.Value)); status != wire.Success {
			q.fail(c, status)
			return
		}
		if p.Value&wire.CCEnable == 0 {
			q.aers = q.aers[:0]
		}
		q.answer(c, wire.Success, 0)
	case wire.FCConnect:
		q.fail(c, wire.SequenceError|wire.DNR)
	default:
		q.fail(c, wire.InvalidOpcode|wire.DNR)
	}
}

// localAddr is the address that the host has reached us by.
func (q *queue) localAddr() *net.TCPAddr {
	addr, ok := q.conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		panic(fmt.Sprintf("a TCP connection with a local address of %T", q.conn.LocalAddr()))
	}
	return addr
}
