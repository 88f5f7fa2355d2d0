package ublk

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/swapback/swapback/ublk/uring"
	"golang.org/x/sys/unix"
)

// These tests drive one queue on the host. In the driver's place stands
// /dev/null: it answers every command at once with 0, which the queue takes for
// "a request has arrived in this tag's descriptor"; the test writes the
// descriptors. What a commit's result does to a client is for the test machine
// to show.

// driven is a queue whose turns the test takes, on the test's own thread.
type driven struct {
	*queue
	t      *testing.T
	change chan struct{}
}

func drive(t *testing.T, b *Backend, depth int) *driven {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(null) })
	changed := make(chan struct{}, 1)
	q, err := newQueue(queueConfig{
		depth: depth, ioBytes: 64 << 10, charFD: null, path: DataPathCopy, backend: b, gate: &gate{},
		log: slog.New(slog.DiscardHandler), changed: changed, rouse: (*queue).wake, broke: func(err error) { t.Error(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.closeWake)
	q.descs = make([]ioDesc, depth)
	for i := range q.descs {
		q.descs[i].OpFlags = uint32(OpFlush)
	}
	if err := q.setupRing(); err != nil {
		if !inTestMachine && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS)) {
			t.Skipf("io_uring is switched off on this host: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(q.end)
	return &driven{queue: q, t: t, change: changed}
}

func (d *driven) step() {
	d.t.Helper()
	if err := d.ring.Enter(1); err != nil {
		d.t.Fatal(err)
	}
	d.turn()
	d.publish()
	if d.err != nil {
		d.t.Fatal(d.err)
	}
}

// until takes turns until the condition holds. The commands of /dev/null never
// let a turn wait, so that a condition that cannot come true ends the test.
func (d *driven) until(what string, cond func() bool) {
	d.t.Helper()
	for range 100_000 {
		if cond() {
			return
		}
		d.step()
	}
	d.t.Fatalf("%s never happened: %+v", what, d.counts())
}

func (d *driven) counts() Stats {
	var s Stats
	d.stats.addTo(&s)
	return s
}

// request has tag 0 serve r from now on, until it was answered once more.
func (d *driven) request(op Op, flags uint32, off, n uint64) {
	d.t.Helper()
	d.descs[0] = ioDesc{OpFlags: uint32(op) | flags, NrSectors: uint32(n / sectorSize), StartSector: off / sectorSize}
	before := d.stats.ops[op].Load()
	d.until(op.String(), func() bool { return d.stats.ops[op].Load() > before })
	d.descs[0] = ioDesc{OpFlags: uint32(OpFlush)}
	// Let what was fetched meanwhile run dry: the next flush is after it.
	flushes := d.stats.ops[OpFlush].Load()
	d.until("flush", func() bool { return d.stats.ops[OpFlush].Load() > flushes })
}

func newFileBackend(t *testing.T, size int64) (*Backend, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBackend(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b, path
}

// Every piece of every request may complete before one is looked at. What finds
// no room waits in a list for which the kernel may have no memory.
func TestRingHasRoomForEveryPiece(t *testing.T) {
	const ioBytes = 64 << 10 // of driven queues
	for name, c := range map[string]struct {
		depth  int
		most   uint32 // that the backend takes at once
		pieces int
	}{
		"any size":        {64, 0, 1},
		"whole":           {64, ioBytes, 1},
		"two":             {64, ioBytes - 4096, 2},
		"eight":           {64, ioBytes / 8, 8},
		"single pages":    {16, 512, 16},
		"shallow":         {1, ioBytes / 8, 8},
		"a few and a bit": {128, 3 * 4096, 6},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := newFileBackend(t, 1<<20)
			b.limits.MaxIOSize = c.most
			d := drive(t, b, c.depth)
			if got, want := d.ring.CQEntries(), c.depth*max(c.pieces, 2)+fetchBuffers; got < want {
				t.Errorf("room for %d completions, want %d", got, want)
			}
		})
	}
}

func TestQueueReadsAndWritesTheBackend(t *testing.T) {
	for name, registered := range map[string]bool{"registered buffers": true, "plain buffers": false} {
		t.Run(name, func(t *testing.T) { readAndWrite(t, registered, 0) })
	}
	t.Run("in pieces", func(t *testing.T) { readAndWrite(t, true, 512) })
}

func readAndWrite(t *testing.T, registered bool, maxPiece uint64) {
	b, path := newFileBackend(t, 1<<20)
	d := drive(t, b, 1)
	d.maxPiece = maxPiece
	if !d.registered {
		t.Log("registering is not permitted here")
	}
	d.registered = d.registered && registered
	pattern := bytes.Repeat([]byte("swap"), 1024)
	buf := d.buffer(0)

	copy(buf, pattern)
	d.request(OpWrite, ioFlagFUA, 8192, 4096)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content[8192:12288], pattern) {
		t.Error("the file does not hold what was written")
	}
	if bytes.Contains(content[:8192], []byte("swap")) || bytes.Contains(content[12288:], []byte("swap")) {
		t.Error("the write went elsewhere as well")
	}

	clear(buf)
	d.request(OpRead, 0, 8192, 4096)
	if !bytes.Equal(buf[:4096], pattern) {
		t.Error("what was read is not what was written")
	}

	for _, tc := range []struct {
		op    Op
		flags uint32
		off   uint64
	}{{OpDiscard, 0, 8192}, {OpWriteZeroes, 0, 9216}, {OpWriteZeroes, ioFlagNoUnmap, 10240}} {
		d.request(tc.op, tc.flags, tc.off, 1024)
		if content, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		if got := content[tc.off : tc.off+1024]; !bytes.Equal(got, make([]byte, 1024)) {
			t.Errorf("%v with flags %#x left data", tc.op, tc.flags)
		}
	}
	if !bytes.Equal(content[11264:12288], pattern[3072:]) {
		t.Error("data beside the zeroes is gone")
	}
	s := d.counts()
	for _, o := range []OpStats{s.Read, s.Write, s.Flush, s.Discard, s.WriteZeroes} {
		if o.Ops == 0 || o.Errors != 0 {
			t.Errorf("counters: %+v", s)
		}
	}
	if s.Read.Bytes != s.Read.Ops*4096 || s.Write.Bytes != s.Write.Ops*4096 {
		t.Errorf("bytes: %+v", s)
	}
}

func TestQueueErrors(t *testing.T) {
	b, path := newFileBackend(t, 1<<20)
	d := drive(t, b, 1)
	wantErrors := func(what string, op Op, off, n uint64) {
		t.Helper()
		before := d.stats.errors[op].Load()
		d.request(op, 0, off, n)
		if d.stats.errors[op].Load() == before {
			t.Errorf("%s: no error", what)
		}
	}
	wantErrors("a request larger than the buffer", OpWrite, 0, 128<<10)
	wantErrors("an empty read", OpRead, 0, 0)
	// The file ends in the middle of the request: first a short read, then none.
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	wantErrors("a read across the end", OpRead, 0, 8192)
	if d.stats.retries.Load() == 0 {
		t.Error("the rest of a short read was not asked for")
	}
	d.gate.setReadOnly(true)
	for _, op := range []Op{OpWrite, OpDiscard, OpWriteZeroes} {
		wantErrors("read-only", op, 0, 4096)
	}
	before := d.stats.errors[OpRead].Load()
	d.request(OpRead, 0, 0, 4096)
	if d.stats.errors[OpRead].Load() != before || d.stats.errors[OpFlush].Load() != 0 {
		t.Error("read-only refused a read or a flush")
	}
	if d.flight != 0 && d.counts().InFlight > 1 {
		t.Errorf("in flight: %d", d.flight)
	}
}

// orderHandler records the offsets it sees.
type orderHandler struct {
	offsets []uint64
	fail    unix.Errno
	panics  bool
}

func (h *orderHandler) Handle(r *Request) unix.Errno {
	h.offsets = append(h.offsets, r.Offset)
	if h.panics {
		panic("handler is broken")
	}
	return h.fail
}

func handlerBackend(t *testing.T, h Handler) *Backend {
	t.Helper()
	b, err := NewHandlerBackend("test", h, Limits{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestQueueGate(t *testing.T) {
	h := &orderHandler{}
	d := drive(t, handlerBackend(t, h), 4)
	for i := range d.descs {
		d.descs[i] = ioDesc{OpFlags: uint32(OpRead), NrSectors: 8, StartSector: uint64(i) * 8}
	}
	d.gate.set(gateHold)
	d.wake()
	d.until("all held", func() bool { return len(d.held) == 4 })
	if d.counts().HeldNow != 4 || d.counts().Held != 4 {
		t.Errorf("counters: %+v", d.counts())
	}
	order := append([]uint16(nil), d.held...)
	h.offsets = nil
	d.gate.set(gateServe)
	d.wake()
	d.step()
	if len(d.held) != 0 || cap(d.held) != 4 {
		t.Errorf("held: %d, capacity %d", len(d.held), cap(d.held))
	}
	for i, tag := range order {
		if h.offsets[i] != uint64(tag)*4096 {
			t.Fatalf("released in the order %v, held in %v", h.offsets[:4], order)
		}
	}

	d.gate.set(gateHold)
	d.wake()
	d.until("all held", func() bool { return len(d.held) == 4 })
	handled := len(h.offsets)
	d.gate.set(gateRefuse)
	d.wake()
	d.step()
	if len(d.held) != 0 || d.counts().Refused != 4 {
		t.Errorf("refusing the held: %+v", d.counts())
	}
	d.step()
	if d.counts().Refused < 8 || len(h.offsets) != handled {
		t.Errorf("refusing the new: %+v, %d handled", d.counts(), len(h.offsets)-handled)
	}
	if s := d.counts(); s.Read.Errors != 0 {
		t.Errorf("refused requests were counted as errors: %+v", s)
	}
}

func TestQueueSurvivesAPanic(t *testing.T) {
	h := &orderHandler{panics: true}
	d := drive(t, handlerBackend(t, h), 2)
	d.descs[0] = ioDesc{OpFlags: uint32(OpRead), NrSectors: 8}
	d.descs[1] = ioDesc{OpFlags: uint32(OpRead), NrSectors: 8, StartSector: 8}
	d.until("panics on both tags", func() bool { return len(h.offsets) > 10 })
	s := d.counts()
	if s.Panics != uint64(len(h.offsets)) || s.Read.Errors != s.Panics {
		t.Errorf("%d panics happened: %+v", len(h.offsets), s)
	}
	h.panics = false
	errs := s.Read.Errors
	d.until("good answers", func() bool { return d.counts().Read.Bytes > 4*4096 })
	if d.counts().Read.Errors != errs {
		t.Error("errors after the panics")
	}
}

func TestQueueKnowsAbort(t *testing.T) {
	d := drive(t, handlerBackend(t, Null{}), 2)
	d.fetchedOK(0, -int32(unix.ENODEV))
	if d.live != 1 || d.err != nil {
		t.Errorf("abort: %d live, %v", d.live, d.err)
	}
	var told []error
	d.broke = func(err error) { told = append(told, err) }
	d.fetchedOK(1, -int32(unix.EINVAL))
	d.fail(unix.EIO) // the first one counts
	if d.live != 0 || !errors.Is(d.err, unix.EINVAL) || len(told) != 1 || !errors.Is(told[0], unix.EINVAL) {
		t.Errorf("a refused fetch: %d live, %v, told %v", d.live, d.err, told)
	}
}

func TestTryingAgain(t *testing.T) {
	for _, e := range []unix.Errno{unix.EAGAIN, unix.EINTR} {
		s := slot{op: OpWrite, n: 4096}
		for i := range maxTries {
			if flags, ok := s.again(true, e); !ok || flags != uring.SQEAsync {
				t.Fatalf("%v, try %d: flags %#x, %v", e, i, flags, ok)
			}
		}
		if _, ok := s.again(true, e); ok {
			t.Errorf("%v: never gives up", e)
		}
	}
	zeroes := slot{op: OpWriteZeroes}
	if _, ok := zeroes.again(true, unix.EOPNOTSUPP); !ok || zeroes.mode != 1 {
		t.Error("zeroes: the other way was not tried")
	}
	if _, ok := zeroes.again(true, unix.EOPNOTSUPP); ok {
		t.Error("zeroes: there is no third way")
	}
	for _, s := range []slot{{op: OpRead}, {op: OpWrite}, {op: OpDiscard}, {op: OpFlush}} {
		if _, ok := s.again(true, unix.EOPNOTSUPP); ok {
			t.Errorf("%v: tried again after EOPNOTSUPP", s.op)
		}
		if _, ok := s.again(true, unix.EIO); ok {
			t.Errorf("%v: tried again after EIO", s.op)
		}
	}
}

func TestClientErrnos(t *testing.T) {
	for _, tc := range []struct {
		op      Op
		e, want unix.Errno
	}{
		{OpRead, unix.EAGAIN, unix.EIO}, {OpWrite, unix.EOPNOTSUPP, unix.EIO},
		{OpWrite, unix.ENOSPC, unix.ENOSPC}, {OpDiscard, unix.EOPNOTSUPP, unix.EOPNOTSUPP},
	} {
		if got := clientErrno(tc.op, tc.e); got != tc.want {
			t.Errorf("%v of a %v becomes %v, want %v", tc.e, tc.op, got, tc.want)
		}
	}
}

func TestZeroModes(t *testing.T) {
	const punch, zero = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	for _, tc := range []struct {
		block, noUnmap bool
		want           []uint32
	}{
		{true, true, []uint32{zero}}, // never unmaps
		{true, false, []uint32{punch, zero}},
		{false, true, []uint32{zero, punch}},
		{false, false, []uint32{punch, zero}},
	} {
		for i := uint8(0); ; i++ {
			mode, ok := zeroMode(tc.block, tc.noUnmap, i)
			if ok != (int(i) < len(tc.want)) {
				t.Errorf("%+v: way %d exists: %v", tc, i, ok)
			}
			if !ok {
				break
			}
			if int(i) < len(tc.want) && mode != tc.want[i] {
				t.Errorf("%+v: way %d is %#x", tc, i, mode)
			}
		}
	}
}

func TestQueueTurnsDoNotAllocate(t *testing.T) {
	file, _ := newFileBackend(t, 1<<20)
	memory, err := NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for name, b := range map[string]*Backend{"file": file, "memory": handlerBackend(t, memory)} {
		t.Run(name, func(t *testing.T) {
			d := drive(t, b, 8)
			for i := range d.descs {
				op := OpRead
				if i%2 == 0 {
					op = OpWrite
				}
				d.descs[i] = ioDesc{OpFlags: uint32(op), NrSectors: 8, StartSector: uint64(i) * 8}
			}
			n := testing.AllocsPerRun(200, func() {
				d.gate.set(gateHold) // the gate's own paths as well
				d.wake()
				d.step()
				d.gate.set(gateServe)
				d.wake()
				// Buffered writes complete on a worker thread, some turns later.
				for more := d.stats.ops[OpWrite].Load() + 1; d.stats.ops[OpWrite].Load() < more; {
					d.step()
				}
			})
			if n != 0 {
				t.Errorf("%v allocations per run", n)
			}
			if s := d.counts(); s.Read.Ops == 0 || s.Write.Ops == 0 || s.Held == 0 {
				t.Errorf("nothing was served: %+v", s)
			}
		})
	}
}

func TestMemory(t *testing.T) {
	if _, err := NewMemory(1000); err == nil {
		t.Error("a size that is no multiple of a page was accepted")
	}
	m, err := NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	data := bytes.Repeat([]byte{0xa5}, 64<<10)
	do := func(op Op, off, n uint64, buf []byte) unix.Errno {
		return m.Handle(&Request{Op: op, Offset: off, Length: n, Data: buf})
	}
	if e := do(OpWrite, 4096, uint64(len(data)), data); e != 0 {
		t.Fatal(e)
	}
	// A range with ragged ends, and one inside a page.
	if e := do(OpDiscard, 4096+512, 16384, nil); e != 0 {
		t.Fatal(e)
	}
	if e := do(OpWriteZeroes, 40960+512, 1024, nil); e != 0 {
		t.Fatal(e)
	}
	got := make([]byte, 72<<10)
	if e := do(OpRead, 0, uint64(len(got)), got); e != 0 {
		t.Fatal(e)
	}
	want := make([]byte, len(got))
	copy(want[4096:], data)
	clear(want[4608 : 4608+16384])
	clear(want[41472 : 41472+1024])
	if !bytes.Equal(got, want) {
		t.Error("the disk does not hold what it should")
	}
	for name, r := range map[string]Request{
		"past the end": {Op: OpRead, Offset: 1 << 20, Length: 512},
		"overflow":     {Op: OpRead, Offset: math.MaxUint64, Length: 512},
	} {
		if m.Handle(&r) != unix.EIO {
			t.Errorf("%s: no EIO", name)
		}
	}
	if e := do(Op(4), 0, 512, nil); e != unix.EOPNOTSUPP {
		t.Errorf("unknown operation: %v", e)
	}
}
