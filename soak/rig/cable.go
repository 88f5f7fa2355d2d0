package rig

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Cable is what leads from a host to a listener, and can be cut.
type Cable struct {
	t    *testing.T
	addr string
	to   string

	mu       sync.Mutex
	listener net.Listener
	whole    bool
	conns    []net.Conn
	carried  int64 // bytes, both ways
	ended    sync.WaitGroup
}

// NewCable lays one from a listener of its own at addr to the one at to.
func NewCable(t *testing.T, addr, to string) *Cable {
	t.Helper()
	c := &Cable{t: t, to: to, addr: addr}
	c.Mend()
	t.Cleanup(func() {
		c.Cut()
		c.ended.Wait()
	})
	return c
}

// Addr is where it begins.
func (c *Cable) Addr() string { return c.addr }

// Mend makes it whole.
func (c *Cable) Mend() {
	c.t.Helper()
	l, err := net.Listen("tcp", c.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.addr = l.Addr().String() // of a port that was free
	c.mu.Lock()
	c.listener, c.whole = l, true
	c.mu.Unlock()
	c.ended.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", c.to)
			if err != nil {
				from.Close()
				continue
			}
			c.mu.Lock()
			if !c.whole {
				c.mu.Unlock()
				from.Close()
				to.Close()
				continue
			}
			c.conns = append(c.conns, from, to)
			c.mu.Unlock()
			c.ended.Go(func() { c.carry(to, from) })
			c.ended.Go(func() { c.carry(from, to) })
		}
	})
}

func (c *Cable) carry(to, from net.Conn) {
	n, _ := io.Copy(to, from)
	to.Close()
	from.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.carried += n
}

// Cut ends all connections, and those that are tried from now on. It returns how many
// bytes have come through.
func (c *Cable) Cut() int64 {
	c.mu.Lock()
	c.listener.Close()
	c.whole = false
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
	c.mu.Unlock()
	c.ended.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.carried
}
