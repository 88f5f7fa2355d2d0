//go:build vm

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

const (
	unitFolder = "/run/systemd/system"
	unitCgroup = "/sys/fs/cgroup/system.slice/swapbackd.service/cgroup.procs"
	unitLog    = "/run/swapback-unit.log"
)

// unit is swapbackd as a real systemd runs it, from dist/systemd/swapbackd.service
// as it is. The service manager is the first process of a process namespace of
// its own; /dev, /sys, /run and the kernel's devices are the machine's.
type unit struct {
	*process
	manager int // its process
}

func startUnit(t *testing.T) *unit {
	t.Helper()
	service, err := os.ReadFile("../../dist/systemd/swapbackd.service")
	if err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("swapbackd")
	if err != nil {
		t.Fatal(err)
	}
	rig.Tool(t, "install", "-D", program, "/usr/local/sbin/swapbackd")
	for name, text := range map[string]string{
		"swapbackd.service": string(service),
		// Only where it writes its log, and the test's group of units.
		"swapbackd.service.d/log.conf": "[Service]\nStandardError=append:" + unitLog + "\n",
		"swapback-test.target":         "[Unit]\nDefaultDependencies=no\nWants=swapbackd.service\n",
	} {
		path := filepath.Join(unitFolder, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child",
		"/lib/systemd/systemd", "--system", "--unit=swapback-test.target", "--log-target=console", "--show-status=no")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "container=test"}
	var said rig.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	u := &unit{process: &process{Daemon: rig.Attach(t, api.DefaultSocket), t: t}}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(unitLog)
			t.Logf("systemd said:\n%s\nswapbackd said:\n%s", rig.Tail(said.String(), 40), rig.Tail(string(log), 60))
		}
		u.RemovePools()
		if u.manager != 0 {
			u.systemctl("stop", "swapbackd")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for _, path := range []string{unitFolder, unitLog, "/usr/local/sbin/swapbackd"} {
			_ = os.RemoveAll(path)
		}
		rig.ExpectNoDevices(t)
	})
	u.waitOther(0)
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if u.manager, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
		t.Fatal(err)
	}
	return u
}

// waitOther waits for a daemon that answers and is not the process given.
func (u *unit) waitOther(pid int) int {
	u.t.Helper()
	now := pid
	rig.WaitUntil(u.t, "systemd's swapbackd to answer", func() bool {
		info, err := u.Client.Info(u.t.Context())
		if err == nil {
			now = info.PID
		}
		return err == nil && now != pid
	})
	return now
}

// systemctl runs it beside the service manager.
func (u *unit) systemctl(args ...string) {
	u.t.Helper()
	rig.Tool(u.t, "nsenter", append([]string{"-t", fmt.Sprint(u.manager), "-p", "-m", "systemctl"}, args...)...)
}

// TestHardenedUnit: everything that the daemon does works under the restrictions
// of its unit, and the restrictions are there. A restriction that it runs into is
// a warning in its log, or an error here.
func TestHardenedUnit(t *testing.T) {
	u := startUnit(t)
	u.expectConfined()
	u.Pool()
	a, b := u.Volume("a", 32*MiB), u.VolumeWith(api.CreateVolumeRequest{Name: "b", Size: 32 * MiB, Stripes: 2, Zero: true})
	c := u.Volume("c", 16*MiB)
	data := rig.RandomBytes(71, int(c.Size))
	rig.WriteDevice(t, c.Device, 0, data)

	// Under the mask of the unit, what others need is there all the same.
	for path, want := range map[string]os.FileMode{
		"/dev/swapback": 0o755, "/dev/swapback/tank": 0o755, "/run/swapback": 0o755,
		api.DefaultSocket: 0o600, "/var/lib/swapback": 0o750,
	} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", path, fi.Mode(), err, want)
		}
	}
	if text, err := os.ReadFile("/sys/block/" + filepath.Base(a.Device) + "/queue/scheduler"); err != nil || !bytes.Contains(text, []byte("[none]")) {
		t.Errorf("scheduler of %s: %s %v", a.Device, text, err)
	}

	load := u.StartFio("a", rig.MixedJob(a.Device))
	u.WaitWrites("a", 100)
	for range 2 { // there and back
		u.swapUnder(api.BusyHold)
		u.WaitWrites("a", 50)
	}
	first := u.waitOther(0)
	u.systemctl("kill", "--kill-whom=main", "--signal=KILL", "swapbackd")
	second := u.waitOther(first)
	u.WaitWrites("a", 50)
	u.systemctl("restart", "swapbackd")
	u.waitOther(second)
	u.WaitWrites("a", 50)
	if job := load.Stop(); job.TotalErr != 0 {
		t.Errorf("fio saw %d errors, the first errno %d", job.TotalErr, job.FirstError)
	}
	if !bytes.Equal(rig.ReadDevice(t, c.Device, 0, len(data)), data) {
		t.Error("c does not hold what was written before the kill")
	}
	rig.RunFio(t, rig.VerifyJob(a.Device, "16M"))

	u.expectHolderNamed(a)
	_, end, err := u.Client.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := end(t.Context()); err != nil {
		t.Error(err)
	}
	u.waitNoSnapshot("a")
	u.waitNoSnapshot("b")
	if _, err := u.Client.Quarantine(t.Context(), "b", api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "test"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/run/swapback/quarantine/" + filepath.Base(b.Device)); err != nil {
		t.Errorf("mark for udev: %v", err)
	}
	expectNoWrites(t, b.Device)
	if _, err := u.Client.ReleaseQuarantine(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	if _, err := u.Client.GrowVolume(t.Context(), "b", 64*MiB); err != nil {
		t.Error(err)
	}
	if r, err := u.Client.CheckPool(t.Context(), "tank"); err != nil || !r.OK {
		t.Errorf("pool check: %v %q", err, r.Problems)
	}
	log, err := os.ReadFile(unitLog)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if !strings.Contains(line, `"level":"INFO"`) {
			t.Errorf("swapbackd complains: %s", line)
		}
	}
}

