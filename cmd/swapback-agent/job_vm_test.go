//go:build vm

package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent/mount"
	"github.com/swapback/swapback/hostagent/runner"
)

// sizes are what mkfs asks for at least, and a little more.
var sizes = map[string]int64{"ext4": 32 * MiB, "xfs": 320 * MiB}

// TestJobRecovers is the main job: a step damages what the step before it made,
// fails, and does it right the second time, on a filesystem that was restored
// and swapped in below it.
func TestJobRecovers(t *testing.T) {
	for fstype, size := range sizes {
		t.Run(fstype, func(t *testing.T) {
			m := newMachine(t)
			before := m.volume("db", fstype, size)
			file := m.job(`
volumes: [{name: db, mount: $DIR/db, options: [noatime]}]
steps:
  - {name: make, run: 'echo good > $DIR/db/data; head -c 3000000 /dev/urandom > $DIR/db/more; sha256sum < $DIR/db/more > $DIR/sum'}
  - name: change
    save_point: true
    retries: 1
    run: |
      test "$(cat $DIR/db/data)" = good
      sha256sum < $DIR/db/more | cmp - $DIR/sum
      echo "change $SWAPBACK_ATTEMPT" > $DIR/db/data
      rm $DIR/db/more
      if [ $SWAPBACK_ATTEMPT = 1 ]; then exit 42; fi
`)
			m.agent(runner.ExitDone, []string{"check", file}, "db-spare, which would be created")
			m.agent(runner.ExitDone, []string{"run", file}, "exit code 42", "page cache and disk agree", "after 1 recovery")
			if m.mounted(m.path("db")) {
				t.Error("the volume stays mounted")
			}
			after, failed := m.show("db"), m.show("db-spare")
			if after.Device != before.Device || after.Position.ID == before.Position.ID || failed.Position.ID != before.Position.ID {
				t.Errorf("before %+v\nafter %+v\nfailed %+v", before, after, failed)
			}
			if q := failed.Position.Quarantine; q == nil || q.Job != "j" || q.Step != "change" || q.ExitCode != 42 || q.Volume != "tank/db" || q.Time.IsZero() {
				t.Errorf("label %+v", q)
			}
			m.holds("db", "data", "change 2")
			m.holds("db-spare", "data", "change 1")
			m.check("db")
			m.refusesWrites("db-spare")
			m.agent(runner.ExitDone, []string{"status", "j"}, "ended with exit code 0")
		})
	}
}

// TestJobFailsForGood: the volume is at the save point, and mounted as it was
// found: by somebody else, with options of his own.
func TestJobFailsForGood(t *testing.T) {
	m := newMachine(t)
	v := m.volume("db", "ext4", 32*MiB)
	if err := mount.Mount(v.Device, m.path("db"), "", []string{"noatime", "nodev", "commit=7"}); err != nil {
		t.Fatal(err)
	}
	out := m.agent(runner.ExitFailed, []string{"run", "--json", m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: echo good > $DIR/db/data}
  - {name: spoil, run: 'echo "bad $SWAPBACK_ATTEMPT" > $DIR/db/data; exit 3', save_point: true, retries: 1}
`)}, "db at the save point before step spoil")
	at, err := mount.At(m.path("db"))
	if err != nil || at == nil {
		t.Fatalf("the volume is not mounted any more: %v", err)
	}
	for _, o := range []string{"noatime", "nodev", "commit=7"} {
		if !slices.Contains(at.AllOptions(), o) {
			t.Errorf("option %s is lost: %q", o, at.AllOptions())
		}
	}
	if got, err := os.ReadFile(m.path("db/data")); err != nil || string(got) != "good\n" {
		t.Errorf("%q %v", got, err)
	}
	m.holds("db-spare", "data", "bad 1")
	m.holds("db-spare-2", "data", "bad 2")
	var res runner.Result
	if err := json.Unmarshal([]byte(out[strings.Index(out, "\n{"):]), &res); err != nil || res.ExitCode != runner.ExitFailed || len(res.Recoveries) != 2 {
		t.Fatalf("%v in\n%s", err, out)
	}
	for _, r := range res.Recoveries {
		if !r.Swap.Coherent || r.Swap.Pause <= 0 || len(r.Phases) != 4 || r.WholeSeconds < r.Seconds {
			t.Errorf("%+v", r)
		}
	}
}

// TestGroupRecovers: two volumes with different filesystems go back together.
func TestGroupRecovers(t *testing.T) {
	m := newMachine(t)
	m.volume("db", "ext4", sizes["ext4"])
	m.volume("log", "xfs", sizes["xfs"])
	m.agent(runner.ExitDone, []string{"run", m.job(`
volumes: [{name: db, mount: $DIR/db}, {name: log, mount: $DIR/log}]
steps:
  - {name: make, run: 'for v in db log; do echo good > $DIR/$v/data; done'}
  - name: change
    save_point: true
    retries: 1
    run: |
      for v in db log; do test "$(cat $DIR/$v/data)" = good; echo "change $SWAPBACK_ATTEMPT" > $DIR/$v/data; done
      test $SWAPBACK_ATTEMPT = 2
`)}, "after 1 recovery")
	for _, v := range []string{"db", "log"} {
		m.holds(v, "data", "change 2")
		m.holds(v+"-spare", "data", "change 1")
		m.check(v)
	}
	if a, b := m.show("db-spare").Position.Quarantine, m.show("log-spare").Position.Quarantine; a == nil || b == nil || a.Backup != b.Backup {
		t.Errorf("%+v %+v", a, b)
	}
}

// TestStepUnmountsItsVolume: a step unmounts the volume to check it and fails
// before it is mounted again; the recovery mounts it.
func TestStepUnmountsItsVolume(t *testing.T) {
	m := newMachine(t)
	m.volume("db", "ext4", 32*MiB)
	m.agent(runner.ExitDone, []string{"run", m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: echo good > $DIR/db/data}
  - name: check
    save_point: true
    retries: 1
    run: |
      test "$(cat $DIR/db/data)" = good
      echo "check $SWAPBACK_ATTEMPT" > $DIR/db/data
      if [ $SWAPBACK_ATTEMPT = 2 ]; then exit 0; fi
      umount $DIR/db
      e2fsck -f -n $SWAPBACK_DEVICE_DB
      exit 8
`)}, "exit code 8", "tank/db is not mounted on "+m.path("db")+" any more", "after 1 recovery")
	m.holds("db", "data", "check 2")
	m.holds("db-spare", "data", "check 1")
}

