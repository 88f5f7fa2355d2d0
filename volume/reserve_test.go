package volume

import (
	"reflect"
	"testing"

	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/nvmeof/reserve"
	"github.com/swapback/swapback/nvmeof/wire"
	"github.com/swapback/swapback/ublk"
)

// TestReservationsAreSavedWhole: what is read back is what was saved, and what it forbids
// on this machine is what NVMe says of a host that has not registered.
func TestReservationsAreSavedWhole(t *testing.T) {
	for kind, want := range map[wire.ReservationType]ublk.Reserved{
		0:                        {},
		wire.WriteExclusive:      {NoWrites: true},
		wire.ExclusiveAccess:     {NoReads: true, NoWrites: true},
		wire.WriteExclusiveRegs:  {NoWrites: true},
		wire.ExclusiveAccessRegs: {NoReads: true, NoWrites: true},
	} {
		s := reserve.State{Type: kind, Persist: true, Registrants: []reserve.Registrant{
			{Host: reserve.Host{1, 15: 2}, Key: 1<<64 - 1, Holder: kind != 0}, {Host: reserve.Host{3}, Key: 4},
		}}
		back, err := reserveState(savedReservations(s))
		if err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("%v: read back %+v, %v", kind, back, err)
		}
		d, err := reserve.New(back, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := reservedOf(d); got != want {
			t.Errorf("%v: on this machine %+v", kind, got)
		}
		if e := describeReservations(d); e.Type != kind.String() || len(e.Registrants) != 2 || e.Registrants[0].Key != "0xffffffffffffffff" {
			t.Errorf("%v: shown as %+v", kind, e)
		}
	}
	if savedReservations(reserve.State{}) != nil || describeReservations(nil) != nil || reservedOf(nil) != (ublk.Reserved{}) {
		t.Error("nothing is something")
	}
	if _, err := reserveState(&dmswap.Reservations{Registrants: []dmswap.Registrant{{Host: "x"}}}); err == nil {
		t.Error("a host without an identifier was taken")
	}
}
