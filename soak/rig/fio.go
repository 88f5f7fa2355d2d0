package rig

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startupHung is what fio says when its jobs do not come up within five
// seconds, which happens on an emulated machine whose host is busy. It has done
// nothing by then and is started again. It also sends a signal to its whole
// process group then, so it gets one of its own.
const startupHung = "job startup hung"

// manners are what every fio is told. Jobs are threads: as processes they have
// sessions of their own, outlive a fio that has given them up or was killed, and
// hold the device. The time is the kernel's: what fio makes of an emulated
// processor's cycle counter can be far off.
var manners = []string{"--thread", "--clocksource=clock_gettime"}

// firstRequest is how long fio may take to its first one before it is started
// again. A request that got lost on the way would keep it from ending.
const firstRequest = 30 * time.Second

const fioTries = 4

// Fio is a fio process in the background.
type Fio struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  Buffer // both channels
	done chan error

	ended chan struct{} // closed when fio has
	err   error         // how, then
}

func newFio(t *testing.T, args []string) *Fio {
	t.Helper()
	f := &Fio{t: t, cmd: exec.Command("fio", append(slices.Clone(manners), args...)...), done: make(chan error, 1), ended: make(chan struct{})}
	f.cmd.Dir = t.TempDir() // for its state files
	f.cmd.Stdout, f.cmd.Stderr = &f.out, &f.out
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		f.err = f.cmd.Wait()
		close(f.ended)
		f.done <- f.err
		close(f.done)
	}()
	t.Cleanup(f.kill)
	return f
}

// kill ends fio. Until it has ended it holds the device, which the next daemon
// would meet.
func (f *Fio) kill() {
	select {
	case <-f.done:
		return
	default:
	}
	_ = syscall.Kill(-f.cmd.Process.Pid, syscall.SIGKILL)
	select {
	case <-f.done:
	case <-time.After(patience):
		f.t.Error("fio does not end two minutes after its kill")
	}
}

// StartFio returns when fio has made its first request to the volume.
func (d *Daemon) StartFio(volume string, args []string) *Fio {
	d.t.Helper()
	for try := 1; ; try++ {
		before := d.requests(volume)
		f := newFio(d.t, args)
		ended := false
		for wait := time.Now(); !ended && time.Since(wait) < firstRequest; time.Sleep(5 * time.Millisecond) {
			select {
			case <-f.done:
				ended = true
			default:
			}
			if !ended && d.requests(volume) > before {
				return f
			}
		}
		if try == fioTries || ended && !strings.Contains(f.out.String(), startupHung) {
			d.t.Fatalf("fio made no request to volume %s:\n%s", volume, f.out.String())
		}
		d.t.Logf("fio did not come up on the busy machine, try %d:\n%s", try, threads(f.cmd.Process.Pid))
		f.kill()
	}
}

// threads tells where in the kernel a process's threads are.
func threads(pid int) string {
	var b strings.Builder
	stacks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", pid))
	for _, path := range stacks {
		text, _ := os.ReadFile(path)
		fmt.Fprintf(&b, "thread %s:\n%s", filepath.Base(filepath.Dir(path)), text)
	}
	return b.String()
}

// requests are those that were answered, by either door.
func (d *Daemon) requests(volume string) uint64 {
	d.t.Helper()
	io := d.Show(volume).IO
	n := io.Reads + io.Writes
	if e, err := d.Client.Export(d.t.Context(), volume); err == nil && e.IO != nil {
		n += e.IO.Reads + e.IO.Writes
	}
	return n
}

// Ended tells whether it has.
func (f *Fio) Ended() bool {
	select {
	case <-f.ended:
		return true
	default:
		return false
	}
}

// Err tells that it has ended too early, for one that is to be stopped, and with what words.
func (f *Fio) Err() error {
	if !f.Ended() {
		return nil
	}
	return fmt.Errorf("fio has ended: %v\n%s", f.err, f.out.String())
}

// Wait fails the test when fio saw an error or a wrong byte.
func (f *Fio) Wait() {
	f.t.Helper()
	if err := <-f.done; err != nil {
		f.t.Errorf("fio: %v\n%s", err, f.out.String())
	}
}

// RunFio runs fio to its end.
func RunFio(t *testing.T, args []string) {
	t.Helper()
	for try := 1; ; try++ {
		f := newFio(t, args)
		err := <-f.done
		if err != nil && try < fioTries && strings.Contains(f.out.String(), startupHung) {
			t.Logf("fio did not come up on the busy machine, try %d", try)
			continue
		}
		if err != nil {
			t.Fatalf("fio: %v\n%s", err, f.out.String())
		}
		return
	}
}

// VerifyJob is a random write of mixed block sizes by four jobs, each in its
// own part of the device, verified by checksum.
func VerifyJob(device, size string, more ...string) []string {
	return append([]string{
		"--name=verify", "--filename=" + device, "--direct=1", "--ioengine=io_uring", "--iodepth=16",
		"--rw=randwrite", "--bsrange=4k-128k", "--bs_unaligned=0", "--blockalign=4k",
		"--numjobs=4", "--offset_increment=64m", "--size=" + size, "--verify=crc32c", "--do_verify=1",
		"--verify_fatal=1", "--randrepeat=1", "--group_reporting=1",
	}, more...)
}

// MixedJob reads and writes until it is stopped, and goes on after errors.
func MixedJob(device string) []string {
	return []string{
		"--name=load", "--filename=" + device, "--direct=1", "--ioengine=io_uring", "--iodepth=16",
		"--rw=randrw", "--bs=4k", "--time_based", "--runtime=600", "--output-format=json", "--continue_on_error=all",
	}
}

// FioJob is a job in the report of fio.
type FioJob struct {
	TotalErr   int     `json:"total_err"`
	FirstError int     `json:"first_error"`
	Read       FioSide `json:"read"`
	Write      FioSide `json:"write"`
}

// FioSide is one direction of a [FioJob].
type FioSide struct {
	Lat struct {
		Max float64 `json:"max"`
	} `json:"lat_ns"`
}

// Stop ends fio as Ctrl-C does: it reports what it measured, of all jobs together.
func (f *Fio) Stop() FioJob {
	f.t.Helper()
	if err := f.cmd.Process.Signal(syscall.SIGINT); err != nil {
		f.t.Fatal(err)
	}
	// fio's exit code after a signal says nothing; its report does.
	<-f.done
	text := []byte(f.out.String())
	if i := bytes.IndexByte(text, '{'); i > 0 {
		text = text[i:]
	}
	var report struct{ Jobs []FioJob }
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&report); err != nil || len(report.Jobs) == 0 {
		f.t.Fatalf("fio's report: %v\n%s", err, f.out.String())
	}
	all := report.Jobs[0]
	for _, job := range report.Jobs[1:] {
		if all.TotalErr == 0 {
			all.FirstError = job.FirstError
		}
		all.TotalErr += job.TotalErr
		all.Read.Lat.Max = max(all.Read.Lat.Max, job.Read.Lat.Max)
		all.Write.Lat.Max = max(all.Write.Lat.Max, job.Write.Lat.Max)
	}
	return all
}
