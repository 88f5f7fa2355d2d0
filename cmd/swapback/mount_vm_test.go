//go:build vm

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/soak/rig"
	"github.com/swapback/swapback/ublk"
)

// mountRig is a repository with one backup of three volumes: a filesystem of each
// kind, whose originals stay mounted, and one that fio has filled.
type mountRig struct {
	repo, runDir string
	images       map[string]string // content by volume
	sums         map[string]string // file with the checksums of a filesystem's files
}

const (
	mountChunk  = 256 << 10
	mountVolume = 64 << 20
	mountFilled = 4 << 20 // what fio has written
)

func newMountRig(t *testing.T) *mountRig {
	t.Helper()
	dir := t.TempDir()
	m := &mountRig{repo: filepath.Join(dir, "repo"), runDir: filepath.Join(dir, "run"), images: map[string]string{}, sums: map[string]string{}}
	for fstype, mkfs := range map[string]string{"ext4": "mkfs.ext4 -q -F", "xfs": "mkfs.xfs -q -f --unsupported"} {
		loop, at, sums := rig.Loop(t, mountVolume), t.TempDir(), filepath.Join(dir, fstype+".sums")
		rig.Tool(t, "sh", "-c", "set -e; "+mkfs+" "+loop+"; mount "+loop+" "+at+`
			cd `+at+`
			dd if=/dev/urandom of=big bs=1M count=4 status=none
			split -b 100000 -a 3 big part.
			find . -type f -exec sha256sum {} + > `+sums+`
			`)
		t.Cleanup(func() { rig.Tool(t, "umount", at) })
		image := filepath.Join(dir, fstype)
		// Frozen, as for a backup: a read-only device replays no journal.
		rig.Tool(t, "sh", "-c", "fsfreeze -f "+at+" && dd if="+loop+" of="+image+" bs=1M conv=sparse status=none; fsfreeze -u "+at)
		m.images[fstype], m.sums[fstype] = image, sums
	}
	m.images["fio"] = filepath.Join(dir, "fio")
	rig.Tool(t, "fio", append(fioVerify(m.images["fio"]), "--rw=write", "--do_verify=0")...)

	r, err := backup.Init(t.Context(), m.repo, backup.InitOptions{ChunkSize: mountChunk})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var sources []backup.Source
	for _, name := range []string{"fio", "ext4", "xfs"} { // in the packs in this order, see damageSomewhere
		sources = append(sources, backup.Source{Path: m.images[name], Volume: backup.VolumeRef{Name: name}})
	}
	if _, err := r.Create(t.Context(), sources, backup.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return m
}

// fioVerify are the arguments by which fio knows what it has written.
func fioVerify(file string) []string {
	return []string{"--thread", "--clocksource=clock_gettime", "--name=x", "--filename=" + file, fmt.Sprintf("--size=%d", mountFilled), "--bs=16k",
		"--verify=crc32c", "--verify_fatal=1", "--randrepeat=1", "--ioengine=libaio"}
}

// mounted is a "backup mount" under way.
type mounted struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    *bufio.Reader
	errOut rig.Buffer
	device string
	first  mountEvent
}

func (m *mountRig) mount(t *testing.T, args ...string) *mounted {
	t.Helper()
	p := &mounted{t: t}
	p.cmd = exec.Command("swapback", append([]string{"backup", "mount", "--json", "--repo", m.repo}, args...)...)
	p.cmd.Env = append(os.Environ(), hostagent.RunDirEnv+"="+m.runDir)
	p.cmd.Stderr = &p.errOut
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	p.event("device", &p.first)
	p.device = p.first.Device
	return p
}

// event reads the next line, which has to be of the kind.
func (p *mounted) event(kind string, v any) {
	p.t.Helper()
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		p.t.Fatalf("instead of %q: %v\n%s", kind, err, p.errOut.String())
	}
	var e struct{ Type string }
	if err := json.Unmarshal(line, &e); err != nil || e.Type != kind {
		p.t.Fatalf("instead of %q: %s", kind, line)
	}
	if err := json.Unmarshal(line, v); err != nil {
		p.t.Fatal(err)
	}
}

