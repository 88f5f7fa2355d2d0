package reserve

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/swapback/swapback/nvmeof/wire"
)

var a, b, c = Host{1}, Host{2}, Host{3}

// script runs commands on a disk; each is one line of a test.
type script struct {
	t *testing.T
	d *Disk
}

func newScript(t *testing.T) *script {
	d, err := New(State{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &script{t, d}
}

func (s *script) want(what string, got, want wire.Status) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func (s *script) register(h Host, key uint64, want wire.Status) {
	s.t.Helper()
	s.want("register", s.d.Do(wire.OpResvRegister, h, wire.Reservation{Other: key}, nil), want)
}

func (s *script) unregister(h Host, key uint64, want wire.Status) {
	s.t.Helper()
	s.want("unregister", s.d.Do(wire.OpResvRegister, h, wire.Reservation{Action: wire.ResvUnregister, Key: key}, nil), want)
}

func (s *script) acquire(h Host, key uint64, t wire.ReservationType, want wire.Status) {
	s.t.Helper()
	s.want("acquire", s.d.Do(wire.OpResvAcquire, h, wire.Reservation{Key: key, Type: t}, nil), want)
}

func (s *script) preempt(h Host, key, other uint64, t wire.ReservationType, want wire.Status) {
	s.t.Helper()
	s.want("preempt", s.d.Do(wire.OpResvAcquire, h, wire.Reservation{Action: wire.ResvPreempt, Key: key, Other: other, Type: t}, nil), want)
}

func (s *script) release(h Host, key uint64, t wire.ReservationType, want wire.Status) {
	s.t.Helper()
	s.want("release", s.d.Do(wire.OpResvRelease, h, wire.Reservation{Key: key, Type: t}, nil), want)
}

// access is "rw", "r-" or "--" for each host.
func (s *script) access(want ...string) {
	s.t.Helper()
	for i, h := range []Host{a, b, c, {}} {
		got := []byte("--")
		if s.d.Access(h, false) {
			got[0] = 'r'
		}
		if s.d.Access(h, true) {
			got[1] = 'w'
		}
		if i < len(want) && string(got) != want[i] {
			s.t.Errorf("host %d has %s, want %s", i, got, want[i])
		}
	}
}

func (s *script) holders(want wire.ReservationType, hosts ...Host) {
	s.t.Helper()
	state := s.d.State()
	var got []Host
	for _, g := range state.Registrants {
		if g.Holder {
			got = append(got, g.Host)
		}
	}
	if state.Type != want || cmp.Diff(hosts, got) != "" {
		s.t.Errorf("%v held by %v, want %v held by %v", state.Type, got, want, hosts)
	}
}

const ok = wire.Success

var invalid = wire.InvalidField | wire.DNR

// TestAccess is the table of the specification: holder, registrant, neither, and
// somebody without an identifier.
func TestAccess(t *testing.T) {
	for kind, want := range map[wire.ReservationType][]string{
		wire.WriteExclusive:      {"rw", "r-", "r-", "r-"},
		wire.ExclusiveAccess:     {"rw", "--", "--", "--"},
		wire.WriteExclusiveRegs:  {"rw", "rw", "r-", "r-"},
		wire.ExclusiveAccessRegs: {"rw", "rw", "--", "--"},
		wire.WriteExclusiveAll:   {"rw", "rw", "r-", "r-"},
		wire.ExclusiveAccessAll:  {"rw", "rw", "--", "--"},
	} {
		t.Run(kind.String(), func(t *testing.T) {
			s := newScript(t)
			s.access("rw", "rw", "rw", "rw")
			s.register(a, 1, ok)
			s.register(b, 2, ok)
			s.access("rw", "rw", "rw", "rw")
			s.acquire(a, 1, kind, ok)
			s.access(want...)
			s.release(a, 1, kind, ok)
			s.access("rw", "rw", "rw", "rw")
		})
	}
}

func TestRegister(t *testing.T) {
	s := newScript(t)
	s.register(a, 1, ok)
	s.register(a, 1, ok) // it is so already
	s.register(a, 2, conflict)
	s.unregister(b, 1, conflict)
	s.unregister(a, 2, conflict)
	s.want("replace", s.d.Do(wire.OpResvRegister, a, wire.Reservation{Action: wire.ResvReplace, Key: 9, Other: 2}, nil), conflict)
	s.want("replace", s.d.Do(wire.OpResvRegister, a, wire.Reservation{Action: wire.ResvReplace, Key: 1, Other: 2}, nil), ok)
	s.want("replace, whatever the key", s.d.Do(wire.OpResvRegister, a, wire.Reservation{Action: wire.ResvReplace, Key: 9, Other: 3, IgnoreKey: true}, nil), ok)
	s.want("replace by a stranger", s.d.Do(wire.OpResvRegister, b, wire.Reservation{Action: wire.ResvReplace, IgnoreKey: true, Other: 3}, nil), conflict)
	s.want("no such action", s.d.Do(wire.OpResvRegister, a, wire.Reservation{Action: 5}, nil), invalid)
	s.want("no such CPTPL", s.d.Do(wire.OpResvRegister, a, wire.Reservation{Persist: 1}, nil), invalid)
	s.want("to survive power loss, where that cannot be", s.d.Do(wire.OpResvRegister, b, wire.Reservation{Other: 1, Persist: 3}, nil), invalid)
	if got := s.d.State(); got.Generation != 3 || len(got.Registrants) != 1 || got.Registrants[0].Key != 3 {
		t.Errorf("%+v", got)
	}
	s.unregister(a, 3, ok)
	for i := range MaxRegistrants {
		s.register(Host{9, byte(i)}, 1, ok)
	}
	s.register(a, 1, wire.InternalError)
}

func TestAcquireAndRelease(t *testing.T) {
	s := newScript(t)
	s.register(a, 1, ok)
	s.register(b, 2, ok)
	s.acquire(c, 1, wire.WriteExclusive, conflict)
	s.acquire(a, 2, wire.WriteExclusive, conflict)
	s.acquire(a, 1, 7, invalid)
	s.acquire(a, 1, wire.WriteExclusive, ok)
	s.acquire(a, 1, wire.WriteExclusive, ok)
	s.acquire(a, 1, wire.ExclusiveAccess, conflict)
	s.acquire(b, 2, wire.WriteExclusive, conflict)
	s.holders(wire.WriteExclusive, a)
	s.release(b, 2, wire.WriteExclusive, ok) // which is not its own: nothing happens
	s.holders(wire.WriteExclusive, a)
	s.release(a, 1, wire.ExclusiveAccess, invalid)
	s.release(a, 9, wire.WriteExclusive, conflict)
	s.unregister(a, 1, ok) // with its holder a reservation goes
	s.holders(0)
	s.acquire(b, 2, wire.ExclusiveAccessAll, ok)
	s.register(a, 1, ok)
	s.holders(wire.ExclusiveAccessAll, b, a)
	s.acquire(a, 1, wire.ExclusiveAccessAll, ok)
	s.unregister(b, 2, ok)
	s.holders(wire.ExclusiveAccessAll, a)
	s.unregister(a, 1, ok)
	s.holders(0)
	s.register(a, 1, ok)
	s.register(b, 2, ok)
	s.acquire(a, 1, wire.WriteExclusive, ok)
	s.want("clear", s.d.Do(wire.OpResvRelease, b, wire.Reservation{Action: wire.ResvClear, Key: 2}, nil), ok)
	if got := s.d.State(); got.Type != 0 || len(got.Registrants) != 0 {
		t.Errorf("after a clear: %+v", got)
	}
	s.want("no such action", s.d.Do(wire.OpResvRelease, b, wire.Reservation{Action: 3}, nil), conflict)
	s.want("no such command", s.d.Do(wire.OpRead, b, wire.Reservation{}, nil), wire.InvalidOpcode|wire.DNR)
}

func TestPreempt(t *testing.T) {
	for _, tt := range []struct {
		name    string
		held    wire.ReservationType // by a, with key 1; b has 2, c has 2
		by      Host
		key     uint64
		other   uint64
		want    wire.Status
		kind    wire.ReservationType
		holders []Host
		left    int
	}{
		{"the holder", wire.WriteExclusive, b, 2, 1, ok, wire.ExclusiveAccess, []Host{b}, 2},
		{"a registrant", wire.WriteExclusive, a, 1, 2, ok, wire.WriteExclusive, []Host{a}, 1},
		{"itself, for another type", wire.WriteExclusive, a, 1, 1, ok, wire.ExclusiveAccess, []Host{a}, 3},
		{"nobody", wire.WriteExclusive, b, 2, 7, conflict, wire.WriteExclusive, []Host{a}, 3},
		{"key 0", wire.WriteExclusive, b, 2, 0, invalid, wire.WriteExclusive, []Host{a}, 3},
		{"a wrong key of its own", wire.WriteExclusive, b, 1, 1, conflict, wire.WriteExclusive, []Host{a}, 3},
		{"all registrants", wire.WriteExclusiveAll, b, 2, 0, ok, wire.ExclusiveAccess, []Host{b}, 1},
		{"one of all registrants", wire.WriteExclusiveAll, b, 2, 1, ok, wire.WriteExclusiveAll, []Host{b, c}, 2},
		{"where there is none", 0, b, 2, 1, ok, 0, nil, 2},
		{"nobody, where there is none", 0, b, 2, 9, conflict, 0, nil, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t)
			s.register(a, 1, ok)
			s.register(b, 2, ok)
			s.register(c, 2, ok)
			if tt.held != 0 {
				s.acquire(a, 1, tt.held, ok)
			}
			s.preempt(tt.by, tt.key, tt.other, wire.ExclusiveAccess, tt.want)
			s.holders(tt.kind, tt.holders...)
			if n := len(s.d.State().Registrants); n != tt.left {
				t.Errorf("%d registrants are left, want %d", n, tt.left)
			}
		})
	}
}

