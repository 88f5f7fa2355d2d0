package reserve

import (
	"errors"
	"slices"
	"testing"

	"github.com/swapback/swapback/nvmeof/wire"
)

// otherDoor notes what it is told, and what was saved by then.
type otherDoor struct {
	told []string
	fail error
}

func (o *otherDoor) Let(read, write bool) error {
	if o.fail != nil {
		return o.fail
	}
	text := ""
	if read {
		text += "r"
	}
	if write {
		text += "w"
	}
	o.told = append(o.told, text)
	return nil
}

// TestOtherDoor: whoever comes by another door is kept out before the host that reserves
// the disk hears that it has, and let in again after it was released.
func TestOtherDoor(t *testing.T) {
	o := &otherDoor{}
	var broken error
	d, err := New(State{}, func(State) error {
		if broken == nil {
			o.told = append(o.told, "saved")
		}
		return broken
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t, d}
	told := func(want ...string) {
		t.Helper()
		if !slices.Equal(o.told, want) {
			t.Errorf("told %q, want %q", o.told, want)
		}
		o.told = nil
	}
	s.want("register", d.Do(wire.OpResvRegister, a, wire.Reservation{Other: 1, Persist: 3}, nil), wire.Success)
	told("saved")
	s.acquire(a, 1, wire.WriteExclusive, wire.Success)
	told("r", "saved")
	s.release(a, 1, wire.WriteExclusive, wire.Success)
	told("saved", "rw")
	s.acquire(a, 1, wire.ExclusiveAccessRegs, wire.Success)
	told("", "saved")

	// A change from one type to another closes and opens nothing that stays as it is.
	s.register(b, 2, wire.Success)
	told("saved")
	s.preempt(b, 2, 1, wire.WriteExclusive, wire.Success)
	told("saved", "r")

	// What can't be saved leaves the door as it was.
	s.release(b, 2, wire.WriteExclusive, wire.Success)
	told("saved", "rw")
	broken = errors.New("no disk")
	s.acquire(b, 2, wire.ExclusiveAccess, wire.InternalError)
	told("", "rw")
	if !d.Access(Host{}, true) {
		t.Error("a reservation that was not saved holds")
	}

	// A door that can't be closed has the command fail.
	broken, o.fail = nil, errors.New("busy")
	s.acquire(b, 2, wire.ExclusiveAccess, wire.InternalError)
	told()
	if d.State().Type != 0 {
		t.Error("the disk is reserved although the other door is open")
	}
}
