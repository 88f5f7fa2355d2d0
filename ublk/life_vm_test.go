//go:build vm

package ublk

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func adoptDevice(t *testing.T, b *Backend, id int) *Device {
	t.Helper()
	o := testOptions(Options{})
	o.ID = id
	d, err := Adopt(t.Context(), b, o)
	if err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, d)
	return d
}

func stateOfDevice(t *testing.T, c *Control, id int) State {
	t.Helper()
	info, err := c.Info(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return info.State
}

func TestKillAndAdoptUnderFio(t *testing.T) { everyPath(t, killAndAdoptUnderFio) }

func killAndAdoptUnderFio(t *testing.T, way DataPath) {
	checkClean(t)
	c := control(t)
	s := startServer(t, -1, nvmeDisk, 2, way)
	id := s.id
	f := startFio(t, blockPath(id), append(verifyArgs(16), "--rate=3m")...)
	for range 3 {
		time.Sleep(500 * time.Millisecond) // some load between the deaths
		s.kill()
		s = startServer(t, id, nvmeDisk, 1, way)
		if got := stateOfDevice(t, c, id); got != StateLive {
			t.Fatalf("after adoption the device is %v", got)
		}
	}
	// The last successor is this process.
	s.kill()
	d := adoptDevice(t, openBackend(t, nvmeDisk), id)
	if !f.running() {
		t.Error("fio ended before the last adoption: the test shows less than it should")
	}
	if d.Info().Queues != 2 || d.Info().Tag != testTag || d.Limits().Size != d.backend.Limits().Size {
		t.Errorf("adopted %+v, %+v", d.Info(), d.Limits())
	}
	f.wait()
	if st := d.Stats(); st.Read.Ops == 0 || st.Read.Errors+st.Write.Errors != 0 {
		t.Errorf("counters: %+v", st)
	}
}

// With every tag held no FETCH is left for the driver to cancel, which is the
// slowest death of all on kernel 6.12.
func TestKillWithEveryTagInFlight(t *testing.T) { everyPath(t, killWithEveryTagInFlight) }

func killWithEveryTagInFlight(t *testing.T, way DataPath) {
	checkClean(t)
	c := control(t)
	b := openBackend(t, nvmeDisk)
	d := startDevice(t, b, Options{DataPath: way, Queues: 1, Depth: 4, NoPartitionScan: true})
	d.Hold()
	f := startFio(t, d.Path(), "--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=1M")
	eventually(t, "all tags held", func() bool { return d.Stats().HeldNow == 4 })
	if err := d.Abandon(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	next := adoptDevice(t, b, d.ID())
	t.Logf("adopted after %v", time.Since(began).Round(time.Millisecond))
	f.wait()
	if st := next.Stats(); st.Write.Bytes != 1<<20 || st.Write.Errors != 0 {
		t.Errorf("counters: %+v", st)
	}
	if got := stateOfDevice(t, c, next.ID()); got != StateLive {
		t.Errorf("state %v", got)
	}
}

func TestAbandonAndAdoptUnderFio(t *testing.T) { everyPath(t, abandonAndAdoptUnderFio) }

func abandonAndAdoptUnderFio(t *testing.T, way DataPath) {
	checkClean(t)
	c := control(t)
	b := openBackend(t, nvmeDisk)
	d := startDevice(t, b, Options{DataPath: way, Queues: 2})
	id := d.ID()
	f := startFio(t, d.Path(), append(verifyArgs(8), "--rate=4m")...)
	for range 3 {
		before := d.Stats()
		eventually(t, "load", func() bool { return d.Stats().Write.Ops+d.Stats().Read.Ops > before.Write.Ops+before.Read.Ops+50 })
		if err := d.Abandon(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.Abandon(t.Context()); err != nil {
			t.Errorf("a second time: %v", err)
		}
		if s := d.Stats(); s.InFlight != 0 || s.Write.Errors+s.Read.Errors != 0 {
			t.Errorf("left behind: %+v", s)
		}
		if _, err := c.Info(t.Context(), id); err != nil {
			t.Fatalf("the device is gone: %v", err)
		}
		d = adoptDevice(t, b, id)
	}
	f.wait()
}

func TestStopLeavesNothing(t *testing.T) {
	checkClean(t)
	c := control(t)
	for range 3 {
		d, err := Start(t.Context(), memoryBackend(t, 1<<20), testOptions(Options{Queues: 2}))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.Stop(t.Context()); err != nil {
			t.Errorf("a second time: %v", err)
		}
		if _, err := c.Info(t.Context(), d.ID()); !errors.Is(err, ErrNoDevice) {
			t.Errorf("info of a stopped device: %v", err)
		}
		for _, path := range []string{blockPath(d.ID()), charPath(d.ID())} {
			if err := unix.Access(path, unix.F_OK); !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: %v", path, err)
			}
		}
		if d.Err() != nil {
			t.Error(d.Err())
		}
	}
}

func TestStopWithAnOpener(t *testing.T) {
	checkClean(t)
	d := startDevice(t, memoryBackend(t, 1<<20), Options{Queues: 1})
	fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := d.Stop(ctx); !errors.Is(err, ErrBusy) {
		t.Errorf("stop with an opener: %v, want ErrBusy", err)
	}
	if err := unix.Access(d.Path(), unix.F_OK); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%s after stop: %v", d.Path(), err)
	}
	unix.Close(fd)
	if err := d.Stop(t.Context()); err != nil {
		t.Errorf("after the opener has left: %v", err)
	}
}

func TestStopRefusesWhatIsHeld(t *testing.T) {
	checkClean(t)
	d := startDevice(t, memoryBackend(t, 1<<20), Options{Queues: 1, NoPartitionScan: true})
	c := openClient(t, d.Path(), unix.O_RDWR)
	d.Hold()
	result := make(chan unix.Errno, 1)
	go func() { result <- c.write(0, 4096, 0) }()
	eventually(t, "held", func() bool { return d.Stats().HeldNow == 1 })
	var answer unix.Errno
	go func() {
		// An opener keeps the device from going.
		answer = <-result
		unix.Close(c.fd)
		close(result)
	}()
	if err := d.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	<-result
	if answer != unix.EBUSY {
		t.Errorf("the held write: %v, want EBUSY", answer)
	}
	c.fd = -1
}

// Another process (here another Control) may stop and delete a device.
func TestDeleteByAnother(t *testing.T) {
	checkClean(t)
	c := control(t)
	d, err := Start(t.Context(), memoryBackend(t, 1<<20), testOptions(Options{Queues: 2}))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), d.ID()); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	if d.Err() != nil {
		t.Error(d.Err())
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Errorf("stop of a deleted device: %v", err)
	}
}

