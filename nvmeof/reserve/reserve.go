// Package reserve keeps the reservations of a disk: which hosts have registered a
// key, which of them holds it, and so who may read and who may write (NVM Express
// Base Specification 2.0, 8.19). It knows nothing of connections: whatever serves
// the disk asks it, by whichever door.
//
// A Disk may be used from any goroutine. Access costs one atomic load where there is
// no reservation.
package reserve

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/swapback/swapback/nvmeof/wire"
)

// Host is the identifier of a host, the same on all of its controllers.
type Host [16]byte

// MaxRegistrants is how many hosts may register with a disk.
const MaxRegistrants = 128

// Registrant is a host that has registered.
type Registrant struct {
	Host   Host   `json:"host"`
	Key    uint64 `json:"key"`
	Holder bool   `json:"holder,omitempty"`
}

// State is all there is to know. Generation counts changes, since it was made or
// restored; it need not survive.
type State struct {
	Type        wire.ReservationType `json:"type"` // 0: not reserved
	Persist     bool                 `json:"persist"`
	Registrants []Registrant         `json:"registrants"`
	Generation  uint32               `json:"-"`
}

// Saver makes a state survive the loss of power. It is called before the host hears
// that a command has succeeded, with states whose Persist is set, and once with one
// whose Persist is not and that has no registrants, when there is nothing to keep any
// more. An error fails the command, which has then changed nothing.
type Saver func(State) error

// Other is another door to the disk, whose users have no identifier: they are the zero
// Host. Let is called when what they may do changes, read or write (and flush), and
// returns when it is so; what they may not do any more is not in flight then. It is called
// before anything is saved when they may do less, and at last when they may do more. After
// an error it is as it was; the command fails, which has changed nothing. One call at a
// time.
type Other interface {
	Let(read, write bool) error
}

// Disk has the reservations of one disk.
type Disk struct {
	save  Saver
	other Other

	mu    sync.Mutex
	state State
	saved bool // something is kept

	// rules are what Access goes by; nil where everybody may do everything.
	rules atomic.Pointer[rules]
}

type rules struct {
	holders []Host // those who may what the holder may
	readers bool   // everybody may read
}

// New makes a disk from what was saved, the zero State if nothing was. save may be
// nil: then nothing survives, and hosts that ask for it are told so. other may be nil, too;
// it is not called for what was saved.
func New(saved State, save Saver, other Other) (*Disk, error) {
	if err := saved.check(); err != nil {
		return nil, err
	}
	saved.Generation = 0
	d := &Disk{save: save, other: other, state: saved.clone(), saved: saved.Persist}
	d.publish()
	return d, nil
}

// check wants a state that this package could have saved.
func (s *State) check() error {
	holders := 0
	for i, r := range s.Registrants {
		if slices.ContainsFunc(s.Registrants[:i], func(o Registrant) bool { return o.Host == r.Host }) {
			return fmt.Errorf("nvmeof: saved reservations have host %x twice", r.Host)
		}
		if r.Holder {
			holders++
		}
	}
	switch {
	case len(s.Registrants) > MaxRegistrants:
		return fmt.Errorf("nvmeof: saved reservations have %d registrants", len(s.Registrants))
	case s.Type == 0 && holders == 0:
	case s.Type.AllRegistrants() && s.Type.Valid() && holders == len(s.Registrants) && holders > 0:
	case s.Type.Valid() && !s.Type.AllRegistrants() && holders == 1:
	default:
		return fmt.Errorf("nvmeof: saved reservations of type %v have %d holders", s.Type, holders)
	}
	return nil
}

func (s State) clone() State {
	s.Registrants = slices.Clone(s.Registrants)
	return s
}

// Persists tells whether reservations can survive the loss of power.
func (d *Disk) Persists() bool { return d.save != nil }

// State is what it is now.
func (d *Disk) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.clone()
}

// Access tells whether a host may read or write. One without an identifier, as
// somebody on this machine, is the zero Host.
func (d *Disk) Access(h Host, write bool) bool {
	return d.rules.Load().allow(h, write)
}

