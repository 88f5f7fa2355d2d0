package nvmeof

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/wire"
)

// SubsystemConfig is what a subsystem is made of.
type SubsystemConfig struct {
	NQN    string
	Serial string // at most 20 printable ASCII bytes
	Model  string // at most 40
	// Hosts are the NQNs that may connect. Nobody else may, or sees the subsystem in
	// a discovery log.
	Hosts []string
	// AnyHost lets everybody in.
	AnyHost bool
	// Authenticate says how a host has to prove who it is, on each of its queues; false:
	// it need not. It is asked at every Connect, and when a host begins anew on its admin
	// queue (its I/O queues go by what that has proved), so that secrets may change; from
	// any goroutine. nil: nobody has to. Without it a name is no more than a word.
	Authenticate func(host string) (auth.Config, bool)
	// Namespaces are there from the beginning: a host that comes back to a subsystem
	// without them takes them for removed.
	Namespaces []NamespaceConfig
}

// maxNamespaces is the highest NSID: the log of asymmetric access has to fit what
// hosts ask for, and a list of changed namespaces holds 1024.
const maxNamespaces = 1024

// maxGroups is the highest ANA group.
const maxGroups = 128

// Subsystem is a set of namespaces under one name. All methods may be called from
// any goroutine.
type Subsystem struct {
	target *Target
	config SubsystemConfig

	mu          sync.Mutex
	hosts       map[string]bool
	namespaces  map[uint32]*Namespace
	controllers map[uint16]*controller
	nextID      uint16 // where the search for a free CNTLID goes on
	ana         map[uint32]*anaGroup
	anaChanges  uint64
	closed      bool
	away        map[host]bool // hosts that were turned away; nil: none is
}

type anaGroup struct {
	state   wire.ANAState
	changes uint64
}

func printable(s string, most int) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return len(s) <= most
}