// expectHolderNamed has somebody beside the daemon open a volume: the preflight
// sees into processes of other users.
func (u *unit) expectHolderNamed(v api.Volume) {
	u.t.Helper()
	if err := os.Chmod(v.Device, 0o666); err != nil {
		u.t.Fatal(err)
	}
	cmd := exec.Command("nsenter", "-t", fmt.Sprint(u.manager), "-p", "--", "setpriv", "--reuid", "65534", "--clear-groups",
		"sh", "-c", "exec 3<"+v.Device+"; echo open; read x")
	in, err := cmd.StdinPipe()
	if err != nil {
		u.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		u.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		u.t.Fatal(err)
	}
	list, err := u.Client.Holders(u.t.Context(), v.Name)
	if err != nil || len(list) != 1 || list[0].Command != "sh" {
		u.t.Errorf("holders of %s: %+v, %v", v.Name, list, err)
	}
	in.Close() // the shell reads the end, and ends
	_ = cmd.Wait()
	rig.WaitUntil(u.t, "the holder to go", func() bool {
		list, err := u.Client.Holders(u.t.Context(), v.Name)
		return err == nil && len(list) == 0
	})
}

// expectConfined fails unless the restrictions are on the daemon's process.
func (u *unit) expectConfined() {
	u.t.Helper()
	text, err := os.ReadFile(unitCgroup)
	if err != nil {
		u.t.Fatal(err)
	}
	pid := strings.TrimSpace(string(text))
	status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		u.t.Fatal(err)
	}
	caps := uint64(0)
	for _, c := range []uint{unix.CAP_SYS_ADMIN, unix.CAP_SYS_RESOURCE, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH, unix.CAP_DAC_OVERRIDE, unix.CAP_CHOWN} {
		caps |= 1 << c
	}
	for _, want := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n", fmt.Sprintf("CapBnd:\t%016x\n", caps), fmt.Sprintf("CapEff:\t%016x\n", caps), "Umask:\t0077\n"} {
		if !strings.Contains(string(status), want) {
			u.t.Errorf("process of swapbackd: no %q in\n%s", want, status)
		}
	}
	// From within its mounts, and from within its group of devices.
	inside := []string{"nsenter", "-t", pid, "-m", "--"}
	member := func(script string) []string {
		return []string{"sh", "-ec", "echo $$ > " + unitCgroup + "; " + script}
	}
	for what, args := range map[string][]string{
		"write to /usr":         append(inside, "touch", "/usr/x"),
		"write to /etc":         append(inside, "touch", "/etc/x"),
		"write to /proc/sys":    append(inside, "sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"),
		"write to /sys/kernel":  append(inside, "sh", "-c", "echo 0 > /sys/kernel/mm/ksm/run"),
		"open the kernel's log": member("head -c1 /dev/kmsg"),
		"open memory":           member("head -c1 /dev/mem"),
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err == nil {
			u.t.Errorf("swapbackd can %s: %s", what, out)
		}
	}
	for what, args := range map[string][]string{
		"write its state": append(inside, "sh", "-c", "touch /var/lib/swapback/x && rm /var/lib/swapback/x"),
		"read a disk":     member("head -c512 " + u.Disks[0] + " > /dev/null"),
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			u.t.Errorf("swapbackd can't %s: %v %s", what, err, out)
		}
	}
}
