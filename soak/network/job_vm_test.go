//go:build vm

package network

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/ci/peer"
	"github.com/swapback/swapback/soak/rig"
)

// job makes a filesystem's content in two steps and spoils it in a third. Between them
// are a full backup and an incremental one.
const job = `
name: nightly
repository: DIR/repo
volumes: [{name: tank/db, mount: DIR/mnt}]
steps:
  - name: make
    run: |
      mkdir mnt/a mnt/b
      for d in mnt/a mnt/b; do head -c 3000000 /dev/urandom | split -b 100000 - $d/; done
    workdir: DIR
  - name: change
    save_point: true
    run: |
      rm -r mnt/b
      echo changed >mnt/a/aa
      head -c 1000000 /dev/urandom >mnt/more
      find mnt -type f -print0 | sort -z | xargs -0 sha256sum >good
    workdir: DIR
  - name: spoil
    save_point: true
    run: |
      echo spoilt >mnt/a/aa
      rm mnt/more
      exit 42
    workdir: DIR
`

// TestHostRecovers is the whole story: the agent runs on the host, with a repository
// there; it reads its save points, and brings the last one back, over the network. The
// storage machine swaps.
func TestHostRecovers(t *testing.T) {
	const size = 64 * MiB
	d, h := start(t)
	before := d.Volume("db", size)
	e := d.Export("db")
	pem := filepath.Join(t.TempDir(), "host1.pem")
	rig.Tool(t, "swapback", "cert", "issue", "host1", "--allow", "list,backup,swap,manage", "--volume", "tank/db,tank/db-spare*",
		"--host", rig.NVMeHost, "--dir", d.certs, "--out", pem)
	h.send(pem, h.dir+"/host1.pem")
	device := h.connect(e, "-i", "2")
	h.run("mkfs.ext4", "-q", device)

	env := []string{"SWAPBACK_SERVER=" + d.own, "SWAPBACK_CERT=" + h.dir + "/host1.pem", "SWAPBACK_REPO=" + h.dir + "/repo"}
	agent := func(status int, words []string, args ...string) {
		t.Helper()
		args = append([]string{"swapback-agent", "--state-dir", h.dir + "/state", "--log-dir", h.dir + "/log"}, args...)
		out, got := h.try(peer.Command{Args: args, Env: env})
		if got != status {
			t.Fatalf("%q: status %d, want %d\n%s\nswapbackd said:\n%s", args, got, status, out, rig.Tail(d.Log.String(), 40))
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("%q does not say %q:\n%s", args, w, out)
			}
		}
	}
	h.runWith(peer.Command{Args: []string{"swapback", "repo", "init"}, Env: env})
	h.script(`mkdir "$DIR/mnt" && printf %s "${JOB//DIR/$DIR}" >"$DIR/job.yaml"`, "JOB="+job)
	agent(0, []string{"db-spare, which would be created"}, "check", h.dir+"/job.yaml")
	agent(1, []string{"exit code 42", "page cache and disk agree", "db at the save point before step spoil"}, "run", h.dir+"/job.yaml")

	// Storage: the name shows what was restored, and the other one what failed.
	after, failed := d.Show("db"), d.Show("db-spare")
	if after.Device != before.Device || after.Position.ID == before.Position.ID || failed.Position.ID != before.Position.ID {
		t.Errorf("before %+v\nafter %+v\nfailed %+v", before, after, failed)
	}
	if q := failed.Position.Quarantine; q == nil || q.Job != "nightly" || q.Step != "spoil" || q.ExitCode != 42 || q.Volume != "tank/db" {
		t.Errorf("label %+v", q)
	}
	d.CLI(0, nil, "pool", "check", "tank")

	// Host: the same disk, with the content of the save point.
	h.run("e2fsck", "-fn", device)
	h.mount(device)
	h.script(`cd "$DIR" && sha256sum --check --quiet good && find mnt -type f | wc -l | grep -qx "$(wc -l <good)"`)
	h.unmount(device)

	// What failed is to be had, whole and read-only, where it was.
	spare := d.exported("db-spare")
	failedDevice := h.connect(spare, "-i", "1")
	if ro := strings.TrimSpace(h.run("blockdev", "--getro", failedDevice)); ro != "1" {
		t.Errorf("the host's disk of the failed data: blockdev --getro says %s", ro)
	}
	got := h.script(`mount -o ro,noload "$DEV" "$DIR/mnt" && cat "$DIR/mnt/a/aa" && ls "$DIR/mnt" && umount "$DIR/mnt"`, "DEV="+failedDevice)
	if !strings.HasPrefix(got, "spoilt\n") || strings.Contains(got, "more") {
		t.Errorf("the failed data:\n%s", got)
	}
	h.leave(d, spare)
	h.leave(d, e)
}

// exported is a volume's export that is there.
func (d *daemon) exported(name string) api.Export {
	d.t.Helper()
	e, err := d.Client.Export(d.t.Context(), name)
	if err != nil || len(e.Connect) != 1 || len(e.Hosts) != 1 || e.Hosts[0] != rig.NVMeHost {
		d.t.Fatalf("the export of %s: %+v, %v", name, e, err)
	}
	return e
}
