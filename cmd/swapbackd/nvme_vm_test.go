//go:build vm

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/soak/rig"
)

// These tests have the kernel's own NVMe/TCP initiator as the other host, by loopback.

// startExporting starts a daemon that listens for hosts on the loopback address.
func startExporting(t *testing.T, args ...string) *process {
	t.Helper()
	rig.Tool(t, "modprobe", "nvme-tcp")
	return startDaemon(t, append([]string{"--nvme-listen", "127.0.0.1"}, args...)...)
}

// sysBlock reads an attribute of a block device.
func sysBlock(device, name string) string {
	text, _ := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), name))
	return strings.TrimSpace(string(text))
}

func sectors(bytes int64) string { return strconv.FormatInt(bytes/512, 10) }

// TestExport: a volume as another host sees it, through everything that happens to it.
func TestExport(t *testing.T) {
	d := startExporting(t)
	d.Pool()
	d.Volume("a", 64*MiB)
	b := d.Volume("b", 64*MiB)
	ea, eb := d.Export("a"), d.Export("b")
	kernel := rig.OpenKernelLog(t)

	address := []string{"-t", "tcp", "-a", "127.0.0.1", "-s", "4420"}
	for host, sees := range map[string]bool{rig.NVMeHost: true, rig.NVMeStranger: false} {
		if out, err := rig.NVMe(host, append([]string{"discover"}, address...)...); strings.Contains(out, ea.NQN) != sees {
			t.Errorf("%s discovers: %v\n%s", host, err, out)
		}
	}
	if out, err := rig.NVMe(rig.NVMeStranger, append([]string{"connect", "-n", ea.NQN}, address...)...); err == nil {
		t.Fatalf("a stranger has connected:\n%s", out)
	}
	devA, devB := d.Connect(ea, "-i", "2"), d.Connect(eb, "-i", "1")
	if sysBlock(devA, "size") != sectors(64*MiB) {
		t.Errorf("the host's device has %s sectors", sysBlock(devA, "size"))
	}

	t.Run("filesystem", func(t *testing.T) {
		rig.Tool(t, "mkfs.ext4", "-q", devA)
		dir := rig.Mount(t, devA, "ext4")
		rig.WriteFile(t, filepath.Join(dir, "file"), rig.RandomBytes(3, 4<<20))
		rig.Unmount(t, dir)
		rig.Tool(t, "e2fsck", "-fn", devA)
	})
	dataA, dataB := rig.RandomBytes(10, 16<<20), rig.RandomBytes(11, 16<<20)
	rig.WriteDevice(t, devA, 0, dataA)
	rig.WriteDevice(t, b.Device, 0, dataB)
	shows := func(t *testing.T, device string, want []byte) {
		t.Helper()
		if got := rig.ReadDevice(t, device, 0, len(want)); !bytes.Equal(got, want) {
			t.Errorf("%s shows other data, first at byte %d", device, rig.FirstDifference(got, want))
		}
	}
	shows(t, d.Show("a").Device, dataA) // the other door
	shows(t, devB, dataB)

	t.Run("swap", func(t *testing.T) {
		_, err := d.Client.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "b"}}})
		if api.CodeOf(err) != api.CodeInUse || !strings.Contains(err.Error(), rig.NVMeHost) {
			t.Errorf("with hosts connected: %v", err)
		}
		load := startReader(t, devA)
		met := uint64(0)
		for _, busy := range []string{api.BusyHold, api.BusyRefuse, api.BusyHold} {
			load.waitReads(20)
			res := d.swapUnder(busy)
			met += res.Held + res.Refused
			t.Logf("%s: pause %.1f ms, %d held, %d refused", busy, res.Pause*1e3, res.Held, res.Refused)
			if res.Warning != "" {
				t.Log(res.Warning)
			}
		}
		load.waitReads(20)
		load.stop()
		if n := load.busy.Load() + load.other.Load(); n > 0 {
			t.Errorf("the host saw %d errors", n)
		}
		if met == 0 {
			t.Error("no command met a closed gate in three swaps under load")
		}
		shows(t, devA, dataB) // three swaps are one
		shows(t, devB, dataA)
		if sysBlock(devA, "uuid") != ea.UUID || sysBlock(devB, "uuid") != eb.UUID {
			t.Error("the namespaces have changed their identity")
		}
	})

	t.Run("changes", func(t *testing.T) {
		snap, end, err := d.Client.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"a"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.waitNoSnapshot("a")
		if _, err := d.Client.SetDescendsFrom(t.Context(), "a", api.DescendsRequest{Backup: "b-1", Cut: snap.Volumes[0].Changes.Cut}); err != nil {
			t.Fatal(err)
		}
		if c := d.Show("a").Changed; c == nil || c.Base != "b-1" || c.Bytes != 0 || !c.Durable {
			t.Fatalf("after the backup was recorded: %+v", c)
		}
		// Each write to an extent that was not written to since waits for the map.
		rig.WriteDevice(t, devA, 8*MiB, dataB[8*MiB:12*MiB])
		if c := d.Show("a").Changed; c.Bytes != 4*MiB {
			t.Errorf("after a host has written 4 MiB: %+v", c)
		}
		shows(t, devA, dataB)
	})

	t.Run("grow", func(t *testing.T) {
		if _, err := d.Client.GrowVolume(t.Context(), "a", 80*MiB); err != nil {
			t.Fatal(err)
		}
		rig.WaitUntil(t, "the host to see the new size", func() bool { return sysBlock(devA, "size") == sectors(80*MiB) })
		rig.WriteDevice(t, devA, 79*MiB, dataA[:MiB])
		if got := rig.ReadDevice(t, d.Show("a").Device, 79*MiB, int(MiB)); !bytes.Equal(got, dataA[:MiB]) {
			t.Error("what the host has written behind the old end is not there")
		}
	})

	t.Run("quarantine", func(t *testing.T) {
		if _, err := d.Client.Quarantine(t.Context(), "b", api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "a test"}}); err != nil {
			t.Fatal(err)
		}
		f := rig.OpenDirect(t, devB, os.O_RDONLY)
		defer f.Close()
		rig.WaitUntil(t, "the host to see that it is read-only", func() bool { return sysBlock(devB, "ro") == "1" })
		if w, err := os.OpenFile(devB, os.O_WRONLY|unix.O_DIRECT, 0); err == nil {
			if _, err := w.WriteAt(rig.Aligned(t, 4096), 0); err == nil {
				t.Error("a quarantined volume took a host's write")
			}
			w.Close()
		}
		shows(t, devB, dataA)
		if _, err := d.Client.ReleaseQuarantine(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		rig.WaitUntil(t, "the host to see that it is writable", func() bool { return sysBlock(devB, "ro") == "0" })
		rig.WriteDevice(t, devB, 0, dataA[:4096])
	})

	t.Run("delete", func(t *testing.T) {
		d.CLI(4, []string{"in use", rig.NVMeHost}, "export", "delete", "b")
		if err := d.Client.DeleteVolume(t.Context(), "b", false); api.CodeOf(err) != api.CodeInUse {
			t.Errorf("deleting a volume that a host uses: %v", err)
		}
		d.Leave("b", eb)
		d.CLI(0, nil, "export", "delete", "b")
		if _, err := d.Client.Export(t.Context(), "b"); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("after the delete: %v", err)
		}
	})
	d.Leave("a", ea)
	if m := d.Metrics(); m[`swapback_nvme_held_requests_total{pool="tank",volume="a"}`] == 0 || m["swapback_nvme_listeners"] != 1 {
		t.Errorf("metrics: %v", m)
	}
	kernel.ExpectQuiet(t)
}

