//go:build vm

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent/mount"
	"github.com/swapback/swapback/hostagent/runner"
)

const MiB = int64(1) << 20

// machine is the real daemon on the machine's test disks, a repository, and
// folders for the agent. Agent and daemon are the built programs.
type machine struct {
	t      *testing.T
	dir    string
	disks  []string
	client *api.Client
	daemon *exec.Cmd
	log    *lockedBuffer
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	disks := strings.Fields(os.Getenv("SWAPBACK_TEST_DISKS"))
	if len(disks) < 2 {
		t.Fatal("SWAPBACK_TEST_DISKS names fewer than two disks: run this through make test-vm")
	}
	m := &machine{t: t, dir: t.TempDir(), log: &lockedBuffer{}}
	// Steps run as other users, too.
	for _, dir := range []string{m.dir, filepath.Dir(m.dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.client = api.NewClient(m.path("sock"))
	m.disks = disks
	m.startDaemon()
	t.Cleanup(m.finish)
	if _, err := m.client.CreatePool(t.Context(), api.CreatePoolRequest{Name: "tank", Disks: disks, Force: true}); err != nil {
		t.Fatal(err)
	}
	repo, err := backup.Init(t.Context(), m.path("repo"), backup.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Close(); err != nil {
		t.Fatal(err)
	}
	return m
}

// startDaemon starts swapbackd and waits until it answers.
func (m *machine) startDaemon() {
	m.t.Helper()
	args := []string{"--socket", m.path("sock"), "--run-dir", m.path("run"), "--link-dir", m.path("dev"), "--on-exit", "stop"}
	for _, d := range m.disks {
		args = append(args, "--disk", d)
	}
	m.daemon = exec.Command("swapbackd", args...)
	m.daemon.Stderr = m.log
	if err := m.daemon.Start(); err != nil {
		m.t.Fatalf("swapbackd: %v (the harness puts it on PATH)", err)
	}
	m.wait("swapbackd to answer", func() bool {
		_, err := m.client.Info(m.t.Context())
		return err == nil
	})
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if m.t.Failed() {
		m.t.Logf("swapbackd said:\n%s", m.log)
	}
	for _, e := range m.mounts() {
		if err := mount.Unmount(ctx, e.Dir); err != nil {
			m.t.Error(err)
		}
	}
	if report, err := m.client.CheckPool(ctx, "tank"); err != nil || !report.OK {
		m.t.Errorf("pool check at the end: %v %q", err, report.Problems)
	}
	if err := m.client.DeletePool(ctx, "tank", true); err != nil {
		m.t.Errorf("pool delete at the end: %v", err)
	}
	m.client.Close()
	if err := m.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Error(err)
	}
	if err := m.daemon.Wait(); err != nil {
		m.t.Errorf("swapbackd ended with %v", err)
	}
}

// mounts are the mounts below the machine's folder.
func (m *machine) mounts() []mount.Entry {
	all, err := mount.List()
	if err != nil {
		m.t.Fatal(err)
	}
	var own []mount.Entry
	for _, e := range all {
		if strings.HasPrefix(e.Dir, m.dir+"/") {
			own = append(own, e)
		}
	}
	return own
}

func (m *machine) mounted(dir string) bool {
	at, err := mount.At(dir)
	if err != nil {
		m.t.Fatal(err)
	}
	return at != nil
}

// volume makes a volume with a filesystem on it and a directory to mount it on.
func (m *machine) volume(name, fstype string, size int64) api.Volume {
	m.t.Helper()
	v, err := m.client.CreateVolume(m.t.Context(), api.CreateVolumeRequest{Name: name, Size: size})
	if err != nil {
		m.t.Fatal(err)
	}
	m.tool("mkfs."+fstype, "-q", v.Device)
	if err := os.Mkdir(m.path(name), 0o755); err != nil {
		m.t.Fatal(err)
	}
	return v
}

func (m *machine) show(name string) api.Volume {
	m.t.Helper()
	v, err := m.client.Volume(m.t.Context(), name)
	if err != nil {
		m.t.Fatal(err)
	}
	return v
}

// job writes a job file. $DIR in its text is the machine's folder.
func (m *machine) job(text string) string {
	m.t.Helper()
	path := m.path("job.yaml")
	text = strings.ReplaceAll("name: j\nrepository: $DIR/repo\n"+text, "$DIR", m.dir)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *machine) command(args ...string) *exec.Cmd {
	args = append([]string{"--socket", m.path("sock"), "--state-dir", m.path("state"), "--log-dir", m.path("logs"), "--run-dir", m.path("run")}, args...)
	return exec.Command("swapback-agent", args...)
}

// agent runs the agent and fails the test unless it ends with an exit code and
// says the parts.
func (m *machine) agent(code int, args []string, parts ...string) string {
	m.t.Helper()
	out, err := m.command(args...).CombinedOutput()
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		m.t.Fatal(err)
	}
	if got != code {
		m.t.Fatalf("swapback-agent %q ended with %d, want %d:\n%s", args, got, code, out)
	}
	m.says(string(out), parts...)
	return string(out)
}

func (m *machine) says(text string, parts ...string) {
	m.t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			m.t.Errorf("%q is not said in:\n%s", p, text)
		}
	}
}

func (m *machine) tool(name string, args ...string) string {
	m.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// holds mounts a volume read-only, without replaying anything, and fails unless
// a file on it holds a text.
func (m *machine) holds(volume, file, want string) {
	m.t.Helper()
	v := m.show(volume)
	fstype, err := mount.Detect(v.Device)
	if err != nil {
		m.t.Fatal(err)
	}
	options := map[string][]string{"ext4": {"ro", "noload"}, "xfs": {"ro", "norecovery", "nouuid"}}[fstype]
	dir := m.path("look")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := mount.Mount(v.Device, dir, "", options); err != nil {
		m.t.Fatal(err)
	}
	got, rerr := os.ReadFile(filepath.Join(dir, file))
	if err := mount.Unmount(m.t.Context(), dir); err != nil {
		m.t.Fatal(err)
	}
	if rerr != nil || strings.TrimSpace(string(got)) != want {
		m.t.Errorf("%s on volume %s is %.60q (%v), want %q", file, volume, got, rerr, want)
	}
}

// check runs the filesystem's own check, which must find nothing.
func (m *machine) check(volume string) {
	m.t.Helper()
	v := m.show(volume)
	fstype, err := mount.Detect(v.Device)
	if err != nil {
		m.t.Fatal(err)
	}
	if fstype == "xfs" {
		m.tool("xfs_repair", "-n", v.Device)
		return
	}
	m.tool("e2fsck", "-f", "-n", v.Device)
}

// refusesWrites fails when a volume's device takes a write.
func (m *machine) refusesWrites(volume string) {
	m.t.Helper()
	f, err := os.OpenFile(m.show(volume).Device, os.O_WRONLY|unix.O_DIRECT, 0)
	if err == nil {
		defer f.Close()
		_, err = f.WriteAt(make([]byte, 4096), 0)
		if errors.Is(err, unix.EINVAL) {
			m.t.Fatalf("the write was not even tried: %v", err)
		}
	}
	if err == nil {
		m.t.Errorf("volume %s took a write", volume)
	}
}

func (m *machine) state() *runner.State {
	m.t.Helper()
	s, err := runner.ReadState(m.path("state"), "j")
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

func (m *machine) wait(what string, done func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("waited in vain for %s\n%s", what, m.log)
		}
	}
}

func (m *machine) exists(name string) bool {
	_, err := os.Stat(m.path(name))
	return err == nil
}

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
