package nvmeof

import (
	"bytes"
	"fmt"
	"time"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/wire"
)

// authentication is what a queue's host has to prove, and has proved; see package auth.
// A host may begin anew at any time, and is then asked for the secret of that time. Until
// that has ended, the queue goes on with what was proved before.
type authentication struct {
	talk   *auth.Controller // with the host; nil: there was none. Another goroutine's while busy
	cfg    auth.Config      // that talk goes by
	asked  bool             // Connect has asked for it
	proved bool             // once, at least
	ended  bool             // talk has come to its end
	busy   bool             // a message is being worked on
	began  time.Time        // zero: none is under way
	over   error            // why the queue ends as soon as what it has to send was sent
}

// pending tells whether nothing but authentication may go on.
func (a *authentication) pending() bool { return a.asked && !a.proved }

// requireAuthentication begins it, if the subsystem wants it of the host, and returns
// what the result of Connect says about it.
func (q *queue) requireAuthentication() uint64 {
	cfg, needed := q.secrets()
	if !needed {
		return 0
	}
	q.auth = authentication{talk: auth.NewController(cfg), cfg: cfg, asked: true, began: time.Now()}
	return wire.ConnectAuthRequired
}

// secrets are those that hold now; false: the host need prove nothing, and can't. It may be
// called from any goroutine, and reads files, or whatever else Authenticate does.
func (q *queue) secrets() (cfg auth.Config, needed bool) {
	if ask := q.ctrl.subsys.config.Authenticate; ask != nil {
		cfg, needed = ask(q.ctrl.host.name)
	}
	if !needed {
		cfg = auth.Config{}
	}
	cfg.Host, cfg.Subsys = q.ctrl.host.name, q.ctrl.subsys.config.NQN
	return cfg, needed
}

// secretsAnew are those for a host that begins anew. I/O queues go by what the admin queue
// has proved: a host goes from one to the other, and a secret that is replaced meanwhile
// would cost it those that it has not come to.
func (q *queue) secretsAnew() (cfg auth.Config, needed bool) {
	if proved := q.ctrl.proved.Load(); q.id != 0 && proved != nil {
		return *proved, true
	}
	return q.secrets()
}

func isAuthentication(c *command) bool {
	return c.sqe.Opcode == wire.OpFabrics && (c.sqe.FCType == wire.FCAuthSend || c.sqe.FCType == wire.FCAuthReceive)
}

// authenticate carries out Authentication Send and Receive (Base 6.1, 6.2), one at a time.
func (q *queue) authenticate(c *command) {
	n, ok := c.sqe.Authentication()
	send := c.sqe.FCType == wire.FCAuthSend
	switch {
	case q.ctrl.subsys.config.Authenticate == nil:
		q.fail(c, wire.InvalidOpcode|wire.DNR)
	case !ok || n != c.sqe.SGL.Length || n == 0 || n > wire.MaxAuthentication:
		q.fail(c, wire.InvalidField|wire.DNR)
	case send && c.data == nil && c.sqe.SGL.Type == wire.SGLTransport:
		q.askForData(c, n)
	case send && c.data == nil:
		q.fail(c, wire.InvalidSGLType|wire.DNR)
	case q.auth.busy:
		q.fail(c, wire.SequenceError|wire.DNR)
	case send:
		q.hear(c)
	case q.auth.talk == nil: // the host has to speak first
		q.fail(c, wire.SequenceError|wire.DNR)
	default:
		q.speak(c)
	}
}

// hear takes a message of the host.
func (q *queue) hear(c *command) {
	a := &q.auth
	message := bytes.Clone(c.data)
	anew := auth.Begins(message) && (a.talk == nil || a.ended || a.proved)
	if a.talk == nil && !anew {
		q.fail(c, wire.SequenceError|wire.DNR)
		return
	}
	if a.began.IsZero() {
		a.began = time.Now()
	}
	talk, cfg, asked := a.talk, a.cfg, a.asked
	q.aside(c, func() heard {
		if anew {
			var needed bool
			if cfg, needed = q.secretsAnew(); !needed && !asked {
				return heard{status: wire.InvalidOpcode | wire.DNR} // it came in by its name, and still does
			}
			// One who was asked and need no longer prove anything had a secret, which is none
			// any more: it fails.
			talk = auth.NewController(cfg)
		}
		talk.Take(message)
		return heard{talk: talk, cfg: cfg}
	})
}

