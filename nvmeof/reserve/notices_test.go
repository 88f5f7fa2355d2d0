package reserve

import (
	"slices"
	"testing"

	"github.com/swapback/swapback/nvmeof/wire"
)

// TestNotices: who hears of what another host does, of two others that have registered.
func TestNotices(t *testing.T) {
	a, b, c := Host{1}, Host{2}, Host{3}
	type notice struct {
		to   Host
		kind wire.NoticeKind
	}
	for _, tt := range []struct {
		name   string
		held   wire.ReservationType // by a; 0: by nobody
		op     wire.Opcode
		by     Host
		do     wire.Reservation
		status wire.Status
		want   []notice
	}{
		{"acquiring", 0, wire.OpResvAcquire, a, wire.Reservation{Key: 1, Type: wire.WriteExclusive}, ok, nil},
		{"registering anew", wire.WriteExclusive, wire.OpResvRegister, b, wire.Reservation{Action: wire.ResvReplace, Key: 2, Other: 9}, ok, nil},
		{"releasing one's own", wire.WriteExclusive, wire.OpResvRelease, a, wire.Reservation{Key: 1, Type: wire.WriteExclusive}, ok, nil},
		{"releasing the registrants'", wire.WriteExclusiveRegs, wire.OpResvRelease, a, wire.Reservation{Key: 1, Type: wire.WriteExclusiveRegs}, ok,
			[]notice{{b, wire.ReservationReleased}, {c, wire.ReservationReleased}}},
		{"releasing what everybody holds", wire.ExclusiveAccessAll, wire.OpResvRelease, b, wire.Reservation{Key: 2, Type: wire.ExclusiveAccessAll}, ok,
			[]notice{{a, wire.ReservationReleased}, {c, wire.ReservationReleased}}},
		{"releasing with a wrong key", wire.WriteExclusiveRegs, wire.OpResvRelease, a, wire.Reservation{Key: 9, Type: wire.WriteExclusiveRegs}, conflict, nil},
		{"the holder unregisters", wire.ExclusiveAccessRegs, wire.OpResvRegister, a, wire.Reservation{Action: wire.ResvUnregister, Key: 1}, ok,
			[]notice{{b, wire.ReservationReleased}, {c, wire.ReservationReleased}}},
		{"the only one who may unregisters", wire.ExclusiveAccess, wire.OpResvRegister, a, wire.Reservation{Action: wire.ResvUnregister, Key: 1}, ok, nil},
		{"another unregisters", wire.ExclusiveAccessRegs, wire.OpResvRegister, b, wire.Reservation{Action: wire.ResvUnregister, Key: 2}, ok, nil},
		{"preempting the holder", wire.WriteExclusive, wire.OpResvAcquire, b, wire.Reservation{Action: wire.ResvPreempt, Key: 2, Other: 1, Type: wire.WriteExclusive}, ok,
			[]notice{{a, wire.RegistrationPreempted}}},
		{"preempting it for another type", wire.WriteExclusive, wire.OpResvAcquire, b, wire.Reservation{Action: wire.ResvPreemptAbort, Key: 2, Other: 1, Type: wire.ExclusiveAccess}, ok,
			[]notice{{a, wire.RegistrationPreempted}, {c, wire.ReservationReleased}}},
		{"preempting a registration", wire.WriteExclusive, wire.OpResvAcquire, a, wire.Reservation{Action: wire.ResvPreempt, Key: 1, Other: 3, Type: wire.WriteExclusive}, ok,
			[]notice{{c, wire.RegistrationPreempted}}},
		{"preempting all who hold it", wire.WriteExclusiveAll, wire.OpResvAcquire, b, wire.Reservation{Action: wire.ResvPreempt, Key: 2, Type: wire.WriteExclusive}, ok,
			[]notice{{a, wire.RegistrationPreempted}, {c, wire.RegistrationPreempted}}},
		{"clearing", wire.WriteExclusive, wire.OpResvRelease, b, wire.Reservation{Action: wire.ResvClear, Key: 2}, ok,
			[]notice{{a, wire.ReservationPreempted}, {c, wire.ReservationPreempted}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := tt.held.AllRegistrants()
			d, err := New(State{Type: tt.held, Registrants: []Registrant{{a, 1, tt.held != 0}, {b, 2, all}, {c, 3, all}}}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []notice
			status := d.Do(tt.op, tt.by, tt.do, func(h Host, kind wire.NoticeKind) { got = append(got, notice{h, kind}) })
			if status != tt.status || !slices.Equal(got, tt.want) {
				t.Errorf("status %v, notices %v; want %v, %v", status, got, tt.status, tt.want)
			}
		})
	}
}
