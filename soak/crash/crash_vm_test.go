//go:build vm && failpoint

package crash

import (
	"hash/fnv"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/failpoint/scan"
	"github.com/swapback/swapback/soak/rig"
)

// everywhere makes every scenario crash at all points that it reaches. Without
// it a point is crashed at in the first scenario that reaches it, unless it is
// left out, and behind its commit, which all of them have, each.
var everywhere = os.Getenv("SOAK_CRASH") == "all"

// leftOut says that a point is not crashed at here, unless all are asked for: two of
// three, as far as the swap and the recovery around it don't have them, and seven of eight
// on the oldest kernel, as they are the daemon's steps and not the kernel's. Which
// they are follows from their names.
func leftOut(t *testing.T, point string) bool {
	t.Helper()
	every := uint32(3)
	switch operation, _, _ := strings.Cut(point, ": "); {
	case everywhere:
		return false
	case rig.OldestKernel(t):
		every = 8
	case operation == "swap" || operation == "commit" || operation == "recover":
		return false
	}
	h := fnv.New32a()
	h.Write([]byte(point))
	return h.Sum32()%every != 0
}

// program is the path of a program that knows failpoints.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs("../../build/failpoint/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: make harness builds it", err)
	}
	return path
}

// bench is a daemon that can be told where to die, and a count of what was done.
type bench struct {
	t *testing.T
	*rig.Daemon
	orders  string         // folder
	crashed map[string]int // how often the program ended at a point, in any scenario
	reached map[string]bool
}

func (b *bench) order() string { return filepath.Join(b.orders, "order") }
func (b *bench) trace() string { return filepath.Join(b.orders, "trace") }

func newBench(t *testing.T) *bench {
	dir := t.TempDir()
	b := &bench{t: t, orders: dir, crashed: map[string]int{}, reached: map[string]bool{}}
	b.Daemon = rig.StartWith(t, rig.Options{
		Program: program(t, "swapbackd"), Args: []string{"--nvme-listen", "127.0.0.1"},
		Env: []string{"SWAPBACK_FAILPOINT=@" + b.order(), "SWAPBACK_FAILPOINT_TRACE=" + b.trace()},
	})
	return b
}

// scenario is an operation on the daemon that is crashed at each of its points.
type scenario struct {
	name string
	// prepare brings the daemon to where the operation can begin, at first and
	// after each undo; nil for none.
	prepare func(b *bench)
	// run is the operation. Until the next prepare it asks for the same.
	run func(b *bench) error
	// after is the world when the operation is done, given the one before it.
	after func(before world) world
	// again is the code with which the operation is refused when it is asked for
	// once more; "" when it just does it again.
	again string
	// undo brings back the world before the operation.
	undo func(b *bench)
	// finish leaves the daemon to the next scenario; nil for as it is.
	finish func(b *bench)
}

// points runs the operation to its end and returns what it reached.
func (s *scenario) points(b *bench, t *testing.T) []string {
	b.clearTrace(t)
	if err := s.run(b); err != nil {
		t.Fatalf("without a crash: %v", err)
	}
	return b.traced(t)
}

// arm orders the death of the daemon at a point.
func (b *bench) arm(t *testing.T, point string) {
	if err := os.WriteFile(b.order(), []byte(point), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) clearTrace(t *testing.T) {
	if err := os.Remove(b.trace()); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}

// traced are the points that were reached since clearTrace, each once.
func (b *bench) traced(t *testing.T) []string {
	text, err := os.ReadFile(b.trace())
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var list []string
	for name := range strings.Lines(string(text)) {
		if name = strings.TrimSpace(name); !slices.Contains(list, name) {
			list = append(list, name)
			b.reached[name] = true
		}
	}
	return list
}

// crashAll crashes the scenario at its points.
func (s *scenario) crashAll(b *bench, t *testing.T) {
	if s.prepare != nil {
		s.prepare(b)
	}
	before := look(t, b.Daemon)
	points := s.points(b, t)
	after := s.after(before)
	expect(t, "done without a crash", look(t, b.Daemon), after)
	s.undoAll(b)
	if s.undo != nil {
		expect(t, "undone", look(t, b.Daemon), before)
	}
	if t.Failed() {
		t.FailNow()
	}
	seen := map[string]int{}
	for _, p := range points {
		switch operation, _, _ := strings.Cut(p, ": "); {
		case operation == "reconcile":
			continue // what a start has to mend is for crashStart
		case b.crashed[p] > 0 && p != "commit: published" && !everywhere:
			continue
		}
		if leftOut(t, p) {
			continue
		}
		t.Run(p, func(t *testing.T) { seen[s.crash(b, t, p, before, after)]++ })
		if t.Failed() {
			t.Fatalf("the world is not what the next point would begin with")
		}
	}
	if s.finish != nil {
		s.finish(b)
	}
	t.Logf("%d points: %v", len(points), seen)
}

// crash kills the daemon at one point and looks at what is left.
func (s *scenario) crash(b *bench, t *testing.T, point string, before, after world) (which string) {
	b.arm(t, point)
	err := s.run(b)
	_ = os.Remove(b.order())
	if err == nil {
		t.Fatal("the operation succeeded; the point was not reached")
	}
	if code := api.CodeOf(err); code != api.CodeUnavailable {
		t.Fatalf("the answer to an operation whose daemon died is %q: %v", code, err)
	}
	b.WaitEnd()
	b.crashed[point]++
	b.Run()
	got := look(t, b.Daemon)
	switch got.String() {
	case after.String():
		which = "new"
		err := s.run(b)
		if code := api.CodeOf(err); err != nil && (s.again == "" || code != s.again) || err == nil && s.again != "" {
			t.Errorf("done again in the new world: %v, want %q", err, s.again)
		}
	case before.String():
		which = "old"
		if err := s.run(b); err != nil {
			t.Errorf("done again in the old world: %v", err)
		}
	default:
		t.Fatalf("the world is\n%s\nneither the old one\n%s\nnor the new one\n%s", got, before, after)
	}
	expect(t, "done again", look(t, b.Daemon), after)
	s.undoAll(b)
	return which
}

func (s *scenario) undoAll(b *bench) {
	if s.undo == nil {
		return
	}
	s.undo(b)
	if s.prepare != nil {
		s.prepare(b)
	}
}

func expect(t *testing.T, when string, got, want world) {
	t.Helper()
	if got.String() != want.String() {
		t.Fatalf("%s, the world is\n%s\nwant\n%s", when, got, want)
	}
}

// complain fails the test for points at which no program ended, or which none came by
// where they are left out.
func (b *bench) complain(operations func(point string) bool) {
	b.t.Helper()
	points, err := scan.Tree("../..")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, p := range points {
		if operations(p.Name) && b.crashed[p.Name] == 0 && !(b.reached[p.Name] && leftOut(b.t, p.Name)) {
			b.t.Errorf("no scenario ends a program at failpoint %q (%s:%d)", p.Name, p.File, p.Line)
		}
	}
	b.t.Logf("crashed at %d points: %q", len(b.crashed), slices.Sorted(maps.Keys(b.crashed)))
}
