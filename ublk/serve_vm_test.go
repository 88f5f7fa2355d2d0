//go:build vm

package ublk

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestFioVerify(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		queues int
		open   func(t *testing.T) *Backend
	}{
		{"memory", 2, func(t *testing.T) *Backend { return memoryBackend(t, 64<<20) }},
		{"file", 1, func(t *testing.T) *Backend { return openBackend(t, file) }},
		{"nvme-1-queue", 1, func(t *testing.T) *Backend { return openBackend(t, nvmeDisk) }},
		{"nvme-4-queues", 4, func(t *testing.T) *Backend { return openBackend(t, nvmeDisk) }},
	} {
		verify := func(t *testing.T, way DataPath) {
			checkClean(t)
			d := startDevice(t, tc.open(t), Options{DataPath: way, Queues: tc.queues})
			if got := d.Info().Flags.DataPath(); way != DataPathAuto && got != way {
				t.Errorf("data path %v, asked for %v", got, way)
			}
			t.Logf("%d queues", d.Info().Queues) // the driver makes no more than there are CPUs
			startFio(t, d.Path(), verifyArgs(8)...).wait()
			s := d.Stats()
			if s.Write.Bytes < 32<<20 || s.Read.Bytes < 32<<20 || s.Read.Errors+s.Write.Errors+s.Panics != 0 {
				t.Errorf("counters: %+v", s)
			}
		}
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "memory" {
				verify(t, DataPathAuto)
				return
			}
			everyPath(t, verify)
		})
	}
}

