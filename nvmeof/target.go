package nvmeof

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/swapback/swapback/nvmeof/wire"
)

// ErrClosed: the target, or the subsystem, has ended.
var ErrClosed = errors.New("closed")

// Target serves subsystems to hosts that connect by TCP. It belongs to the caller
// of New, who ends it with Close. All methods may be called from any goroutine.
type Target struct {
	opt       Options
	log       *slog.Logger
	discovery *Subsystem
	memory    atomic.Int64 // bytes of the queues' buffers; see reserve

	mu         sync.Mutex
	subsystems map[string]*Subsystem
	ports      map[*port]struct{}
	nextPort   uint16
	queues     map[*queue]struct{} // one for each connection
	generation uint64              // of the discovery log
	closed     bool
	running    sync.WaitGroup // goroutines of connections
}

// port is a listener.
type port struct {
	id       uint16
	listener net.Listener
	addr     netip.AddrPort
}

// New makes a target that listens nowhere yet.
func New(opt Options) (*Target, error) {
	opt = opt.withDefaults()
	if err := opt.validate(); err != nil {
		return nil, err
	}
	t := &Target{
		opt: opt, log: opt.Logger, generation: 1,
		subsystems: map[string]*Subsystem{}, ports: map[*port]struct{}{}, queues: map[*queue]struct{}{},
	}
	var err error
	t.discovery, err = newSubsystem(t, SubsystemConfig{NQN: wire.DiscoveryNQN, AnyHost: true})
	return t, err
}

// AddSubsystem adds one.
func (t *Target) AddSubsystem(cfg SubsystemConfig) (*Subsystem, error) {
	s, err := newSubsystem(t, cfg)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	switch {
	case t.closed:
		err = fmt.Errorf("nvmeof: adding subsystem %s: %w", cfg.NQN, ErrClosed)
	case t.subsystems[cfg.NQN] != nil || cfg.NQN == wire.DiscoveryNQN:
		err = fmt.Errorf("nvmeof: there is a subsystem %s already", cfg.NQN)
	default:
		t.subsystems[cfg.NQN] = s
	}
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	t.discoveryChanged()
	return s, nil
}

// RemoveSubsystem ends all controllers of a subsystem. It returns when none of
// their commands is in flight any more, or with ctx's error, and then the backends
// must be kept.
func (t *Target) RemoveSubsystem(ctx context.Context, nqn string) error {
	t.mu.Lock()
	s := t.subsystems[nqn]
	delete(t.subsystems, nqn)
	t.mu.Unlock()
	if s == nil {
		return fmt.Errorf("nvmeof: there is no subsystem %s", nqn)
	}
	t.discoveryChanged()
	return s.close(ctx, "the subsystem is removed")
}

// subsystem finds the one that a host asks for; nil when it may not use it.
func (t *Target) subsystem(nqn, host string) *Subsystem {
	if nqn == wire.DiscoveryNQN {
		return t.discovery
	}
	t.mu.Lock()
	s := t.subsystems[nqn]
	t.mu.Unlock()
	if s == nil || !s.allows(host) {
		return nil
	}
	return s
}

// Serve takes connections from a listener until it fails or the target closes, and
// closes it then. The error is nil when the target was closed. Every listener is a
// port of the discovery log.
func (t *Target) Serve(l net.Listener) error {
	addr, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		l.Close()
		return fmt.Errorf("nvmeof: a listener on %v: want TCP: %w", l.Addr(), err)
	}
	p := &port{listener: l, addr: addr}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		l.Close()
		return fmt.Errorf("nvmeof: serving %v: %w", l.Addr(), ErrClosed)
	}
	t.nextPort++
	p.id = t.nextPort
	t.ports[p] = struct{}{}
	t.mu.Unlock()
	t.discoveryChanged()
	err = t.accept(p)
	l.Close()
	t.mu.Lock()
	delete(t.ports, p)
	closed := t.closed
	t.mu.Unlock()
	if closed {
		return nil
	}
	t.discoveryChanged()
	return fmt.Errorf("nvmeof: serving %v: %w", l.Addr(), err)
}