func newSubsystem(t *Target, cfg SubsystemConfig) (*Subsystem, error) {
	if err := wire.CheckNQN(cfg.NQN); err != nil {
		return nil, fmt.Errorf("nvmeof: adding a subsystem: %w", err)
	}
	if !printable(cfg.Serial, 20) || !printable(cfg.Model, 40) {
		return nil, fmt.Errorf("nvmeof: subsystem %s: serial %q or model %q is too long or not ASCII", cfg.NQN, cfg.Serial, cfg.Model)
	}
	s := &Subsystem{
		target: t, config: cfg, hosts: map[string]bool{}, namespaces: map[uint32]*Namespace{},
		controllers: map[uint16]*controller{}, ana: map[uint32]*anaGroup{},
		// Not where an earlier process began: its hosts may still ask for what it gave.
		nextID: uint16(rand.IntN(0xffef)),
	}
	for _, host := range cfg.Hosts {
		if err := wire.CheckNQN(host); err != nil {
			return nil, fmt.Errorf("nvmeof: hosts of subsystem %s: %w", cfg.NQN, err)
		}
		s.hosts[host] = true
	}
	for _, ns := range cfg.Namespaces {
		if _, err := s.insert(ns); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// NQN is the subsystem's name.
func (s *Subsystem) NQN() string { return s.config.NQN }

// AllowHost lets one more host in.
func (s *Subsystem) AllowHost(nqn string) error {
	if err := wire.CheckNQN(nqn); err != nil {
		return fmt.Errorf("nvmeof: hosts of subsystem %s: %w", s.config.NQN, err)
	}
	s.mu.Lock()
	s.hosts[nqn] = true
	s.mu.Unlock()
	s.target.discoveryChanged()
	return nil
}

// DenyHost takes a host off the list and ends its controllers; it returns when
// none of its commands is in flight any more.
func (s *Subsystem) DenyHost(ctx context.Context, nqn string) error {
	s.mu.Lock()
	delete(s.hosts, nqn)
	var gone []*controller
	for _, c := range s.controllers {
		if c.host.name == nqn && !s.config.AnyHost {
			gone = append(gone, c)
		}
	}
	s.mu.Unlock()
	s.target.discoveryChanged()
	return endAll(ctx, gone, "the host may not use the subsystem any more")
}

func (s *Subsystem) allows(host string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config.AnyHost || s.hosts[host]
}

// AddNamespace adds a disk; hosts that are connected are told.
func (s *Subsystem) AddNamespace(cfg NamespaceConfig) (*Namespace, error) {
	n, err := s.insert(cfg)
	if err != nil {
		return nil, err
	}
	s.namespaceChanged(n.id)
	return n, nil
}

func (s *Subsystem) insert(cfg NamespaceConfig) (*Namespace, error) {
	if cfg.Backend == nil {
		return nil, fmt.Errorf("nvmeof: subsystem %s: namespace without a backend", s.config.NQN)
	}
	if cfg.UUID == [16]byte{} && cfg.NGUID == [16]byte{} && cfg.EUI64 == [8]byte{} {
		return nil, fmt.Errorf("nvmeof: subsystem %s: namespace without UUID, NGUID and EUI64", s.config.NQN)
	}
	if cfg.ANAGroup == 0 {
		cfg.ANAGroup = 1
	}
	if cfg.ANAGroup > maxGroups || cfg.ID > maxNamespaces {
		return nil, fmt.Errorf("nvmeof: subsystem %s: namespace %d in ANA group %d: at most %d and %d", s.config.NQN, cfg.ID, cfg.ANAGroup, maxNamespaces, maxGroups)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := uint32(1); cfg.ID == 0 && id <= maxNamespaces; id++ {
		if s.namespaces[id] == nil {
			cfg.ID = id
		}
	}
	switch {
	case s.closed:
		return nil, fmt.Errorf("nvmeof: subsystem %s: %w", s.config.NQN, ErrClosed)
	case cfg.ID == 0:
		return nil, fmt.Errorf("nvmeof: subsystem %s has %d namespaces already", s.config.NQN, maxNamespaces)
	case s.namespaces[cfg.ID] != nil:
		return nil, fmt.Errorf("nvmeof: subsystem %s has a namespace %d already", s.config.NQN, cfg.ID)
	}
	n := newNamespace(s, cfg)
	s.namespaces[n.id] = n
	g := s.ana[cfg.ANAGroup]
	if g == nil {
		s.anaChanges++
		g = &anaGroup{state: wire.ANAOptimized, changes: s.anaChanges}
		s.ana[cfg.ANAGroup] = g
	}
	n.gate.setBit(gateNoAccess, !usable(g.state))
	return n, nil
}

func usable(s wire.ANAState) bool { return s == wire.ANAOptimized || s == wire.ANANonOptimized }

// RemoveNamespace takes a disk away. Hosts are told; commands that are held are
// answered; it returns when none is in flight any more, or with ctx's error, and
// then the backend must be kept.
func (s *Subsystem) RemoveNamespace(ctx context.Context, id uint32) error {
	s.mu.Lock()
	n := s.namespaces[id]
	delete(s.namespaces, id)
	s.mu.Unlock()
	if n == nil {
		return fmt.Errorf("nvmeof: subsystem %s has no namespace %d", s.config.NQN, id)
	}
	n.gate.setState(gateGone)
	s.namespaceChanged(id)
	return n.Drain(ctx)
}

// Namespace finds one; nil when there is none.
func (s *Subsystem) Namespace(id uint32) *Namespace {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namespaces[id]
}

// namespaceIDs are those above after, ascending.
func (s *Subsystem) namespaceIDs(after uint32) []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := slices.Sorted(maps.Keys(s.namespaces))
	at, _ := slices.BinarySearch(ids, after+1)
	return ids[at:]
}

// SetANA changes the state of a group, on all paths. Hosts that heed asymmetric
// access are told; from an unusable group their commands come back with its state,
// and they wait, for as long as ANATT when it is wire.ANAChanging, and without end
// when it is wire.ANAUnreachable. Those of other hosts are held, as by
// Namespace.Hold.
func (s *Subsystem) SetANA(group uint32, state wire.ANAState) error {
	s.mu.Lock()
	g := s.ana[group]
	if g == nil {
		s.mu.Unlock()
		return fmt.Errorf("nvmeof: subsystem %s has no ANA group %d", s.config.NQN, group)
	}
	if g.state == state {
		s.mu.Unlock()
		return nil
	}
	s.anaChanges++
	g.state, g.changes = state, s.anaChanges
	var members []*Namespace
	for _, n := range s.namespaces {
		if n.config.ANAGroup == group {
			members = append(members, n)
		}
	}
	s.mu.Unlock()
	// The log first, then the word about it, then the answers that follow from it.
	s.notifyAll(func(c *controller) { c.notify(eventANA) })
	for _, n := range members {
		n.gate.setBit(gateNoAccess, !usable(state))
	}
	return nil
}

// TurnAway is for a pause that is longer than hosts put up with that do not heed
// asymmetric access: Linux without native multipath tries a command five times more and
// then fails it, however long the status says to wait. Their connections are ended, with
// what is held on them, and until TurnAway(false) their Connect is answered that the
// controller is busy. Linux keeps its commands meanwhile, for as long as it tries to
// connect (ctrl_loss_tmo, 10 minutes), and a try is not counted against them. A host that
// comes while others are turned away follows them when it has a command that was held for
// too long. Hosts that heed asymmetric access stay.
func (s *Subsystem) TurnAway(on bool) {
	s.mu.Lock()
	if s.away != nil == on {
		s.mu.Unlock()
		return
	}
	s.away = nil
	if on {
		s.away = map[host]bool{}
	}
	s.mu.Unlock()
	if !on {
		return
	}
	for _, c := range s.listControllers() {
		c.turnAway()
	}
}

// turnAway ends a controller that has I/O queues while such hosts are turned away, and
// tells whether they are.
func (c *controller) turnAway() bool {
	c.mu.Lock()
	stays := c.readsANA || len(c.queues) == 0
	c.mu.Unlock()
	if stays {
		return false
	}
	s := c.subsys
	s.mu.Lock()
	away := s.away != nil
	if away {
		s.away[c.host] = true
	}
	s.mu.Unlock()
	if away {
		c.end("a pause is longer than the host can wait for on a connection")
	}
	return away
}

// isAway tells whether a host was turned away.
func (s *Subsystem) isAway(h host) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.away[h]
}

func (s *Subsystem) anaState(group uint32) wire.ANAState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ana[group].state
}

