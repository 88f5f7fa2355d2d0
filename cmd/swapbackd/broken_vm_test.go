//go:build vm && amd64

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// TestBrokenQueueIsAPause makes one of the daemon's queues fail under load: the
// volume is served again at once without anybody's doing. The next time within a
// minute it is shown as failed, until then or until somebody has it repaired.
func TestBrokenQueueIsAPause(t *testing.T) {
	d := startDaemon(t, "--queues", "4")
	d.Pool()
	v := d.Volume("a", 64*MiB)
	load := d.StartFio("a", rig.MixedJob(v.Device))
	d.WaitWrites("a", 200)
	serving := func() bool { return d.Show("a").State == api.StateServing }
	breakQueue(t, d.PID())
	rig.WaitUntil(t, "volume to be adopted again", func() bool { return strings.Contains(d.Log.String(), "whose server has ended") })
	rig.WaitUntil(t, "volume to be served again", serving)
	d.WaitWrites("a", 200)

	breakQueue(t, d.PID())
	rig.WaitUntil(t, "volume to fail", func() bool { return d.Show("a").State == api.StateFailed })
	if text := d.Show("a").Error; !strings.Contains(text, "its server has ended") {
		t.Errorf("it says %q", text)
	}
	d.CLI(0, nil, "pool", "check", "tank", "--repair")
	if again := d.Show("a"); !serving() || again.Device != v.Device {
		t.Errorf("it is %s at %s and was at %s", again.State, again.Device, v.Device)
	}
	d.WaitWrites("a", 200)
	if job := load.Stop(); job.TotalErr != 0 {
		t.Errorf("fio saw %d errors, the first errno %d", job.TotalErr, job.FirstError)
	}
}

// breakQueue makes the next io_uring_enter of one of the daemon's queues fail, by
// naming a ring that the thread does not have.
func breakQueue(t *testing.T, pid int) {
	t.Helper()
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	tid := queueThread(t, pid)
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s of thread %d: %v", what, tid, err)
		}
	}
	check("PTRACE_SEIZE", unix.PtraceSeize(tid))
	check("PTRACE_INTERRUPT", unix.PtraceInterrupt(tid))
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(tid, &status, unix.WALL, nil)
		check("wait", err)
		if !status.Stopped() {
			t.Fatalf("thread %d: status %#x", tid, status)
		}
		var regs unix.PtraceRegs
		check("PTRACE_GETREGS", unix.PtraceGetRegs(tid, &regs))
		pass := 0
		const atEntry = -int64(unix.ENOSYS) // what the result is before the call
		switch {
		case status.StopSignal() != unix.SIGTRAP:
			pass = int(status.StopSignal()) // of Go's scheduler
		case regs.Orig_rax == unix.SYS_IO_URING_ENTER && int64(regs.Rax) == atEntry:
			regs.Rdi = 1 << 20
			check("PTRACE_SETREGS", unix.PtraceSetRegs(tid, &regs))
			check("PTRACE_DETACH", unix.PtraceDetach(tid))
			return
		}
		check("PTRACE_SYSCALL", unix.PtraceSyscall(tid, pass))
	}
}

// queueThread finds a thread that waits in its registered ring, as only queues do.
func queueThread(t *testing.T, pid int) (tid int) {
	t.Helper()
	const getEventsOfRegistered = "0x11"
	rig.WaitUntil(t, "a queue to wait", func() bool {
		calls, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
		for _, path := range calls {
			text, _ := os.ReadFile(path)
			call := strings.Fields(string(text))
			if len(call) > 4 && call[0] == strconv.Itoa(unix.SYS_IO_URING_ENTER) && call[4] == getEventsOfRegistered {
				tid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
				return true
			}
		}
		return false
	})
	return tid
}
