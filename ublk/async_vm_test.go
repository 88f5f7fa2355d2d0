//go:build vm

package ublk

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lateMemory is a memory disk that answers from other goroutines, in any order.
type lateMemory struct {
	*Memory

	mu     sync.Mutex
	slow   chan struct{} // reads wait until it is closed; nil: they do not
	most   int           // requests begun and not answered, at once
	now    int
	across int // requests that reach across a boundary
}

const testBoundary = 64 << 10

// count takes note of a request, and tells what it has to wait for.
func (m *lateMemory) count(r *AsyncRequest, n int) chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now += n
	m.most = max(m.most, m.now)
	if r.Length > 0 && r.Offset/testBoundary != (r.Offset+r.Length-1)/testBoundary {
		m.across++
	}
	return m.slow
}

func (m *lateMemory) Begin(r *AsyncRequest) (bool, unix.Errno) {
	if r.Op == OpWrite && r.Offset%8192 == 0 {
		return false, m.Handle(&r.Request)
	}
	slow := m.count(r, 1)
	go func() {
		if slow != nil && r.Op == OpRead {
			<-slow
		}
		time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
		e := m.Handle(&r.Request)
		m.count(r, -1)
		r.Answer(e)
	}()
	return true, 0
}

func lateBackend(t *testing.T, size uint64) (*Backend, *lateMemory) {
	t.Helper()
	memory, err := NewMemory(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Close() })
	h := &lateMemory{Memory: memory}
	b, err := NewAsyncBackend("late", h, Limits{Size: size, Boundary: testBoundary, MaxDiscard: 1 << 20, MaxWriteZeroes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return b, h
}

// What fio writes it reads back, though every request is answered out of order by
// another goroutine, while the gate closes and opens.
func TestAsyncHandler(t *testing.T) {
	checkClean(t)
	b, h := lateBackend(t, 64<<20)
	d := startDevice(t, b, Options{Queues: 2})
	if got := d.Limits().Boundary; got != testBoundary {
		t.Errorf("boundary is %d", got)
	}
	f := startFio(t, d.Path(), verifyArgs(16)...)
	for f.running() {
		d.Hold()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := d.Drain(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if n := d.Stats().InFlight; n != 0 {
			t.Errorf("%d in flight behind a closed gate", n)
		}
		d.Release()
		time.Sleep(20 * time.Millisecond)
	}
	f.wait()
	if s := d.Stats(); s.Read.Errors+s.Write.Errors != 0 || s.Read.Ops == 0 || s.Panics != 0 {
		t.Errorf("counters: %+v", s)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.most < 8 || h.across != 0 {
		t.Errorf("at most %d at once, %d across a boundary", h.most, h.across)
	}
}

// More requests wait at the handler than there are queues, and a Stop waits for
// them: it is for the handler to end them.
func TestStopWaitsForAsyncHandler(t *testing.T) {
	checkClean(t)
	b, h := lateBackend(t, 64<<20)
	d, err := Start(t.Context(), b, testOptions(Options{Queues: 1, Depth: 16, NoPartitionScan: true}))
	if err != nil {
		t.Fatal(err)
	}
	begun := func() int {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.now
	}
	slow := make(chan struct{})
	h.mu.Lock()
	h.slow = slow
	h.mu.Unlock()
	f := startFio(t, d.Path(), "--rw=randread", "--bs=4k", "--iodepth=16", "--size=64M")
	eventually(t, "requests at the handler", func() bool { return begun() >= 8 })
	stopped := make(chan error, 1)
	go func() { stopped <- d.Stop(context.Background()) }()
	select {
	case err := <-stopped:
		t.Fatalf("stopped beside %d requests: %v", begun(), err)
	case <-time.After(100 * time.Millisecond):
	}
	close(slow)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	<-f.done // with an error or without, but not hanging
	f.done <- nil
}

// A device that ends with its server is gone after kill -9: who reads it gets
// EIO, nobody waits, and its number can be freed.
func TestEndWithServer(t *testing.T) {
	checkClean(t)
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, -2, path, 2, DataPathCopy)
	c := control(t)
	info, err := c.Info(t.Context(), s.id)
	if err != nil || info.Flags.Has(UserRecovery) || info.State != StateLive {
		t.Fatalf("%+v, %v", info, err)
	}
	reader := openClient(t, blockPath(s.id), unix.O_RDONLY)
	if e := reader.read(0, 4096); e != 0 {
		t.Fatal(e)
	}
	f := startFio(t, blockPath(s.id), "--rw=randread", "--bs=4k", "--iodepth=32", "--size=64M", "--time_based", "--runtime=60")
	eventually(t, "load", func() bool {
		stat, err := os.ReadFile("/sys/block/ublkb" + strconv.Itoa(s.id) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		reads, _ := strconv.Atoi(strings.Fields(string(stat))[0])
		return reads > 200
	})
	s.kill()
	<-f.done // fio ends with errors
	f.done <- nil
	if e := reader.read(4096, 4096); e == 0 {
		t.Error("a read after the end of the server worked")
	}
	eventually(t, "the end of the disk", func() bool {
		_, err := os.Stat("/sys/block/ublkb" + strconv.Itoa(s.id))
		return os.IsNotExist(err)
	})
	if info, err := c.Info(t.Context(), s.id); err != nil || info.State != StateDead || info.Tag != testTag {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := Adopt(t.Context(), openBackend(t, path), testOptions(Options{ID: s.id})); err == nil {
		t.Error("it was adopted")
	}
	unix.Close(reader.fd)
	reader.fd = -1
	if err := c.Delete(t.Context(), s.id); err != nil {
		t.Error(err)
	}
}

func TestEndWithServerCannotBeAbandoned(t *testing.T) {
	checkClean(t)
	d := startDevice(t, memoryBackend(t, 1<<20), Options{Queues: 1, EndWithServer: true})
	if err := d.Abandon(t.Context()); err == nil {
		t.Error("abandoned")
	}
	if e := openClient(t, d.Path(), unix.O_RDONLY).read(0, 4096); e != 0 {
		t.Error(e)
	}
}