// mountAt mounts what is on the device, as the command has said.
func (p *mounted) mountAt() string {
	p.t.Helper()
	at := p.t.TempDir()
	rig.Tool(p.t, "mount", "-o", p.first.Options, p.device, at)
	p.t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) }) // when the test has failed
	return at
}

func (p *mounted) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// ended waits for the end and checks that nothing is left of the device.
func (p *mounted) ended(exit int) (r mountResult) {
	p.t.Helper()
	p.event("result", &r)
	_, err := io.Copy(io.Discard, p.out)
	err = errors.Join(err, p.cmd.Wait())
	if got := p.cmd.ProcessState.ExitCode(); got != exit {
		p.t.Errorf("exit code %d, want %d: %v\n%s", got, exit, err, p.errOut.String())
	}
	if _, err := os.Stat("/sys/block/" + filepath.Base(p.device)); !os.IsNotExist(err) {
		p.t.Errorf("%s is there still: %v", p.device, err)
	}
	return r
}

// interrupt is Ctrl-C on a device that nobody uses.
func (p *mounted) interrupt() mountResult {
	p.t.Helper()
	p.signal(syscall.SIGINT)
	return p.ended(exitOK)
}

// noDevices fails the test when a ublk device is left, or a mark.
func (m *mountRig) noDevices(t *testing.T) {
	t.Helper()
	for _, info := range ublkDevices(t) {
		t.Errorf("left over: %+v", info)
	}
	marks, err := filepath.Glob(filepath.Join(m.runDir, "quarantine", "*"))
	if err != nil || len(marks) > 0 {
		t.Errorf("marks are left: %v, %v", marks, err)
	}
}

