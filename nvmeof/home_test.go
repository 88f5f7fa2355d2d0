package nvmeof

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// keptThreads are how many threads of this process run on one processor only.
func keptThreads(t *testing.T) (n int) {
	t.Helper()
	list, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range list {
		text, _ := os.ReadFile(name) // it may have ended
		for line := range strings.Lines(string(text)) {
			if cpus, ok := strings.CutPrefix(line, "Cpus_allowed_list:"); ok && !strings.ContainsAny(cpus, ",-") {
				n++
			}
		}
	}
	return n
}

// TestHome has a queue move to where its input comes from, one queue to a processor,
// and its thread be as it was before when the connection has ended.
func TestHome(t *testing.T) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil || all.Count() < 2 {
		t.Skipf("there is only one processor to run on (%v)", err)
	}
	cpu := 0
	for !all.IsSet(cpu) {
		cpu++
	}
	r, _, _ := fileRig(t, Options{})
	c := r.connect(func(c *nvmetest.Config) { c.Queues = 2 })
	before := keptThreads(t)

	// Over the loopback device input arrives at the processor that sends it.
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, 512)
	read := func(q *nvmetest.Queue) {
		cmd := nvmetest.IOCommand(wire.OpRead, 2, 0, 1)
		if _, err := q.Do(&cmd, nil, back); err != nil {
			t.Fatal(err)
		}
	}
	for until := time.Now().Add(20 * time.Second); keptThreads(t) != before+2; { // this one, too
		for range lookHome {
			read(c.IO[0])
			read(c.IO[1])
		}
		if time.Now().After(until) {
			t.Fatalf("%d threads run on one processor, before it were %d", keptThreads(t)-1, before)
		}
	}
	for range 4 * lookHome {
		read(c.IO[1])
	}
	if n := keptThreads(t); n != before+2 {
		t.Errorf("%d threads run on one processor, where the queue of one should", n-1)
	}
	if err := unix.SchedSetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	runtime.UnlockOSThread()

	c.Close()
	for until := time.Now().Add(20 * time.Second); keptThreads(t) != before; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%d threads run on one processor after the end, before it were %d", keptThreads(t), before)
		}
	}
}
