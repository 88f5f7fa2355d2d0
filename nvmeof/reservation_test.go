package nvmeof

import (
	"testing"
	"time"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/reserve"
	"github.com/swapback/swapback/nvmeof/wire"
)

func reservationCommand(q *nvmetest.Queue, op wire.Opcode, r wire.Reservation) error {
	cmd := wire.SQE{NSID: 2}
	data := cmd.SetReservation(op, r)
	_, err := q.Do(&cmd, data, nil)
	return err
}

// TestReservations of two hosts, by every way that data travels.
func TestReservations(t *testing.T) {
	variants(t, func(t *testing.T, opt Options, change func(*nvmetest.Config)) {
		r := newRig(t, opt)
		d, err := reserve.New(reserve.State{}, func(reserve.State) error { return nil }, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.subsys.AddNamespace(NamespaceConfig{ID: 2, Backend: r.memoryBackend(r.memory), UUID: [16]byte{2}, Reservations: d}); err != nil {
			t.Fatal(err)
		}
		one := r.connect(change)
		two := r.connect(change, func(c *nvmetest.Config) { c.HostID = [16]byte{2} })
		if one.Ident.ONCS&wire.ONCSReservation == 0 {
			t.Error("the controller has no reservations")
		}
		page, err := one.Identify(wire.CNSNamespace, 2)
		if n := wire.ParseIdentifyNamespace(page); err != nil || n.RESCAP != 0xff {
			t.Errorf("RESCAP is %#x, %v", n.RESCAP, err)
		}
		for _, s := range []struct {
			what string
			q    *nvmetest.Queue
			op   wire.Opcode
			r    wire.Reservation
			want wire.Status
		}{
			{"one registers", one.IO[0], wire.OpResvRegister, wire.Reservation{Other: 1, Persist: 3}, wire.Success},
			{"two registers", two.IO[0], wire.OpResvRegister, wire.Reservation{Other: 2}, wire.Success},
			{"one acquires", one.IO[0], wire.OpResvAcquire, wire.Reservation{Key: 1, Type: wire.WriteExclusive}, wire.Success},
			{"two acquires", two.IO[0], wire.OpResvAcquire, wire.Reservation{Key: 2, Type: wire.WriteExclusive}, wire.ReservationConflict},
		} {
			if err := reservationCommand(s.q, s.op, s.r); err != nil && err != error(s.want) || err == nil && s.want != wire.Success {
				t.Errorf("%s: %v, want %v", s.what, err, s.want)
			}
		}
		block := make([]byte, 512)
		conflict := wire.ReservationConflict | wire.DNR
		if err := one.IO[0].Write(2, 0, block); err != nil {
			t.Errorf("the holder writes: %v", err)
		}
		if err := two.IO[0].Read(2, 0, block); err != nil {
			t.Errorf("another reads: %v", err)
		}
		wantStatus(t, "another writes", two.IO[0].Write(2, 0, block), conflict)
		_, err = two.IO[0].Do(&wire.SQE{Opcode: wire.OpFlush, NSID: 2}, nil, nil)
		wantStatus(t, "another flushes", err, conflict)
		if err := reservationCommand(two.IO[0], wire.OpResvAcquire, wire.Reservation{Action: wire.ResvPreemptAbort, Key: 2, Other: 1, Type: wire.ExclusiveAccess}); err != nil {
			t.Errorf("preempt and abort: %v", err)
		}
		wantStatus(t, "who was preempted reads", one.IO[0].Read(2, 0, block), conflict)
		if err := two.IO[0].Write(2, 0, block); err != nil {
			t.Errorf("who has preempted writes: %v", err)
		}
		report := make([]byte, 256)
		cmd := wire.SQE{Opcode: wire.OpResvReport, NSID: 2, CDW10: 256/4 - 1, CDW11: wire.ReportExtended}
		if _, err := one.IO[0].Do(&cmd, nil, report); err != nil {
			t.Fatal(err)
		}
		s, err := wire.ParseReservationStatus(report)
		if err != nil || s.Type != wire.ExclusiveAccess || !s.Persist || len(s.Registrants) != 1 || s.Registrants[0].HostID != two.HostID || s.Registrants[0].CNTLID != two.ID || !s.Registrants[0].Holder {
			t.Errorf("report: %+v, %v", s, err)
		}
		cmd = wire.SQE{Opcode: wire.OpResvReport, NSID: 2, CDW10: 256/4 - 1}
		_, err = one.IO[0].Do(&cmd, nil, report)
		wantStatus(t, "a report with identifiers of 64 bits", err, wire.HostIDInconsistent|wire.DNR)
		cmd = wire.SQE{NSID: 1}
		data := cmd.SetReservation(wire.OpResvRegister, wire.Reservation{})
		_, err = one.IO[0].Do(&cmd, data, nil)
		wantStatus(t, "a disk that cannot be reserved", err, wire.InvalidOpcode|wire.DNR)
	})
}

// TestPreemptAndAbortWaits for what the host that is preempted has at the disk.
func TestPreemptAndAbortWaits(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		d, err := reserve.New(reserve.State{}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		disk := &slowDisk{Memory{mem: r.memory.mem}, make(chan struct{}, 100), make(chan struct{}, 100)}
		b, err := NewHandlerBackend("slow", disk, Limits{Size: testSize})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.subsys.AddNamespace(NamespaceConfig{ID: 2, Backend: b, UUID: [16]byte{2}, Reservations: d}); err != nil {
			t.Fatal(err)
		}
		one := r.connect()
		two := r.connect(func(c *nvmetest.Config) { c.HostID = [16]byte{2} })
		for i, q := range []*nvmetest.Queue{one.IO[0], two.IO[0]} {
			if err := reservationCommand(q, wire.OpResvRegister, wire.Reservation{Other: uint64(i + 1)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := reservationCommand(one.IO[0], wire.OpResvAcquire, wire.Reservation{Key: 1, Type: wire.WriteExclusive}); err != nil {
			t.Fatal(err)
		}
		cmd := nvmetest.IOCommand(wire.OpWrite, 2, 0, 1)
		write, err := one.IO[0].Send(&cmd, make([]byte, 512), nil)
		if err != nil {
			t.Fatal(err)
		}
		<-disk.entered
		preempt := wire.SQE{NSID: 2}
		data := preempt.SetReservation(wire.OpResvAcquire, wire.Reservation{Action: wire.ResvPreemptAbort, Key: 2, Other: 1, Type: wire.WriteExclusive})
		sent, err := two.IO[0].Send(&preempt, data, nil)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "two holds it", func() bool { return d.Access(two.HostID, true) })
		if err := two.IO[0].Read(2, 0, make([]byte, 512)); err != nil {
			t.Errorf("the queue goes on meanwhile: %v", err)
		}
		select {
		case cqe := <-sent.Done():
			t.Errorf("answered with %v while a write of the other is at the disk", cqe.Status)
		case <-time.After(50 * time.Millisecond):
		}
		disk.release <- struct{}{}
		if _, err := write.Wait(); err != nil {
			t.Errorf("the write that was at the disk: %v", err)
		}
		if _, err := sent.Wait(); err != nil {
			t.Errorf("preempt and abort: %v", err)
		}
	})
}
