package nvmeof

import (
	"bytes"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// chopped sends in pieces of random size.
type chopped struct {
	net.Conn
	rnd *rand.Rand
}

func (c chopped) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		size := 1 + c.rnd.IntN(100)
		if c.rnd.IntN(3) == 0 {
			size *= 200
		}
		var m int
		m, err = c.Conn.Write(b[n:min(n+size, len(b))])
		n += m
	}
	return n, err
}

// TestPiecemeal: wherever the stream is cut, it means the same.
func TestPiecemeal(t *testing.T) {
	variants(t, func(t *testing.T, opt Options, change func(*nvmetest.Config)) {
		r := newRig(t, opt)
		q := r.connect(change).IO[0]
		q.Conn = chopped{q.Conn, rand.New(rand.NewPCG(1, 1))}
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(w), 3))
				for i := range 20 {
					data := noise(rnd.Uint64(), (1+rnd.IntN(100))*512)
					lba := uint64(w * 1024)
					if err := q.Write(1, lba, data); err != nil {
						t.Errorf("write %d: %v", i, err)
						return
					}
					back := make([]byte, len(data))
					if err := q.Read(1, lba, back); err != nil || !bytes.Equal(back, data) {
						t.Errorf("read %d: the same %v, %v", i, bytes.Equal(back, data), err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// TestFullSocket: a host that takes its answers slowly gets all of them, right.
func TestFullSocket(t *testing.T) {
	variants(t, func(t *testing.T, opt Options, change func(*nvmetest.Config)) {
		r := newRig(t, opt)
		copy(r.memory.mem, noise(5, testSize))
		q := r.connect(change).IO[0]
		if err := q.Conn.(*net.TCPConn).SetReadBuffer(256 << 10); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{4096, 128 << 10} {
			var sent []*nvmetest.Sent
			var got [][]byte
			for i := range 60 {
				b := make([]byte, n)
				cmd := nvmetest.IOCommand(wire.OpRead, 1, uint64(i*n/512), n/512)
				s, err := q.Send(&cmd, nil, b)
				if err != nil {
					t.Fatal(err)
				}
				sent, got = append(sent, s), append(got, b)
			}
			for i, s := range sent {
				if _, err := s.Wait(); err != nil || !bytes.Equal(got[i], r.memory.mem[i*n:][:n]) {
					t.Fatalf("read %d of %d bytes: right %v, %v", i, n, bytes.Equal(got[i], r.memory.mem[i*n:][:n]), err)
				}
			}
		}
	})
}

// TestLargeBlocks: a namespace whose blocks have 4096 bytes.
func TestLargeBlocks(t *testing.T) {
	r := newRig(t, Options{})
	b, err := NewHandlerBackend("memory", r.memory, Limits{Size: testSize, LogicalBlockSize: 4096, PhysicalBlockSize: 8192, OptimalIOSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	r.addNamespace(2, b)
	c := r.connect()
	page, err := c.Identify(wire.CNSNamespace, 2)
	if n := wire.ParseIdentifyNamespace(page); err != nil || n.BlockShift != 12 || n.Size != testSize/4096 || n.NPWG != 1 || n.NOWS != 15 {
		t.Errorf("%+v, %v", n, err)
	}
	data := noise(1, 8192)
	cmd := nvmetest.IOCommand(wire.OpWrite, 2, 3, 2)
	if _, err := c.IO[0].Do(&cmd, data, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.memory.mem[3*4096:][:8192], data) {
		t.Error("it was not written to block 3")
	}
	cmd = nvmetest.IOCommand(wire.OpRead, 2, testSize/4096, 1)
	_, err = c.IO[0].Do(&cmd, nil, make([]byte, 4096))
	wantStatus(t, "the block behind the last", err, wire.LBAOutOfRange|wire.DNR)
	if err := r.subsys.Namespace(2).Resize(testSize - 512); err == nil {
		t.Error("half a block was taken")
	}
}

// marks remembers what it was told, and says yes unless it is to say something else.
type marks struct {
	mu      sync.Mutex
	list    [][2]uint64
	later   bool       // not yet
	no      unix.Errno // no
	waiting []Waker
}

func (m *marks) Touch(off, n uint64, w Waker) (yes bool, no unix.Errno) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.later || m.no != 0 {
		m.waiting = append(m.waiting, w)
		return false, m.no
	}
	m.list = append(m.list, [2]uint64{off, n})
	return true, 0
}

// say changes the answer, and wakes those who wait for another.
func (m *marks) say(later bool, no unix.Errno) {
	m.mu.Lock()
	list := m.waiting
	m.later, m.no, m.waiting = later, no, nil
	m.mu.Unlock()
	for _, w := range list {
		w.Wake()
	}
}

func (m *marks) waits() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.waiting)
}

func (m *marks) told() [][2]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list
}

// TestChanges: everything that changes content is told, in bytes, to who listens now.
func TestChanges(t *testing.T) {
	r := newRig(t, Options{})
	q := r.connect().IO[0]
	first, second := &marks{}, &marks{}
	r.ns.SetChanges(first)
	if err := q.Write(1, 8, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	zero := nvmetest.IOCommand(wire.OpWriteZeroes, 1, 1, 2)
	if _, err := q.Do(&zero, nil, nil); err != nil {
		t.Fatal(err)
	}
	ranges := make([]byte, 32)
	wire.Range{Blocks: 1, LBA: 7}.Put(ranges)
	wire.Range{Blocks: 3, LBA: 100}.Put(ranges[16:])
	dsm := wire.SQE{Opcode: wire.OpDSM, NSID: 1, CDW10: 1, CDW11: wire.DSMDeallocate}
	if _, err := q.Do(&dsm, ranges, nil); err != nil {
		t.Fatal(err)
	}
	r.ns.SetChanges(second)
	compare := nvmetest.IOCommand(wire.OpCompare, 1, 1, 1)
	if _, err := q.Do(&compare, make([]byte, 512), nil); err != nil {
		t.Fatal(err)
	}
	if err := q.Read(1, 0, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	r.ns.SetChanges(nil)
	if err := q.Write(1, 8, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	want := [][2]uint64{{4096, 4096}, {512, 1024}, {7 * 512, 512}, {100 * 512, 3 * 512}}
	if got := first.told(); !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	if got := second.told(); len(got) != 0 {
		t.Errorf("told %v of a compare and a read", got)
	}
}

// TestStatusOf: what may pass never says "do not retry".
func TestStatusOf(t *testing.T) {
	for e, want := range map[unix.Errno]wire.Status{
		0:               wire.Success,
		unix.EBUSY:      wire.NamespaceNotReady.WithDelay(1),
		unix.EAGAIN:     wire.NamespaceNotReady.WithDelay(1),
		unix.EIO:        wire.WriteFault,
		unix.ENOSPC:     wire.CapacityExceeded | wire.DNR,
		unix.EROFS:      wire.NamespaceProtected | wire.DNR,
		unix.EOPNOTSUPP: wire.InvalidOpcode | wire.DNR,
		unix.EINVAL:     wire.InvalidField | wire.DNR,
		unix.ENOMEM:     wire.InternalError,
		unix.ETIMEDOUT:  wire.InternalError,
		unix.ENODEV:     wire.InternalError,
	} {
		if got := statusOf(OpWrite, e); got != want {
			t.Errorf("%v: %v, want %v", e, got, want)
		}
	}
	if got := statusOf(OpRead, unix.EIO); got != wire.UnrecoveredRead {
		t.Errorf("a read that fails: %v", got)
	}
}
