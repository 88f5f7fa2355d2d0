// Package remote serves the control API to other machines: over TCP, with TLS 1.3,
// to clients that show a certificate, and each of them only what the file of rights
// (package access) gives it. Nobody may do anything unless that file says so.
//
// A [Server] reads its files when it starts, when [Server.Reload] is called, and when
// they change. What it reads then is taken whole or not at all: with a file that is
// not good the server goes on with what it had, says so, and serves nobody while it
// has never had a good one. What a reload takes away is taken from open connections too.
package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
	"github.com/swapback/swapback/api/certs"
)

// Options of a server.
type Options struct {
	// Listen is HOST:PORT. An empty host means all addresses of the machine.
	Listen string
	// Files: the daemon's certificate, its key (empty: in the same file), the
	// authorities of the clients, and the rights.
	Cert, Key, CA, Access string

	Service api.Service
	Metrics http.Handler // may be nil
	Version string
	Logger  *slog.Logger
}

// Server is the API for other machines. Its methods are safe for concurrent use.
type Server struct {
	o      Options
	log    *slog.Logger
	limits limits
	now    func() time.Time
	every  time.Duration // between two looks at the files
	state  atomic.Pointer[state]
	api    http.Handler
	// What strangers and what clients are refused is bounded apart: the first must
	// not keep the second out of the log.
	strangers, refused limiter

	mu       sync.Mutex           // of a reload, outermost
	stamps   []string             // of the files that were read last
	problem  string               // that was told last
	warned   map[string]time.Time // of certificates that end soon, by client; "" is the daemon
	looked   time.Time            // at all open connections anew
	listener atomic.Pointer[listener]
}

// pollEvery is how often the files are looked at.
const pollEvery = time.Second

// New makes a server. Nothing is read or bound before [Server.Run].
func New(o Options) *Server {
	g := &guard{svc: o.Service}
	return &Server{
		o: o, log: o.Logger.With("api", "remote"), limits: defaults, now: time.Now, every: pollEvery,
		strangers: newLimiter(o.Logger), refused: newLimiter(o.Logger), warned: map[string]time.Time{},
		api: api.NewGuardedHandler(g, o.Metrics, o.Version, o.Logger, g.check),
	}
}

// Run serves until ctx ends, and then lets what is under way come to its end, for
// 20 seconds at most. A file that is not good, or an address that can't be had, is
// logged and tried again: a daemon goes on serving its volumes meanwhile.
func (s *Server) Run(ctx context.Context) {
	served := make(chan error, 1)
	var srv *http.Server
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for ctx.Err() == nil {
		s.poll()
		if srv == nil && s.state.Load() != nil {
			if l, err := s.bind(ctx); err != nil {
				s.tell(err)
			} else {
				srv = s.server(ctx, l)
				go func() { served <- srv.Serve(l) }()
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	if srv == nil {
		return
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		s.log.Warn("requests were cut off at the end", "err", err)
		srv.Close()
	}
	<-served
}

// keepAlive notices within a minute that a client's machine is gone, and with it
// ends what its connection held.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 20 * time.Second, Interval: 10 * time.Second, Count: 4}

func (s *Server) bind(ctx context.Context) (*listener, error) {
	ln, err := (&net.ListenConfig{KeepAliveConfig: keepAlive}).Listen(ctx, "tcp", s.o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for clients from afar: %w", err)
	}
	s.tell(nil)
	s.log.Info("answering", "address", ln.Addr(), "clients", s.state.Load().table.Clients())
	l := newListener(ln, s)
	s.listener.Store(l)
	return l, nil
}

func (s *Server) server(ctx context.Context, l *listener) *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: s.limits.header,
		IdleTimeout:       s.limits.idle,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, l.peer(c))
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
}

// Reload reads the files again. When it returns an error the server goes on with
// what it had.
func (s *Server) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reload(s.stampAll())
}

func (s *Server) reload(stamps []string) error {
	s.stamps = nil // what is not good is tried again
	st, err := s.load()
	if err != nil {
		return err
	}
	s.stamps = stamps
	first := s.state.Swap(st) == nil
	if !first {
		s.log.Info("certificates and rights were read again", "clients", st.table.Clients())
	}
	if l := s.listener.Load(); l != nil {
		l.enforce(st, true)
	}
	return nil
}