// anaLog is the log page, of groups that have namespaces.
func (s *Subsystem) anaLog(groupsOnly bool) wire.ANALog {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := wire.ANALog{Changes: s.anaChanges}
	for _, id := range slices.Sorted(maps.Keys(s.ana)) {
		g := wire.ANAGroup{ID: id, Changes: s.ana[id].changes, State: s.ana[id].state}
		for _, ns := range slices.Sorted(maps.Keys(s.namespaces)) {
			if s.namespaces[ns].config.ANAGroup == id {
				g.Namespaces = append(g.Namespaces, ns)
			}
		}
		if len(g.Namespaces) == 0 {
			continue
		}
		if groupsOnly {
			g.Namespaces = nil
		}
		log.Groups = append(log.Groups, g)
	}
	return log
}

func (s *Subsystem) namespaceChanged(id uint32) {
	s.notifyAll(func(c *controller) { c.namespaceChanged(id) })
}

func (s *Subsystem) notifyAll(f func(*controller)) {
	for _, c := range s.listControllers() {
		f(c)
	}
}

func (s *Subsystem) listControllers() []*controller {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.controllers))
}

// Controllers is how many hosts' controllers there are now.
func (s *Subsystem) Controllers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.controllers)
}

// Connected is a controller of a host, as it is now.
type Connected struct {
	Host       string // NQN
	HostID     [16]byte
	Controller uint16 // CNTLID
	Peer       string // address and port of its admin queue
	Queues     int    // I/O queues
}

// Connected lists the controllers, by their identifiers.
func (s *Subsystem) Connected() []Connected {
	list := []Connected{}
	for _, c := range s.listControllers() {
		c.mu.Lock()
		if c.admin != nil && c.ended == "" {
			list = append(list, Connected{c.host.name, c.host.id, c.id, c.admin.conn.RemoteAddr().String(), len(c.queues)})
		}
		c.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b Connected) int { return int(a.Controller) - int(b.Controller) })
	return list
}

// errFull: no more controllers.
var errFull = errors.New("the subsystem has as many controllers as it may")

// addController gives the controller its identifier, another one than those of
// late, so that a host that comes late finds nothing instead of a stranger.
func (s *Subsystem) addController(c *controller) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case len(s.controllers) >= s.target.opt.MaxControllers:
		return errFull
	}
	for {
		s.nextID = s.nextID%0xffef + 1 // 1 to FFEFh
		if s.controllers[s.nextID] == nil {
			break
		}
	}
	c.id = s.nextID
	s.controllers[c.id] = c
	return nil
}

func (s *Subsystem) removeController(c *controller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.controllers[c.id] == c {
		delete(s.controllers, c.id)
	}
}

func (s *Subsystem) controller(id uint16) *controller {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.controllers[id]
}

// close ends all controllers, for good.
func (s *Subsystem) close(ctx context.Context, why string) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	return endAll(ctx, s.listControllers(), why)
}

func endAll(ctx context.Context, list []*controller, why string) error {
	for _, c := range list {
		c.end(why)
	}
	for _, c := range list {
		select {
		case <-c.gone:
		case <-ctx.Done():
			return fmt.Errorf("nvmeof: waiting for controller %d of %s to end: %w", c.id, c.subsys.config.NQN, ctx.Err())
		}
	}
	return nil
}