// TestSaved: what a host wants to survive is saved before it hears so, and nothing is
// changed when that fails.
func TestSaved(t *testing.T) {
	var kept []State
	var broken error
	save := func(s State) error {
		if broken == nil {
			kept = append(kept, s.clone())
		}
		return broken
	}
	d, err := New(State{}, save, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t, d}
	s.register(a, 1, ok)
	if len(kept) != 0 {
		t.Errorf("saved unasked: %+v", kept)
	}
	s.want("register", d.Do(wire.OpResvRegister, b, wire.Reservation{Other: 2, Persist: 3}, nil), ok)
	s.acquire(b, 2, wire.WriteExclusive, ok)
	broken = errors.New("no disk")
	s.release(b, 2, wire.WriteExclusive, wire.InternalError)
	s.holders(wire.WriteExclusive, b)
	s.access("r-", "rw", "r-", "r-")
	again, err := New(kept[len(kept)-1], save, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := d.State()
	want.Generation = 0
	if diff := cmp.Diff(want, again.State()); diff != "" {
		t.Errorf("after the power came back (-was +is):\n%s", diff)
	}
	(&script{t, again}).access("r-", "rw", "r-", "r-")
	broken = nil
	s.want("to forget", d.Do(wire.OpResvRegister, b, wire.Reservation{Other: 2, Persist: 2}, nil), ok)
	if last := kept[len(kept)-1]; last.Persist || len(last.Registrants) != 0 {
		t.Errorf("what is not to survive is saved: %+v", last)
	}
	for _, bad := range []State{
		{Type: 9, Registrants: []Registrant{{Host: a, Holder: true}}},
		{Type: wire.WriteExclusive},
		{Registrants: []Registrant{{Host: a, Holder: true}}},
		{Registrants: []Registrant{{Host: a}, {Host: a}}},
		{Type: wire.WriteExclusiveAll, Registrants: []Registrant{{Host: a, Holder: true}, {Host: b}}},
		{Registrants: make([]Registrant, MaxRegistrants+1)},
	} {
		if _, err := New(bad, nil, nil); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// TestRandom: whatever hosts do, the state stays one that may be, and who holds a
// reservation may write.
func TestRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	d, err := New(State{}, func(State) error { return nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	hosts := []Host{a, b, c}
	ops := []wire.Opcode{wire.OpResvRegister, wire.OpResvRegister, wire.OpResvAcquire, wire.OpResvAcquire, wire.OpResvRelease}
	held := 0
	for i := range 20000 {
		h := hosts[rnd.IntN(len(hosts))]
		r := wire.Reservation{
			Action: uint8(rnd.IntN(4)), IgnoreKey: rnd.IntN(8) == 0, Type: wire.ReservationType(rnd.IntN(8)),
			Persist: uint8(rnd.IntN(4)), Key: uint64(rnd.IntN(3)), Other: uint64(rnd.IntN(3)),
		}
		d.Do(ops[rnd.IntN(len(ops))], h, r, nil)
		s := d.State()
		if err := s.check(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		for _, g := range s.Registrants {
			if g.Holder {
				held++
				if !d.Access(g.Host, true) {
					t.Fatalf("step %d: a holder may not write: %+v", i, s)
				}
			}
		}
		if s.Type == 0 && !d.Access(Host{}, true) {
			t.Fatalf("step %d: nobody holds it, and not everybody may write", i)
		}
	}
	if held < 1000 {
		t.Errorf("a reservation was held only %d times", held)
	}
}
