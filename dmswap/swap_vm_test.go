//go:build vm

package dmswap

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/swapback/swapback/dmswap/dm"
)

func TestVMSwapExchangesContents(t *testing.T) {
	p := newVMPool(t, 1<<20)
	size := int64(8<<20 + 4096)
	specs := []VolumeSpec{{Name: "a", Size: size}, {Name: "b", Size: size, Stripes: 2}, {Name: "c", Size: 4 << 20}, {Name: "d", Size: 4 << 20}}
	files := map[string]*os.File{}
	for _, s := range specs {
		v := mustCreate(t, p.Pool, s)
		files[s.Name] = direct(t, v.Device)
		fill(t, files[s.Name], s.Name[0], v.Size)
		// Into the page cache of the dm device, which must not survive.
		if _, err := os.ReadFile(v.Device); err != nil {
			t.Fatal(err)
		}
	}
	if err := swapNow(p.Pool, SwapPair{A: "a", B: "b", ExpectA: 1, ExpectB: 1}, SwapPair{A: "c", B: "d"}); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p.Pool)
	shows := map[string]byte{"a": 'b', "b": 'a', "c": 'd', "d": 'c'}
	look := func() {
		t.Helper()
		for name, tag := range shows {
			v := p.volume(t, name)
			verify(t, files[name], tag, v.Size)
			cached, err := os.Open(v.Device)
			if err != nil {
				t.Fatal(err)
			}
			verify(t, cached, tag, v.Size)
			cached.Close()
		}
	}
	look()
	if v := p.volume(t, "a"); v.Position.Generation != 2 || v.Position.Stripes != 2 {
		t.Errorf("position of a: %+v", v.Position)
	}
	p.reopen(t)
	look()
	if err := swapNow(p.Pool, SwapPair{A: "d", B: "c"}, SwapPair{A: "b", B: "a"}); err != nil {
		t.Fatal(err)
	}
	for name := range shows {
		shows[name] = name[0]
	}
	look()
}

// load writes and reads blocks of a device until stop is called, and counts.
// Every block carries the number of its place, so that data that ended up in a
// wrong place is found.
type load struct {
	quit chan struct{}
	all  sync.WaitGroup
	ops  atomic.Int64
	errs atomic.Pointer[error]
}

func startLoad(t *testing.T, path string, tag byte, blocks uint64, writers int) *load {
	l := &load{quit: make(chan struct{})}
	for w := range uint64(writers) {
		f := direct(t, path)
		l.all.Go(func() {
			for seq := uint64(1); ; seq++ {
				for n := w; n < blocks; n += uint64(writers) {
					select {
					case <-l.quit:
						return
					default:
					}
					_, err := f.WriteAt(block(tag, n, seq), int64(n)*blockSize)
					if err == nil {
						_, _, _, _, err = readStamp(f, n)
					}
					if err != nil {
						l.errs.CompareAndSwap(nil, &err)
						return
					}
					l.ops.Add(1)
				}
			}
		})
	}
	return l
}

// waitFor waits until so many operations more are done.
func (l *load) waitFor(t *testing.T, ops int64) {
	t.Helper()
	for want := l.ops.Load() + ops; l.ops.Load() < want && l.errs.Load() == nil; {
		time.Sleep(time.Millisecond)
	}
}

func (l *load) stop(t *testing.T) {
	t.Helper()
	close(l.quit)
	l.all.Wait()
	if err := l.errs.Load(); err != nil {
		t.Errorf("an operation of the load failed: %v", *err)
	}
}

func TestVMSwapUnderLoad(t *testing.T) {
	p := newVMPool(t, 1<<20)
	const size = 4 << 20
	a := mustCreate(t, p.Pool, VolumeSpec{Name: "a", Size: size, Zero: true})
	b := mustCreate(t, p.Pool, VolumeSpec{Name: "b", Size: size, Stripes: 2, Zero: true})
	la, lb := startLoad(t, a.Device, 'a', size/blockSize, 4), startLoad(t, b.Device, 'b', size/blockSize, 4)
	for range 10 {
		la.waitFor(t, 50)
		lb.waitFor(t, 50)
		s, err := p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Execute(ctx); err != nil {
			t.Fatal(err)
		}
		timing := s.Timing()
		t.Logf("preload %v, pause %v = suspend %v + commit %v + resume %v",
			timing.Preload, timing.Suspend+timing.Commit+timing.Resume, timing.Suspend, timing.Commit, timing.Resume)
		mustCheck(t, p.Pool)
	}
	la.stop(t)
	lb.stop(t)
	// Every block was written by somebody, whole, and for its place.
	for _, path := range []string{a.Device, b.Device} {
		f := direct(t, path)
		for n := uint64(0); n < size/blockSize; n++ {
			tag, num, _, ok, err := readStamp(f, n)
			if err != nil {
				t.Fatal(err)
			}
			if tag == 0 {
				continue // never reached by the writers
			}
			if !ok || num != n || tag != 'a' && tag != 'b' {
				t.Fatalf("%s: block %d says it is block %d of %c, whole: %v", path, n, num, tag, ok)
			}
		}
	}
}

// TestVMSwapCalledOff suspends the member below, so that the volumes' I/O hangs
// and the suspend can't end.
func TestVMSwapCalledOff(t *testing.T) {
	noDevices(t)
	disks := vmDisks(t)
	c, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err := openBlockDevice(disks[0], false, 0)
	if err != nil {
		t.Fatal(err)
	}
	number := d.number
	d.Close()
	lower, err := c.Create("dmswap-test-lower", "DMSWAP-TEST-lower")
	if err != nil {
		t.Fatal(err)
	}
	ref := dm.ByUUID(lower.UUID)
	defer func() {
		if err := c.Remove(ref, false); err != nil {
			t.Error(err)
		}
	}()
	table := dm.Table{{Start: 0, Length: 1 << 17, Target: dm.Linear{Device: number}}}
	if err := errors.Join(c.Load(ref, table, false), c.Resume(ctx, ref)); err != nil {
		t.Fatal(err)
	}
	p, err := Create(ctx, CreateOptions{Name: "tank", Disks: []string{lower.Path()}, ExtentSize: 1 << 20, Force: true, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	a := mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	mustCreate(t, p, VolumeSpec{Name: "b", Size: 4 << 20})
	f := direct(t, a.Device)
	fill(t, f, 'a', a.Size)
	s, err := p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Suspend(ctx, ref, dm.SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	read := make(chan error)
	go func() { _, err := f.ReadAt(alignedBuffer(blockSize), 0); read <- err }()
	time.Sleep(200 * time.Millisecond) // for the read to be under way; if it is not, the commit hangs and is waited for below
	limited, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	// The commit would wait for the member too: let it go on later.
	time.AfterFunc(3*time.Second, func() {
		if err := c.Resume(ctx, ref); err != nil {
			t.Error(err)
		}
	})
	err = s.Execute(limited)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("execute: %v", err)
	}
	if err := <-read; err != nil {
		t.Errorf("the read: %v", err)
	}
	verify(t, f, 'a', a.Size)
	mustCheck(t, p)
	f.Close()
	if err := p.Destroy(ctx); err != nil {
		t.Error(err)
	}
}