func (r *rules) allow(h Host, write bool) bool {
	return r == nil || r.readers && !write || slices.Contains(r.holders, h)
}

// publish makes the rules from the state.
func (d *Disk) publish() { d.rules.Store(d.state.rules()) }

// rules are those of a state (NVM Express Base, figure of 8.19.1), nil for none.
func (s *State) rules() *rules {
	if s.Type == 0 {
		return nil
	}
	r := &rules{}
	switch s.Type {
	case wire.WriteExclusive, wire.WriteExclusiveRegs, wire.WriteExclusiveAll:
		r.readers = true
	}
	for _, g := range s.Registrants {
		if g.Holder || !single(s.Type) {
			r.holders = append(r.holders, g.Host)
		}
	}
	return r
}

// single tells whether the holder alone may what a reservation keeps others from.
func single(t wire.ReservationType) bool {
	return t == wire.WriteExclusive || t == wire.ExclusiveAccess
}

func (s *State) find(h Host) *Registrant {
	for i := range s.Registrants {
		if s.Registrants[i].Host == h {
			return &s.Registrants[i]
		}
	}
	return nil
}

// change carries out what f does to a copy of the state, unless it fails. Of the success
// done hears, with the lock held.
func (d *Disk) change(f func(*State) wire.Status, done func(before, after *State)) wire.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	last, next := d.state, d.state.clone()
	if status := f(&next); status != wire.Success {
		return status
	}
	// The other door first where it closes, at last where it opens.
	before, after := d.rules.Load(), next.rules()
	both := func(r *rules) (read, write bool) { return r.allow(Host{}, false), r.allow(Host{}, true) }
	hadRead, hadWrite := both(before)
	read, write := both(after)
	if err := d.let(hadRead, hadWrite, hadRead && read, hadWrite && write); err != nil {
		return wire.InternalError
	}
	if status := d.keep(next); status != wire.Success {
		// It opens again: nobody has to be waited for.
		_ = d.let(hadRead && read, hadWrite && write, hadRead, hadWrite)
		return status
	}
	d.state, d.saved = next, next.Persist
	d.publish()
	// The command has succeeded; a door that stays closed for longer does no harm.
	_ = d.let(hadRead && read, hadWrite && write, read, write)
	done(&last, &next)
	return wire.Success
}

// let tells the other door what its users may do, if that is something else.
func (d *Disk) let(hadRead, hadWrite, read, write bool) error {
	if d.other == nil || hadRead == read && hadWrite == write {
		return nil
	}
	return d.other.Let(read, write)
}

// keep saves a state that is to survive, or that there is none any more.
func (d *Disk) keep(next State) wire.Status {
	if !next.Persist && !d.saved {
		return wire.Success
	}
	if !next.Persist {
		next = State{}
	}
	if d.save == nil {
		return wire.InvalidField | wire.DNR
	}
	if err := d.save(next); err != nil {
		return wire.InternalError
	}
	return wire.Success
}

const conflict = wire.ReservationConflict

// Do carries out Register, Acquire or Release for a host. tell hears, in the order in which
// it happens, of which other hosts are to get a notice; it must not call the Disk. It may
// be nil.
func (d *Disk) Do(op wire.Opcode, h Host, r wire.Reservation, tell func(Host, wire.NoticeKind)) wire.Status {
	done := func(before, after *State) {
		if tell != nil {
			notices(op, h, before, after, tell)
		}
	}
	return d.change(func(s *State) wire.Status {
		switch op {
		case wire.OpResvRegister:
			return s.register(h, r)
		case wire.OpResvAcquire:
			return s.acquire(h, r)
		case wire.OpResvRelease:
			return s.release(h, r)
		}
		return wire.InvalidOpcode | wire.DNR
	}, done)
}

