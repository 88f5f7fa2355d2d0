package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Bounds of what clients may cost. A connection of which it is not known whose it
// is has a short time and one of a few places; whoever comes when these are taken
// gets the place of the one that has it longest, so that nobody is kept out by others
// who say nothing.
type limits struct {
	pending   int           // connections in their handshake
	known     int           // connections of all clients
	perClient int           // connections of one client
	handshake time.Duration // from the connection to the end of its handshake
	header    time.Duration // for a request's header
	body      time.Duration // for its body
	idle      time.Duration // for the next request
	write     time.Duration // for one part of an answer
}

var defaults = limits{
	pending: 64, known: 256, perClient: 32,
	handshake: 10 * time.Second, header: 10 * time.Second, body: 10 * time.Second, idle: time.Minute, write: time.Minute,
}

const (
	// tellOver is how many connections beyond its limit a client has told so.
	tellOver = 4
	// lingerTime is how long a refused client has to read why.
	lingerTime = time.Second
	lingerData = 256 << 10
)

// listener gives out connections on which the handshake is done and the client is
// known. Lock order: its mutex is the innermost.
type listener struct {
	net.Listener
	s     *Server
	ready chan net.Conn

	mu      sync.Mutex
	closed  bool
	pending []*trackedConn // the oldest first
	known   map[*tls.Conn]*peer
	count   map[string]int // of known, by client
	done    chan struct{}  // closed by Close
	workers sync.WaitGroup // accepting, and handshakes
}

func newListener(ln net.Listener, s *Server) *listener {
	l := &listener{
		Listener: ln, s: s, ready: make(chan net.Conn), done: make(chan struct{}),
		known: map[*tls.Conn]*peer{}, count: map[string]int{},
	}
	l.workers.Go(l.acceptAll)
	return l
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends the accepting and all handshakes, and waits for them. Connections that
// were given out stay.
func (l *listener) Close() error {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	if first {
		close(l.done)
	}
	for _, c := range l.pending {
		c.Conn.Close()
	}
	l.mu.Unlock()
	err := l.Listener.Close()
	l.workers.Wait()
	if !first {
		return nil
	}
	return err
}

// acceptAll accepts until the listener is closed.
func (l *listener) acceptAll() {
	wait := time.Duration(0)
	for {
		raw, err := l.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors left, most likely
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			l.s.complain("no connection accepted", "err", err)
			select {
			case <-time.After(wait):
				continue
			case <-l.done:
				return
			}
		}
		wait = 0
		c := &trackedConn{Conn: raw, l: l}
		if !l.begin(c) {
			raw.Close()
			return
		}
		l.workers.Go(func() { l.shake(c) })
	}
}

// begin gives a connection a place for its handshake.
func (l *listener) begin(c *trackedConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if len(l.pending) >= l.s.limits.pending {
		oldest := l.pending[0]
		l.forgetPending(oldest)
		oldest.Conn.Close() // its handshake ends with that
	}
	l.pending = append(l.pending, c)
	return true
}

// shake does the handshake of a connection and hands it on, or closes it.
func (l *listener) shake(c *trackedConn) {
	st := l.s.state.Load()
	ctx, cancel := context.WithTimeout(noContext, l.s.limits.handshake)
	defer cancel()
	conn := tls.Server(c, st.tls)
	c.tls = conn
	if err := conn.HandshakeContext(ctx); err != nil {
		l.s.complain("connection refused", "from", c.RemoteAddr(), "err", err)
		l.linger(c)
		c.Close()
		return
	}
	if !l.know(c, conn) {
		l.s.complain("connection refused", "from", c.RemoteAddr(), "client", name(conn), "err", "too many connections are open")
		c.Close()
		return
	}
	select {
	case l.ready <- conn:
	case <-l.done:
		c.Close()
	}
}

// linger lets a refused client read the alert that says so: with something of its
// unread, closing would take the alert away from it.
func (l *listener) linger(c *trackedConn) {
	if t, ok := c.Conn.(*net.TCPConn); !ok || t.CloseWrite() != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c.Conn, lingerData)
}

// know makes a connection one of its client's, if there is room.
func (l *listener) know(c *trackedConn, conn *tls.Conn) bool {
	// What the files said meanwhile counts: a reload looks at connections that are
	// known, and this one is from here on.
	chain := conn.ConnectionState().PeerCertificates
	l.mu.Lock()
	defer l.mu.Unlock()
	client, err := l.s.state.Load().judge(chain, l.s.now())
	if err != nil || l.closed || len(l.known) >= l.s.limits.known || l.count[client] >= l.s.limits.perClient+tellOver {
		return false
	}
	l.forgetPending(c)
	l.known[conn] = &peer{raw: c.Conn, cert: chain[0], name: client, over: l.count[client] >= l.s.limits.perClient}
	l.count[client]++
	return true
}

// name is the client's, for the log.
func name(conn *tls.Conn) string {
	if chain := conn.ConnectionState().PeerCertificates; len(chain) > 0 {
		return chain[0].Subject.CommonName
	}
	return ""
}

func (l *listener) forgetPending(c *trackedConn) {
	l.pending = slices.DeleteFunc(l.pending, func(p *trackedConn) bool { return p == c })
}

// forget is for a connection that is closed.
func (l *listener) forget(c *trackedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetPending(c)
	p, ok := l.known[c.tls]
	if !ok {
		return
	}
	delete(l.known, c.tls)
	if l.count[p.name]--; l.count[p.name] == 0 {
		delete(l.count, p.name)
	}
}

// peer returns what is known of a connection.
func (l *listener) peer(c net.Conn) *peer {
	conn, ok := c.(*tls.Conn)
	if !ok {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known[conn]
}

// enforce ends the connections that what the files say now does not allow: by all
// that they say, or only those whose certificate has expired.
func (l *listener) enforce(st *state, all bool) {
	type open struct {
		p     *peer
		chain []*x509.Certificate
	}
	var list []open
	l.mu.Lock()
	for conn, p := range l.known {
		list = append(list, open{p, conn.ConnectionState().PeerCertificates})
	}
	l.mu.Unlock()
	now := l.s.now()
	for _, o := range list {
		if !all && !now.After(o.p.cert.NotAfter) {
			continue
		}
		if why := st.lost(o.p, o.chain, now); why != "" {
			l.s.log.Warn("connection ended", "client", o.p.name, "from", o.p.raw.RemoteAddr(), "why", why)
			o.p.raw.Close()
		}
	}
}

// trackedConn is a connection that its listener forgets when it is closed.
type trackedConn struct {
	net.Conn
	l    *listener
	tls  *tls.Conn
	once sync.Once
}

func (c *trackedConn) Close() error {
	c.once.Do(func() { c.l.forget(c) })
	return c.Conn.Close()
}
