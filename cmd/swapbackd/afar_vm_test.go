//go:build vm

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent/nvmehost"
	"github.com/swapback/swapback/soak/rig"
)

// far is a machine that has volumes of a daemon by NVMe/TCP, asks it by the API from afar, and
// keeps its backups itself. It is this machine, by loopback.
type far struct {
	*process
	t      *testing.T
	dir    string // of the certificates and the repository
	secret string // by which the machine proves that it is rig.NVMeHost
}

const (
	farAddress = "127.0.0.1:7443"
	afarSize   = 32 * MiB
)

// startFar makes the authority and a client that speaks for [rig.NVMeHost], and one, named mute, that
// has the same rights and speaks for nobody.
func startFar(t *testing.T) *far {
	t.Helper()
	dir := t.TempDir()
	remote := filepath.Join(dir, "remote")
	issue := func(name string, more ...string) []string {
		return append([]string{
			"cert", "issue", name, "--allow", "list,backup,swap,manage", "--volume", "tank/db,tank/db-spare*", "--dir", remote, "--out", filepath.Join(dir, name+".pem"),
		}, more...)
	}
	for _, args := range [][]string{
		{"cert", "init", "127.0.0.1", "--dir", remote}, issue("host1", "--host", rig.NVMeHost), issue("mute"),
		{"repo", "init", filepath.Join(dir, "repo")},
	} {
		if out, err := exec.Command("swapback", args...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v %s", args, err, out)
		}
	}
	f := &far{t: t, dir: dir, secret: newSecret(t)}
	for path, text := range map[string]string{f.path("secrets"): rig.NVMeHost + " " + f.secret, f.path("secret"): f.secret} {
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.process = startExporting(t, "--nvme-secrets", f.path("secrets"), "--api-listen", farAddress, "--api-cert", filepath.Join(remote, "server.pem"), "--api-ca", filepath.Join(remote, "ca.pem"), "--api-access", filepath.Join(remote, "access"))
	return f
}

func (f *far) path(name string) string { return filepath.Join(f.dir, name) }

// command is a program of that machine, as a client.
func (f *far) command(client, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), api.ServerEnv+"="+farAddress, api.CertEnv+"="+f.path(client+".pem"), "SWAPBACK_REPO="+f.path("repo"), "SWAPBACK_RUN_DIR="+f.path("run"), nvmehost.SecretEnv+"="+f.path("secret"))
	return cmd
}

// says runs a program, which has to end with an exit code and say some words.
func (f *far) says(exit int, words []string, client, program string, args ...string) string {
	f.t.Helper()
	out, err := f.command(client, program, args...).CombinedOutput()
	code := 0
	if ee := (*exec.ExitError)(nil); errors.As(err, &ee) {
		code = ee.ExitCode()
	} else if err != nil {
		f.t.Fatal(err)
	}
	if code != exit {
		f.t.Errorf("%s: %s %q: exit code %d, want %d\n%s", client, program, args, code, exit, out)
	}
	for _, w := range words {
		if !strings.Contains(string(out), w) {
			f.t.Errorf("%s: %s %q: no %q in\n%s", client, program, args, w, out)
		}
	}
	return string(out)
}

func (f *far) swapback(exit int, words []string, args ...string) string {
	f.t.Helper()
	return f.says(exit, words, "host1", "swapback", args...)
}

// backUp makes a backup and compares it with what the device holds.
func (f *far) backUp(device string) backup.BackupVolume {
	f.t.Helper()
	out := f.swapback(0, nil, "backup", "create", "db", "--json")
	var b backup.Backup
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for i := range lines { // after the progress, if any
		if json.Unmarshal([]byte(strings.Join(lines[i:], "\n")), &b) == nil && b.ID != "" {
			break
		}
	}
	if len(b.Volumes) != 1 {
		f.t.Fatalf("backup says\n%s", out)
	}
	image := f.path("image")
	f.swapback(0, nil, "backup", "restore", b.ID, "--to-file", image, "--overwrite", "--yes")
	got, err := os.ReadFile(image)
	if err != nil {
		f.t.Fatal(err)
	}
	if want := rig.ReadDevice(f.t, device, 0, len(got)); !bytes.Equal(got, want) {
		f.t.Errorf("the backup is not what the volume holds, first at byte %d", rig.FirstDifference(got, want))
	}
	return b.Volumes[0]
}

