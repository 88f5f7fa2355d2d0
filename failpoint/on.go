//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Enabled says whether this build has points.
const Enabled = true

const (
	orderVariable = "SWAPBACK_FAILPOINT"
	traceVariable = "SWAPBACK_FAILPOINT_TRACE"
)

var (
	mu    sync.Mutex
	count = map[string]int{} // how often each point was reached under the present order
	last  string             // that order
)

// Hit marks a step; see the package's documentation. It is safe for concurrent
// use.
func Hit(name string) {
	if o, ok := carryOut(name); ok {
		time.Sleep(o.wait)
	}
}

// carryOut carries the order out if it is due, but for the wait of one that says to wait.
func carryOut(name string) (o order, due bool) {
	mu.Lock()
	defer mu.Unlock()
	trace(name)
	text, file := os.Getenv(orderVariable), ""
	if path, ok := strings.CutPrefix(text, "@"); ok {
		b, err := os.ReadFile(path)
		if err != nil {
			return o, false // no order at present
		}
		text, file = strings.TrimSpace(string(b)), path
	}
	if text != last {
		clear(count)
		last = text
	}
	if o = parse(text); o.name != name {
		return o, false
	}
	if count[name]++; count[name] != o.nth {
		return o, false
	}
	if file != "" {
		_ = os.Remove(file)
	}
	if o.wait > 0 {
		return o, true
	}
	// To this thread: one for the process goes to any, and this thread would be past
	// the point, by a request perhaps, before the other had stopped it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = syscall.Tgkill(os.Getpid(), syscall.Gettid(), o.signal)
	return o, true
}

// order is what to do where.
type order struct {
	name   string
	nth    int
	signal syscall.Signal
	wait   time.Duration // instead of the signal
}

func parse(text string) order {
	o := order{name: text, nth: 1, signal: syscall.SIGKILL}
	if name, action, ok := strings.Cut(o.name, "="); ok {
		o.name = name
		switch action {
		case "kill":
		case "stop":
			o.signal = syscall.SIGSTOP
		default:
			d, err := time.ParseDuration(action)
			if err == nil && d > 0 {
				o.wait = d
				break
			}
			// A test that means something else must not pass.
			panic(fmt.Sprintf("%s: action %q is not known", orderVariable, action))
		}
	}
	if i := strings.LastIndexByte(o.name, ':'); i >= 0 {
		if n, err := strconv.Atoi(o.name[i+1:]); err == nil {
			o.name, o.nth = o.name[:i], n
		}
	}
	return o
}

func trace(name string) {
	path := os.Getenv(traceVariable)
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", traceVariable, err))
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, name); err != nil {
		panic(fmt.Sprintf("%s: %v", traceVariable, err))
	}
}
