package extmap

import (
	"errors"
	"log/slog"
	"math/rand"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// memDisk is a disk in memory. A write can be stopped in the middle, where a
// power cut would leave any of its sectors.
type memDisk struct {
	mu     sync.Mutex
	bytes  []byte
	writes int
	// before, if set, is called before each write, and its error is the write's.
	before func(d *memDisk, p []byte, off int64) error
}

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.bytes[off:]), nil
}

func (d *memDisk) WriteDurable(p []byte, off int64) error {
	if d.before != nil {
		if err := d.before(d, p, off); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes++
	copy(d.bytes[off:], p)
	return nil
}

// tear writes some of the sectors only.
func (d *memDisk) tear(p []byte, off int64, rng *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for at := 0; at < len(p); at += 512 {
		if rng.Intn(2) == 0 {
			copy(d.bytes[off+int64(at):], p[at:at+512])
		}
	}
}

const testExtents = 2*pageBits + 100

func newDisk() *memDisk { return &memDisk{bytes: make([]byte, 8192+Size(testExtents))} }

func newMap(d Disk, expect ID) *Map {
	m := New(Options{
		Pool: goldenPool, Member: goldenMember, Offset: 8192, Extents: testExtents,
		Hung: func(err error) bool { return errors.Is(err, unix.EAGAIN) }, Logger: slog.New(slog.DiscardHandler),
	})
	if d != nil {
		m.Load(d, expect)
	}
	return m
}

// set sets a bit and waits.
func set(t *testing.T, m *Map, extent int64) error {
	t.Helper()
	done := make(chan error, 1)
	if m.Set(extent, func(err error) { done <- err }) {
		return nil
	}
	return <-done
}

func list(m *Map, first, count int64) (out []int64) {
	m.Each(first, count, func(i int64) { out = append(out, first+i) })
	return out
}

func whole(m *Map) (n int) {
	m.TakeWhole(0, testExtents, func(int64) { n++ })
	return n
}

// TestNothingIsKnownOfABlankArea: everything counts as changed, and a page that is
// written keeps that for all of its extents.
func TestNothingIsKnownOfABlankArea(t *testing.T) {
	d := newDisk()
	m := newMap(d, goldenSession)
	if n := len(list(m, 0, testExtents)); n != testExtents {
		t.Errorf("%d of %d extents count as changed", n, testExtents)
	}
	if err := set(t, m, 5); err != nil {
		t.Fatal(err)
	}
	if d.writes != 1 {
		t.Errorf("%d pages were written", d.writes)
	}
	m = newMap(d, goldenSession)
	if n := len(list(m, 0, testExtents)); n != testExtents {
		t.Errorf("%d extents count as changed", n)
	}
}

func TestSetIsDurableAndClearComesLater(t *testing.T) {
	d := newDisk()
	m := newMap(d, goldenSession)
	if err := m.SetSession(goldenSession); err != nil {
		t.Fatal(err)
	}
	m.Clear(0, testExtents, func(i int64) bool { return i == 7 || i == pageBits+1 })
	m.Close()
	again := newMap(d, goldenSession)
	if got := list(again, 0, testExtents); !slices.Equal(got, []int64{7, pageBits + 1}) {
		t.Fatalf("after clearing: %v", got)
	}
	if n := whole(again); n != 0 {
		t.Errorf("%d extents are whole under the session that is expected", n)
	}
	before := d.writes
	for _, x := range []int64{7, 8, 8, 9, 7} {
		if err := set(t, m, x); err != nil {
			t.Fatal(err)
		}
	}
	if d.writes != before+2 {
		t.Errorf("%d writes for two new bits", d.writes-before)
	}
	if got := list(newMap(d, goldenSession), 0, pageBits); !slices.Equal(got, []int64{7, 8, 9}) {
		t.Errorf("on the disk: %v", got)
	}
	// Somebody else's disk: what is set is whole, once.
	other := newMap(d, ID{9})
	if n := whole(other); n != 4 {
		t.Errorf("%d extents are whole", n)
	}
	if n := whole(other); n != 0 {
		t.Errorf("%d extents are whole a second time", n)
	}
}

// TestManySetsShareAWrite: what is asked for while a page is written goes out with
// the next write.
func TestManySetsShareAWrite(t *testing.T) {
	d := newDisk()
	m := newMap(d, goldenSession)
	m.Clear(0, testExtents, func(int64) bool { return false })
	m.Close()
	begun, goOn := make(chan bool, 8), make(chan bool)
	d.before = func(*memDisk, []byte, int64) error { begun <- true; <-goOn; return nil }
	before := d.writes
	done := make(chan error, 100)
	m.Set(0, func(err error) { done <- err })
	<-begun
	for i := range int64(99) {
		if m.Set(i+1, func(err error) { done <- err }) {
			t.Error("set before it was written")
		}
	}
	goOn <- true
	<-begun
	goOn <- true
	for range 100 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	m.Close()
	if n := d.writes - before; n != 2 {
		t.Errorf("%d writes for 100 bits of a page", n)
	}
}

// TestClearedWhileItIsWritten: a bit that is taken back while its page is on its way
// is not promised any more, and is written again when it is set again.
func TestClearedWhileItIsWritten(t *testing.T) {
	d := newDisk()
	m := newMap(d, goldenSession)
	m.Clear(0, testExtents, func(int64) bool { return false })
	m.Close()
	begun, goOn := make(chan bool, 8), make(chan bool, 8)
	d.before = func(*memDisk, []byte, int64) error { begun <- true; <-goOn; return nil }
	done := make(chan error, 1)
	m.Set(3, func(err error) { done <- err })
	<-begun
	m.Clear(0, 10, func(int64) bool { return false })
	for range 8 {
		goOn <- true
	}
	<-done
	m.Close()
	if got := list(newMap(d, goldenSession), 0, testExtents); len(got) != 0 {
		t.Fatalf("on the disk: %v", got)
	}
	d.before = nil
	before := d.writes
	if err := set(t, m, 3); err != nil || d.writes != before+1 {
		t.Errorf("set again: %v, %d writes", err, d.writes-before)
	}
}

func TestDiskErrors(t *testing.T) {
	d := newDisk()
	m := newMap(d, goldenSession)
	tries := 0
	d.before = func(*memDisk, []byte, int64) error {
		if tries++; tries < 3 {
			return unix.EAGAIN // owes an answer
		}
		return nil
	}
	if err := set(t, m, 1); err != nil || tries != 3 {
		t.Errorf("a disk that hung: %v after %d tries", err, tries)
	}
	d.before = func(*memDisk, []byte, int64) error { return unix.EIO }
	if err := set(t, m, 1); err != nil {
		t.Errorf("what is on the disk already: %v", err)
	}
	if err := set(t, m, pageBits+1); !errors.Is(err, unix.EIO) {
		t.Errorf("a dead disk: %v", err)
	}
	if err := m.SetSession(goldenSession); !errors.Is(err, unix.EIO) {
		t.Errorf("session on a dead disk: %v", err)
	}
	d.before = nil
	if err := set(t, m, pageBits+1); err != nil {
		t.Errorf("a disk that is mended: %v", err)
	}
}

// TestMemberThatComesBack: bits that were set while its disk was away, or that the
// disk has, are set after it.
func TestMemberThatComesBack(t *testing.T) {
	d := newDisk()
	m := newMap(d, goldenSession)
	if err := m.SetSession(goldenSession); err != nil {
		t.Fatal(err)
	}
	m.Clear(0, testExtents, func(i int64) bool { return i == 1 })
	m.Close()

	away := newMap(nil, ID{})
	if !away.Absent() {
		t.Error("a member without a disk is there")
	}
	if err := set(t, away, 2); !errors.Is(err, ErrAbsent) {
		t.Errorf("set on a member that is away: %v", err)
	}
	if err := away.SetSession(goldenSession); !errors.Is(err, ErrAbsent) {
		t.Errorf("session of a member that is away: %v", err)
	}
	away.Load(d, goldenSession)
	if got := list(away, 0, testExtents); !slices.Equal(got, []int64{1, 2}) {
		t.Errorf("after coming back: %v", got)
	}
	if n := whole(away); n != 0 {
		t.Errorf("%d extents are whole though nobody else had the disk", n)
	}
	if err := set(t, away, 2); err != nil {
		t.Fatal(err)
	}
	if got := list(newMap(d, goldenSession), 0, testExtents); !slices.Equal(got, []int64{1, 2}) {
		t.Errorf("on the disk: %v", got)
	}
}

// TestDiskChangesUnderAWrite: a bit is promised for the disk that the member is on
// when it is promised.
func TestDiskChangesUnderAWrite(t *testing.T) {
	d, next := newDisk(), newDisk()
	m := newMap(d, goldenSession)
	m.Clear(0, testExtents, func(int64) bool { return false })
	m.Close()
	copy(next.bytes, d.bytes)
	begun, goOn := make(chan bool), make(chan bool)
	d.before = func(*memDisk, []byte, int64) error { begun <- true; <-goOn; return nil }
	done := make(chan error, 1)
	m.Set(3, func(err error) { done <- err })
	<-begun
	m.Load(next, goldenSession)
	goOn <- true
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := list(newMap(next, goldenSession), 0, testExtents); !slices.Equal(got, []int64{3}) {
		t.Errorf("on the new disk: %v", got)
	}
}

// TestPowerCuts: whatever sector of whatever write is lost, every bit that was
// promised and not taken back is set afterwards.
func TestPowerCuts(t *testing.T) {
	for seed := range int64(300) {
		rng := rand.New(rand.NewSource(seed))
		d := newDisk()
		m := newMap(d, goldenSession)
		m.Clear(0, testExtents, func(int64) bool { return false })
		m.Close()
		promised := map[int64]bool{}
		cut := rng.Intn(40)
		dead := false
		d.before = func(d *memDisk, p []byte, off int64) error {
			if dead {
				return unix.EIO
			}
			if cut--; cut < 0 {
				dead = true
				d.tear(p, off, rng)
				return unix.EIO
			}
			return nil
		}
		for !dead {
			x := rng.Int63n(testExtents)
			if rng.Intn(10) == 0 {
				keep := rng.Int63n(7) + 2
				for x := range promised {
					if x%keep != 0 {
						delete(promised, x)
					}
				}
				m.Clear(0, testExtents, func(i int64) bool { return promised[i] })
				m.Close()
			} else if set(t, m, x) == nil {
				promised[x] = true
			}
		}
		d.before = nil
		after := map[int64]bool{}
		for _, x := range list(newMap(d, goldenSession), 0, testExtents) {
			after[x] = true
		}
		for x := range promised {
			if !after[x] {
				t.Fatalf("seed %d: extent %d was promised and is not set", seed, x)
			}
		}
	}
}