// poll reads the files again when they have changed, and ends connections whose
// certificates have expired.
func (s *Server) poll() {
	s.mu.Lock()
	stamps := s.stampAll()
	var err error
	changed := s.state.Load() == nil || !slices.Equal(stamps, s.stamps)
	if changed {
		err = s.reload(stamps)
	}
	s.mu.Unlock()
	if changed {
		s.tell(err)
	}
	if l := s.listener.Load(); l != nil {
		// Certificates end by themselves, and so do those between them and the authority.
		full := s.now().Sub(s.looked) > fullLook
		l.enforce(s.state.Load(), full)
		if full {
			s.looked = s.now()
		}
	}
	if st := s.state.Load(); st != nil {
		s.warn("", st.leaf)
	}
}

// tell logs a problem once for as long as it stays the same.
func (s *Server) tell(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == s.problem {
		return
	}
	s.problem = text
	switch {
	case err == nil:
		s.log.Info("the remote API is as its files say again")
	case s.listener.Load() == nil:
		s.log.Error("the remote API is not served", "err", err)
	default:
		s.log.Error("the remote API goes on with what its files said before", "err", err)
	}
}

// fullLook is how often each open connection is judged in full although no file has
// changed, which costs a signature's check; whether it has expired is seen at each look.
const fullLook = time.Minute

// soon is how long before its end a certificate is warned of.
const soon = 14 * 24 * time.Hour

// warn tells once a day that a certificate ends soon: the daemon's, or a client's.
func (s *Server) warn(client string, c *x509.Certificate) {
	now := s.now()
	if now.Before(c.NotAfter.Add(-soon)) {
		return
	}
	s.mu.Lock()
	due := !now.Before(s.warned[client].Add(24 * time.Hour))
	if due {
		s.warned[client] = now
	}
	s.mu.Unlock()
	switch {
	case !due:
	case client == "":
		s.log.Warn("the daemon's certificate ends soon: clients will refuse it", "file", s.o.Cert, "ends", c.NotAfter, "remedy", "swapback cert renew")
	default:
		s.log.Warn("a client's certificate ends soon: it will be refused", "client", client, "certificate", certs.Serial(c), "ends", c.NotAfter, "remedy", "swapback cert issue "+client)
	}
}

// load reads all files.
func (s *Server) load() (*state, error) {
	pair, err := certs.LoadPair(s.o.Cert, s.o.Key, certs.ForServer, s.now())
	if err != nil {
		return nil, err
	}
	roots, err := certs.LoadAuthorities(s.o.CA, s.now())
	if err != nil {
		return nil, err
	}
	text, err := certs.ReadPublic(s.o.Access)
	if err != nil {
		return nil, err
	}
	table, err := access.Parse(text)
	if err != nil {
		return nil, &certs.Error{File: s.o.Access, Problem: err.Error(), Remedy: "mend the line; docs/remote.md has the format", Err: err}
	}
	st := &state{roots: roots, table: table, leaf: pair.Leaf}
	st.tls = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, Time: s.now,
		// With a ticket nobody would look at the certificate again.
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := st.judge(cs.PeerCertificates, s.now())
			return err
		},
	}
	return st, nil
}

// complain logs what anybody on the network can bring about, and so not without a
// bound.
func (s *Server) complain(what string, args ...any) {
	if s.strangers.allow() {
		s.log.Warn(what, args...)
	}
}

// limiter bounds how many lines are logged.
type limiter struct {
	log  *slog.Logger
	rate *rate.Limiter
	left *atomic.Int64 // lines that were not logged
}

func newLimiter(log *slog.Logger) limiter {
	return limiter{log.With("api", "remote"), rate.NewLimiter(5, 50), new(atomic.Int64)}
}

// allow tells whether one more line is to be logged.
func (l limiter) allow() bool {
	if !l.rate.Allow() {
		l.left.Add(1)
		return false
	}
	if n := l.left.Swap(0); n > 0 {
		l.log.Warn("refusals were not logged one by one: there were too many", "number", n)
	}
	return true
}
