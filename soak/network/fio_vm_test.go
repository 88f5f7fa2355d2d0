//go:build vm

package network

import (
	"fmt"
	"io"
	"strings"
	"sync"

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

	mu      sync.Mutex
	process *peer.Process // the run under way
	killed  bool          // there is to be none any more
}

// fio is a command line of it. For the flags see rig's.
func fio(args []string) []string {
	return append([]string{"fio", "--thread", "--clocksource=clock_gettime", "--direct=1", "--ioengine=io_uring"}, args...)
}

func (h *host) loop(args ...string) *load {
	l := &load{h: h, stop: make(chan struct{}), done: make(chan struct{})}
	go l.run(fio(args))
	h.t.Cleanup(func() { // for a test that failed: its fio may wait for a daemon that is gone
		l.end()
		l.mu.Lock()
		l.killed = true
		if l.process != nil {
			l.process.Kill()
		}
		l.mu.Unlock()
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
		status, err := l.once(args, &out)
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

// once is one run.
func (l *load) once(args []string, out io.Writer) (int, error) {
	p, err := l.h.Start(peer.Command{Args: args, Dir: l.h.dir}, out, out)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	l.process = p
	if l.killed {
		p.Kill()
	}
	l.mu.Unlock()
	return p.Wait()
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
}

// Ended and Err are for rig's WaitHostIO: the loop ends by itself when fio has met an
// error or a wrong byte.
func (l *load) Ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (l *load) Err() error {
	if !l.Ended() {
		return nil
	}
	return l.failed
}

// finish waits for the run under way to end well, and returns how many did.
func (l *load) finish() int {
	l.h.t.Helper()
	l.end()
	<-l.done
	if l.failed != nil {
		l.h.t.Fatal(l.failed)
	}
	return l.runs
}
