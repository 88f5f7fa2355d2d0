//go:build vm

package model

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// TestRandomCalls makes random calls in random order, right ones and wrong
// ones, and holds every answer against the model. Daemons are ended and killed
// on the way. What was written must follow its position through all of it.
//
// SOAK_CALLS is how many calls there are, SOAK_SEED which: the same number
// gives the same calls.
func TestRandomCalls(t *testing.T) {
	calls, seed := rig.Count(t, "SOAK_CALLS", 250), rig.Count(t, "SOAK_SEED", 1)
	began := time.Now()
	w := newWalk(t, uint64(seed))
	for n := 0; w.calls < calls; n++ {
		w.step()
		switch {
		case n%100 == 99:
			w.check()
		case n%4 == 3:
			w.compare()
		}
	}
	w.end()
	t.Attr("calls", fmt.Sprintf("%d with seed %d in %.0f s", w.calls, seed, time.Since(began).Seconds()))
	for _, line := range w.counts() {
		t.Attr("calls", line)
	}
}

// walk is a walk through the API.
type walk struct {
	t     *testing.T
	d     *rig.Daemon
	p     *Pool
	rng   *rand.Rand
	seed  uint64
	snaps []*snapshot
	tag   uint64 // the last that was written
	calls int
	said  []string // what was called, the last ones
	kinds map[string]*[2]int
	buf   []byte // one aligned block
}

func newWalk(t *testing.T, seed uint64) *walk {
	w := &walk{
		t: t, d: rig.Start(t), rng: rand.New(rand.NewPCG(seed, 3)), seed: seed,
		kinds: map[string]*[2]int{}, buf: rig.Aligned(t, block),
	}
	pool := w.d.Pool()
	w.p = &Pool{Name: pool.Name, ExtentSize: pool.ExtentSize, Members: len(pool.Members), Extents: pool.Extents}
	return w
}

// steps are what a walk may do next, and how often.
var steps = []struct {
	weight int
	do     func(w *walk)
}{
	{10, (*walk).create}, {5, (*walk).delete}, {6, (*walk).grow}, {8, (*walk).attach}, {5, (*walk).detach},
	{16, (*walk).swap}, {5, (*walk).swapHeld}, {2, (*walk).swapRace}, {4, (*walk).quarantine}, {7, (*walk).release},
	{4, (*walk).descends}, {4, (*walk).openSnapshot}, {4, (*walk).closeSnapshot}, {5, (*walk).look}, {4, (*walk).garbage},
	{2, (*walk).pools}, {20, (*walk).write}, {8, (*walk).verify}, {1, (*walk).restart},
}

func (w *walk) step() {
	if len(w.p.Volumes) < 3 {
		w.create() // with fewer there is little to do
		return
	}
	n := 0
	for _, s := range steps {
		n += s.weight
	}
	n = w.rng.IntN(n)
	for _, s := range steps {
		if n -= s.weight; n < 0 {
			s.do(w)
			return
		}
	}
}

// fail ends the walk with what is needed to walk it again.
func (w *walk) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("SOAK_SEED=%d, call %d: %s\nthe last calls:\n  %s", w.seed, w.calls, fmt.Sprintf(format, args...), strings.Join(w.said, "\n  "))
}

// called notes a call and holds its end against the model. It tells whether the
// call went well.
func (w *walk) called(err error, want Codes, kind, format string, args ...any) bool {
	w.t.Helper()
	w.calls++
	line := kind + " " + fmt.Sprintf(format, args...) + ": "
	if w.kinds[kind] == nil {
		w.kinds[kind] = &[2]int{}
	}
	if err == nil {
		line += "done"
		w.kinds[kind][0]++
	} else {
		line += api.CodeOf(err)
		w.kinds[kind][1]++
	}
	w.said = append(w.said[max(0, len(w.said)-24):], line)
	if wrong := want.Allow(err); wrong != "" {
		w.fail("%s", wrong)
	}
	return err == nil
}

