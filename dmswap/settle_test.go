package dmswap

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// settlePool has two members whose headers can be made to hang, and four volumes.
func settlePool(t *testing.T) (p *Pool, w *world, disks []*hangingDisk) {
	t.Helper()
	p, _, w = swapWorld(t)
	w.fail = nil
	mustCreate(t, p, VolumeSpec{Name: "d", Size: 4 << 20})
	for i := range p.disks {
		below := &hangingDisk{memberDisk: w.disks[i]}
		d := patient(below, w.disks[i].name, 0)
		d.patience = 300 * time.Millisecond // a busy machine is no disk that hangs
		p.disks[i], p.store.members[i].disk = d, d
		disks = append(disks, below)
	}
	return p, w, disks
}

// overdue waits until a disk's request has been given up.
func overdue(t *testing.T, p *Pool, i int) {
	t.Helper()
	d := p.disks[i].(*patientDisk)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		late := d.late
		d.mu.Unlock()
		if late > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("disk%d owes nothing", i)
		}
	}
}

// failHeaders makes the next durable writes of some disks fail, so many each. The
// first of a disk reaches it although it fails.
func failHeaders(w *world, times map[string]int) {
	first := map[string]bool{}
	w.fail = func(what string) error {
		prefix, name := what[:max(strings.LastIndex(what, " "), 0)], what[strings.LastIndex(what, " ")+1:]
		if times[name] > 0 && (prefix == "fua end" && !first[name] || prefix == "fua write" && first[name]) {
			first[name] = true
			times[name]--
			return unix.EIO
		}
		return nil
	}
}

// TestHeadersThatHang: which world it is is decided by the answer, however late it
// is, and a restart finds the same one. How the disks answer is given as how many
// durable writes of each fail.
func TestHeadersThatHang(t *testing.T) {
	for name, tt := range map[string]struct {
		hang     []int // disks whose headers hang
		fails    map[string]int
		swapped  bool
		degraded bool
	}{
		"all, then they are written":          {hang: []int{0, 1}, swapped: true},
		"all, then one fails":                 {hang: []int{0, 1}, fails: map[string]int{"disk0": 1}, swapped: true, degraded: true},
		"all, then they fail":                 {hang: []int{0, 1}, fails: map[string]int{"disk0": 1, "disk1": 1}},
		"one, the other has failed":           {hang: []int{1}, fails: map[string]int{"disk0": 1}, swapped: true, degraded: true},
		"one, then it fails as the other did": {hang: []int{1}, fails: map[string]int{"disk0": 1, "disk1": 1}},
		"all, then one dies":                  {hang: []int{0, 1}, fails: map[string]int{"disk0": 1, "disk1": 1000}, degraded: true},
	} {
		t.Run(name, func(t *testing.T) {
			p, w, disks := settlePool(t)
			old := fingerprint(p)
			s := prepare(t, p, "a", "b")
			failHeaders(w, tt.fails)
			var letGo []func()
			for _, i := range tt.hang {
				letGo = append(letGo, disks[i].hangHeaders())
			}
			done := make(chan error, 1)
			go func() { done <- s.Execute(ctx) }()
			for _, i := range tt.hang {
				overdue(t, p, i)
			}
			select {
			case err := <-done:
				t.Errorf("it did not wait for the answer: %v", err)
				done <- err
			case <-time.After(30 * time.Millisecond):
			}
			for _, f := range letGo {
				f()
			}
			err := <-done
			w.fail = nil
			if (err == nil) != tt.swapped || errors.Is(err, ErrDamaged) || err != nil && !strings.Contains(err.Error(), "nothing has changed") {
				t.Errorf("got %v", err)
			}
			got := fingerprint(p)
			if (got != old) != tt.swapped || p.Info().Degraded() != tt.degraded {
				t.Errorf("degraded %v:\n%s", p.Info().Degraded(), got)
			}
			mustCheckDegraded(t, p)
			if err := p.SetVolume(ctx, "c", func(a *VolumeAttrs) { a.ReadOnly = true }); err != nil {
				t.Errorf("the next change: %v", err)
			}
			again := w.open(t)
			mustCheck(t, again)
			if state := fingerprint(again); state != got {
				t.Errorf("the process saw\n%sbut after opening again it is\n%s", got, state)
			}
		})
	}
}

