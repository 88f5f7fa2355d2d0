//go:build vm

package disks

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// jobOnDyingDisk has a step that works on while its disk dies, fails of that, and
// does it right the second time, on another disk.
const jobOnDyingDisk = `name: dying
repository: $DIR/repo
volumes: [{name: $VOLUME, mount: $DIR/mnt}]
steps:
  - {name: make, run: 'echo good > $DIR/mnt/data'}
  - name: change
    save_point: true
    retries: 1
    run: |
      test "$(cat $DIR/mnt/data)" = good
      echo "change $SWAPBACK_ATTEMPT" > $DIR/mnt/data
      touch $DIR/working
      while [ ! -e $DIR/dead ]; do sleep 0.1; done
      sync $DIR/mnt/data
`

// TestDiskDiesInAJob: the disk of a job's volume dies while a step runs. The
// daemon has the pool open and learns of it from errors only, and the dead disk is
// the one with most room for a spare.
func TestDiskDiesInAJob(t *testing.T) {
	disks := newBadDisks(t, 2)
	d := start(t, disks)
	v := volumeOn(t, d, 1, "db", 32*rig.MiB)
	volumeOn(t, d, 0, "other", 96*rig.MiB)
	rig.Tool(t, "mkfs.ext4", "-q", v.Device)
	path := func(name string) string { return filepath.Join(d.Dir, name) }
	if err := os.Mkdir(path("mnt"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path("mnt"), unix.MNT_DETACH) })
	d.CLI(0, nil, "repo", "init")
	text := strings.NewReplacer("$DIR", d.Dir, "$VOLUME", v.Name).Replace(jobOnDyingDisk)
	if err := os.WriteFile(path("job.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	agent := exec.Command("swapback-agent", "--socket", d.Socket(), "--state-dir", path("state"), "--log-dir", path("logs"), "--run-dir", d.RunDir(), "run", path("job.yaml"))
	var said rig.Buffer
	agent.Stdout, agent.Stderr = &said, &said
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- agent.Wait() }()
	rig.WaitUntil(t, "the step to work", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("the agent ended before the step worked: %v\n%s", err, &said)
		default:
		}
		_, err := os.Stat(path("working"))
		return err == nil
	})
	disks[1].Spoil(failing, disks[1].All())
	rig.WriteFile(t, path("dead"), nil)
	if err := <-ended; err != nil || !strings.Contains(said.String(), "after 1 recovery") {
		t.Fatalf("the job did not recover: %v\n%s", err, &said)
	}

	now, failed := d.Show(v.Name), d.Show(v.Name+"-spare")
	if now.Degraded || now.State != api.StateServing || now.Device != v.Device || now.Position.Segments[0].Stripes[0].Member != 0 {
		t.Errorf("the volume: %+v", now)
	}
	if q := failed.Position.Quarantine; failed.State != api.StateDegraded || failed.Position.ID != v.Position.ID || q == nil || q.Step != "change" {
		t.Errorf("what failed: %+v", failed)
	}
	dir := rig.Mount(t, now.Device, "ext4")
	if got, err := os.ReadFile(filepath.Join(dir, "data")); err != nil || string(got) != "change 2\n" {
		t.Errorf("the file is %q, %v", got, err)
	}
	rig.Unmount(t, dir)

	disks[1].Heal()
	d.CLI(0, []string{"all of its 2 disks"}, "pool", "rejoin", "tank")
	d.Check()
	if failed := d.Show(v.Name + "-spare"); failed.State != api.StateServing || failed.Position.Quarantine == nil {
		t.Errorf("what failed, with its disk back: %+v", failed)
	}
}
