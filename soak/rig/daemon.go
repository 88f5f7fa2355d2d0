// Package rig runs the real swapbackd for integration tests: in a process of
// its own, on the test machine's disks, with the checks that follow every test.
// Everything in it fails the test it was given rather than returning an error.
package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
)

// MiB is 2²⁰ bytes.
const MiB = int64(1) << 20

// Options are what a [Daemon] is started with. The zero value is the built
// swapbackd on all of the machine's test disks.
type Options struct {
	// Program is the swapbackd to run; unless set, the one on PATH.
	Program string
	// Disks are the members-to-be; unless set, those of [Disks].
	Disks []string
	// Args and Env are appended to the daemon's own.
	Args, Env []string
}

// Daemon is a swapbackd process. When the test ends, its pools are checked and
// removed, and the test fails when the daemon leaves a device, a descriptor or
// a goroutine behind.
//
// Only the test's goroutine may start or end the process; Client is safe for
// all of them.
type Daemon struct {
	Options
	Client *api.Client
	// Dir is the test's folder, with the socket, the lock and the links.
	Dir string
	// Log is what the process that runs now has written.
	Log *Buffer

	t     *testing.T
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
	fds   int           // open descriptors of the idle daemon

	kernel *KernelLog
}

// Disks are the disks that tests may overwrite, at least two.
func Disks(t *testing.T) []string {
	t.Helper()
	disks := strings.Fields(os.Getenv("SWAPBACK_TEST_DISKS"))
	if len(disks) < 2 {
		t.Fatal("SWAPBACK_TEST_DISKS names fewer than two disks: run this through make test-vm")
	}
	return disks
}

// Start runs swapbackd with more arguments.
func Start(t *testing.T, args ...string) *Daemon {
	t.Helper()
	return StartWith(t, Options{Args: args})
}

// StartWith runs swapbackd and returns when it answers.
func StartWith(t *testing.T, opt Options) *Daemon {
	t.Helper()
	if opt.Program == "" {
		opt.Program = "swapbackd"
	}
	if opt.Disks == nil {
		opt.Disks = Disks(t)
	}
	d := &Daemon{Options: opt, Dir: t.TempDir(), t: t, kernel: OpenKernelLog(t)}
	d.Client = api.NewClient(d.Socket())
	d.Run()
	d.fds = d.CountFDs()
	t.Cleanup(d.finish)
	return d
}

// Attach is for a swapbackd that a service manager runs, on all of the machine's
// test disks. Only what goes through Client works on it, and how it is ended and
// what it leaves is the caller's to see to; RemovePools comes before that.
func Attach(t *testing.T, socket string) *Daemon {
	t.Helper()
	return &Daemon{Options: Options{Disks: Disks(t)}, Client: api.NewClient(socket), Dir: t.TempDir(), Log: &Buffer{}, t: t}
}

// Socket is the path of the daemon's socket.
func (d *Daemon) Socket() string { return filepath.Join(d.Dir, "sock") }

// RunDir is the daemon's --run-dir.
func (d *Daemon) RunDir() string { return filepath.Join(d.Dir, "run") }

// LinkDir is the daemon's --link-dir.
func (d *Daemon) LinkDir() string { return filepath.Join(d.Dir, "links") }

// PID is that of the process that runs now.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Run starts the process, at first or after it has ended, and returns when it
// answers.
func (d *Daemon) Run() {
	d.t.Helper()
	d.Launch()
	d.WaitReady()
}

// Launch starts the process and does not wait for its answer.
func (d *Daemon) Launch() {
	d.t.Helper()
	d.Log = &Buffer{}
	args := []string{"--socket", d.Socket(), "--run-dir", d.RunDir(), "--link-dir", d.LinkDir(), "--log-level", "debug",
		// A machine that is emulated on a busy host may keep a disk waiting for long.
		"--disk-timeout", patience.String(), "--hold-for", patience.String()}
	for _, disk := range d.Disks {
		args = append(args, "--disk", disk)
	}
	d.cmd = exec.Command(d.Program, append(args, d.Args...)...)
	d.cmd.Env = append(os.Environ(), d.Env...)
	d.cmd.Stderr = d.Log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatalf("swapbackd: %v (the harness puts it on PATH)", err)
	}
	cmd, ended := d.cmd, make(chan struct{})
	d.ended = ended
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(ended)
	}()
}

