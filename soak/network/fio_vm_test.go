//go:build vm

package network

import (
	"fmt"
	"strings"

	"github.com/swapback/swapback/ci/peer"
	"github.com/swapback/swapback/soak/rig"
)

// load is a fio on the host that is started again whenever it has ended well.
type load struct {
	h          *host
	stop, done chan struct{}
	// of the loop until done is closed
	runs   int
	failed error
}

// fio is a command line of it. For the flags see rig's.
func fio(args []string) []string {
	return append([]string{"fio", "--thread", "--clocksource=clock_gettime", "--direct=1", "--ioengine=io_uring"}, args...)
}

func (h *host) loop(args ...string) *load {
	l := &load{h: h, stop: make(chan struct{}), done: make(chan struct{})}
	go l.run(fio(args))
	h.t.Cleanup(func() { // for a test that failed
		l.end()
		<-l.done
	})
	return l
}

func (l *load) run(args []string) {
	defer close(l.done)
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		var out strings.Builder
		status, err := l.h.Run(peer.Command{Args: args, Dir: l.h.dir}, &out, &out)
		switch {
		case err != nil:
			l.failed = err
			return
		case strings.Contains(out.String(), "job startup hung"): // a busy machine; it has done nothing
		case status != 0:
			l.failed = fmt.Errorf("%q: status %d\n%s", args, status, rig.Tail(out.String(), 40))
			return
		default:
			l.runs++
		}
	}
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
}

// check fails the test when fio has met an error or a wrong byte.
func (l *load) check() {
	l.h.t.Helper()
	select {
	case <-l.done:
		if l.failed != nil {
			l.h.t.Fatal(l.failed)
		}
	default:
	}
}

// finish waits for the run under way to end well, and returns how many did.
func (l *load) finish() int {
	l.h.t.Helper()
	l.end()
	<-l.done
	l.check()
	return l.runs
}

// answered is how many commands a volume's hosts have been answered.
func (d *daemon) answered(name string) uint64 {
	d.t.Helper()
	e, err := d.Client.Export(d.t.Context(), name)
	if err != nil || e.IO == nil {
		d.t.Fatalf("export of %s: %+v, %v", name, e, err)
	}
	return e.IO.Reads + e.IO.Writes
}

// goesOn waits until a load has had n more commands answered.
func (d *daemon) goesOn(name string, l *load, n uint64) {
	d.t.Helper()
	want := d.answered(name) + n
	rig.WaitUntil(d.t, "the host's I/O to "+name+" to go on", func() bool {
		l.check()
		return d.answered(name) >= want
	})
}
