//go:build vm

package nvmeof

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// These tests have the kernel's own initiator as the host, by loopback.

// vmDisk is a blank disk of the test machine. Tests overwrite it.
const vmDisk = "/dev/nvme0n1"

const (
	vmUUID   = "0b6c3c54-8f3c-4b2e-9c1d-2f6b7a8c9d01"
	vmHostID = "11111111-2222-3333-4444-555555555555"
)

var vmUUIDBytes = [16]byte{0x0b, 0x6c, 0x3c, 0x54, 0x8f, 0x3c, 0x4b, 0x2e, 0x9c, 0x1d, 0x2f, 0x6b, 0x7a, 0x8c, 0x9d, 0x01}

// run runs a command and returns what it says.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// linux is the kernel's initiator, connected to a rig.
type linux struct {
	t      *testing.T
	r      *rig
	ns     *Namespace
	port   string
	device string // block device
}

// newLinux makes a rig whose namespace 2 is the disk.
func newLinux(t *testing.T, opt Options) *linux {
	t.Helper()
	run(t, "modprobe", "nvme-tcp")
	b, err := OpenBackend(vmDisk, Limits{Discard: true, VolatileCache: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	r := newRig(t, opt)
	ns, err := r.subsys.AddNamespace(NamespaceConfig{ID: 2, Backend: b, UUID: vmUUIDBytes, NGUID: [16]byte{7: 1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.target.Close(ctxFor(t, 20*time.Second)); err != nil {
			t.Error(err)
		}
	})
	_, port, _ := net.SplitHostPort(r.addr)
	return &linux{t: t, r: r, ns: ns, port: port}
}

// connect connects, and finds the block device by its UUID.
func (l *linux) connect(args ...string) {
	l.t.Helper()
	run(l.t, "nvme", append([]string{
		"connect", "-t", "tcp", "-a", "127.0.0.1", "-s", l.port, "-n", testNQN,
		"--hostnqn", nvmetest.HostNQN, "--hostid", vmHostID,
	}, args...)...)
	l.t.Cleanup(func() { _ = exec.Command("nvme", "disconnect", "-n", testNQN).Run() })
	eventually(l.t, "the block device is there", func() bool { return l.find() })
}

func (l *linux) find() bool {
	list, _ := filepath.Glob("/sys/block/nvme*/uuid")
	for _, path := range list {
		text, err := os.ReadFile(path)
		l.device = "/dev/" + filepath.Base(filepath.Dir(path))
		if _, missing := os.Stat(l.device); err == nil && missing == nil && strings.TrimSpace(string(text)) == vmUUID {
			return true
		}
	}
	l.device = ""
	return false
}

// controller is /dev/nvmeN of the connection.
func (l *linux) controller() string {
	l.t.Helper()
	list, _ := filepath.Glob("/sys/class/nvme/nvme*/subsysnqn")
	for _, path := range list {
		if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == testNQN {
			return "/dev/" + filepath.Base(filepath.Dir(path))
		}
	}
	l.t.Fatal("no controller of the subsystem is there")
	return ""
}

func (l *linux) disconnect() {
	l.t.Helper()
	run(l.t, "nvme", "disconnect", "-n", testNQN)
	eventually(l.t, "the host is gone", func() bool { return l.r.subsys.Controllers() == 0 })
}

// fio verifies n MiB.
func (l *linux) fio(n int, args ...string) *exec.Cmd {
	cmd := exec.Command("fio", append([]string{
		"--thread", "--clocksource=clock_gettime", "--name=test", "--filename=" + l.device, "--direct=1", "--ioengine=libaio",
		"--group_reporting", "--rw=randwrite", "--bsrange=4k-256k", "--iodepth=16", "--numjobs=2",
		fmt.Sprintf("--size=%dM", n), fmt.Sprintf("--offset_increment=%dM", n),
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
	}, args...)...)
	cmd.Dir = l.t.TempDir()
	return cmd
}

var readAhead = regexp.MustCompile(`flags 0x[0-9a-f]*[89a-f][0-9a-f]{4} `)

// noErrors wants the kernel's log to have no I/O error since before. Reading ahead is
// never tried again when a path goes, as in a reset, and nobody's loss.
func (l *linux) noErrors(before string) {
	l.t.Helper()
	after := strings.TrimPrefix(run(l.t, "dmesg"), before)
	for line := range strings.Lines(after) {
		if readAhead.MatchString(line) {
			continue
		}
		if strings.Contains(line, "I/O error") || strings.Contains(line, "timeout") || strings.Contains(line, "digest error") {
			l.t.Errorf("the kernel says: %s", strings.TrimSpace(line))
		}
	}
}

// TestLinux: discover, connect, fio verify, a filesystem, reset, disconnect, without a
// ring. With one, digests and other numbers of queues, cmd/swapbackd does that.
func TestLinux(t *testing.T) {
	l := newLinux(t, Options{NoRing: true})
	before := run(t, "dmesg")
	found := run(t, "nvme", "discover", "-t", "tcp", "-a", "127.0.0.1", "-s", l.port, "--hostnqn", nvmetest.HostNQN, "--hostid", vmHostID)
	if !strings.Contains(found, testNQN) || !strings.Contains(found, "127.0.0.1") {
		t.Errorf("discover: %s", found)
	}
	l.connect("-i", "2", "-g", "-G")
	l.look()
	if out, err := l.fio(4).CombinedOutput(); err != nil {
		t.Fatalf("fio: %v\n%s", err, out)
	}
	run(t, "mkfs.ext4", "-q", l.device)
	mnt := t.TempDir()
	run(t, "mount", l.device, mnt)
	err := os.WriteFile(filepath.Join(mnt, "file"), bytes.Repeat([]byte("swapback"), 1<<18), 0o600)
	run(t, "umount", mnt)
	if err != nil {
		t.Error(err)
	}
	run(t, "e2fsck", "-fn", l.device)
	run(t, "nvme", "reset", l.controller())
	eventually(t, "the device is back", l.find)
	run(t, "e2fsck", "-fn", l.device)
	run(t, "blkdiscard", l.device)
	run(t, "blkdiscard", "-z", "-l", "1M", l.device)
	l.noErrors(before)
	l.disconnect()
	s := l.ns.Stats()
	if s.Errors != 0 || s.InFlight != 0 || s.Flushes == 0 || s.Discards == 0 || s.WriteZeroes == 0 {
		t.Errorf("statistics: %+v", s)
	}
}

// look has nvme-cli read what there is to read.
func (l *linux) look() {
	t := l.t
	t.Helper()
	var ctrl struct {
		SN, MN, SubNQN string
		MDTS, VWC      int
	}
	if err := json.Unmarshal([]byte(run(t, "nvme", "id-ctrl", l.controller(), "-o", "json")), &ctrl); err != nil {
		t.Error(err)
	}
	if strings.TrimSpace(ctrl.SN) != "serial" || strings.TrimSpace(ctrl.MN) != "model" || ctrl.SubNQN != testNQN || ctrl.VWC&1 == 0 {
		t.Errorf("id-ctrl: %+v", ctrl)
	}
	var ns struct{ NSZE uint64 }
	if err := json.Unmarshal([]byte(run(t, "nvme", "id-ns", l.device, "-o", "json")), &ns); err != nil || ns.NSZE*512 != l.ns.Size() {
		t.Errorf("id-ns: %+v, %v", ns, err)
	}
	for _, args := range [][]string{{"ana-log", l.controller()}, {"smart-log", l.controller()}, {"error-log", l.controller()}, {"effects-log", l.controller()}, {"ns-descs", l.device}, {"list-ns", l.controller()}, {"fw-log", l.controller()}} {
		out := run(t, "nvme", args...)
		if strings.Contains(out, "NVMe status") {
			t.Errorf("nvme %s: %s", args[0], out)
		}
	}
	queue := "/sys/block/" + filepath.Base(l.device) + "/queue/"
	for name, want := range map[string]string{"write_cache": "write back", "logical_block_size": "512", "minimum_io_size": "4096"} {
		if text, err := os.ReadFile(queue + name); err != nil || strings.TrimSpace(string(text)) != want {
			t.Errorf("%s: %q, %v; want %q", name, text, err, want)
		}
	}
}

// TestLinuxWaits: a gate that is closed under load, for longer than a command is held,
// and a path that is inaccessible, are pauses and no errors.
func TestLinuxWaits(t *testing.T) {
	l := newLinux(t, Options{HoldFor: time.Second})
	before := run(t, "dmesg")
	l.connect("-i", "2")
	pause := func(name string, begin, end func()) {
		cmd := l.fio(16, "--time_based", "--runtime=6")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		writes := l.ns.Stats().Writes
		eventually(t, "fio writes", func() bool { return l.ns.Stats().Writes > writes+50 })
		begin()
		time.Sleep(3 * time.Second)
		if !l.find() {
			t.Errorf("%s: the device is gone", name)
		}
		run(t, "nvme", "id-ctrl", l.controller())
		end()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: fio: %v\n%s", name, err, out.String())
		}
	}
	pause("hold", func() {
		l.ns.Hold()
		if err := l.ns.Drain(ctxFor(t, 10*time.Second)); err != nil {
			t.Error(err)
		}
	}, l.ns.Release)
	ana := func(s wire.ANAState) func() {
		return func() {
			if err := l.r.subsys.SetANA(1, s); err != nil {
				t.Error(err)
			}
		}
	}
	pause("inaccessible", ana(wire.ANAUnreachable), ana(wire.ANAOptimized))
	if s := l.ns.Stats(); s.Held == 0 || s.Refused == 0 || s.Errors != 0 {
		t.Errorf("statistics: %+v", s)
	}
	after := strings.TrimPrefix(run(t, "dmesg"), before)
	if strings.Contains(after, "I/O error") {
		t.Errorf("the kernel says:\n%s", after)
	}
	l.disconnect()
}

// TestLinuxSeesChanges: namespaces that come, grow and go while it is connected.
func TestLinuxSeesChanges(t *testing.T) {
	l := newLinux(t, Options{})
	l.connect("-i", "1")
	size := func() string {
		text, _ := os.ReadFile("/sys/block/" + filepath.Base(l.device) + "/size")
		return strings.TrimSpace(string(text))
	}
	full := l.ns.Size()
	for _, n := range []uint64{full / 2, full} {
		if err := l.ns.Resize(n); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the host sees the new size", func() bool { return size() == fmt.Sprint(n/512) })
	}
	l.ns.SetReadOnly(true)
	eventually(t, "the host sees that it is read-only", func() bool {
		text, _ := os.ReadFile("/sys/block/" + filepath.Base(l.device) + "/ro")
		return strings.TrimSpace(string(text)) == "1"
	})
	third := l.r.addNamespace(3, l.r.memoryBackend(l.r.memory))
	glob := func() int {
		list, _ := filepath.Glob("/sys/block/nvme*/uuid")
		n := 0
		for _, path := range list {
			if text, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(text), "aa03") {
				n++
			}
		}
		return n
	}
	eventually(t, "the host sees a third disk", func() bool { return glob() > 0 })
	if err := l.r.subsys.RemoveNamespace(ctxFor(t, 20*time.Second), third.ID()); err != nil {
		t.Error(err)
	}
	eventually(t, "the host sees it go", func() bool { return glob() == 0 })
	l.disconnect()
}

// TestLinuxAuthenticates: the kernel proves who the host is, and wants the controller to
// do the same; with a wrong secret on either side there is no connection.
func TestLinuxAuthenticates(t *testing.T) {
	run(t, "modprobe", "nvme-tcp")
	r, host, own, nqn := authRig(t, Options{})
	other, err := auth.NewSecret(auth.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(r.addr)
	connect := func(args ...string) (string, error) {
		cmd := exec.Command("nvme", append([]string{
			"connect", "-t", "tcp", "-a", "127.0.0.1", "-s", port, "-n", nqn, "-i", "2", "--hostnqn", nvmetest.HostNQN, "--hostid", vmHostID,
		}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, tt := range []struct {
		name string
		args []string
		ok   bool
	}{
		{"no secret", nil, false},
		{"another secret", []string{"--dhchap-secret", other.Text()}, false},
		{"the right secret", []string{"--dhchap-secret", host.Text()}, true},
		{"a controller with another secret", []string{"--dhchap-secret", host.Text(), "--dhchap-ctrl-secret", other.Text()}, false},
		{"both", []string{"--dhchap-secret", host.Text(), "--dhchap-ctrl-secret", own.Text()}, true},
	} {
		out, err := connect(tt.args...)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v\n%s\n%s", tt.name, err, out, run(t, "dmesg"))
		}
		if err != nil {
			continue
		}
		var device string
		eventually(t, "the block device is there", func() bool {
			list, _ := filepath.Glob("/sys/block/nvme*/uuid")
			for _, path := range list {
				text, _ := os.ReadFile(path)
				device = "/dev/" + filepath.Base(filepath.Dir(path))
				if _, err := os.Stat(device); err == nil && strings.HasPrefix(string(text), "05000000-") {
					return true
				}
			}
			return false
		})
		run(t, "dd", "if="+device, "of=/dev/null", "bs=64k", "count=16", "iflag=direct")
		run(t, "nvme", "disconnect", "-n", nqn)
	}
}