func TestControl(t *testing.T) {
	checkClean(t)
	c := control(t)
	ctx := t.Context()
	f, err := c.Features(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("features %v", f)
	if !f.Has(required) {
		t.Errorf("features %v", f)
	}
	if err := c.Delete(ctx, 77); !errors.Is(err, ErrNoDevice) {
		t.Errorf("deleting what is not there: %v", err)
	}
	o := testOptions(Options{Queues: 1, Depth: 32})
	o.ID, o.Control = 5, c
	b := memoryBackend(t, 1<<20)
	d, err := Start(ctx, b, o)
	if err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, d)
	if d.ID() != 5 || d.Path() != "/dev/ublkb5" {
		t.Errorf("device %d at %s", d.ID(), d.Path())
	}
	if _, err := Start(ctx, b, o); !errors.Is(err, ErrExists) {
		t.Errorf("a number that is taken: %v, want ErrExists", err)
	}
	infos, err := c.List(ctx)
	if err != nil || len(infos) != 1 {
		t.Fatalf("list: %+v, %v", infos, err)
	}
	if i := infos[0]; i.ID != 5 || i.State != StateLive || i.Queues != 1 || i.Depth != 32 || i.Tag != testTag ||
		i.MaxIOBytes != DefaultCopyBytes || i.PID != unix.Getpid() || !i.Flags.Has(UserRecovery|UserRecoveryReissue) {
		t.Errorf("info %+v", i)
	}

	// A device that is served cannot be adopted, nor can another owner's.
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := Adopt(short, b, o); !errors.Is(err, ErrBusy) {
		t.Errorf("adopting a live device: %v, want ErrBusy", err)
	}
	other := o
	other.Tag = 1
	if _, err := Adopt(ctx, b, other); !errors.Is(err, ErrWrongTag) {
		t.Errorf("adopting another's device: %v, want ErrWrongTag", err)
	}
	o.ID = 6
	if _, err := Adopt(ctx, b, o); !errors.Is(err, ErrNoDevice) {
		t.Errorf("adopting nothing: %v, want ErrNoDevice", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.Features(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
	closed := control(t)
	closed.Close()
	if _, err := closed.Features(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
}

func TestAdoptRefusesADeadDevice(t *testing.T) {
	checkClean(t)
	c := control(t)
	info := devInfo{NrHWQueues: 1, QueueDepth: 8, MaxIOBufBytes: 64 << 10, DevID: anyID, Flags: uint64(required)}
	if err := c.addDev(t.Context(), &info); err != nil {
		t.Fatal(err)
	}
	o := testOptions(Options{})
	o.ID, o.Tag = int(info.DevID), 0
	if _, err := Adopt(t.Context(), memoryBackend(t, 1<<20), o); !errors.Is(err, ErrNotRecoverable) {
		t.Errorf("adopting what never started: %v, want ErrNotRecoverable", err)
	}
	if err := c.Delete(t.Context(), o.ID); err != nil {
		t.Error(err)
	}
}

func TestAdoptWantsABackendLargeEnough(t *testing.T) {
	checkClean(t)
	b := memoryBackend(t, 2<<20)
	d, err := Start(t.Context(), b, testOptions(Options{Queues: 1}))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Abandon(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := testOptions(Options{})
	o.ID = d.ID()
	if _, err := Adopt(t.Context(), memoryBackend(t, 1<<20), o); err == nil {
		t.Error("a smaller backend was accepted")
	}
	adoptDevice(t, b, d.ID())
}

// A start that fails half-way leaves no device.
func TestFailedStartLeavesNothing(t *testing.T) {
	checkClean(t)
	// The device is added and its queues run into the limits of memory.
	b := memoryBackend(t, 1<<20)
	o := testOptions(Options{Queues: 2, Depth: MaxDepth, MaxIOBytes: maxIOBytes})
	if d, err := Start(t.Context(), b, o); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("buffers of 256 GiB: %v, want ENOMEM", err)
		if err == nil {
			d.Stop(t.Context())
		}
	}
	closed := openBackend(t, nvmeDisk)
	closed.Close()
	if _, err := Start(t.Context(), closed, testOptions(Options{})); err == nil {
		t.Error("started on a closed backend")
	}
	if _, err := Start(t.Context(), b, testOptions(Options{Size: 2 << 20})); err == nil {
		t.Error("a device larger than its backend was started")
	}
}

func TestResize(t *testing.T) { everyPath(t, resize) }

func resize(t *testing.T, way DataPath) {
	checkClean(t)
	d := startDevice(t, openBackend(t, nvmeDisk), Options{DataPath: way, Queues: 1, Size: 1 << 30})
	size := func() uint64 {
		t.Helper()
		b, err := OpenBackend(d.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		return b.Limits().Size
	}
	if got := size(); got != 1<<30 {
		t.Errorf("size %d", got)
	}
	err := d.Resize(t.Context(), 2<<30)
	if !features(t).Has(UpdateSize) {
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("on a kernel before 6.16: %v, want ErrUnsupported", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := size(); got != 2<<30 || d.Limits().Size != 2<<30 {
		t.Errorf("size %d, limits %d", got, d.Limits().Size)
	}
	for name, bad := range map[string]uint64{"beyond the backend": 1 << 40, "no whole block": 2<<30 + 100, "nothing": 0} {
		if err := d.Resize(t.Context(), bad); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	c := openClient(t, d.Path(), unix.O_RDWR)
	if e := c.write(2<<30-4096, 4096, 0); e != 0 {
		t.Errorf("writing the last block: %v", e)
	}
}

func TestPartitionScanCanBeLeftOut(t *testing.T) {
	checkClean(t)
	d := startDevice(t, memoryBackend(t, 1<<20), Options{Queues: 1, NoPartitionScan: true})
	if want := features(t) & NoAutoPartScan; d.Info().Flags&NoAutoPartScan != want {
		t.Errorf("flags %v", d.Info().Flags)
	}
}

// TestNumberIsFreeAfterStop makes a device of the same number again and again
// while somebody else looks at it: a look keeps the number from being free for
// a moment after the device is gone.
func TestNumberIsFreeAfterStop(t *testing.T) {
	checkClean(t)
	looker, err := OpenControl(ControlOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer looker.Close()
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
				_, _ = looker.Info(context.Background(), 6)
			}
		}
	}()
	o := testOptions(Options{Queues: 1, Depth: 4})
	o.ID = 6
	b := memoryBackend(t, 1<<20)
	for i := range 25 {
		d, err := Start(t.Context(), b, o)
		if err != nil {
			t.Fatalf("device %d of the same number: %v", i+1, err)
		}
		if err := d.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	close(quit)
	<-done
}