// TestStepMountsItsVolumeElsewhere: nothing is restored, and where it is mounted is
// said.
func TestStepMountsItsVolumeElsewhere(t *testing.T) {
	m := newMachine(t)
	m.volume("db", "ext4", 32*MiB)
	m.agent(runner.ExitNotRestored, []string{"run", m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: echo good > $DIR/db/data}
  - name: move
    save_point: true
    run: |
      mkdir $DIR/elsewhere
      umount $DIR/db
      mount -t ext4 $SWAPBACK_DEVICE_DB $DIR/elsewhere
      exit 8
`)}, "could not be put back", "mounted on "+m.path("elsewhere"), "tank/db is not mounted on "+m.path("db"))
	if err := mount.Unmount(t.Context(), m.path("elsewhere")); err != nil {
		t.Fatal(err)
	}
	m.holds("db", "data", "good")
}

// TestStraysDoNotHoldTheMount: what the step left running, as another user and
// in another session, writes on and holds the mount; the recovery stops it.
func TestStraysDoNotHoldTheMount(t *testing.T) {
	m := newMachine(t)
	m.volume("db", "ext4", 32*MiB)
	m.agent(runner.ExitFailed, []string{"run", m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: echo good > $DIR/db/data; chmod 777 $DIR/db; chmod 666 $DIR/db/data}
  - name: daemon
    user: nobody
    workdir: $DIR/db
    save_point: true
    run: |
      id -un
      setsid sh -c 'trap "" TERM; cd $DIR/db; exec 3> open; echo bad > data; while :; do echo x >&3; sleep 0.05 || true; done' > /dev/null 2>&1 &
      until grep -q bad data; do sleep 0.05; done
      exit 9
`)}, "| nobody", "exit code 9", "stopped what step daemon had left running")
	m.holds("db", "data", "good")
	m.holds("db-spare", "data", "bad")
}

