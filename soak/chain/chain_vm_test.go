//go:build vm && failpoint

package chain

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/soak/rig"
)

const volumeSize = 16 * rig.MiB

// What is done to a backup on its way.
const (
	undisturbed  = "undisturbed"
	daemonBefore = "daemon killed before"
	daemonInside = "daemon killed while it reads"
	daemonAfter  = "daemon killed before it is recorded"
	backupInside = "backup killed while it reads"
	agentWhole   = "by the agent"
	agentInside  = "agent killed while it reads"
)

var kinds = []string{undisturbed, daemonBefore, daemonInside, daemonAfter, backupInside, agentWhole, agentInside}

// agentJob has the agent make a backup and then run some load itself: it begins no
// job on a volume that somebody else holds.
const agentJob = `name: chain-%d
repository: %s
volumes: [{name: db}]
steps:
  - name: work
    save_point: true
    run: fio --name=step --filename=%s --direct=1 --rw=randwrite --bsrange=4k-32k --number_ios=50 --norandommap
`

// link is one backup of the chain, and what it has to hold.
type link struct {
	id, base, sum string
	read          int64
}

type chain struct {
	*rig.Daemon
	t    *testing.T
	rng  *rand.Rand
	repo string
	dir  string
	fio  *rig.Fio
	jobs int
	deck []string // kinds still to be done before one is done again
	done map[string]int
}

func TestEveryBackupOfAChain(t *testing.T) {
	count := rig.Count(t, "SOAK_CHAIN", 1+len(kinds))
	c := &chain{
		Daemon: rig.Start(t), t: t, rng: rand.New(rand.NewSource(int64(rig.Count(t, "SOAK_SEED", 1)))),
		dir: t.TempDir(), done: map[string]int{},
	}
	c.repo = filepath.Join(c.dir, "repo")
	c.PoolWith(api.CreatePoolRequest{Name: "tank", ExtentSize: rig.MiB})
	c.Volume("db", volumeSize)
	repo, err := backup.Init(t.Context(), c.repo, backup.InitOptions{ChunkSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := repo.Close(); err != nil {
			t.Error(err)
		}
	})
	c.load()
	var links []link
	for len(links) < count {
		what := undisturbed // the first: what the next one counts from
		if len(links) > 0 {
			what = c.next()
		}
		l, ok := c.backUp(repo, what)
		c.done[what]++
		if ok {
			links = append(links, l)
			t.Logf("%s from %q, %d KiB read, %s", l.id, l.base, l.read>>10, what)
		}
	}
	c.unload()
	incremental := 0
	for _, l := range links {
		if l.base != "" {
			incremental++
		}
		if sum := c.restored(repo, l.id); sum != l.sum {
			t.Errorf("backup %s from %q holds %s, its snapshot held %s", l.id, l.base, sum, l.sum)
		}
	}
	// Every one but the first has one to count from, whoever was killed.
	if incremental != len(links)-1 {
		t.Errorf("%d of %d backups are incremental", incremental, len(links))
	}
	for _, what := range kinds {
		if c.done[what] == 0 {
			t.Errorf("never done: %s", what)
		}
	}
	t.Logf("%d backups restored: %v", len(links), c.done)
}

// next is what is done to the next backup.
func (c *chain) next() string {
	if len(c.deck) == 0 {
		c.deck = slices.Clone(kinds)
		c.rng.Shuffle(len(c.deck), func(i, j int) { c.deck[i], c.deck[j] = c.deck[j], c.deck[i] })
	}
	what := c.deck[0]
	c.deck = c.deck[1:]
	return what
}

// load writes to the volume until unload.
func (c *chain) load() {
	c.t.Helper()
	c.fio = c.StartFio("db", []string{
		"--name=load", "--filename=" + c.Show("db").Device, "--direct=1", "--ioengine=io_uring", "--iodepth=8", "--rw=randwrite",
		"--bsrange=4k-32k", "--rate_iops=40", "--time_based", "--runtime=36000", "--output-format=json", "--norandommap",
		"--random_distribution=zipf:1.2",
	})
}

func (c *chain) unload() {
	c.t.Helper()
	if job := c.fio.Stop(); job.TotalErr != 0 {
		c.t.Errorf("fio saw %d errors, the first %d", job.TotalErr, job.FirstError)
	}
}