func (t *Target) accept(p *port) error {
	for {
		conn, err := p.listener.Accept()
		var timeout net.Error
		switch {
		case err == nil:
		case errors.Is(err, net.ErrClosed):
			return err
		case errors.As(err, &timeout): // as when there are too many files open: it may pass
			t.log.Warn("nvmeof: accepting a connection", "port", p.addr, "err", err)
			time.Sleep(50 * time.Millisecond)
			continue
		default:
			return err
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			conn.Close()
			return fmt.Errorf("a listener of %T: want TCP", conn)
		}
		if err := t.start(tcp, p); err != nil {
			t.log.Warn("nvmeof: connection refused", "peer", conn.RemoteAddr(), "err", err)
			conn.Close()
		}
	}
}

// start gives a connection its goroutine.
func (t *Target) start(conn *net.TCPConn, p *port) error {
	q, err := newQueue(t, conn, p)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return ErrClosed
	case len(t.queues) >= t.opt.MaxConnections:
		return fmt.Errorf("%d connections are open, which is the limit", len(t.queues))
	}
	t.queues[q] = struct{}{}
	t.running.Go(func() {
		q.serve()
		t.mu.Lock()
		delete(t.queues, q)
		t.mu.Unlock()
	})
	return nil
}

// Connections is how many are open now.
func (t *Target) Connections() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.queues)
}

// Close ends all listeners, controllers and connections. It returns when no
// command is in flight any more and every goroutine has ended, or with ctx's error,
// and then the backends must be kept. Hosts find their connections closed, and try
// to connect again for as long as they were told to (10 minutes on Linux).
func (t *Target) Close(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	ports := slices.Collect(maps.Keys(t.ports))
	queues := slices.Collect(maps.Keys(t.queues))
	t.mu.Unlock()
	for _, p := range ports {
		p.listener.Close()
	}
	for _, q := range queues {
		q.hangUp("the target closes")
	}
	ended := make(chan struct{})
	go func() {
		t.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("nvmeof: closing the target, %d connections are still there: %w", t.Connections(), ctx.Err())
	}
}

// reserve counts a queue's buffers against MaxMemory; false: there is no room.
func (t *Target) reserve(n int64) bool {
	if t.memory.Add(n) <= t.opt.MaxMemory {
		return true
	}
	t.memory.Add(-n)
	return false
}

// discoveryChanged tells those who read the discovery log.
func (t *Target) discoveryChanged() {
	t.mu.Lock()
	t.generation++
	t.mu.Unlock()
	t.discovery.notifyAll(func(c *controller) { c.notify(eventDiscovery) })
}

// discoveryLog is what a host may connect to, and by which addresses. local is
// the address that it has reached us by, for listeners that are bound to none.
func (t *Target) discoveryLog(host string, local netip.Addr) wire.DiscoveryLog {
	t.mu.Lock()
	ports := slices.SortedFunc(maps.Keys(t.ports), func(a, b *port) int { return int(a.id) - int(b.id) })
	names := slices.Sorted(maps.Keys(t.subsystems))
	log := wire.DiscoveryLog{Generation: t.generation}
	t.mu.Unlock()
	for _, nqn := range append([]string{wire.DiscoveryNQN}, names...) {
		if t.subsystem(nqn, host) == nil {
			continue
		}
		for _, p := range ports {
			log.Entries = append(log.Entries, p.entry(nqn, local))
		}
	}
	return log
}

func (p *port) entry(nqn string, local netip.Addr) wire.DiscoveryEntry {
	addr := p.addr.Addr().Unmap()
	if addr.IsUnspecified() {
		addr = local.Unmap()
	}
	e := wire.DiscoveryEntry{
		Transport: wire.TransportTCP, Family: wire.FamilyIPv6, Kind: wire.KindNVM, Port: p.id,
		CNTLID: wire.DynamicController, AdminSize: adminDepth,
		Service: strconv.Itoa(int(p.addr.Port())), Subsys: nqn, Address: addr.WithZone("").String(),
	}
	if addr.Is4() {
		e.Family = wire.FamilyIPv4
	}
	if nqn == wire.DiscoveryNQN {
		e.Kind, e.Flags = wire.KindDiscovery, wire.EntryPersistent
	}
	return e
}