// WaitReady waits until the process answers.
func (d *Daemon) WaitReady() {
	d.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		_, err := d.Client.Info(d.t.Context())
		if err == nil {
			return
		}
		if d.Ended() {
			d.t.Fatalf("swapbackd ended at its start: %v\n%s", d.cmd.ProcessState, d.Log)
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("swapbackd does not answer: %v\n%s", err, d.Log)
		}
	}
}

// Ended tells whether the process has ended.
func (d *Daemon) Ended() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

// Signal sends a signal and waits for the process to end: its lock is free then.
func (d *Daemon) Signal(sig syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Fatal(err)
	}
	d.WaitEnd()
}

// Kill ends the process as kill -9 does.
func (d *Daemon) Kill() {
	d.t.Helper()
	d.Signal(syscall.SIGKILL)
}

// WaitEnd waits for the process to end of itself and returns how.
func (d *Daemon) WaitEnd() *os.ProcessState {
	d.t.Helper()
	WaitUntil(d.t, "swapbackd to end", d.Ended)
	return d.cmd.ProcessState
}

// Pool makes a pool "tank" on all disks.
func (d *Daemon) Pool() api.Pool {
	d.t.Helper()
	return d.PoolWith(api.CreatePoolRequest{Name: "tank"})
}

// PoolWith makes a pool; on all disks, unless the request names some.
func (d *Daemon) PoolWith(req api.CreatePoolRequest) api.Pool {
	d.t.Helper()
	if req.Disks == nil {
		req.Disks = d.Disks
	}
	req.Force = true
	p, err := d.Client.CreatePool(d.t.Context(), req)
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// Volume makes a linear volume of size bytes.
func (d *Daemon) Volume(name string, size int64) api.Volume {
	d.t.Helper()
	return d.VolumeWith(api.CreateVolumeRequest{Name: name, Size: size})
}

// VolumeWith makes a volume.
func (d *Daemon) VolumeWith(req api.CreateVolumeRequest) api.Volume {
	d.t.Helper()
	v, err := d.Client.CreateVolume(d.t.Context(), req)
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

// Show describes a volume.
func (d *Daemon) Show(name string) api.Volume {
	d.t.Helper()
	v, err := d.Client.Volume(d.t.Context(), name)
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

// Swap swaps pairs of volumes, the first with the second, the third with the
// fourth, and expects the generations that they have.
func (d *Daemon) Swap(volumes ...string) api.SwapResult {
	d.t.Helper()
	var req api.SwapRequest
	for i := 0; i < len(volumes); i += 2 {
		a, b := d.Show(volumes[i]), d.Show(volumes[i+1])
		req.Pairs = append(req.Pairs, api.SwapPair{A: a.Name, B: b.Name, ExpectA: a.Position.Generation, ExpectB: b.Position.Generation})
	}
	r, err := d.Client.Swap(d.t.Context(), req)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// Check fails the test unless every pool is consistent.
func (d *Daemon) Check() {
	d.t.Helper()
	d.check(d.t.Context())
}

func (d *Daemon) check(ctx context.Context) []api.Pool {
	d.t.Helper()
	pools, err := d.Client.Pools(ctx)
	if err != nil {
		d.t.Errorf("pools: %v", err)
	}
	for _, p := range pools {
		report, err := d.Client.CheckPool(ctx, p.Name)
		if err != nil || !report.OK {
			d.t.Errorf("pool check: %v %q", err, report.Problems)
		}
	}
	return pools
}

// finish checks, cleans up, and looks for what the daemon left.
func (d *Daemon) finish() {
	if d.t.Failed() {
		d.t.Logf("swapbackd said:\n%s", Tail(d.Log.String(), 60))
		d.t.Logf("the kernel said:\n%s", Tail(strings.Join(d.kernel.Lines(d.t), "\n"), 40))
	}
	d.RemovePools()
	d.checkLeaks()
	ExpectNoDevices(d.t)
}

// RemovePools checks the pools, deletes them with their volumes, and closes Client.
func (d *Daemon) RemovePools() {
	d.t.Helper()
	// The test's context may have ended by now, and hundreds of volumes take an
	// emulated machine minutes to remove.
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()
	for _, p := range d.check(ctx) {
		if err := d.Client.DeletePool(ctx, p.Name, true); err != nil {
			d.t.Errorf("pool delete at the end: %v", err)
		}
	}
	d.Client.Close()
}

// checkLeaks compares descriptors with those of the idle daemon, and ends it
// with SIGQUIT: the Go runtime then prints every goroutine.
func (d *Daemon) checkLeaks() {
	// A closed connection's descriptor goes a moment after the client's.
	fds := d.CountFDs()
	for range 100 {
		if fds <= d.fds {
			break
		}
		time.Sleep(20 * time.Millisecond)
		fds = d.CountFDs()
	}
	if fds > d.fds {
		d.t.Errorf("swapbackd holds %d descriptors without a volume, %d at its start: %s", fds, d.fds, d.ListFDs())
	}
	before := len(d.Log.String())
	d.Signal(syscall.SIGQUIT)
	dump := d.Log.String()[before:]
	if !strings.Contains(dump, "goroutine ") {
		d.t.Fatalf("no goroutine dump from SIGQUIT:\n%s", dump)
	}
	for _, leak := range []string{"ublk.(*queue)", "ublk.(*Device)", "nvmeof.(*queue)", "dmswap.(*Snapshot)", "holdSnapshot"} {
		if strings.Contains(dump, leak) {
			d.t.Errorf("swapbackd still runs %s without a volume:\n%s", leak, dump)
		}
	}
}

func (d *Daemon) fdDir() string { return fmt.Sprintf("/proc/%d/fd", d.PID()) }

// CountFDs is the number of the process's open descriptors.
func (d *Daemon) CountFDs() int {
	d.t.Helper()
	entries, err := os.ReadDir(d.fdDir())
	if err != nil {
		d.t.Fatal(err)
	}
	return len(entries)
}

// Memory is what the process has of it, VmRSS of proc_pid_status(5), in bytes.
func (d *Daemon) Memory() int64 {
	d.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
	if err != nil {
		d.t.Fatal(err)
	}
	var kib int64
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		d.t.Fatalf("no VmRSS in %s", text)
	}
	return kib << 10
}

// ListFDs tells where the process's descriptors lead.
func (d *Daemon) ListFDs() string {
	var b strings.Builder
	entries, _ := os.ReadDir(d.fdDir())
	for _, e := range entries {
		to, _ := os.Readlink(filepath.Join(d.fdDir(), e.Name()))
		fmt.Fprintf(&b, "%s→%s ", e.Name(), to)
	}
	return b.String()
}

// ExpectNoDevices fails when a block device of swapback is left in the kernel.
func ExpectNoDevices(t *testing.T) {
	for _, pattern := range []string{"/sys/block/ublkb*", "/sys/class/ublk-char/*", "/dev/ublkc*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("ublk devices are left: %q", left)
		}
	}
	if left := MapperDevices(); len(left) > 0 {
		t.Errorf("device-mapper devices are left: %q", left)
	}
}

// MapperDevices are the UUIDs of swapback's device-mapper devices.
func MapperDevices() []string {
	var list []string
	paths, _ := filepath.Glob("/sys/block/dm-*/dm/uuid")
	for _, path := range paths {
		if uuid, _ := os.ReadFile(path); strings.HasPrefix(string(uuid), "SWAPBACK-") {
			list = append(list, strings.TrimSpace(string(uuid)))
		}
	}
	return list
}
