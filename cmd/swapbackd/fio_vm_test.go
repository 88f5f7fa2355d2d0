//go:build vm

package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// startupHung is what fio says when its jobs do not come up within five
// seconds, which happens on an emulated machine whose host is busy. It has done
// nothing by then and is started again. It also sends a signal to its whole
// process group then, so it gets one of its own.
const startupHung = "job startup hung"

const fioTries = 4

// fio is a fio process in the background.
type fio struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  lockedBuffer // both channels
	done chan error
}

func newFio(t *testing.T, args []string) *fio {
	t.Helper()
	f := &fio{t: t, cmd: exec.Command("fio", args...), done: make(chan error, 1)}
	f.cmd.Dir = t.TempDir() // for its state files
	f.cmd.Stdout, f.cmd.Stderr = &f.out, &f.out
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		f.done <- f.cmd.Wait()
		close(f.done)
	}()
	t.Cleanup(func() { _ = syscall.Kill(-f.cmd.Process.Pid, syscall.SIGKILL) })
	return f
}

// startFio returns when fio has made its first request to the volume.
func (d *process) startFio(volume string, args []string) *fio {
	d.t.Helper()
	for try := 1; ; try++ {
		before := d.requests(volume)
		f := newFio(d.t, args)
		ended := false
		waitUntil(d.t, "fio to make its first request", func() bool {
			select {
			case <-f.done:
				ended = true
			default:
			}
			return ended || d.requests(volume) > before
		})
		if !ended {
			return f
		}
		if try == fioTries || !strings.Contains(f.out.String(), startupHung) {
			d.t.Fatalf("fio ended at its start:\n%s", f.out.String())
		}
		d.t.Logf("fio did not come up on the busy machine, try %d", try)
	}
}

func (d *process) requests(volume string) uint64 {
	d.t.Helper()
	io := d.show(volume).IO
	return io.Reads + io.Writes
}

// wait fails the test when fio saw an error or a wrong byte.
func (f *fio) wait() {
	f.t.Helper()
	if err := <-f.done; err != nil {
		f.t.Errorf("fio: %v\n%s", err, f.out.String())
	}
}

// runFio runs fio to its end.
func runFio(t *testing.T, args []string) {
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

// verifyJob is a random write of mixed block sizes by four jobs, each in its
// own part of the device, verified by checksum.
func verifyJob(device, size string, more ...string) []string {
	return append([]string{
		"--name=verify", "--filename=" + device, "--direct=1", "--ioengine=io_uring", "--iodepth=16",
		"--rw=randwrite", "--bsrange=4k-128k", "--bs_unaligned=0", "--blockalign=4k",
		"--numjobs=4", "--offset_increment=64m", "--size=" + size, "--verify=crc32c", "--do_verify=1",
		"--verify_fatal=1", "--randrepeat=1", "--group_reporting=1",
	}, more...)
}

// mixedJob reads and writes until it is stopped, and goes on after errors.
func mixedJob(device string) []string {
	return []string{
		"--name=load", "--filename=" + device, "--direct=1", "--ioengine=io_uring", "--iodepth=16",
		"--rw=randrw", "--bs=4k", "--time_based", "--runtime=600", "--output-format=json", "--continue_on_error=all",
	}
}

type fioJob struct {
	TotalErr   int     `json:"total_err"`
	FirstError int     `json:"first_error"`
	Read       fioSide `json:"read"`
	Write      fioSide `json:"write"`
}

type fioSide struct {
	Lat struct {
		Max float64 `json:"max"`
	} `json:"lat_ns"`
}

// stop ends fio as Ctrl-C does: it reports what it measured.
func (f *fio) stop() fioJob {
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
	var report struct{ Jobs []fioJob }
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&report); err != nil || len(report.Jobs) != 1 {
		f.t.Fatalf("fio's report: %v\n%s", err, f.out.String())
	}
	return report.Jobs[0]
}
