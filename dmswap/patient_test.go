package dmswap

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// hangingDisk keeps its requests until it is let go.
type hangingDisk struct {
	memberDisk
	hold     atomic.Pointer[chan struct{}]
	requests atomic.Int32
	headers  atomic.Pointer[chan struct{}] // hold for durable writes
	pass     atomic.Int32                  // durable writes before they are held
}

func (d *hangingDisk) hang() (letGo func()) {
	c := make(chan struct{})
	d.hold.Store(&c)
	return func() {
		d.hold.Store(nil)
		close(c)
	}
}

// hangHeaders is hang for durable writes only.
func (d *hangingDisk) hangHeaders() (letGo func()) { return d.hangHeadersAfter(0) }

func (d *hangingDisk) hangHeadersAfter(n int32) (letGo func()) {
	c := make(chan struct{})
	d.pass.Store(n)
	d.headers.Store(&c)
	return func() {
		d.headers.Store(nil)
		close(c)
	}
}

func (d *hangingDisk) WriteDurable(p []byte, off int64) error {
	if c := d.headers.Load(); c != nil && d.pass.Add(-1) < 0 {
		<-*c
	}
	return d.memberDisk.WriteDurable(p, off)
}

func (d *hangingDisk) wait() {
	d.requests.Add(1)
	if c := d.hold.Load(); c != nil {
		<-*c
	}
}

func (d *hangingDisk) ReadAt(p []byte, off int64) (int, error) {
	d.wait()
	if d.memberDisk != nil {
		return d.memberDisk.ReadAt(p, off)
	}
	for i := range p {
		p[i] = byte(off)
	}
	return len(p), nil
}

func (d *hangingDisk) Sync() error {
	d.wait()
	if d.memberDisk != nil {
		return d.memberDisk.Sync()
	}
	return nil
}

func (d *hangingDisk) Zero(ctx context.Context, off, length int64) error {
	d.wait()
	if d.memberDisk != nil {
		return d.memberDisk.Zero(ctx, off, length)
	}
	return nil
}

func TestPatience(t *testing.T) {
	below := &hangingDisk{}
	d := patient(below, "/dev/slow", 0)
	d.patience = 10 * time.Millisecond
	letGo := below.hang()
	b := make([]byte, 4096)
	_, err := d.ReadAt(b, 7)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "/dev/slow has not answered a read") || Remedy(err) == "" {
		t.Errorf("a read of a disk that hangs: %v", err)
	}
	// The next one is not sent, and says what the disk owes.
	before := below.requests.Load()
	if err := d.Sync(); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "a read") {
		t.Errorf("a flush behind it: %v", err)
	}
	if n := below.requests.Load(); n != before {
		t.Errorf("%d requests went past the one that hangs", n-before)
	}
	letGo()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		n, err := d.ReadAt(b, 9)
		if err == nil && n == len(b) && b[0] == 9 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the disk answers again, and a read: %d, %v", n, err)
		}
	}
}

func TestZeroingIsEndedByItsContext(t *testing.T) {
	below := &hangingDisk{}
	d := patient(below, "/dev/slow", 0)
	d.patience = time.Hour
	letGo := below.hang()
	defer letGo()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the client has gone")
	time.AfterFunc(10*time.Millisecond, func() { cancel(gone) })
	if err := d.Zero(ctx, 0, 4096); !errors.Is(err, gone) || !strings.Contains(err.Error(), "/dev/slow") {
		t.Errorf("got %v", err)
	}
	if err := d.Sync(); !errors.Is(err, ErrBusy) {
		t.Errorf("a flush behind it: %v", err)
	}
}

// hangingPool has a member that can be made to hang.
func hangingPool(t *testing.T, patience time.Duration) (*Pool, *hangingDisk) {
	p, w := testPool(t, 32, 32)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	below := &hangingDisk{memberDisk: w.disks[1]}
	d := patient(below, "disk1", 0)
	d.patience = patience
	p.disks[1], p.store.members[1].disk = d, d
	return p, below
}

// TestNobodyWaitsToLook: while a commit waits for a disk the pool can be looked
// at, and shows what is committed.
func TestNobodyWaitsToLook(t *testing.T) {
	p, disk := hangingPool(t, time.Hour)
	letGo := disk.hang()
	done := make(chan error, 1)
	go func() {
		done <- p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.Attached = true })
	}()
	for disk.requests.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	v, err := p.Volume("a")
	if err != nil || v.Attached || len(p.Volumes()) != 1 || p.Info().Degraded() {
		t.Errorf("during the commit: %+v, %v", v, err)
	}
	if places, err := p.Locate("a", 0, 4096); err != nil || len(places) != 1 {
		t.Errorf("located at %v, %v", places, err)
	}
	letGo()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if v, _ := p.Volume("a"); !v.Attached {
		t.Error("the commit is not seen")
	}
}

// TestAHungMemberIsWaitedFor: changes are refused with its name, and the pool is
// not degraded for it. When it answers again all is as before.
func TestAHungMemberIsWaitedFor(t *testing.T) {
	p, disk := hangingPool(t, 10*time.Millisecond)
	letGo := disk.hang()
	attach := func() error { return p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.Attached = !a.Attached }) }
	for range 2 {
		err := attach()
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "disk1") || !strings.Contains(err.Error(), "nothing has changed") || Remedy(err) == "" {
			t.Errorf("a change while a member hangs: %v", err)
		}
	}
	if p.Info().Degraded() {
		t.Error("the pool is degraded because a disk is slow")
	}
	letGo()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		err := attach()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the disk answers again: %v", err)
		}
	}
}
