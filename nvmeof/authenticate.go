package nvmeof

import (
	"fmt"
	"time"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/wire"
)

// authentication is what a queue's host has still to prove; see package auth.
type authentication struct {
	*auth.Controller
	began time.Time
}

// pending tells whether nothing but authentication may go on.
func (a *authentication) pending() bool { return a.Controller != nil && !a.Done() }

// requireAuthentication begins it, if the subsystem wants it of the host, and returns
// what the result of Connect says about it.
func (q *queue) requireAuthentication() uint64 {
	ask := q.ctrl.subsys.config.Authenticate
	if ask == nil {
		return 0
	}
	cfg, needed := ask(q.ctrl.host.name)
	if !needed {
		return 0
	}
	cfg.Host, cfg.Subsys = q.ctrl.host.name, q.ctrl.subsys.config.NQN
	q.auth = authentication{auth.NewController(cfg), time.Now()}
	return wire.ConnectAuthRequired
}

func isAuthentication(c *command) bool {
	return c.sqe.Opcode == wire.OpFabrics && (c.sqe.FCType == wire.FCAuthSend || c.sqe.FCType == wire.FCAuthReceive)
}

// authenticate carries out Authentication Send and Receive (Base 6.1, 6.2).
func (q *queue) authenticate(c *command) {
	n, ok := c.sqe.Authentication()
	switch {
	case q.auth.Controller == nil:
		q.fail(c, wire.InvalidOpcode|wire.DNR) // Connect has not asked for it
	case !ok || n != c.sqe.SGL.Length || n == 0 || n > wire.MaxAuthentication:
		q.fail(c, wire.InvalidField|wire.DNR)
	case c.sqe.FCType == wire.FCAuthReceive:
		q.giveAuthentication(c, n)
	case c.data == nil && c.sqe.SGL.Type == wire.SGLTransport:
		q.askForData(c, n)
	case c.data == nil:
		q.fail(c, wire.InvalidSGLType|wire.DNR)
	default:
		q.auth.Take(c.data)
		q.answer(c, wire.Success, 0)
	}
}

func (q *queue) giveAuthentication(c *command, n uint32) {
	message, err := q.auth.Give()
	switch {
	case err != nil:
		q.log.Error("nvmeof: authentication", "err", err)
		q.fail(c, wire.InternalError)
		return
	case message == nil: // it is the host's turn
		q.fail(c, wire.SequenceError|wire.DNR)
		return
	case len(message) > int(n):
		q.fail(c, wire.InvalidField|wire.DNR)
		return
	}
	if err := q.auth.Err(); err != nil {
		q.log.Warn("nvmeof: a host has not proved who it is", "host", q.ctrl.host.name, "subsystem", q.ctrl.subsys.config.NQN, "queue", q.id, "err", err)
	}
	c.data = q.bufferOf(c, n)
	clear(c.data[copy(c.data, message):])
	q.answerData(c, c.data)
}

// authenticationDue is when a host that has not proved itself is given up.
func (q *queue) authenticationDue() time.Time { return q.auth.began.Add(q.target.opt.Handshake) }

func (q *queue) notAuthenticated() error {
	return fmt.Errorf("the host has not proved who it is within %v", q.target.opt.Handshake)
}
