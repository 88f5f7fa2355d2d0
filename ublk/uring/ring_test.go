package uring

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// queueRing makes a queue ring on the test's own thread.
func queueRing(t *testing.T, entries, completions uint32) *Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r, err := NewQueue(entries, completions)
	if !inTestMachine && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS)) {
		t.Skipf("io_uring is switched off on this host: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func memory(t *testing.T, n int) []byte {
	t.Helper()
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(m) })
	return m
}

func addr(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// one submits what is prepared and takes exactly one completion.
func one(t *testing.T, r *Ring) CQE {
	t.Helper()
	for {
		if c := r.Peek(); c != nil {
			got := *c
			r.Advance()
			return got
		}
		if err := r.Enter(1); err != nil {
			t.Fatal(err)
		}
	}
}

func TestQueueHasRoomForItsCompletions(t *testing.T) {
	for _, c := range []struct{ entries, completions, want uint32 }{
		{8, 0, 16}, {8, 3, 16}, {8, 16, 16}, {8, 17, 32}, {8, 512, 512}, {64, 1 << 20, 1 << 16},
	} {
		r := queueRing(t, c.entries, c.completions)
		if got := r.CQEntries(); got != int(c.want) || r.Entries() != int(c.entries) {
			t.Errorf("%d entries and %d completions: room for %d and %d", c.entries, c.completions, r.Entries(), got)
		}
	}
	// They all fit before one is taken.
	r := queueRing(t, 8, 512)
	for range 512 / 8 {
		for range 8 {
			r.NextSQE().PrepNop()
		}
		if err := r.Enter(0); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for ; r.Peek() != nil; n++ {
		r.Advance()
	}
	if n != 512 || r.Overflows() != 0 {
		t.Errorf("%d completions are there, %d found no room", n, r.Overflows())
	}
}

func TestNopRoundTripsManyTimesAroundTheRing(t *testing.T) {
	r := queueRing(t, 8, 0)
	next, reaped := uint64(0), uint64(0)
	for reaped < 1000 {
		for {
			s := r.NextSQE()
			if s == nil {
				break
			}
			s.PrepNop()
			s.UserData = next
			next++
		}
		if err := r.Enter(1); err != nil {
			t.Fatal(err)
		}
		for c := r.Peek(); c != nil; c = r.Peek() {
			if c.UserData != reaped || c.Res != 0 {
				t.Fatalf("completion %d: %+v", reaped, *c)
			}
			reaped++
			r.Advance()
		}
	}
	if r.Overflows() != 0 {
		t.Errorf("%d overflows", r.Overflows())
	}
}

func TestFullRingGivesNoEntry(t *testing.T) {
	r := queueRing(t, 4, 0)
	for i := range r.Entries() {
		if s := r.NextSQE(); s == nil {
			t.Fatalf("no entry %d of %d", i, r.Entries())
		} else {
			s.PrepNop()
		}
	}
	if r.Space() != 0 || r.NextSQE() != nil {
		t.Error("a full ring gave out an entry")
	}
	if err := r.Enter(uint32(r.Entries())); err != nil {
		t.Fatal(err)
	}
	if r.Space() != r.Entries() {
		t.Errorf("space %d after submitting, want %d", r.Space(), r.Entries())
	}
}

func TestFixedFilesAndBuffers(t *testing.T) {
	r := queueRing(t, 8, 0)
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := r.RegisterFiles([]int32{-1, -1}); err != nil {
		t.Fatal(err)
	}
	if err := r.UpdateFile(1, int32(f.Fd())); err != nil {
		t.Fatal(err)
	}
	mem := memory(t, 2*4096)
	a, b := mem[:4096], mem[4096:]
	if err := r.RegisterBuffers([][]byte{a, b}); err != nil {
		t.Fatal(err)
	}
	for i := range a {
		a[i] = byte(i * 7)
	}
	s := r.NextSQE()
	s.PrepWriteFixed(1, addr(a), 4096, 512, 0, unix.RWF_DSYNC)
	s.Flags |= SQEFixedFile
	if c := one(t, r); c.Res != 4096 {
		t.Fatalf("write: %d", c.Res)
	}
	s = r.NextSQE()
	s.PrepFsync(1, FsyncDatasync)
	s.Flags |= SQEFixedFile
	if c := one(t, r); c.Res != 0 {
		t.Fatalf("fsync: %d", c.Res)
	}
	s = r.NextSQE()
	s.PrepReadFixed(1, addr(b), 4096, 512, 1)
	s.Flags |= SQEFixedFile
	if c := one(t, r); c.Res != 4096 {
		t.Fatalf("read: %d", c.Res)
	}
	if !bytes.Equal(a, b) {
		t.Error("what was read is not what was written")
	}
	// The empty slot must not reach a file.
	s = r.NextSQE()
	s.PrepReadFixed(0, addr(b), 4096, 512, 1)
	s.Flags |= SQEFixedFile
	if c := one(t, r); unix.Errno(-c.Res) != unix.EBADF {
		t.Errorf("empty slot: %v, want EBADF", unix.Errno(-c.Res))
	}
}

func TestEventfdWakesAWaitingRing(t *testing.T) {
	r := queueRing(t, 8, 0)
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(efd)
	mem := memory(t, 4096)
	s := r.NextSQE()
	s.PrepRead(int32(efd), addr(mem), 8, ^uint64(0))
	s.UserData = 42
	if err := r.Enter(0); err != nil {
		t.Fatal(err)
	}
	if c := r.Peek(); c != nil {
		t.Fatalf("woken by nobody: %+v", *c)
	}
	go func() {
		one := [8]byte{1}
		unix.Write(efd, one[:])
	}()
	if c := one(t, r); c.UserData != 42 || c.Res != 8 || mem[0] != 1 {
		t.Errorf("wake: %+v, count %d", c, mem[0])
	}
}

func TestEnterTimeout(t *testing.T) {
	r := queueRing(t, 8, 0)
	if err := r.EnterTimeout(1, time.Millisecond); !errors.Is(err, ErrTimeout) {
		t.Errorf("waiting for nothing: %v, want ErrTimeout", err)
	}
}

func TestMsgRing(t *testing.T) {
	queueRing(t, 4, 0) // skips where there is no io_uring
	from, err := New(4, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := New(4, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from.NextSQE().PrepMsgRing(int32(to.FD()), 7, 99)
	if c := one(t, from); c.Res != 0 {
		t.Fatalf("sending: %d", c.Res)
	}
	if c := one(t, to); c.UserData != 99 || c.Res != 7 {
		t.Errorf("received %+v", c)
	}
}

func TestWideEntries(t *testing.T) {
	narrow := queueRing(t, 4, 0)
	if narrow.NextSQE128() != nil {
		t.Error("a ring of 64-byte entries gave out one of 128")
	}
	wide, err := New(4, SetupSQE128)
	if err != nil {
		t.Fatal(err)
	}
	defer wide.Close()
	for i := range uint64(20) {
		s := wide.NextSQE128()
		s.PrepNop()
		s.UserData = i
		for j := range s.Rest {
			s.Rest[j] = 0xff
		}
		if c := one(t, wide); c.UserData != i || c.Res != 0 {
			t.Fatalf("entry %d: %+v", i, c)
		}
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	r := queueRing(t, 8, 0)
	n := testing.AllocsPerRun(100, func() {
		r.NextSQE().PrepNop()
		r.NextSQE().PrepNop()
		r.Enter(2)
		for r.Peek() != nil {
			r.Advance()
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per turn", n)
	}
}

func TestRegisteredRing(t *testing.T) {
	r := queueRing(t, 8, 0)
	if err := r.RegisterSelf(); err != nil {
		t.Fatal(err)
	}
	enters := map[string]func(uint32) error{
		"enter":   r.Enter,
		"raw":     r.EnterRaw,
		"timeout": func(n uint32) error { return r.EnterTimeout(n, time.Minute) },
	}
	for name, enter := range enters {
		for i := range uint64(20) {
			s := r.NextSQE()
			s.PrepNop()
			s.UserData = i
			if err := enter(1); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			c := r.Peek()
			if c == nil || c.UserData != i || c.Res != 0 {
				t.Fatalf("%s: completion %d is %+v", name, i, c)
			}
			r.Advance()
		}
	}
}

// The runtime can interrupt a thread that waits in the kernel without having
// told it: here to stop the world.
func TestRawWaitIsInterrupted(t *testing.T) {
	r := queueRing(t, 8, 0)
	before := runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	defer runtime.GOMAXPROCS(before)
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(efd)
	mem := memory(t, 4096)
	r.NextSQE().PrepRead(int32(efd), addr(mem), 8, ^uint64(0))
	if err := r.Enter(0); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() {
		runtime.GC()
		close(stopped)
		one := [8]byte{1}
		unix.Write(efd, one[:])
	}()
	for r.Peek() == nil {
		if err := r.EnterRaw(1); err != nil {
			t.Fatal(err)
		}
	}
	<-stopped
}

func TestBufferRing(t *testing.T) {
	r := queueRing(t, 8, 0)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	const n, size, group = 4, 64, 3
	b, err := r.NewBufferRing(group, n, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	read := func() CQE {
		t.Helper()
		s := r.NextSQE()
		s.PrepRead(int32(pipe[0]), 0, size, ^uint64(0))
		s.Flags |= SQEBufferSelect
		s.BufIndex = group
		return one(t, r)
	}
	// Around the ring several times: every buffer is taken, read and given back.
	for i := range 3*n + 1 {
		text := []byte{byte(i), byte(i + 1), byte(i + 2)}
		if _, err := unix.Write(pipe[1], text); err != nil {
			t.Fatal(err)
		}
		c := read()
		if c.Res != 3 || c.Flags&CQEBuffer == 0 {
			t.Fatalf("read %d: %+v", i, c)
		}
		id := uint16(c.Flags >> 16)
		if got := b.Get(id, int(c.Res)); !bytes.Equal(got, text) {
			t.Fatalf("read %d: buffer %d holds %v, want %v", i, id, got, text)
		}
		b.Put(id)
	}
	// With all of them taken there is none to read into.
	for i := range n + 1 {
		if _, err := unix.Write(pipe[1], []byte{1}); err != nil {
			t.Fatal(err)
		}
		c := read()
		if want := map[bool]int32{true: 1, false: -int32(unix.ENOBUFS)}[i < n]; c.Res != want {
			t.Fatalf("taken %d buffers: %+v", i, c)
		}
	}
}

func TestSparseBuffersAreEmpty(t *testing.T) {
	r := queueRing(t, 8, 0)
	if err := r.RegisterSparseBuffers(4); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.NextSQE().PrepReadFixed(int32(f.Fd()), 0, 512, 0, 2)
	if c := one(t, r); unix.Errno(-c.Res) != unix.EFAULT {
		t.Errorf("reading into an empty slot: %v, want EFAULT", unix.Errno(-c.Res))
	}
}

// TestSocket: what one side gathers is received at the other, and a receive that
// waits comes back when there is something.
func TestSocket(t *testing.T) {
	r := queueRing(t, 8, 0)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pair[0]); unix.Close(pair[1]) })
	mem := memory(t, 4096)
	for _, wait := range []bool{true, false} {
		clear(mem)
		s := r.NextSQE()
		s.PrepRecv(int32(pair[1]), addr(mem), uint32(len(mem)), wait)
		s.UserData = 1
		if err := r.Enter(0); err != nil || r.Peek() != nil {
			t.Fatalf("a receive from an empty socket: %v", err)
		}
		first, second := []byte("to "), []byte("gather")
		iov := []unix.Iovec{{Base: &first[0], Len: 3}, {Base: &second[0], Len: 6}}
		msg := (*unix.Msghdr)(unsafe.Pointer(&mem[2048])) // a stack may move
		*msg = unix.Msghdr{Iov: &iov[0], Iovlen: 2}
		s = r.NextSQE()
		s.PrepSendMsg(int32(pair[0]), addr(mem[2048:]), unix.MSG_WAITALL|unix.MSG_NOSIGNAL)
		s.UserData = 2
		for range 2 {
			if c := one(t, r); c.Res != 9 {
				t.Errorf("completion %d: %d", c.UserData, c.Res)
			}
		}
		if got := string(mem[:9]); got != "to gather" {
			t.Errorf("got %q", got)
		}
		runtime.KeepAlive(iov)
	}
}