// register is Reservation Register (7.5).
func (s *State) register(h Host, r wire.Reservation) wire.Status {
	mine := s.find(h)
	switch r.Persist {
	case 0:
	case 2, 3:
		s.Persist = r.Persist == 3
	default:
		return wire.InvalidField | wire.DNR
	}
	switch r.Action {
	case wire.ResvRegister:
		if mine != nil {
			if mine.Key != r.Other {
				return conflict
			}
			return wire.Success // it is so already
		}
		if len(s.Registrants) == MaxRegistrants {
			return wire.InternalError
		}
		s.Registrants = append(s.Registrants, Registrant{Host: h, Key: r.Other, Holder: s.Type.AllRegistrants()})
	case wire.ResvUnregister:
		if mine == nil || mine.Key != r.Key && !r.IgnoreKey {
			return conflict
		}
		s.remove(func(g Registrant) bool { return g.Host == h })
	case wire.ResvReplace:
		if mine == nil || mine.Key != r.Key && !r.IgnoreKey {
			return conflict
		}
		mine.Key = r.Other
	default:
		return wire.InvalidField | wire.DNR
	}
	s.Generation++
	return wire.Success
}

// remove unregisters hosts, and ends the reservation with its last holder.
func (s *State) remove(which func(Registrant) bool) (any bool) {
	n := len(s.Registrants)
	s.Registrants = slices.DeleteFunc(s.Registrants, which)
	if !slices.ContainsFunc(s.Registrants, func(g Registrant) bool { return g.Holder }) {
		s.Type = 0
	}
	return len(s.Registrants) < n
}

// reserve makes a host the holder, of types that all registrants hold with them.
func (s *State) reserve(h Host, t wire.ReservationType) {
	s.Type = t
	for i := range s.Registrants {
		g := &s.Registrants[i]
		g.Holder = g.Host == h || t.AllRegistrants()
	}
}

// acquire is Reservation Acquire (7.6).
func (s *State) acquire(h Host, r wire.Reservation) wire.Status {
	if r.IgnoreKey || !r.Type.Valid() {
		return wire.InvalidField | wire.DNR
	}
	mine := s.find(h)
	if mine == nil || mine.Key != r.Key {
		return conflict
	}
	switch r.Action {
	case wire.ResvAcquire:
		if s.Type == 0 {
			s.reserve(h, r.Type)
			return wire.Success
		}
		if !mine.Holder || s.Type != r.Type {
			return conflict
		}
		return wire.Success
	case wire.ResvPreempt, wire.ResvPreemptAbort:
		return s.preempt(h, r)
	}
	return wire.InvalidField | wire.DNR
}

// preempt unregisters those who have a key, and takes the reservation if it was
// theirs.
func (s *State) preempt(h Host, r wire.Reservation) wire.Status {
	named := func(g Registrant) bool { return g.Key == r.Other && g.Host != h }
	takes := false
	switch {
	case s.Type.AllRegistrants() && r.Other == 0:
		named = func(g Registrant) bool { return g.Host != h }
		takes = true
	case s.Type != 0 && !s.Type.AllRegistrants():
		if r.Other == 0 {
			return wire.InvalidField | wire.DNR
		}
		takes = slices.ContainsFunc(s.Registrants, func(g Registrant) bool { return g.Holder && g.Key == r.Other })
	}
	if any := s.remove(named); !any && !takes {
		return conflict
	}
	if takes {
		s.reserve(h, r.Type)
	}
	s.Generation++
	return wire.Success
}

// release is Reservation Release (7.8).
func (s *State) release(h Host, r wire.Reservation) wire.Status {
	if r.IgnoreKey {
		return wire.InvalidField | wire.DNR
	}
	mine := s.find(h)
	if mine == nil || mine.Key != r.Key {
		return conflict
	}
	switch r.Action {
	case wire.ResvRelease:
		if s.Type == 0 || !mine.Holder {
			return wire.Success // nothing of this host's is there to release
		}
		if s.Type != r.Type {
			return wire.InvalidField | wire.DNR
		}
		s.Type = 0
		for i := range s.Registrants {
			s.Registrants[i].Holder = false
		}
	case wire.ResvClear:
		s.Type, s.Registrants = 0, nil
		s.Generation++
	default:
		return wire.InvalidField | wire.DNR
	}
	return wire.Success
}
