package remote

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
)

type callKey struct{}

func withCall(ctx context.Context, c *call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// call is one request: who makes it, and what was in the file of rights when it
// began.
type call struct {
	name   string // of the client
	table  *access.Table
	file   string // of rights, for messages
	peer   *peer
	log    *slog.Logger // knows the client
	denies func() bool  // whether one more refusal is to be logged
	now    func() *access.Table
	all    []api.Volume // that there are; nil before anybody has asked
}

// denied says who lacks which right to what, and what gives it to him. want is the
// pattern to allow.
func (c *call) denied(operation string, right access.Right, object, want string) error {
	on := ""
	if object != "" {
		on = " to " + object
	}
	e := &api.Error{
		Code:    api.CodeDenied,
		Message: fmt.Sprintf("client %s may not do %s: it lacks the right %q%s", c.name, operation, right, on),
		Remedy:  fmt.Sprintf("whoever administers the storage machine gives it in %s: allow %s %s %s", c.file, c.name, right, want),
	}
	c.refuse(operation, e)
	return e
}

// refuse logs a refusal, unless there are too many of them.
func (c *call) refuse(operation string, e *api.Error) {
	if c.denies() {
		c.log.Warn("refused", "operation", operation, "why", e.Message)
	}
}

// permitted logs what is about to be changed, before it is.
func (c *call) permitted(operation string, right access.Right, objects ...string) {
	level := slog.LevelDebug
	if id, _, _ := strings.Cut(operation, " "); rules[id].changes {
		level = slog.LevelInfo
	}
	c.log.Log(noContext, level, "permitted", "operation", operation, "right", right, "objects", objects)
}

// uses notes what the request goes on using for as long as it lasts: when the right
// to it is taken away, the connection goes. It is false when that has happened
// since the request began.
func (c *call) uses(right access.Right, pool, volume string) bool {
	return c.note(use{right: right, pool: pool, volume: volume})
}

// speaksFor notes that of a host for which the client speaks.
func (c *call) speaksFor(nqn string) bool {
	return c.table.SpeaksFor(c.name, nqn) && c.note(use{host: nqn})
}

func (c *call) note(u use) bool {
	c.peer.mu.Lock()
	c.peer.used = append(c.peer.used, u)
	c.peer.mu.Unlock()
	// A reload puts its table into place before it looks at what is used.
	return u.allowed(c.now(), c.name)
}
