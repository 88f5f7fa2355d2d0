package pace

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/time/rate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const second = time.Second

// step is a second in which so many MiB were read.
func (p *Pacer) stepMiB(mib int64, r Reading) float64 {
	p.moved = mib << 20
	p.step(second, r)
	return float64(p.limiter.Limit()) / (1 << 20)
}

var (
	idle    = Reading{}
	alone   = Reading{Pressure: 1, Others: 1000} // somebody waits: we do
	traffic = Reading{Pressure: 0.1, Others: 500 << 20}
	crowded = Reading{Pressure: 0.9, Others: 2 << 20}
)

func TestGivesWay(t *testing.T) {
	p := New(0, 1<<20, nil)
	for _, r := range []Reading{idle, alone, traffic} {
		if p.stepMiB(800, r); p.limiter.Limit() != rate.Inf {
			t.Errorf("held up at %v by %+v", p.limiter.Limit(), r)
		}
	}
	if p.stepMiB(800, crowded); p.limiter.Limit() != rate.Inf {
		t.Error("held up for a moment's reason")
	}
	if p.stepMiB(800, idle); p.limiter.Limit() != rate.Inf {
		t.Error("held up")
	}
	p.stepMiB(800, crowded)
	last := 800.0
	for i := range 20 {
		got := p.stepMiB(int64(last), crowded)
		if want := max(last*slower, 200); got < want-2 || got > want+2 {
			t.Fatalf("step %d: %v MiB/s after %v", i, got, last)
		}
		last = got
	}
	// It goes up while it is what holds the reader up, and is lifted then.
	steps := 0
	for p.limiter.Limit() != rate.Inf {
		if steps++; steps > 50 {
			t.Fatalf("still held up at %v", last)
		}
		last = p.stepMiB(min(int64(last), 400), alone)
	}
	if steps < 5 {
		t.Errorf("lifted after %d steps", steps)
	}
	// A slow reader is not held up below what it always may.
	p = New(0, 1<<20, nil)
	for range 10 {
		last = p.stepMiB(3, crowded)
	}
	if last != leastRate>>20 {
		t.Errorf("the least is %v MiB/s", last)
	}
}