func ublkDevices(t *testing.T) []ublk.Info {
	t.Helper()
	ctl, err := ublk.OpenControl(ublk.ControlOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	list, err := ctl.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func number(t *testing.T, device string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimPrefix(device, "/dev/ublkb"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBackupMount(t *testing.T) {
	m := newMountRig(t)
	parts := []struct {
		name string
		run  func(*testing.T, *mountRig)
	}{
		{"filesystems", mountFilesystems}, {"fio", mountFio}, {"holders", mountHolders}, {"second signal", mountSecondSignal},
		{"killed", mountKilled}, {"numbers", mountNumbers}, {"cost", mountCost}, {"damage", mountDamage},
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			p.run(t, m)
			m.noDevices(t)
		})
	}
}

// Every file of a filesystem and every byte of its volume is right, while the
// original, whose twin it is, is mounted.
func mountFilesystems(t *testing.T, m *mountRig) {
	for fstype, sums := range m.sums {
		p := m.mount(t, "latest", fstype)
		if p.first.Filesystem != fstype || p.first.Options == "" || p.first.Volume.Size != mountVolume {
			t.Errorf("%+v", p.first)
		}
		at := p.mountAt()
		rig.Tool(t, "sh", "-c", "cd "+at+" && sha256sum --quiet -c "+sums)
		rig.Tool(t, "umount", at)
		rig.Tool(t, "cmp", p.device, m.images[fstype])
		if err := exec.Command("dd", "if=/dev/zero", "of="+p.device, "bs=4k", "count=1").Run(); err == nil {
			t.Error("it could be written")
		}
		r := p.interrupt()
		if len(r.Damage) > 0 || r.Stats.Chunks == 0 || r.Stats.Ahead == 0 {
			t.Errorf("%+v", r)
		}
	}
}

// fio finds what it wrote, at random and deep in flight, also when next to nothing
// fits into the cache.
func mountFio(t *testing.T, m *mountRig) {
	for _, cache := range []string{"128M", "2M"} {
		p := m.mount(t, "latest", "fio", "--cache", cache)
		rig.Tool(t, "fio", append(fioVerify(p.device), "--rw=randread", "--direct=1", "--iodepth=32", "--readonly")...)
		if r := p.interrupt(); r.Stats.Chunks < mountFilled/mountChunk {
			t.Errorf("%+v", r.Stats)
		}
	}
}

// Ctrl-C while the device is mounted names the mount, waits, and ends with it.
func mountHolders(t *testing.T, m *mountRig) {
	p := m.mount(t, "latest", "xfs")
	at := p.mountAt()
	p.signal(syscall.SIGTERM)
	var e waitingEvent
	p.event("waiting", &e)
	if len(e.Holders) != 1 || e.Holders[0].Kind != "mount" || !strings.Contains(e.Holders[0].Detail, at) {
		t.Errorf("%+v", e)
	}
	rig.Tool(t, "sh", "-c", "cd "+at+" && sha256sum --quiet -c "+m.sums["xfs"]) // it is served still
	rig.Tool(t, "umount", at)
	p.ended(exitOK)
}

// A second one removes the device: who has it mounted gets errors, and can unmount.
func mountSecondSignal(t *testing.T, m *mountRig) {
	p := m.mount(t, "latest", "ext4")
	at := p.mountAt()
	p.signal(syscall.SIGINT)
	var e waitingEvent
	p.event("waiting", &e)
	p.signal(syscall.SIGINT)
	p.ended(exitInUse)
	if !strings.Contains(p.errOut.String(), at) {
		t.Errorf("the error does not name %s: %s", at, p.errOut.String())
	}
	if err := exec.Command("sha256sum", filepath.Join(at, "big")).Run(); err == nil {
		t.Error("a file is read from a device that is gone")
	}
	rig.Tool(t, "umount", at)
	for deadline := time.Now().Add(10 * time.Second); len(ublkDevices(t)) > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
}

// kill -9 leaves no block device, and nobody who waits; the next mount frees the
// number.
func mountKilled(t *testing.T, m *mountRig) {
	p := m.mount(t, "latest", "ext4")
	at := p.mountAt()
	f := rig.OpenDirect(t, p.device, os.O_RDONLY)
	defer f.Close()
	reading := exec.Command("dd", "if="+p.device, "of=/dev/null", "bs=1M", "iflag=direct", "status=none")
	if err := reading.Start(); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGKILL)
	_ = p.cmd.Wait()
	_ = reading.Wait() // however it ends
	if _, err := f.ReadAt(rig.Aligned(t, 4096), mountVolume-4096); err == nil {
		t.Error("a read after the kill worked")
	}
	rig.Tool(t, "umount", at)
	f.Close()
	rig.WaitUntil(t, "the device to go", func() bool {
		_, err := os.Stat("/sys/block/" + filepath.Base(p.device))
		return os.IsNotExist(err)
	})
	if list := ublkDevices(t); len(list) != 1 || list[0].State != ublk.StateDead {
		t.Errorf("left: %+v", list)
	}
	next := m.mount(t, "latest", "ext4")
	if next.device != p.device {
		t.Errorf("%s, though the number of %s should be free", next.device, p.device)
	}
	rig.Tool(t, "cmp", "-n", "1048576", next.device, m.images["ext4"])
	next.interrupt()
}

// Devices side by side have numbers of their own, with a mark for each; a number
// that is taken is refused. Partitions can be had.
func mountNumbers(t *testing.T, m *mountRig) {
	a, b := m.mount(t, "latest", "ext4"), m.mount(t, "latest", "xfs", "--device", "40")
	if b.device != "/dev/ublkb40" || a.device == b.device {
		t.Errorf("%s and %s", a.device, b.device)
	}
	for _, p := range []*mounted{a, b} {
		if _, err := os.Stat(markPath(m.runDir, number(t, p.device))); err != nil {
			t.Error(err)
		}
	}
	cmd := exec.Command("swapback", "backup", "mount", "latest", "fio", "--repo", m.repo, "--device", "40")
	cmd.Env = append(os.Environ(), hostagent.RunDirEnv+"="+m.runDir)
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != exitInUse || !strings.Contains(string(out), "leave --device out") {
		t.Errorf("a number that is taken: %d\n%s", cmd.ProcessState.ExitCode(), out)
	}
	rig.Tool(t, "addpart", b.device, "1", "2048", "4096")
	rig.Tool(t, "cmp", "-n", "65536", "-i", "0:1048576", b.device+"p1", m.images["xfs"])
	a.interrupt()
	b.interrupt()
}

// mountCost logs what a mount costs beside a restore, as ratios: this machine is
// emulated.
func mountCost(t *testing.T, m *mountRig) {
	begin := time.Now()
	p := m.mount(t, "latest", "ext4")
	f := rig.OpenDirect(t, p.device, os.O_RDONLY)
	if _, err := f.ReadAt(rig.Aligned(t, 4096), mountVolume/2); err != nil {
		t.Error(err)
	}
	first := time.Since(begin)
	f.Close()
	p.interrupt()
	target := filepath.Join(t.TempDir(), "target")
	begin = time.Now()
	rig.Tool(t, "swapback", "backup", "restore", "latest", "--volume", "fio", "--to-file", target, "--repo", m.repo)
	restored := time.Since(begin)
	p = m.mount(t, "latest", "fio")
	begin = time.Now()
	rig.Tool(t, "dd", "if="+p.device, "of=/dev/null", "bs=1M", "status=none")
	buffered := time.Since(begin)
	p.interrupt()
	p = m.mount(t, "latest", "fio")
	begin = time.Now()
	rig.Tool(t, "dd", "if="+p.device, "of=/dev/null", "bs=1M", "iflag=direct", "status=none")
	direct := time.Since(begin)
	p.interrupt()
	t.Logf("first block of 64 MiB after %v; 4 MiB: restore %v, buffered read %v (%.2f of it), direct %v (%.2f)",
		first, restored, buffered, buffered.Seconds()/restored.Seconds(), direct, direct.Seconds()/restored.Seconds())
}

// A damaged chunk is EIO for its own bytes, however they are asked for, and for no
// others. It goes last: the pack stays damaged.
func mountDamage(t *testing.T, m *mountRig) {
	damageSomewhere(t, m.repo)
	content, err := os.ReadFile(m.images["fio"])
	if err != nil {
		t.Fatal(err)
	}
	p := m.mount(t, "latest", "fio")
	bad := 0
	for _, size := range []int{mountChunk, mountChunk / 2} {
		f := rig.OpenDirect(t, p.device, os.O_RDONLY)
		buf := rig.Aligned(t, size)
		seen := map[int]bool{} // by chunk
		for at := 0; at < len(content); at += size {
			_, err := f.ReadAt(buf, int64(at))
			switch {
			case errors.Is(err, unix.EIO):
				seen[at/mountChunk] = true
			case err != nil:
				t.Errorf("at %d: %v", at, err)
			case seen[at/mountChunk]:
				t.Errorf("at %d: no error in a chunk that had one", at)
			case !bytes.Equal(buf, content[at:at+size]):
				t.Errorf("at %d: other bytes", at)
			}
		}
		f.Close()
		bad = max(bad, len(seen))
		if len(seen) != bad {
			t.Errorf("%d bad chunks, then %d", bad, len(seen))
		}
	}
	r := p.interrupt()
	var length int64
	for _, d := range r.Damage {
		length += d.Length
	}
	if bad == 0 || bad > 2 || length != int64(bad)*mountChunk {
		t.Errorf("%d bad chunks, listed: %+v", bad, r.Damage)
	}
}

// damageSomewhere flips a bit in the pack that has the chunks of the volume "fio",
// which come first.
func damageSomewhere(t *testing.T, repo string) {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(repo, "packs", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	r, err := backup.Open(t.Context(), repo, backup.Secret{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, path := range packs {
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		const at = 1 << 20
		if len(good) <= at {
			continue
		}
		broken := bytes.Clone(good)
		broken[at] ^= 1
		if err := os.WriteFile(path, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		im, err := r.OpenImage(context.Background(), "latest", "fio", backup.ImageOptions{})
		if err != nil {
			t.Fatal(err)
		}
		damaged := false
		p := make([]byte, mountChunk)
		for at := int64(0); at < im.Size(); at += mountChunk {
			_, err := im.ReadAt(context.Background(), p, at)
			damaged = damaged || errors.Is(err, backup.ErrDamaged)
		}
		im.Close()
		if damaged {
			return
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("no pack has a chunk of the volume")
}