// TestExportOutlivesTheDaemon: it is killed, again and again, while a host verifies what
// it writes; the host sees a pause.
func TestExportOutlivesTheDaemon(t *testing.T) {
	d := startExporting(t)
	d.Pool()
	d.Volume("a", 64*MiB)
	e := d.Export("a")
	kernel := rig.OpenKernelLog(t)
	device := d.Connect(e, "-i", "2", "--reconnect-delay", "1")
	load := rig.LoopFio(t, rig.HostJob(device, "4m", "--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"))
	for range 2 {
		d.WaitHostIO("a", load, 50)
		d.Kill()
		d.Run()
	}
	d.WaitHostIO("a", load, 50)
	runs, longest := load.Stop()
	t.Logf("%d runs of fio, longest latency %v", runs, longest)
	now, err := d.Client.Export(t.Context(), "a")
	if err != nil || now.NQN != e.NQN || len(now.Connected) != 1 || now.Connected[0].Host != rig.NVMeHost {
		t.Errorf("after the restarts: %+v, %v", now, err)
	}
	t.Run("reservation", func(t *testing.T) { d.reserved(device) })
	// Who is taken off the list is out at once.
	if _, err := d.Client.ChangeExport(t.Context(), "a", api.ChangeExportRequest{Allow: []string{rig.NVMeStranger}, Deny: []string{rig.NVMeHost}}); err != nil {
		t.Fatal(err)
	}
	if now, err := d.Client.Export(t.Context(), "a"); err != nil || len(now.Connected) != 0 || len(now.Hosts) != 1 {
		t.Errorf("after the host was denied: %+v, %v", now, err)
	}
	d.Leave("a", e)
	kernel.ExpectQuiet(t)
}

