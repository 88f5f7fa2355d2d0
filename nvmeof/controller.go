package nvmeof

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/wire"
)

// host is who a controller belongs to.
type host struct {
	name string // NQN
	id   [16]byte
}

// controller is one association of a host with a subsystem: an admin queue and its
// I/O queues, each a connection. It ends with its admin queue, and is gone when
// the last of its queues is.
type controller struct {
	id     uint16
	subsys *Subsystem
	host   host
	kato   time.Duration // 0: none; of the admin queue's goroutine after Connect
	gone   chan struct{} // closed when no queue is left

	// proved are the secrets that the admin queue was authenticated with last; nil: it
	// was not.
	proved atomic.Pointer[auth.Config]

	mu       sync.Mutex
	cc       uint32
	admin    *queue
	queues   map[uint16]*queue // I/O queues
	granted  uint16            // how many of them it may have
	ended    string            // why it ends; "": it does not
	events   eventSet
	errors   errorLog
	readsANA bool // it has asked for the log of asymmetric access in time; see logRead
}

func newController(s *Subsystem, h host, admin *queue, kato time.Duration) (*controller, error) {
	c := &controller{
		subsys: s, host: h, kato: kato, gone: make(chan struct{}), admin: admin,
		queues: map[uint16]*queue{}, granted: uint16(s.target.opt.MaxQueues),
	}
	if err := s.addController(c); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *controller) discovery() bool { return c.subsys == c.subsys.target.discovery }

// end has all queues hang up. They go by themselves.
func (c *controller) end(why string) {
	c.mu.Lock()
	if c.ended != "" {
		c.mu.Unlock()
		return
	}
	c.ended = why
	queues := c.allQueues()
	c.mu.Unlock()
	c.subsys.target.log.Info("nvmeof: controller ends", "controller", c.id, "subsystem", c.subsys.config.NQN, "host", c.host.name, "why", why)
	for _, q := range queues {
		q.hangUp(why)
	}
}

// allQueues needs mu.
func (c *controller) allQueues() []*queue {
	list := make([]*queue, 0, len(c.queues)+1)
	if c.admin != nil {
		list = append(list, c.admin)
	}
	for _, q := range c.queues {
		list = append(list, q)
	}
	return list
}

// queueEnded is called by a queue whose last command has left the backend.
func (c *controller) queueEnded(q *queue, why string) {
	c.mu.Lock()
	isAdmin := c.admin == q
	if isAdmin {
		c.admin = nil
	} else {
		delete(c.queues, q.id)
	}
	last := c.admin == nil && len(c.queues) == 0
	c.mu.Unlock()
	if isAdmin {
		c.end(why)
	}
	if last {
		c.subsys.removeController(c)
		close(c.gone)
	}
}

// addQueue makes a connection the I/O queue id. The status is that of Connect.
func (c *controller) addQueue(q *queue, id uint16) (wire.Status, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended != "" || c.cc&wire.CCEnable == 0:
		// It may have been the loss of the admin queue: the host will notice.
		return wire.SequenceError, 0
	case id > c.granted || c.queues[id] != nil:
		return wire.ConnectInvalid | wire.DNR, wire.InvalidConnect(42, false)
	}
	c.queues[id] = q
	return wire.Success, 0
}

// register reads a register (Base 3.1.3).
func (c *controller) register(off uint32) (v uint64, ok bool) {
	opt := &c.subsys.target.opt
	switch off {
	case wire.RegCAP:
		v = uint64(opt.QueueDepth-1) | wire.CapCQR | 30<<wire.CapTO | wire.CapNVM | wire.CapReadyNow
		if c.discovery() {
			v = uint64(adminDepth-1) | wire.CapCQR | 30<<wire.CapTO | wire.CapNVM | wire.CapReadyNow
		}
		return v, true
	case wire.RegVS:
		return wire.Version, true
	case wire.RegCRTO:
		return 30, true
	case wire.RegCC:
		c.mu.Lock()
		defer c.mu.Unlock()
		return uint64(c.cc), true
	case wire.RegCSTS:
		return uint64(c.status()), true
	}
	return 0, false
}

// status is CSTS. A controller that is disabled is ready until none of its I/O
// queues is there: when the host sees it go, no write of before is on its way.
func (c *controller) status() (csts uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cc&wire.CCEnable != 0 || len(c.queues) > 0 {
		csts |= wire.CSTSReady
	}
	if c.cc&wire.CCShutdown != 0 {
		csts |= wire.CSTSShutdownDone
	}
	return csts
}

// configure writes CC. The I/O queues of a controller that is disabled hang up.
func (c *controller) configure(cc uint32) wire.Status {
	const known = 0 // of CSS, MPS and AMS: NVM or all command sets, 4 KiB pages, round robin
	if css := cc & wire.CCSelectMask; css != 0 && css != wire.CCSelectAllCSI || cc>>7&0x7f != known {
		return wire.InvalidField | wire.DNR
	}
	c.mu.Lock()
	disabled := c.cc&wire.CCEnable != 0 && cc&wire.CCEnable == 0
	c.cc = cc
	var queues []*queue
	if disabled {
		for _, q := range c.queues {
			queues = append(queues, q)
		}
		c.events = eventSet{}
	}
	c.mu.Unlock()
	for _, q := range queues {
		q.hangUp("the controller is reset")
	}
	return wire.Success
}

// fenceOthers waits until the other controllers of the same host have carried out
// all that had arrived on their I/O queues by now. A host that has lost a
// connection repeats its commands on a new one; a write of before that were carried
// out late would undo what the host has written since. A queue that does not get
// there, because its peer takes nothing, hangs up.
func (c *controller) fenceOthers() {
	limit, cancel := context.WithTimeout(context.Background(), fencePatience)
	defer cancel()
	var queues []*queue
	for _, o := range c.subsys.listControllers() {
		if o == c || o.host != c.host {
			continue
		}
		o.mu.Lock()
		for _, q := range o.queues {
			queues = append(queues, q)
		}
		o.mu.Unlock()
	}
	awaitFences(limit, queues, "its host has connected anew, and this connection does not move")
}

// fencePatience is short of the time in which hosts want a Connect answered (Linux:
// 60 s), and long for a disk.
const fencePatience = 5 * time.Second