// backUp makes a backup, or fails to because somebody was killed.
func (c *chain) backUp(repo *backup.Repository, what string) (l link, ok bool) {
	c.t.Helper()
	if what == daemonBefore {
		c.WaitWrites("db", 5)
		c.Kill()
		c.Run()
	}
	c.WaitWrites("db", 10)
	if what == agentWhole || what == agentInside {
		c.unload()
		defer c.load()
	}
	order := filepath.Join(c.dir, "order")
	c.write(order, "backup: snapshot open=stop")
	cmd := c.maker(what)
	cmd.Env = append(os.Environ(), "SWAPBACK_FAILPOINT=@"+order, api.SocketEnv+"="+c.Socket(), "SWAPBACK_REPO="+c.repo, "SWAPBACK_RUN_DIR="+c.RunDir())
	var out, said rig.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	c.untilStopped(cmd.Process.Pid, &said)
	l.sum = c.snapshotSum()
	switch what {
	case daemonAfter:
		c.write(order, "backup: snapshot ended=stop")
		c.signal(cmd, syscall.SIGCONT)
		c.untilStopped(cmd.Process.Pid, &said)
		c.Kill()
		c.Run()
		c.signal(cmd, syscall.SIGCONT)
	case daemonInside:
		c.signal(cmd, syscall.SIGCONT)
		time.Sleep(time.Duration(c.rng.Intn(200)) * time.Millisecond)
		c.Kill()
		c.Run()
	case backupInside, agentInside:
		c.signal(cmd, syscall.SIGCONT)
		time.Sleep(time.Duration(c.rng.Intn(300)) * time.Millisecond)
		c.signal(cmd, syscall.SIGKILL)
	default:
		c.signal(cmd, syscall.SIGCONT)
	}
	err := <-ended
	rig.WaitUntil(c.t, "the snapshot to end", func() bool { return !c.Show("db").Snapshot })
	switch {
	case err == nil:
	case what == daemonInside || what == backupInside || what == agentInside:
		return l, false // killed in time
	default:
		c.t.Fatalf("%s: %v\n%s", what, err, said.String())
	}
	b, err := repo.Get(c.t.Context(), "latest")
	if err != nil || len(b.Volumes) != 1 {
		c.t.Fatalf("%s made %+v, %v\n%s", what, b, err, out.String())
	}
	l.id, l.base, l.read = b.ID, b.Volumes[0].Base, b.Volumes[0].ReadBytes
	return l, true
}

// maker is what makes a backup: the agent, before a step of a job, or the program
// for one who types it.
func (c *chain) maker(what string) *exec.Cmd {
	c.t.Helper()
	name, args := "swapback", []string{"backup", "create", "db", "--json"}
	if what == agentWhole || what == agentInside {
		c.jobs++ // one that died would want to be gone on with
		file := filepath.Join(c.dir, "job.yaml")
		c.write(file, fmt.Sprintf(agentJob, c.jobs, c.repo, c.Show("db").Device))
		name, args = "swapback-agent", []string{"--state-dir", filepath.Join(c.dir, "state"), "--log-dir", filepath.Join(c.dir, "logs"),
			"--socket", c.Socket(), "--run-dir", c.RunDir(), "run", file}
	}
	tool, err := filepath.Abs("../../build/failpoint/" + name)
	if err != nil {
		c.t.Fatal(err)
	}
	return exec.Command(tool, args...)
}

func (c *chain) write(path, text string) {
	c.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// signal is for a process that may have ended by itself.
func (c *chain) signal(cmd *exec.Cmd, sig os.Signal) { _ = cmd.Process.Signal(sig) }

// untilStopped waits until all threads of a process stand still (proc_pid_stat(5)).
func (c *chain) untilStopped(pid int, said *rig.Buffer) {
	c.t.Helper()
	rig.WaitUntil(c.t, "the backup to come to its point", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(text), ") ")
		if err != nil || strings.HasPrefix(rest, "Z") {
			c.t.Fatalf("the backup has ended: %s", said.String())
		}
		return strings.HasPrefix(rest, "T")
	})
}

// snapshotSum reads all of the snapshot that is open.
func (c *chain) snapshotSum() string {
	c.t.Helper()
	paths, err := filepath.Glob("/sys/block/dm-*/dm/uuid")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, path := range paths {
		uuid, err := os.ReadFile(path)
		if err == nil && strings.HasSuffix(strings.TrimSpace(string(uuid)), "-snap") {
			f := rig.OpenDirect(c.t, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(path))), os.O_RDONLY)
			defer f.Close()
			return c.sum(f)
		}
	}
	c.t.Fatal("no snapshot is open")
	return ""
}

func (c *chain) sum(f *os.File) string {
	c.t.Helper()
	h, buf := sha256.New(), rig.Aligned(c.t, int(rig.MiB))
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
	if err != nil || n != volumeSize {
		c.t.Fatalf("%s: %d bytes, %v", f.Name(), n, err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// restored is what a backup holds.
func (c *chain) restored(repo *backup.Repository, id string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, "restored")
	if err := os.RemoveAll(path); err != nil {
		c.t.Fatal(err)
	}
	if _, err := repo.Restore(c.t.Context(), backup.RestoreOptions{Backup: id, Target: path, CreateTarget: true}); err != nil {
		c.t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	return c.sum(f)
}