// TestWhileACommitWaits: the pool can be looked at, other changes are refused with
// the disk's name, and a swap whose volumes are held is called off: their I/O goes
// on.
func TestWhileACommitWaits(t *testing.T) {
	p, w, disks := settlePool(t)
	first, second := prepare(t, p, "a", "b"), prepare(t, p, "c", "d")
	letGo := []func(){disks[0].hangHeaders(), disks[1].hangHeaders()}
	done := make(chan error, 1)
	go func() { done <- first.Execute(ctx) }()
	overdue(t, p, 0)
	overdue(t, p, 1)
	busy := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "disk") || Remedy(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	busy("a swap", second.Execute(ctx))
	if v, err := p.Volume("c"); err != nil || v.Busy != "" {
		t.Errorf("after it: %+v, %v", v, err)
	}
	if info, err := p.kernel.Info(second.sides[0].ref); err != nil || info.Suspended || info.Inactive {
		t.Errorf("its device: %+v, %v", info, err)
	}
	busy("a delete", p.DeleteVolume(ctx, "c"))
	busy("an attach", p.SetVolume(ctx, "c", func(a *VolumeAttrs) { a.Attached = true }))
	_, err := p.CreateVolume(ctx, VolumeSpec{Name: "e", Size: 1 << 20})
	busy("a create", err)
	_, err = p.Check(ctx)
	busy("a check", err)
	if _, err := p.Dump(); err != nil {
		t.Errorf("a dump: %v", err)
	}
	for _, f := range letGo {
		f()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	if err := p.DeleteVolume(ctx, "c"); err != nil {
		t.Errorf("the disks answer again: %v", err)
	}
	mustCheck(t, w.open(t))
}

// TestATakeBackThatHangs is waited for, too.
func TestATakeBackThatHangs(t *testing.T) {
	p, w, disks := settlePool(t)
	old := fingerprint(p)
	s := prepare(t, p, "a", "b")
	failHeaders(w, map[string]int{"disk0": 1, "disk1": 1})
	letGo := disks[1].hangHeadersAfter(1)
	done := make(chan error, 1)
	go func() { done <- s.Execute(ctx) }()
	overdue(t, p, 1)
	select {
	case err := <-done:
		t.Errorf("it did not wait for the answer: %v", err)
		done <- err
	case <-time.After(30 * time.Millisecond):
	}
	letGo()
	if err := <-done; err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "nothing has changed") {
		t.Errorf("got %v", err)
	}
	for _, pool := range []*Pool{p, w.open(t)} {
		mustCheck(t, pool)
		if fingerprint(pool) != old {
			t.Errorf("got\n%s", fingerprint(pool))
		}
	}
}

// TestADeadDiskBesideOneThatHangs: what can't be taken back on the one is left
// out, which the other has to record first.
func TestADeadDiskBesideOneThatHangs(t *testing.T) {
	p, w, disks := settlePool(t)
	old := fingerprint(p)
	s := prepare(t, p, "a", "b")
	failHeaders(w, map[string]int{"disk0": 2})
	letGo := disks[1].hang()
	if _, err := p.disks[1].ReadAt(alignedBuffer(blockSize), 0); !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Execute(ctx) }()
	select {
	case err := <-done:
		t.Errorf("it did not wait for the answer: %v", err)
		done <- err
	case <-time.After(3 * settleStep):
	}
	if v, err := p.Volume("a"); err != nil || v.Busy == "" {
		t.Errorf("meanwhile: %+v, %v", v, err)
	}
	letGo()
	if err := <-done; err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "nothing has changed") {
		t.Errorf("got %v", err)
	}
	mustCheckDegraded(t, p)
	if !p.Info().Degraded() || fingerprint(p) != old {
		t.Errorf("degraded %v:\n%s", p.Info().Degraded(), fingerprint(p))
	}
	again := w.open(t)
	mustCheck(t, again)
	if fingerprint(again) != old {
		t.Errorf("after opening again:\n%s", fingerprint(again))
	}
}

// TestAHeaderThatWasNotSent: disks that hang already take nothing, so there is
// nothing to take back.
func TestAHeaderThatWasNotSent(t *testing.T) {
	p, w, disks := settlePool(t)
	old := fingerprint(p)
	s := prepare(t, p, "a", "b")
	var letGo []func()
	for i, d := range disks {
		letGo = append(letGo, d.hang())
		if _, err := p.disks[i].ReadAt(alignedBuffer(blockSize), 0); !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
	}
	if err := s.Execute(ctx); !errors.Is(err, ErrBusy) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "nothing has changed") {
		t.Errorf("got %v", err)
	}
	for _, f := range letGo {
		f()
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		err := swapNow(p, SwapPair{A: "c", B: "d"})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if err := swapNow(p, SwapPair{A: "c", B: "d"}); err != nil {
		t.Fatal(err)
	}
	again := w.open(t)
	mustCheck(t, again)
	if strings.Split(fingerprint(again), "\n")[0] != strings.Split(old, "\n")[0] {
		t.Errorf("got\n%s", fingerprint(again))
	}
}

// TestNobodyWaitsForADiskThatComesBack: it may hang, while it is looked at, too.
func TestNobodyWaitsForADiskThatComesBack(t *testing.T) {
	w := populated(t)
	p, err := w.tryOpenOn(func(i int) bool { return i == 1 })
	if err != nil {
		t.Fatal(err)
	}
	below := &hangingDisk{memberDisk: w.disks[1]}
	letGo := below.hang()
	d := patient(below, "disk1", 0)
	d.patience = time.Hour
	done := make(chan error, 1)
	go func() {
		done <- p.rejoin(ctx, 1, openMember{disk: d, label: w.labels[1], device: memberDevice(1), path: "disk1", size: w.labels[1].DiskSize})
	}()
	for below.requests.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	looked := make(chan bool)
	go func() { p.Volumes(); close(looked) }()
	select {
	case <-looked:
	case <-time.After(time.Second):
		t.Error("the pool can't be looked at")
	}
	letGo()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
}
