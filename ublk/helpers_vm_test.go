//go:build vm

package ublk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// nvmeDisk is a blank disk of the test machine. Tests overwrite it.
const nvmeDisk = "/dev/nvme0n1"

// serveEnv makes the test binary a server instead: "ID BACKEND QUEUES PATH", with
// ID -1 to start a device, -2 for one that ends with it, and another to adopt it.
const serveEnv = "UBLK_TEST_SERVE"

func TestMain(m *testing.M) {
	ReserveProcs(2)
	if spec := os.Getenv(serveEnv); spec != "" {
		if err := runServer(spec); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runServer serves until it is killed.
func runServer(spec string) error {
	var (
		id, queues     int
		path, dataPath string
	)
	if _, err := fmt.Sscan(spec, &id, &path, &queues, &dataPath); err != nil {
		return err
	}
	way, err := ParseDataPath(dataPath)
	if err != nil {
		return err
	}
	b, err := OpenBackend(path)
	if err != nil {
		return err
	}
	begin := Start
	if id >= 0 {
		begin = Adopt
	}
	d, err := begin(context.Background(), b, Options{
		ID: max(id, -1), Queues: queues, Tag: testTag, DataPath: way, EndWithServer: id == -2,
	})
	if err != nil {
		return err
	}
	fmt.Println(d.ID())
	<-d.Done()
	return d.Err()
}

const testTag = 0x7562

// server is a subprocess that serves one device.
type server struct {
	cmd *exec.Cmd
	id  int
}

func startServer(t *testing.T, id int, path string, queues int, way DataPath) *server {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %d %v", serveEnv, id, path, queues, way))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &server{cmd: cmd}
	t.Cleanup(s.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("server said %q: %v", line, err)
	}
	if _, err := fmt.Sscan(line, &s.id); err != nil {
		t.Fatalf("server said %q", line)
	}
	return s
}

// kill is kill -9, and waits for the end of the process.
func (s *server) kill() {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

// checkClean fails the test if it leaves a device, a descriptor or a goroutine.
// Call it first, so that its check comes last.
func checkClean(t *testing.T) {
	t.Helper()
	before := descriptors(t)
	t.Cleanup(func() {
		c := control(t)
		infos, err := c.List(context.Background())
		if err != nil {
			t.Error(err)
		}
		for _, i := range infos {
			t.Errorf("device left over: %+v", i)
			if err := c.Delete(context.Background(), i.ID); err != nil {
				t.Error(err)
			}
		}
		c.Close()
		goleak.VerifyNone(t)
		for fd, target := range descriptors(t) {
			if before[fd] != target {
				t.Errorf("descriptor left over: %s -> %s", fd, target)
			}
		}
	})
}

func descriptors(t *testing.T) map[string]string {
	t.Helper()
	const dir = "/proc/self/fd/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	fds := map[string]string{}
	for _, e := range entries {
		target, err := os.Readlink(dir + e.Name())
		// The runtime's own poller comes once and stays; the listing itself is gone.
		if err == nil && !strings.Contains(target, "[eventpoll]") && target != "anon_inode:[eventfd]" {
			fds[e.Name()] = target
		}
	}
	return fds
}

func control(t *testing.T) *Control {
	t.Helper()
	c, err := OpenControl(ControlOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func features(t *testing.T) Features {
	t.Helper()
	c, err := OpenControl(ControlOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() // not at the end of the test: a part of it may look for leaks
	f, err := c.Features(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// everyPath runs a test once for each data path that this kernel has.
func everyPath(t *testing.T, test func(t *testing.T, way DataPath)) {
	have := features(t)
	for way, need := range map[DataPath]struct {
		flags Features
		since string
	}{
		DataPathCopy:     {0, ""},
		DataPathZeroCopy: {zeroCopyFlags, "6.16"},
		DataPathBatch:    {batchFlags, "7.0"},
	} {
		t.Run(way.String(), func(t *testing.T) {
			if !have.Has(need.flags) {
				mustBeOlder(t, need.since)
				t.Skipf("needs kernel %s", need.since)
			}
			test(t, way)
		})
	}
}

// mustBeOlder fails the test when the kernel should have what it lacks.
func mustBeOlder(t *testing.T, since string) {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	var major, minor, wantMajor, wantMinor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(since, "%d.%d", &wantMajor, &wantMinor); err != nil {
		t.Fatal(err)
	}
	if major > wantMajor || major == wantMajor && minor >= wantMinor {
		t.Fatalf("kernel %d.%d should have what came with %s", major, minor, since)
	}
}

func openBackend(t *testing.T, path string) *Backend {
	t.Helper()
	b, err := OpenBackend(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func testOptions(o Options) Options {
	if o.ID == 0 {
		o.ID = -1
	}
	o.Tag = testTag
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return o
}

// startDevice starts a device that is stopped at the end of the test. A test that
// holds requests wants NoPartitionScan: on newer kernels the scan runs in the
// background, would be held with them, and keeps others from opening the device.
func startDevice(t *testing.T, b *Backend, o Options) *Device {
	t.Helper()
	d, err := Start(t.Context(), b, testOptions(o))
	if err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, d)
	return d
}

func stopAtEnd(t *testing.T, d *Device) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		d.Release()
		if err := d.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
}

// fio runs in the background until wait.
type fio struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  strings.Builder
	done chan error
}

func startFio(t *testing.T, device string, args ...string) *fio {
	t.Helper()
	f := &fio{t: t, done: make(chan error, 1)}
	// Jobs that are processes outlive a fio that gave them up, and hold the device.
	f.cmd = exec.Command("fio", append([]string{
		"--thread", "--clocksource=clock_gettime",
		"--name=test", "--filename=" + device, "--direct=1", "--ioengine=libaio", "--group_reporting",
	}, args...)...)
	f.cmd.Dir = t.TempDir()
	f.cmd.Stdout, f.cmd.Stderr = &f.out, &f.out
	// A group of its own: fio signals its whole group when a job does not start.
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// No Pdeathsig: it comes with the death of the thread that forked, and
	// queue threads die with their goroutines.
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { f.done <- f.cmd.Wait() }()
	t.Cleanup(func() {
		if f.running() {
			_ = f.cmd.Process.Kill()
		}
	})
	return f
}

func (f *fio) running() bool {
	select {
	case err := <-f.done:
		f.done <- err
		return false
	default:
		return true
	}
}

func (f *fio) wait() {
	f.t.Helper()
	if err := <-f.done; err != nil {
		f.t.Fatalf("fio: %v\n%s", err, f.out.String())
	}
}

// verifyArgs is the load of the issue: random writes of mixed sizes by four
// jobs, each with a region of its own, all read back and checked.
func verifyArgs(mib int) []string {
	return []string{
		"--rw=randwrite", "--bsrange=4k-128k", "--iodepth=8", "--numjobs=4",
		fmt.Sprintf("--size=%dM", mib), fmt.Sprintf("--offset_increment=%dM", mib),
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
	}
}

// eventually waits for a condition that comes true by itself.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// client is a block device opened with O_DIRECT, and an aligned buffer.
type client struct {
	fd  int
	buf []byte
}

func openClient(t *testing.T, path string, flags int) *client {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("opening %s: %v", path, err)
	}
	buf, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{fd: fd, buf: buf}
	t.Cleanup(func() {
		unix.Close(fd)
		unix.Munmap(buf)
	})
	return c
}

func errnoOf(err error) unix.Errno {
	var e unix.Errno
	errors.As(err, &e)
	return e
}

func (c *client) read(off int64, n int) unix.Errno {
	got, err := unix.Pread(c.fd, c.buf[:n], off)
	if err == nil && got != n {
		return unix.ENODATA
	}
	return errnoOf(err)
}

func (c *client) write(off int64, n int, flags int) unix.Errno {
	got, err := unix.Pwritev2(c.fd, [][]byte{c.buf[:n]}, off, flags)
	if err == nil && got != n {
		return unix.ENODATA
	}
	return errnoOf(err)
}

// rangeIoctl is BLKDISCARD or BLKZEROOUT.
func (c *client) rangeIoctl(cmd uintptr, off, n uint64) unix.Errno {
	r := [2]uint64{off, n}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), cmd, uintptr(unsafe.Pointer(&r)))
	return e
}

// linux/fs.h: _IO(0x12, 119) and _IO(0x12, 127).
const (
	blkDiscard = 0x1277
	blkZeroOut = 0x127f
)