// speak sends the host what there is to say.
func (q *queue) speak(c *command) {
	talk, cfg := q.auth.talk, q.auth.cfg
	q.aside(c, func() heard {
		message, err := talk.Give()
		if err != nil {
			q.log.Error("nvmeof: authentication", "err", err)
			return heard{status: wire.InternalError}
		}
		return heard{talk: talk, cfg: cfg, message: message}
	})
}

// heard is what has come of a message: a letter to the queue.
type heard struct {
	status  wire.Status // other than Success: nothing has, and the command fails
	talk    *auth.Controller
	cfg     auth.Config
	message []byte // what the host is to be told; nil: it is its turn
}

// aside has a command worked on while the queue goes on with others: secrets are read
// from files, and the arithmetic takes milliseconds.
func (q *queue) aside(c *command, work func() heard) {
	c.phase, q.auth.busy = phaseOthers, true
	i := c.index
	go func() {
		h := heard{status: wire.InternalError}
		defer func() {
			if p := recover(); p != nil {
				q.log.Error("nvmeof: panic; the command gets Internal Error", "queue", q.id, "panic", p, "stack", stack())
			}
			q.post(mail{command: i, heard: &h})
		}()
		h = work()
	}()
}

// authenticated ends a command that aside has worked on.
func (q *queue) authenticated(c *command, h *heard) {
	a := &q.auth
	a.busy = false
	if h.status != wire.Success {
		if !a.pending() && (a.talk == nil || a.ended) {
			a.began = time.Time{} // nothing has begun
		}
		q.fail(c, h.status)
		return
	}
	a.talk, a.cfg = h.talk, h.cfg
	n, _ := c.sqe.Authentication()
	switch {
	case c.sqe.FCType == wire.FCAuthSend:
		q.answer(c, wire.Success, 0)
	case h.message == nil:
		q.fail(c, wire.SequenceError|wire.DNR)
	case len(h.message) > int(n):
		q.fail(c, wire.InvalidField|wire.DNR)
	default:
		c.data = q.bufferOf(c, n)
		clear(c.data[copy(c.data, h.message):])
		q.answerData(c, c.data)
	}
	before := a.ended
	a.ended = a.talk.Ended()
	if a.ended && !before {
		q.concluded()
	}
}

// concluded draws the consequences of a talk that has come to its end. A host that has
// not proved itself yet may try again, in the time that it has. One that fails to do so
// anew loses the queue.
func (q *queue) concluded() {
	a := &q.auth
	err := a.talk.Err()
	if err == nil {
		if q.id == 0 {
			cfg := a.cfg
			q.ctrl.proved.Store(&cfg)
			if a.proved {
				q.log.Info("nvmeof: a host has proved anew who it is", "host", q.ctrl.host.name, "subsystem", q.ctrl.subsys.config.NQN)
			}
		}
		a.proved, a.began = true, time.Time{}
		return
	}
	q.log.Warn("nvmeof: a host has not proved who it is", "host", q.ctrl.host.name, "subsystem", q.ctrl.subsys.config.NQN, "queue", q.id, "err", err)
	if !a.pending() {
		a.over = fmt.Errorf("the host has not proved anew who it is: %w", err)
	}
}

// authenticationDue is when a host that has not proved itself is given up; zero: none is
// to.
func (q *queue) authenticationDue() time.Time {
	switch a := &q.auth; {
	case a.over != nil:
		return longAgo
	case a.began.IsZero():
		return time.Time{}
	default:
		return a.began.Add(q.target.opt.Handshake)
	}
}

// notAuthenticated says why a queue ends when that is due.
func (q *queue) notAuthenticated() error {
	if q.auth.over != nil {
		return q.auth.over
	}
	return fmt.Errorf("the host has not proved who it is within %v", q.target.opt.Handshake)
}