// TestSomebodyElseHoldsTheMount: a process that is not the job's is not stopped
// but named, and nothing is swapped.
func TestSomebodyElseHoldsTheMount(t *testing.T) {
	m := newMachine(t)
	v := m.volume("db", "ext4", 32*MiB)
	cmd := exec.Command("sh", "-c", "while [ ! -e "+m.path("up")+" ]; do sleep 0.05; done; cd "+m.path("db")+"; echo > "+m.path("holding")+"; exec sleep 1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	out := m.agent(runner.ExitNotRestored, []string{"run", m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: spoil, run: 'echo bad > $DIR/db/data; touch $DIR/up; until [ -e $DIR/holding ]; do sleep 0.05; done; exit 1', retries: 5}
`)}, "device or resource busy", "sleep (process "+strconv.Itoa(cmd.Process.Pid)+"): working directory "+m.path("db"), "is mounted on")
	if now := m.show("db"); now.Position.ID != v.Position.ID {
		t.Errorf("it was swapped:\n%s", out)
	}
	if got, err := os.ReadFile(m.path("db/data")); err != nil || string(got) != "bad\n" {
		t.Errorf("%q %v", got, err)
	}
	m.agent(runner.ExitDone, []string{"status"}, "ended with exit code 3", "working directory")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// TestMountInAnotherNamespace: our own unmount succeeds, but the filesystem is
// still mounted where we can't see it. A swap would pull its content away.
func TestMountInAnotherNamespace(t *testing.T) {
	m := newMachine(t)
	v := m.volume("db", "ext4", 32*MiB)
	m.tool("mount", "--make-rprivate", "/")
	if err := mount.Mount(v.Device, m.path("db"), "", nil); err != nil {
		t.Fatal(err)
	}
	file := m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps: [{name: spoil, run: 'echo bad > $DIR/db/data; touch $DIR/up; until [ -e $DIR/holding ]; do sleep 0.05; done; exit 1'}]
`)
	cmd := exec.Command("sh", "-c", "while [ ! -e "+m.path("up")+" ]; do sleep 0.05; done; exec unshare --mount --propagation private sh -c 'echo > "+m.path("holding")+"; exec sleep 1000'")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.agent(runner.ExitNotRestored, []string{"run", file}, "in use", "mounted on")
	if now := m.show("db"); now.Position.ID != v.Position.ID {
		t.Error("it was swapped")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	m.wait("the other namespace to go", func() bool {
		held, err := m.client.Holders(t.Context(), "db")
		return err == nil && len(held) == 0
	})
}

// TestNoSpareNoRoom: the job is refused before it starts, and nothing changes.
func TestNoSpareNoRoom(t *testing.T) {
	m := newMachine(t)
	m.volume("db", "ext4", 32*MiB)
	pool, err := m.client.Pool(t.Context(), "tank")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.client.CreateVolume(t.Context(), api.CreateVolumeRequest{Name: "rest", Size: pool.Free - 16*MiB, Detached: true}); err != nil {
		t.Fatal(err)
	}
	file := m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps: [{name: one, run: touch $DIR/ran}]
`)
	for _, command := range []string{"check", "run"} {
		m.agent(runner.ExitRefused, []string{command, file}, "could not be recovered now", "16 MiB free, 32 MiB are needed")
	}
	if m.exists("ran") || m.exists("state") || len(m.mounts()) > 0 {
		t.Error("something was done")
	}
	// With a spare there is all that it needs.
	if err := m.client.DeleteVolume(t.Context(), "rest", false); err != nil {
		t.Fatal(err)
	}
	m.agent(runner.ExitDone, []string{"run", file})
}

// TestAgentKilledInAStep: status says where it stood and what to do, the job is
// not started over by accident, and what status says to do works.
func TestAgentKilledInAStep(t *testing.T) {
	m := newMachine(t)
	m.volume("db", "ext4", 32*MiB)
	file := m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: echo good > $DIR/db/data}
  - {name: long, run: 'echo half > $DIR/db/data; touch $DIR/up; sleep 1000', save_point: true}
`)
	cmd := m.command("run", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.wait("the step to run", func() bool { return m.exists("up") })
	m.agent(runner.ExitDone, []string{"status"}, "running since", "step 2/2 long")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	s := m.state()
	if !s.Died() || !s.StepAlive() || s.Backup == "" {
		t.Fatalf("state %+v", s)
	}
	m.agent(runner.ExitNotRestored, []string{"status"}, "DIED", "step 2/2 long", "still running, as process "+strconv.Itoa(s.Process.PID), "swapback recover tank/db --from "+s.Backup)
	m.agent(runner.ExitRefused, []string{"run", "--anew", file}, "still runs (process "+strconv.Itoa(s.Process.PID))
	if err := unix.Kill(-s.Process.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.wait("the step to end", func() bool { return !s.StepAlive() })
	m.agent(runner.ExitRefused, []string{"run", file}, "died half-way", "--anew")

	if err := mount.Unmount(t.Context(), m.path("db")); err != nil {
		t.Fatal(err)
	}
	m.tool("swapback", "--socket", m.path("sock"), "recover", "tank/db", "--from", s.Backup, "--repo", m.path("repo"))
	m.holds("db", "data", "good")
	m.holds("db-spare", "data", "half")
}

// TestAgentKilledInARecovery: whatever the moment, each volume shows one of the
// two contents, status says which, and a recovery by hand finishes it.
func TestAgentKilledInARecovery(t *testing.T) {
	for _, phase := range []string{"restore", "swap", "quarantine"} {
		t.Run(phase, func(t *testing.T) {
			m := newMachine(t)
			m.volume("db", "ext4", 64*MiB)
			file := m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: echo good > $DIR/db/data; head -c 20000000 /dev/urandom > $DIR/db/more}
  - {name: spoil, run: 'echo bad > $DIR/db/data; exit 1', save_point: true}
`)
			cmd := m.command("run", file)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			m.wait("the phase", func() bool {
				s, err := runner.ReadState(m.path("state"), "j")
				return err == nil && (s.Phase == runner.Ended || s.Recovery != nil && s.Recovery.Phase == phase)
			})
			if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatal(err)
			}
			cmd.Wait()
			s := m.state()
			if s.Phase == runner.Ended {
				// It was faster than we looked: nothing to see here.
				m.holds("db", "data", "good")
				return
			}
			m.agent(runner.ExitNotRestored, []string{"status"}, "DIED", "recovery, ")
			// The daemon may be at the swap still.
			m.wait("the daemon to be done", func() bool { return m.show("db").State != api.StateBusy })
			switch shows := m.show("db").Position.ID == s.Recovery.Pairs[0].FailedPosition; {
			case shows:
				m.holds("db", "data", "bad")
				m.tool("swapback", "--socket", m.path("sock"), "recover", "tank/db", "--from", s.Backup, "--repo", m.path("repo"))
			default:
				m.holds("db-spare", "data", "bad")
			}
			m.holds("db", "data", "good")
		})
	}
}

// TestOutputGoesAway: who reads the output goes away in the middle, as with
// "| head"; the job goes on and recovers.
func TestOutputGoesAway(t *testing.T) {
	m := newMachine(t)
	m.volume("db", "ext4", 32*MiB)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	cmd := m.command("run", m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps: [{name: one, run: 'echo "try $SWAPBACK_ATTEMPT" > $DIR/db/data; test $SWAPBACK_ATTEMPT = 2', retries: 1}]
`))
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	m.holds("db", "data", "try 2")
}

// TestDaemonKilledUnderAJob: the daemon dies while a step runs and is started
// again; the step, and the recovery after it, see a pause.
func TestDaemonKilledUnderAJob(t *testing.T) {
	m := newMachine(t)
	m.volume("db", "ext4", 32*MiB)
	log := &lockedBuffer{}
	cmd := m.command("run", m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: echo good > $DIR/db/data}
  - name: spoil
    save_point: true
    run: |
      touch $DIR/up
      until [ -e $DIR/killed ]; do sleep 0.05; done
      echo bad > $DIR/db/data
      touch $DIR/spoilt
      exit 1
`))
	cmd.Stdout = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.wait("the step to run", func() bool { return m.exists("up") })
	if err := m.daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	m.daemon.Wait()
	if err := os.WriteFile(m.path("killed"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.wait("the agent to miss the daemon", func() bool { return strings.Contains(log.String(), "waiting for it") })
	m.startDaemon()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != runner.ExitFailed {
		t.Fatalf("%v\n%s", err, log)
	}
	m.holds("db", "data", "good")
	m.holds("db-spare", "data", "bad")
}

// TestStopSignal: SIGTERM stops the step and brings the volume back.
func TestStopSignal(t *testing.T) {
	m := newMachine(t)
	m.volume("db", "ext4", 32*MiB)
	cmd := m.command("run", m.job(`
volumes: [{name: db, mount: $DIR/db}]
steps:
  - {name: make, run: echo good > $DIR/db/data}
  - {name: long, run: 'echo bad > $DIR/db/data; touch $DIR/up; sleep 1000', save_point: true, retries: 3}
`))
	log := &lockedBuffer{}
	cmd.Stdout = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.wait("the step to run", func() bool { return m.exists("up") })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != runner.ExitFailed {
		t.Fatalf("%v\n%s", err, log)
	}
	m.says(log.String(), "was stopped", "db at the save point before step long")
	m.holds("db", "data", "good")
	if logs, err := filepath.Glob(m.path("logs/j/*.jsonl")); err != nil || len(logs) != 1 {
		t.Errorf("%q %v", logs, err)
	}
}