func (w *walk) counts() (list []string) {
	for kind, n := range w.kinds {
		list = append(list, fmt.Sprintf("%-14s %5d done %5d refused", kind, n[0], n[1]))
	}
	slices.Sort(list)
	return list
}

// one of several, by chance.
func one[T any](w *walk, list ...T) T { return list[w.rng.IntN(len(list))] }

// chance is true once in n times.
func (w *walk) chance(n int) bool { return w.rng.IntN(n) == 0 }

// some returns a volume for which ok is true, or nil.
func (w *walk) some(ok func(v *Volume) bool) *Volume {
	var list []*Volume
	for _, v := range w.p.Volumes {
		if ok(v) {
			list = append(list, v)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return one(w, list...)
}

var strange = []string{
	"", ".", "..", "tank/", "/", "tank/../tank", "../pools/tank", "nobody", "x/v1", "tank/tank/v1", "\x00", "%2e%2e", "v1?force=true",
	"\xff\xfe", "00000000-0000-0000-0000-000000000000", "é", "v1 ", "V1", "#", "\x1b[2J", strings.Repeat("v", 65), strings.Repeat("v", 500),
}

// ref names a volume, in one of the ways in which it can be named; now and then
// one that is not there.
func (w *walk) ref(v *Volume) string {
	if v == nil || w.chance(25) {
		return one(w, strange...)
	}
	return one(w, v.Name, v.Name, w.p.Name+"/"+v.Name, v.UUID)
}

// any volume's name.
func (w *walk) any() string { return w.ref(w.some(func(*Volume) bool { return true })) }

// sizes are such that many volumes can be swapped with each other.
func (w *walk) size() int64 {
	if w.chance(8) {
		return one[int64](w, 0, -1, block, 5000, w.p.ExtentSize*w.p.Free(), w.p.ExtentSize*(w.p.Free()+1), 1<<40, 1<<62, 1<<63-1, -1<<63)
	}
	return one(w, 8*rig.MiB, 8*rig.MiB, 8*rig.MiB, 12*rig.MiB, 12*rig.MiB-block)
}

// compare holds the daemon's whole picture against the model.
func (w *walk) compare() {
	w.t.Helper()
	pool, err := w.d.Client.Pool(w.t.Context(), w.p.Name)
	if err != nil {
		w.fail("pool show: %v", err)
	}
	list, err := w.d.Client.Volumes(w.t.Context(), w.p.Name)
	if err != nil {
		w.fail("volume list: %v", err)
	}
	if d := w.p.Differences(pool, list); len(d) > 0 {
		w.fail("the daemon and the model differ:\n  %s", strings.Join(d, "\n  "))
	}
}

// check has the daemon check the pool.
func (w *walk) check() {
	w.t.Helper()
	report, err := w.d.Client.CheckPool(w.t.Context(), w.p.Name)
	if err != nil || !report.OK {
		w.fail("pool check: %v %q", err, report.Problems)
	}
	w.compare()
}

// restart ends the daemon in one way or the other and starts the next one.
func (w *walk) restart() {
	sig := one(w, syscall.SIGTERM, syscall.SIGKILL)
	w.d.Signal(sig)
	w.d.Run()
	w.dropSnapshots()
	w.p.Restarted()
	w.called(nil, nil, "restart", "%v", sig)
	w.check()
}

// end makes every volume readable and looks at all that was written.
func (w *walk) end() {
	for len(w.snaps) > 0 {
		w.closeSnapshot()
	}
	for _, v := range w.p.Volumes {
		if !v.Attached {
			got, err := w.d.Client.Attach(w.t.Context(), v.UUID, api.AttachRequest{})
			if w.called(err, nil, "attach", "%s at the end", v.Name) {
				w.p.Attached(v.UUID, api.AttachRequest{}, got.DeviceNumber)
			}
		}
		w.read(v)
	}
	w.check()
}