func TestLimitIsTheMost(t *testing.T) {
	p := New(50<<20, 1<<20, nil)
	for _, r := range []Reading{idle, crowded, crowded, crowded, idle, idle, idle, idle, idle, idle, idle} {
		if got := p.stepMiB(50, r); got > 50 {
			t.Errorf("%v MiB/s after %+v", got, r)
		}
	}
	if got := p.stepMiB(50, idle); got != 50 {
		t.Errorf("ends at %v MiB/s", got)
	}
	// At one byte per second the second MiB takes longer than anybody waits.
	p = New(1, 1<<20, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := p.Wait(ctx, 1<<20); err != nil {
		t.Error(err)
	}
	if err := p.Wait(ctx, 1<<20); err == nil {
		t.Error("the limit is not kept")
	}
}

// fixed says the same every time, and fails in the end.
type fixed struct {
	r     Reading
	reads atomic.Int64
	fail  chan struct{}
}

func (f *fixed) Read() (Reading, error) {
	f.reads.Add(1)
	select {
	case <-f.fail:
		return Reading{}, errors.New("no more")
	default:
		return f.r, nil
	}
}

func TestRun(t *testing.T) {
	f := &fixed{r: crowded, fail: make(chan struct{})}
	p := New(0, 1<<20, f)
	for p.limiter.Limit() == rate.Inf {
		if err := p.Wait(t.Context(), 1<<10); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	close(f.fail)
	<-p.gone
	if p.limiter.Limit() != rate.Inf {
		t.Errorf("held up at %v although nobody knows why", p.limiter.Limit())
	}
	p.Stop()
	p = New(0, 1<<20, &fixed{r: idle})
	p.Stop()
}

func TestOthers(t *testing.T) {
	const mib = 1 << 20
	at := time.Unix(0, 0)
	m := &Machine{writes: true}
	last := counters{at: at}
	next := func(c counters) Reading {
		at = at.Add(time.Second)
		c.at = at
		c.stalled += last.stalled
		c.read, c.written = c.read+last.read, c.written+last.written
		c.ownRead, c.ownWrite = c.ownRead+last.ownRead, c.ownWrite+last.ownWrite
		r := m.between(last, c)
		last = c
		return r
	}
	for _, x := range []struct {
		what   string
		c      counters
		others float64
	}{
		{"own reads", counters{read: 9 * mib, ownRead: 9 * mib}, 0},
		{"own reads from the page cache of the file system", counters{read: 8 * mib, ownRead: 9 * mib}, 0},
		{"somebody reads too", counters{read: 9 * mib, ownRead: 5 * mib}, 4 * mib},
		{"own writes stay in memory", counters{ownWrite: 30 * mib}, 0},
		{"and get to the disk later", counters{written: 20 * mib}, 0},
		{"with the log of the file system", counters{ownWrite: 5 * mib, written: 5*mib + mib/10}, 0},
		{"with those of another", counters{written: 15*mib - mib/10}, 5 * mib},
		{"somebody writes", counters{written: 3 * mib}, 3 * mib},
	} {
		if r := next(x.c); r.Others != x.others {
			t.Errorf("%s: others moved %v bytes per second, want %v", x.what, r.Others, x.others)
		}
	}
	if r := next(counters{stalled: 250000}); r.Pressure != 0.25 {
		t.Errorf("pressure is %v", r.Pressure)
	}
	if r := next(counters{stalled: 3000000}); r.Pressure != 1 {
		t.Errorf("pressure is %v", r.Pressure)
	}
	m.writes = false // to these disks
	if r := next(counters{ownWrite: 30 * mib, written: 5 * mib}); r.Others != 5*mib {
		t.Errorf("others moved %v", r.Others)
	}
}

// The kernel of this machine is asked.
func TestMachine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Watch([]string{file}, filepath.Dir(file))
	if errors.Is(err, ErrNoPressure) {
		if text, err := os.ReadFile("/proc/pressure/io"); err == nil {
			t.Fatalf("there is a pressure: %s", text)
		}
		return // it says so where there is none, and nowhere else
	}
	if err != nil {
		t.Fatal(err)
	}
	if m.writes != (len(m.disks) > 0) {
		t.Errorf("disks %v, written %v", m.disks, m.writes)
	}
	if r, err := m.Read(); err != nil || r.Pressure < 0 || r.Pressure > 1 || r.Others < 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := Watch([]string{file + "x"}, ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// Below a volume and a partition are the disks.
func TestBelow(t *testing.T) {
	sys := t.TempDir()
	device := func(dir, no string, slaves ...string) {
		t.Helper()
		full := filepath.Join(sys, "devices", dir)
		for _, d := range []string{filepath.Join(full, "slaves"), filepath.Join(sys, "dev/block")} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(full, "dev"), []byte(no+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(full, filepath.Join(sys, "dev/block", no)); err != nil {
			t.Fatal(err)
		}
		for _, s := range slaves {
			if err := os.Symlink(filepath.Join(sys, "devices", s), filepath.Join(full, "slaves", filepath.Base(s))); err != nil {
				t.Fatal(err)
			}
		}
	}
	device("nvme0n1", "259:0")
	device("nvme0n1/nvme0n1p2", "259:2")
	if err := os.WriteFile(filepath.Join(sys, "devices/nvme0n1/nvme0n1p2/partition"), []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	device("nvme1n1", "259:5")
	device("dm-0", "253:0", "nvme0n1/nvme0n1p2", "nvme1n1")
	device("dm-1", "253:1", "dm-0")
	m := &Machine{sys: sys}
	for no, want := range map[devno][]devno{
		{253, 1}: {{259, 0}, {259, 5}}, {259, 2}: {{259, 0}}, {259, 5}: {{259, 5}}, {0, 44}: nil,
	} {
		got := map[devno]bool{}
		if err := m.below(no, got, 0); err != nil {
			t.Errorf("%v: %v", no, err)
		}
		if len(got) != len(want) {
			t.Errorf("below %v are %v, want %v", no, got, want)
		}
		for _, w := range want {
			if !got[w] {
				t.Errorf("below %v are %v, want %v", no, got, want)
			}
		}
	}
}