// disks are the namespaces that this machine sees of a volume's subsystem.
func (f *far) disks(e api.Export) (list []string) {
	f.t.Helper()
	dirs, _ := filepath.Glob("/sys/class/nvme-subsystem/nvme-subsys*")
	for _, dir := range dirs {
		nqn, _ := os.ReadFile(filepath.Join(dir, "subsysnqn"))
		if strings.TrimSpace(string(nqn)) != e.NQN {
			continue
		}
		found, _ := filepath.Glob(filepath.Join(dir, "nvme*n*"))
		for _, path := range found {
			list = append(list, filepath.Base(path))
		}
	}
	return list
}

// TestAfar: another machine backs up and recovers what it has by NVMe/TCP with the commands
// of the storage machine.
func TestAfar(t *testing.T) {
	f := startFar(t)
	f.Pool()
	f.Volume("db", afarSize)
	e := f.Export("db")
	kernel := rig.OpenKernelLog(t)
	f.swapback(1, []string{"not connected to this machine", "nvme connect -t tcp -a 127.0.0.1", e.NQN}, "backup", "create", "db")
	device := f.Connect(e, "-i", "2", "--dhchap-secret", f.secret)
	rig.WriteDevice(t, device, 0, rig.RandomBytes(20, 6<<20))

	t.Run("backups", func(t *testing.T) {
		f.t = t
		if v := f.backUp(device); v.Base != "" || v.ReadBytes != afarSize {
			t.Errorf("the first backup: %+v", v)
		}
		// Each has a disk of its own, of which nothing may be in the page cache before.
		for n := range int64(2) {
			rig.WriteDevice(t, device, n*8*MiB, rig.RandomBytes(30+uint64(n), 1<<20))
			if v := f.backUp(device); v.Base == "" || v.ReadBytes > 4*MiB {
				t.Errorf("incremental backup %d: from %q, %d bytes read: %s", n, v.Base, v.ReadBytes, v.FullBecause)
			}
		}
		f.waitNoSnapshot("db")
		rig.WaitUntil(t, "the disks of the snapshots to go", func() bool { return len(f.disks(e)) == 1 })
	})

	t.Run("killed in a backup", func(t *testing.T) {
		f.t = t
		cmd := f.command("host1", "swapback", "backup", "create", "db", "--full", "--limit", "1M")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		rig.WaitUntil(t, "the disk of a snapshot", func() bool { return len(f.disks(e)) == 2 })
		for _, disk := range f.disks(e) { // by these udev can tell it from the volume
			if snapshot := disk != filepath.Base(device); (sysBlock(disk, "nsid") != "1") != snapshot || (sysBlock(disk, "ro") == "1") != snapshot {
				t.Errorf("%s is %s with the identifier %s, read-only %s", device, disk, sysBlock(disk, "nsid"), sysBlock(disk, "ro"))
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		f.waitNoSnapshot("db")
		rig.WaitUntil(t, "the disk of the snapshot to go", func() bool { return len(f.disks(e)) == 1 })
	})

	t.Run("refused", func(t *testing.T) {
		f.t = t
		before := f.Show("db")
		f.says(4, []string{"in use", "client mute does not speak for it", "host mute " + rig.NVMeHost}, "mute", "swapback", "recover", "db")
		if _, err := f.Client.ChangeExport(t.Context(), "db", api.ChangeExportRequest{Allow: []string{rig.NVMeStranger}}); err != nil {
			t.Fatal(err)
		}
		// nvme-cli takes two hosts on one machine for one.
		fabrics, err := os.OpenFile("/dev/nvme-fabrics", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer fabrics.Close()
		if _, err := fmt.Fprintf(fabrics, "transport=tcp,traddr=127.0.0.1,trsvcid=4420,nqn=%s,hostnqn=%s,hostid=%s", e.NQN, rig.NVMeStranger, strings.TrimPrefix(rig.NVMeStranger, rig.NVMeUUID)); err != nil {
			t.Fatal(err)
		}
		f.swapback(4, []string{"in use", rig.NVMeStranger}, "recover", "db")
		if _, err := f.Client.ChangeExport(t.Context(), "db", api.ChangeExportRequest{Deny: []string{rig.NVMeStranger}}); err != nil {
			t.Fatal(err)
		}
		if now := f.Show("db"); now.Position.ID != before.Position.ID || now.Position.Generation != before.Position.Generation {
			t.Errorf("the volume has changed: %+v", now.Position)
		}
	})

	t.Run("job", func(t *testing.T) {
		f.t = t
		rig.Tool(t, "mkfs.ext4", "-q", "-F", device)
		f.Leave("db", e)
		f.job(e)
	})
	f.Leave("db", e)
	kernel.ExpectQuiet(t)
}

// job runs a job whose step fails once, and looks at what is there then.
// The volume is connected for the job only, as the machine's own files name it.
func (f *far) job(e api.Export) {
	t := f.t
	t.Helper()
	for path, text := range map[string]string{"/etc/nvme/hostnqn": rig.NVMeHost, "/etc/nvme/hostid": strings.TrimPrefix(rig.NVMeHost, rig.NVMeUUID)} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	mountPoint := f.path("db")
	if err := os.Mkdir(mountPoint, 0o755); err != nil {
		t.Fatal(err)
	}
	file := f.path("job.yaml")
	text := strings.ReplaceAll(`
name: j
repository: $DIR/repo
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: echo good > $DIR/db/data}
  - name: change
    save_point: true
    retries: 1
    run: |
      test "$(cat $DIR/db/data)" = good
      echo "change $SWAPBACK_ATTEMPT" > $DIR/db/data
      if [ $SWAPBACK_ATTEMPT = 1 ]; then exit 42; fi
`, "$DIR", f.dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	before := f.Show("db")
	agent := func(exit int, words []string, args ...string) {
		t.Helper()
		f.says(exit, words, "host1", "swapback-agent", append(args, "--state-dir", f.path("state"), "--log-dir", f.path("logs"), "--run-dir", f.path("run"))...)
	}
	agent(0, []string{"db-spare, which would be created"}, "check", file)
	agent(0, []string{"exit code 42", "page cache and disk agree", "after 1 recovery"}, "run", file)
	after, spare := f.Show("db"), f.Show("db-spare")
	if after.Position.ID == before.Position.ID || spare.Position.ID != before.Position.ID {
		t.Errorf("before %+v\nafter %+v\nspare %+v", before.Position, after.Position, spare.Position)
	}
	if q := spare.Position.Quarantine; q == nil || q.Job != "j" || q.Step != "change" || q.ExitCode != 42 {
		t.Errorf("label %+v", q)
	}
	if list := f.disks(e); len(list) > 0 {
		t.Errorf("after the job the volume is still connected, as %q", list)
	}
	// The spare of the recovery by hand is connected as this is, with its secret.
	if err := os.Remove(f.path("secret")); err != nil {
		t.Fatal(err)
	}
	device := f.Connect(e, "-i", "2", "--dhchap-secret", f.secret)
	dir := rig.Mount(t, device, "ext4")
	if got, err := os.ReadFile(filepath.Join(dir, "data")); err != nil || string(got) != "change 2\n" {
		t.Errorf("the volume holds %q, %v", got, err)
	}
	// What is mounted here can't be put back, and is named.
	f.swapback(4, []string{"in use", "mounted on " + dir}, "recover", "db")
	rig.Unmount(t, dir)
	rig.Tool(t, "e2fsck", "-fn", device)
	se, err := f.Client.Export(t.Context(), "db-spare")
	if err != nil || len(se.Hosts) != 1 || se.Hosts[0] != rig.NVMeHost || len(se.Connected) != 0 || len(f.disks(se)) != 0 || !se.ReadOnly {
		t.Errorf("the spare's export: %+v, %v, here %q", se, err, f.disks(se))
	}
	// Looked at, it is the next spare, this time of a recovery by hand.
	f.CLI(0, nil, "volume", "release", "db-spare")
	f.swapback(0, []string{"page cache and disks agree"}, "recover", "db")
	if now := f.Show("db-spare"); now.Position.ID != after.Position.ID || now.Position.Quarantine == nil {
		t.Errorf("after the recovery by hand: %+v", now.Position)
	}
	f.CLI(0, nil, "volume", "release", "db-spare")
	f.swapback(0, nil, "backup", "restore", "latest", "--onto", "db-spare", "--yes")
	if e, err := f.Client.Export(t.Context(), "db-spare"); err != nil || len(e.Connected) != 0 {
		t.Errorf("a restore leaves the spare connected: %+v, %v", e.Connected, err)
	}
	if !bytes.Equal(rig.ReadDevice(t, device, 0, int(afarSize)), f.spareContent()) {
		t.Error("the restored spare differs from the recovered volume")
	}
}

// spareContent is what the spare holds, by the other door.
func (f *far) spareContent() []byte {
	f.t.Helper()
	v, err := f.Client.Attach(f.t.Context(), "db-spare", api.AttachRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	return rig.ReadDevice(f.t, v.Device, 0, int(afarSize))
}