func memoryBackend(t *testing.T, size uint64) *Backend {
	t.Helper()
	m, err := NewMemory(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	b, err := NewHandlerBackend("memory", m, Limits{Size: size, MaxDiscard: 1 << 30, MaxWriteZeroes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNull(t *testing.T) { everyPath(t, null) }

func null(t *testing.T, way DataPath) {
	checkClean(t)
	b, err := NewHandlerBackend("null", Null{}, Limits{Size: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	d := startDevice(t, b, Options{DataPath: way, Queues: 2, Depth: 128})
	startFio(t, d.Path(), "--rw=randrw", "--bs=4k", "--iodepth=32", "--size=32M", "--numjobs=2").wait()
	if s := d.Stats(); s.Read.Ops+s.Write.Ops < 2*8192 {
		t.Errorf("counters: %+v", s)
	}
}

// The limits of the backend are those that clients see.
func TestLimitsAreTheBackends(t *testing.T) {
	checkClean(t)
	b := openBackend(t, nvmeDisk)
	d := startDevice(t, b, Options{Queues: 1})
	got, err := sysfsLimits("/sys/block/" + filepath.Base(d.Path()))
	if err != nil {
		t.Fatal(err)
	}
	got.Size = b.Limits().Size
	want := b.Limits()
	// The hint is only right or absent; absent is shown as the block size.
	want.OptimalIOSize, got.OptimalIOSize = 0, 0
	// How large requests are is the device's own affair.
	want.MaxIOSize, got.MaxIOSize = 0, 0
	if d.Info().Flags.DataPath() == DataPathCopy {
		want.DMAAlignment, want.VirtBoundary, want.MaxSegments, want.MaxSegmentSize = got.DMAAlignment, got.VirtBoundary, got.MaxSegments, got.MaxSegmentSize
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sysfs (-backend +device):\n%s", diff)
	}
	if size, err := openBackend(t, d.Path()).Size(); err != nil || size != want.Size {
		t.Errorf("size %d, %v; want %d", size, err, want.Size)
	}
}

// recorder keeps what arrives.
type recorder struct {
	mu   sync.Mutex
	seen []string
}

func (r *recorder) Handle(q *Request) unix.Errno {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q.Op != OpRead {
		r.seen = append(r.seen, fmt.Sprintf("%v %d+%d fua=%v nounmap=%v", q.Op, q.Offset, q.Length, q.FUA, q.NoUnmap))
	}
	return 0
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

func TestOperationsArriveAsAsked(t *testing.T) {
	checkClean(t)
	rec := &recorder{}
	b, err := NewHandlerBackend("recorder", rec, Limits{
		Size: 1 << 30, VolatileCache: true, MaxDiscard: 1 << 30, DiscardGranularity: 4096, MaxWriteZeroes: 1 << 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	d := startDevice(t, b, Options{Queues: 1})
	c := openClient(t, d.Path(), unix.O_RDWR)
	rec.take()
	for _, tc := range []struct {
		name string
		do   func() unix.Errno
		want []string
	}{
		{"write", func() unix.Errno { return c.write(4096, 8192, 0) }, []string{"write 4096+8192 fua=false nounmap=false"}},
		// The kernel follows a durable write by a flush of its own.
		{"durable write", func() unix.Errno { return c.write(512, 512, unix.RWF_DSYNC) },
			[]string{"write 512+512 fua=true nounmap=false", "flush 0+0 fua=false nounmap=false"}},
		{"flush", func() unix.Errno { return errnoOf(unix.Fdatasync(c.fd)) }, []string{"flush 0+0 fua=false nounmap=false"}},
		{"discard", func() unix.Errno { return c.rangeIoctl(blkDiscard, 1<<20, 2<<20) }, []string{"discard 1048576+2097152 fua=false nounmap=false"}},
		{"zeroes", func() unix.Errno { return c.rangeIoctl(blkZeroOut, 1<<20, 1<<20) }, []string{"write-zeroes 1048576+1048576 fua=false nounmap=true"}},
		{"hole", func() unix.Errno {
			return errnoOf(unix.Fallocate(c.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8192, 4096))
		}, []string{"write-zeroes 8192+4096 fua=false nounmap=false"}},
	} {
		if e := tc.do(); e != 0 {
			t.Errorf("%s: %v", tc.name, e)
		}
		if diff := cmp.Diff(tc.want, rec.take()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}

// The same operations through the ring to a real disk.
func TestOperationsReachTheDisk(t *testing.T) { everyPath(t, operationsReachTheDisk) }

func operationsReachTheDisk(t *testing.T, way DataPath) {
	checkClean(t)
	d := startDevice(t, openBackend(t, nvmeDisk), Options{DataPath: way, Queues: 1})
	c := openClient(t, d.Path(), unix.O_RDWR)
	under := openClient(t, nvmeDisk, unix.O_RDONLY)
	fill := func(v byte) {
		for i := range c.buf {
			c.buf[i] = v
		}
	}
	onDisk := func(name string, off int64, v byte) {
		t.Helper()
		if e := under.read(off, len(under.buf)); e != 0 {
			t.Fatalf("%s: reading the disk: %v", name, e)
		}
		if !bytes.Equal(under.buf, bytes.Repeat([]byte{v}, len(under.buf))) {
			t.Errorf("%s: the disk does not hold %#x", name, v)
		}
	}
	fill(0x5a)
	for _, off := range []int64{0, 1 << 20, 2 << 20, 3 << 20} {
		if e := c.write(off, len(c.buf), 0); e != 0 {
			t.Fatal(e)
		}
		onDisk("write", off, 0x5a)
	}
	flushes := flushesOf(t, nvmeDisk)
	if err := unix.Fdatasync(c.fd); err != nil {
		t.Fatal(err)
	}
	if flushesOf(t, nvmeDisk) == flushes {
		t.Error("the flush did not reach the disk")
	}
	fill(0xc3)
	if e := c.write(3<<20, len(c.buf), unix.RWF_DSYNC); e != 0 {
		t.Fatal(e)
	}
	onDisk("durable write", 3<<20, 0xc3)
	if e := c.rangeIoctl(blkZeroOut, 0, uint64(len(c.buf))); e != 0 {
		t.Fatal(e)
	}
	onDisk("zeroes", 0, 0)
	err := unix.Fallocate(c.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, int64(len(c.buf)))
	if err != nil {
		t.Fatal(err)
	}
	onDisk("hole", 1<<20, 0)
	// What a discarded block reads as is the disk's business (QEMU's: zeroes).
	discards := d.Stats().Discard
	if e := c.rangeIoctl(blkDiscard, 2<<20, uint64(len(c.buf))); e != 0 {
		t.Fatal(e)
	}
	if s := d.Stats(); s.Discard.Ops != discards.Ops+1 || s.Discard.Errors != 0 {
		t.Errorf("discard: %+v", s.Discard)
	}
	if s := d.Stats(); s.WriteZeroes.Errors+s.Write.Errors+s.Flush.Errors != 0 {
		t.Errorf("errors: %+v", s)
	}
}

// flushesOf reads field 16 of Documentation/block/stat.rst.
func flushesOf(t *testing.T, device string) string {
	t.Helper()
	stat, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat))
	if len(fields) < 16 {
		t.Fatalf("%s: %d fields", device, len(fields))
	}
	return fields[15]
}

// failing answers every request with one errno.
type failing struct {
	mu sync.Mutex
	e  unix.Errno
}

func (f *failing) set(e unix.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.e = e
}

func (f *failing) Handle(*Request) unix.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.e
}

func TestErrnosThatClientsSee(t *testing.T) {
	checkClean(t)
	f := &failing{}
	b, err := NewHandlerBackend("failing", f, Limits{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	d := startDevice(t, b, Options{Queues: 1})
	c := openClient(t, d.Path(), unix.O_RDWR)
	want := map[unix.Errno]unix.Errno{
		// Not through the page, see clientErrno and the package comment.
		unix.EAGAIN: unix.EIO, unix.EOPNOTSUPP: unix.EIO, unix.EPERM: unix.EIO, unix.EROFS: unix.EIO,
	}
	for _, e := range []unix.Errno{
		0, unix.EBUSY, unix.EIO, unix.ENOSPC, unix.ENOMEM, unix.ETIMEDOUT, unix.ENODEV, unix.EINVAL,
		unix.EREMOTEIO, unix.ENOLINK, unix.EILSEQ, unix.ENODATA,
	} {
		want[e] = e
	}
	for e, seen := range want {
		f.set(e)
		if got := c.write(0, 4096, 0); got != seen {
			t.Errorf("write: %v arrives as %v, want %v", e, got, seen)
		}
		if got := c.read(0, 4096); got != seen {
			t.Errorf("read: %v arrives as %v, want %v", e, got, seen)
		}
	}
	f.set(0)
}

func TestReadOnlyDevice(t *testing.T) {
	checkClean(t)
	d := startDevice(t, memoryBackend(t, 1<<20), Options{Queues: 1, ReadOnly: true})
	if !d.Limits().ReadOnly {
		t.Error("limits do not say so")
	}
	fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if ro, err := unix.IoctlGetInt(fd, unix.BLKROGET); err != nil || ro != 1 {
		t.Errorf("BLKROGET: %d, %v", ro, err)
	}
	if b := openBackend(t, d.Path()); !b.Limits().ReadOnly {
		t.Error("a backend on it is not read-only")
	}
}

func TestSetReadOnly(t *testing.T) { everyPath(t, setReadOnly) }

func setReadOnly(t *testing.T, way DataPath) {
	checkClean(t)
	d := startDevice(t, openBackend(t, nvmeDisk), Options{DataPath: way, Queues: 2})
	c := openClient(t, d.Path(), unix.O_RDWR)
	d.SetReadOnly(true)
	for name, e := range map[string]unix.Errno{
		"write":   c.write(0, 4096, 0),
		"discard": c.rangeIoctl(blkDiscard, 0, 4096),
		"zeroes":  c.rangeIoctl(blkZeroOut, 0, 4096),
	} {
		if e != unix.EIO {
			t.Errorf("%s: %v, want EIO", name, e)
		}
	}
	if e := c.read(0, 4096); e != 0 {
		t.Errorf("read: %v", e)
	}
	if err := unix.Fdatasync(c.fd); err != nil {
		t.Errorf("flush: %v", err)
	}
	d.SetReadOnly(false)
	if e := c.write(0, 4096, 0); e != 0 {
		t.Errorf("write afterwards: %v", e)
	}
}

func TestNoAllocationUnderLoad(t *testing.T) { everyPath(t, noAllocationUnderLoad) }

func noAllocationUnderLoad(t *testing.T, way DataPath) {
	checkClean(t)
	underLoad(t, way, func(load func() uint64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		served := load()
		runtime.ReadMemStats(&after)
		// What is left is the runtime's own, and independent of the load.
		allocs := after.Mallocs - before.Mallocs
		t.Logf("%d allocations during %d requests", allocs, served)
		if allocs > served/100 {
			t.Errorf("%d allocations during %d requests", allocs, served)
		}
	})
}

func TestNoLockUnderLoad(t *testing.T) { everyPath(t, noLockUnderLoad) }

// noLockUnderLoad has the runtime record every wait for a lock, a channel or
// anything else of Go's, and every lock that others had to wait for.
func noLockUnderLoad(t *testing.T, way DataPath) {
	checkClean(t)
	runtime.SetBlockProfileRate(1)
	defer runtime.SetBlockProfileRate(0)
	defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(1))
	underLoad(t, way, func(load func() uint64) {
		before := queueWaits(t)
		served := load()
		// One wait in 5,000 requests was seen on a machine with four others on its two
		// processors; a lock or a channel on the way of requests makes hundreds.
		waits := queueWaits(t) - before
		t.Logf("queues waited %d times during %d requests", waits, served)
		if waits > int64(served/500) {
			t.Errorf("queues waited %d times during %d requests", waits, served)
		}
	})
}

// queueWaits counts what the profiles have of the queues' goroutines.
func queueWaits(t *testing.T) int64 {
	t.Helper()
	var n int64
	seen := 0
	for _, profile := range []func([]runtime.BlockProfileRecord) (int, bool){runtime.BlockProfile, runtime.MutexProfile} {
		size, _ := profile(nil)
		records := make([]runtime.BlockProfileRecord, size+100)
		size, ok := profile(records)
		if !ok {
			t.Fatalf("%d records", size)
		}
		seen += size
		for _, r := range records[:size] {
			frames := runtime.CallersFrames(r.Stack())
			for more := true; more; {
				var f runtime.Frame
				f, more = frames.Next()
				if strings.Contains(f.Function, "ublk.(*queue)") {
					n += r.Count
					break
				}
			}
		}
	}
	if seen == 0 {
		t.Error("the profiles are empty: nothing was counted")
	}
	return n
}

// underLoad calls measure while fio keeps a device busy. The load that it is
// given lasts for 5,000 requests and tells how many it were.
func underLoad(t *testing.T, way DataPath, measure func(load func() uint64)) {
	d := startDevice(t, openBackend(t, nvmeDisk), Options{DataPath: way, Queues: 2})
	f := startFio(t, d.Path(), "--rw=randrw", "--bs=4k", "--iodepth=32", "--size=64M", "--numjobs=2",
		"--time_based", "--runtime=8")
	ops := func() uint64 { s := d.Stats(); return s.Read.Ops + s.Write.Ops }
	eventually(t, "warm-up", func() bool { return ops() > 1000 })
	measure(func() uint64 {
		start := ops()
		eventually(t, "load", func() bool { return ops() > start+5000 })
		return ops() - start
	})
	f.wait()
}

func TestFilesystems(t *testing.T) {
	for name, tools := range map[string][]string{
		"ext4": {"mkfs.ext4 -q -F", "fsck.ext4 -fn"},
		"xfs":  {"mkfs.xfs -q -f", "xfs_repair -n"},
	} {
		t.Run(name, func(t *testing.T) {
			checkClean(t)
			d := startDevice(t, openBackend(t, nvmeDisk), Options{Queues: 2})
			dir := t.TempDir()
			script := fmt.Sprintf(`set -e
				%[1]s %[3]s
				mount %[3]s %[4]s
				mkdir %[4]s/d
				dd if=/dev/urandom of=%[4]s/d/all bs=64k count=64 status=none
				split -b 20000 %[4]s/d/all %[4]s/d/part.
				sync -f %[4]s
				(cd %[4]s/d && sha256sum *) > %[4]s.sums
				rm %[4]s/d/part.a?
				grep -v part.a %[4]s.sums > %[4]s.left
				fstrim %[4]s
				umount %[4]s
				%[2]s %[3]s
				mount %[3]s %[4]s
				(cd %[4]s/d && sha256sum --quiet -c %[4]s.left)
				umount %[4]s`, tools[0], tools[1], d.Path(), dir)
			if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if s := d.Stats(); s.Flush.Ops == 0 || s.Discard.Ops == 0 || s.Write.Errors+s.Flush.Errors+s.Discard.Errors != 0 {
				t.Errorf("counters: %+v", s)
			}
		})
	}
}