// reserved reserves the volume a for the host, and looks whether the other door heeds it,
// also after the daemon was killed.
func (d *process) reserved(device string) {
	t := d.t
	t.Helper()
	local := d.Show("a").Device
	write := func(path string) error {
		f := rig.OpenDirect(t, path, os.O_RDWR)
		defer f.Close()
		_, err := f.WriteAt(rig.Aligned(t, 4096), 32*MiB)
		return err
	}
	if err := errors.Join(write(local), write(device)); err != nil {
		t.Errorf("before: %v", err)
	}
	rig.Tool(t, "nvme", "resv-register", device, "--nrkey=1", "--rrega=0", "--cptpl=3")
	rig.Tool(t, "nvme", "resv-acquire", device, "--crkey=1", "--rtype=1", "--racqa=0")
	for _, when := range []string{"reserved", "after the daemon was killed"} {
		if err := write(local); !errors.Is(err, unix.EBADE) {
			t.Errorf("%s: a write to %s: %v", when, local, err)
		}
		rig.ReadDevice(t, local, 0, 4096)
		if err := write(device); err != nil {
			t.Errorf("%s: the host that has reserved it can't write: %v", when, err)
		}
		e, err := d.Client.Export(t.Context(), "a")
		if r := e.Reservations; err != nil || r == nil || r.Type != "write-exclusive" || !r.Persist || len(r.Registrants) != 1 || !r.Registrants[0].Holder {
			t.Errorf("%s: %+v, %v", when, r, err)
		}
		if when == "reserved" {
			d.Kill()
			d.Run()
		}
	}
	rig.Tool(t, "nvme", "resv-release", device, "--crkey=1", "--rtype=1", "--rrela=0")
	if err := write(local); err != nil {
		t.Errorf("released: %v", err)
	}
}

// TestExportAsksForSecrets: a host that has a secret has to prove it, and with
// --authenticate one that has none stays out. The file is read anew for each.
func TestExportAsksForSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets")
	secret, own := newSecret(t), newSecret(t)
	write := func(mode os.FileMode, lines ...string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(strings.Join(lines, "\n")), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write(0o600, "# none yet")
	d := startExporting(t, "--nvme-secrets", path)
	d.Pool()
	d.Volume("a", 16*MiB)
	e := d.Export("a", "--authenticate")
	line, _, _ := strings.Cut(e.Connect[0], " --dhchap-secret")
	try := func(args ...string) error {
		out, err := rig.NVMe(rig.NVMeHost, append(strings.Fields(line)[1:], args...)...)
		if err == nil {
			rig.Disconnect(e)
		} else {
			t.Log(strings.TrimSpace(out))
		}
		return err
	}
	proof := []string{"--dhchap-secret", secret}
	if try() == nil || try(proof...) == nil {
		t.Error("a host without a secret came in")
	}
	write(0o600, rig.NVMeHost+" "+secret+" "+own)
	if try() == nil || try("--dhchap-secret", newSecret(t)) == nil {
		t.Error("a host that proves nothing came in")
	}
	if err := try(append(proof, "--dhchap-ctrl-secret", own)...); err != nil {
		t.Errorf("with the secrets of both: %v", err)
	}
	write(0o644, rig.NVMeHost+" "+secret)
	if try(proof...) == nil {
		t.Error("a host came in although all can read the secrets")
	}
	d.Leave("a", e)
}

// TestExportRenewsSecrets: a secret is replaced while the host is connected, which proves
// the new one on the connections that it has, and reads on.
func TestExportRenewsSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets")
	secret, own := newSecret(t), newSecret(t)
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keep := func() { write(path, rig.NVMeHost+" "+secret+" "+own) }
	keep()
	d := startExporting(t, "--nvme-secrets", path)
	d.Pool()
	d.Volume("a", 16*MiB)
	e := d.Export("a", "--authenticate")
	device := d.Connect(e, "-i", "2", "--dhchap-secret", secret, "--dhchap-ctrl-secret", own)
	name, dir := "", ""
	for name = range rig.Controllers(e.NQN) {
		dir = filepath.Join("/sys/class/nvme", name)
	}
	id := func() string {
		text, _ := os.ReadFile(filepath.Join(dir, "cntlid"))
		return string(text)
	}
	proofs := func() int { return strings.Count(rig.Tool(t, "dmesg"), name+": qid 0: authenticated") }
	first := id()
	load := startReader(t, device)
	for n := range 3 {
		before := proofs()
		switch n {
		case 0: // the one that it has
			write(filepath.Join(dir, "dhchap_secret"), secret)
		case 1:
			secret = newSecret(t)
			keep()
			write(filepath.Join(dir, "dhchap_secret"), secret)
		case 2:
			own = newSecret(t)
			keep()
			write(filepath.Join(dir, "dhchap_ctrl_secret"), own)
		}
		rig.WaitUntil(t, "the host to prove itself anew", func() bool { return proofs() > before })
		load.waitReads(20)
	}
	load.stop()
	if n := load.busy.Load() + load.other.Load(); n > 0 || id() != first {
		t.Errorf("%d errors; controller %q was %q", n, id(), first)
	}
	write(filepath.Join(dir, "dhchap_secret"), newSecret(t))
	rig.WaitUntil(t, "a host with a wrong secret to lose its connection", func() bool {
		return rig.Controllers(e.NQN)[name] != "live" || id() != first
	})
}

func newSecret(t *testing.T) string {
	t.Helper()
	s, err := auth.NewSecret(auth.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return s.Text()
}
