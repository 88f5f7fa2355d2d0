//go:build vm

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
)

const MiB = int64(1) << 20

// process is the real swapbackd, in a process of its own, on the machine's test
// disks. When the test ends the pools are checked and removed, and the test
// fails when the daemon leaves a device, a descriptor or a goroutine behind.
type process struct {
	t      *testing.T
	dir    string
	args   []string
	disks  []string
	client *api.Client
	cmd    *exec.Cmd
	stderr *lockedBuffer
	fds    int // open descriptors of the idle daemon
}

func startDaemon(t *testing.T, args ...string) *process {
	t.Helper()
	disks := strings.Fields(os.Getenv("SWAPBACK_TEST_DISKS"))
	if len(disks) < 2 {
		t.Fatal("SWAPBACK_TEST_DISKS names fewer than two disks: run this through make test-vm")
	}
	d := &process{t: t, dir: t.TempDir(), args: args, disks: disks}
	d.client = api.NewClient(d.socket())
	d.start()
	d.fds = d.countFDs()
	t.Cleanup(d.finish)
	return d
}

func (d *process) socket() string { return filepath.Join(d.dir, "sock") }

// start runs swapbackd and waits until it answers.
func (d *process) start() {
	d.t.Helper()
	d.stderr = &lockedBuffer{}
	args := []string{"--socket", d.socket(), "--run-dir", filepath.Join(d.dir, "run"), "--link-dir", d.linkDir(), "--log-level", "debug"}
	for _, disk := range d.disks {
		args = append(args, "--disk", disk)
	}
	d.cmd = exec.Command("swapbackd", append(args, d.args...)...)
	d.cmd.Stderr = d.stderr
	if err := d.cmd.Start(); err != nil {
		d.t.Fatalf("swapbackd: %v (the harness puts it on PATH)", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.cmd.Wait() }()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		_, err := d.client.Info(d.t.Context())
		if err == nil {
			return
		}
		select {
		case err := <-ended:
			d.t.Fatalf("swapbackd ended at its start: %v\n%s", err, d.stderr)
		default:
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("swapbackd does not answer: %v\n%s", err, d.stderr)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (d *process) linkDir() string { return filepath.Join(d.dir, "links") }

// signal sends a signal and waits for the process to end.
func (d *process) signal(sig syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
	d.waitGone()
}

// waitGone waits until the process has ended: its lock is free then.
func (d *process) waitGone() {
	d.t.Helper()
	waitUntil(d.t, "swapbackd to end", func() bool {
		return errors.Is(d.cmd.Process.Signal(syscall.Signal(0)), os.ErrProcessDone)
	})
}

func (d *process) countFDs() int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	return len(entries)
}

// finish checks, cleans up, and looks for what the daemon left.
func (d *process) finish() {
	// The test's context has ended by now.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if d.t.Failed() {
		d.t.Logf("swapbackd said:\n%s", tail(d.stderr.String(), 60))
	}
	pools, err := d.client.Pools(ctx)
	if err != nil {
		d.t.Errorf("pools at the end: %v", err)
	}
	for _, p := range pools {
		report, err := d.client.CheckPool(ctx, p.Name)
		if err != nil || !report.OK {
			d.t.Errorf("pool check at the end: %v %q", err, report.Problems)
		}
		if err := d.client.DeletePool(ctx, p.Name, true); err != nil {
			d.t.Errorf("pool delete at the end: %v", err)
		}
	}
	d.client.Close()
	d.checkLeaks()
	d.expectNoDevices()
}

// checkLeaks compares descriptors with those of the idle daemon, and ends it
// with SIGQUIT: the Go runtime then prints every goroutine.
func (d *process) checkLeaks() {
	// A closed connection's descriptor goes a moment after the client's.
	fds := d.countFDs()
	for range 100 {
		if fds <= d.fds {
			break
		}
		time.Sleep(20 * time.Millisecond)
		fds = d.countFDs()
	}
	if fds > d.fds {
		d.t.Errorf("swapbackd holds %d descriptors without a volume, %d at its start: %s", fds, d.fds, d.listFDs())
	}
	before := len(d.stderr.String())
	d.signal(syscall.SIGQUIT)
	dump := d.stderr.String()[before:]
	if !strings.Contains(dump, "goroutine ") {
		d.t.Fatalf("no goroutine dump from SIGQUIT:\n%s", dump)
	}
	for _, leak := range []string{"ublk.(*queue)", "ublk.(*Device)", "dmswap.(*Snapshot)", "holdSnapshot"} {
		if strings.Contains(dump, leak) {
			d.t.Errorf("swapbackd still runs %s without a volume:\n%s", leak, dump)
		}
	}
}

func (d *process) listFDs() string {
	var b strings.Builder
	dir := fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		to, _ := os.Readlink(filepath.Join(dir, e.Name()))
		fmt.Fprintf(&b, "%s→%s ", e.Name(), to)
	}
	return b.String()
}

// expectNoDevices fails when a block device of swapback is left in the kernel.
func (d *process) expectNoDevices() {
	for _, pattern := range []string{"/sys/block/ublkb*", "/sys/class/ublk-char/*", "/dev/ublkc*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			d.t.Errorf("ublk devices are left: %q", left)
		}
	}
	uuids, _ := filepath.Glob("/sys/block/dm-*/dm/uuid")
	for _, path := range uuids {
		if uuid, _ := os.ReadFile(path); strings.HasPrefix(string(uuid), "SWAPBACK-") {
			d.t.Errorf("a device-mapper device is left: %s", uuid)
		}
	}
}

// pool makes a pool "tank" on all test disks.
func (d *process) pool() api.Pool {
	d.t.Helper()
	p, err := d.client.CreatePool(d.t.Context(), api.CreatePoolRequest{Name: "tank", Disks: d.disks, Force: true})
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

func (d *process) volume(name string, size int64) api.Volume {
	d.t.Helper()
	return d.volumeWith(api.CreateVolumeRequest{Name: name, Size: size})
}

func (d *process) volumeWith(req api.CreateVolumeRequest) api.Volume {
	d.t.Helper()
	v, err := d.client.CreateVolume(d.t.Context(), req)
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

func (d *process) show(name string) api.Volume {
	d.t.Helper()
	v, err := d.client.Volume(d.t.Context(), name)
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

// tool runs a program and fails the test when it fails.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// lockedBuffer is a buffer that one goroutine writes and another reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// waitUntil waits for a condition that has to come true, however slow the
// machine is; the bound is there for a test that hangs.
func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("waited two minutes for %s", what)
}
