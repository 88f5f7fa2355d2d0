package nvmeof

import (
	"testing"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/reserve"
	"github.com/swapback/swapback/nvmeof/wire"
)

// reservable adds namespace 2, which can be reserved.
func (r *rig) reservable() {
	r.t.Helper()
	d, err := reserve.New(reserve.State{}, nil, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.subsys.AddNamespace(NamespaceConfig{ID: 2, Backend: r.memoryBackend(r.memory), UUID: [16]byte{2}, Reservations: d}); err != nil {
		r.t.Fatal(err)
	}
}

func readNotice(t *testing.T, c *nvmetest.Controller, retain bool) wire.ReservationNotice {
	t.Helper()
	page, err := c.Log(wire.LogRequest{Page: wire.LogReservation, Retain: retain, Length: wire.ReservationNoticeSize})
	if err != nil {
		t.Fatal(err)
	}
	return wire.ParseReservationNotice(page)
}

func (r *rig) reserving(q *nvmetest.Queue, op wire.Opcode, what wire.Reservation) {
	r.t.Helper()
	if err := reservationCommand(q, op, what); err != nil {
		r.t.Fatal(err)
	}
}

// TestReservationNotices: every controller of a host hears of what another host has done,
// by an event and a log that has one notice after the other.
func TestReservationNotices(t *testing.T) {
	r := newRig(t, Options{})
	r.reservable()
	one, again := r.connect(), r.connect()
	two := r.connect(func(c *nvmetest.Config) { c.HostID = [16]byte{2} })
	if n := readNotice(t, one, false); n != (wire.ReservationNotice{}) {
		t.Errorf("before anything has happened: %+v", n)
	}
	event, err := one.AwaitEvent()
	if err != nil {
		t.Fatal(err)
	}
	r.reserving(one.IO[0], wire.OpResvRegister, wire.Reservation{Other: 1})
	r.reserving(two.IO[0], wire.OpResvRegister, wire.Reservation{Other: 2})
	r.reserving(two.IO[0], wire.OpResvAcquire, wire.Reservation{Key: 2, Type: wire.WriteExclusiveRegs})
	r.reserving(two.IO[0], wire.OpResvRelease, wire.Reservation{Key: 2, Type: wire.WriteExclusiveRegs})
	if cqe, err := event.Wait(); err != nil || cqe.Result != wire.EventReservation {
		t.Errorf("event %#x, %v", cqe.Result, err)
	}
	r.reserving(two.IO[0], wire.OpResvAcquire, wire.Reservation{Action: wire.ResvPreempt, Key: 2, Other: 1, Type: wire.WriteExclusive})
	released := wire.ReservationNotice{Count: 1, Kind: wire.ReservationReleased, NSID: 2, More: 1}
	preempted := wire.ReservationNotice{Count: 2, Kind: wire.RegistrationPreempted, NSID: 2}
	for _, c := range []*nvmetest.Controller{one, again} {
		for _, want := range []wire.ReservationNotice{released, preempted, {}} {
			if kept := readNotice(t, c, true); kept != want {
				t.Errorf("kept, the log has %+v, want %+v", kept, want)
			}
			if got := readNotice(t, c, false); got != want {
				t.Errorf("the log has %+v, want %+v", got, want)
			}
			if c != one || want.More == 0 {
				continue
			}
			// There is another one: it is told of as soon as the first was read.
			if event, err = c.AwaitEvent(); err != nil {
				t.Fatal(err)
			}
			if cqe, err := event.Wait(); err != nil || cqe.Result != wire.EventReservation {
				t.Errorf("event %#x, %v", cqe.Result, err)
			}
		}
	}
	if n := readNotice(t, two, false); n.Kind != 0 {
		t.Errorf("who has done it hears of it: %+v", n)
	}
}

// TestReservationMask: what a host does not want to hear of it does not; what it has no
// room for is counted.
func TestReservationMask(t *testing.T) {
	r := newRig(t, Options{})
	r.reservable()
	one := r.connect()
	two := r.connect(func(c *nvmetest.Config) { c.HostID = [16]byte{2} })
	feature := func(op wire.Opcode, nsid, mask uint32) (uint64, error) {
		cqe, err := one.Admin.Do(&wire.SQE{Opcode: op, NSID: nsid, CDW10: wire.FeatureReservationMask, CDW11: mask}, nil, nil)
		return cqe.Result, err
	}
	invalid := wire.InvalidField | wire.DNR
	for _, nsid := range []uint32{0, 1, 3} {
		_, err := feature(wire.OpSetFeatures, nsid, 0)
		wantStatus(t, "setting it of a namespace that can't be reserved", err, invalid)
		_, err = feature(wire.OpGetFeatures, nsid, 0)
		wantStatus(t, "getting it of such", err, invalid)
	}
	_, err := feature(wire.OpSetFeatures, 2, 1)
	wantStatus(t, "a kind that there is not", err, invalid)
	_, err = feature(wire.OpGetFeatures, allNamespaces, 0)
	wantStatus(t, "of all at once", err, invalid)
	for _, nsid := range []uint32{2, allNamespaces} {
		mask := uint32(1 << wire.ReservationReleased)
		if _, err := feature(wire.OpSetFeatures, nsid, mask); err != nil {
			t.Fatal(err)
		}
		if have, err := feature(wire.OpGetFeatures, 2, 0); err != nil || have != uint64(mask) {
			t.Errorf("the mask is %#x, %v", have, err)
		}
	}
	r.reserving(one.IO[0], wire.OpResvRegister, wire.Reservation{Other: 1})
	r.reserving(two.IO[0], wire.OpResvRegister, wire.Reservation{Other: 2})
	lend := func() {
		r.reserving(two.IO[0], wire.OpResvAcquire, wire.Reservation{Key: 2, Type: wire.WriteExclusiveRegs})
		r.reserving(two.IO[0], wire.OpResvRelease, wire.Reservation{Key: 2, Type: wire.WriteExclusiveRegs})
	}
	lend()
	if n := readNotice(t, one, false); n.Kind != 0 {
		t.Errorf("a notice that was not wanted: %+v", n)
	}
	if _, err := feature(wire.OpSetFeatures, 2, 0); err != nil {
		t.Fatal(err)
	}
	for range maxNotices + 3 {
		lend()
	}
	if n := readNotice(t, one, false); n.Count != 1 || n.More != maxNotices-1 {
		t.Errorf("the first of more than there is room for: %+v", n)
	}
	lend()
	for want := uint64(2); want <= maxNotices; want++ {
		if n := readNotice(t, one, false); n.Count != want {
			t.Errorf("notice %+v, want number %d", n, want)
		}
	}
	if n := readNotice(t, one, false); n.Count != maxNotices+4 || n.More != 0 {
		t.Errorf("the one after those that were lost: %+v", n)
	}
}
