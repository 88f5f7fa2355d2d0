//go:build vm && failpoint

package crash

import (
	"context"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// hostOperations are crashed at in the program of the host, not in the daemon.
var hostOperations = []string{"job", "state", "recover", "restore", "backup"}

func flagRun() string { return flag.Lookup("test.run").Value.String() }

// crashStart kills the daemon while it starts and has to mend what a daemon
// before it left half done.
func (b *bench) crashStart(t *testing.T) {
	swap := func() error {
		_, err := b.Client.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "b"}, {A: "c", B: "d"}}})
		return err
	}
	exchanged := func(w world) world {
		for _, p := range [][2]string{{"a", "b"}, {"c", "d"}} {
			x, y := w[p[0]].Sum, w[p[1]].Sum
			w = w.with(p[0], func(v *volume) { v.Sum = y })
			w = w.with(p[1], func(v *volume) { v.Sum = x })
		}
		return w
	}
	same := func(w world) world { return w }
	left := []struct {
		point string // at which the daemon before died
		run   func() error
		after func(world) world
	}{
		{"swap: committed", swap, exchanged},
		{"snapshot: volumes resumed", func() error {
			_, end, err := b.Client.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"a", "b"}})
			if err == nil {
				err = end(context.WithoutCancel(t.Context()))
			}
			return err
		}, same},
		{"swap: suspended", swap, same},
	}
	dirty := func(i int, t *testing.T) world {
		before := look(t, b.Daemon)
		l := left[i%len(left)]
		b.arm(t, l.point)
		if err := l.run(); api.CodeOf(err) != api.CodeUnavailable {
			t.Fatalf("the daemon was to die at %q: %v", l.point, err)
		}
		b.WaitEnd()
		return l.after(before)
	}
	want := dirty(0, t)
	b.clearTrace(t)
	b.Run()
	points := b.traced(t)
	expect(t, "started", look(t, b.Daemon), want)
	crashed := 0
	for i := range len(left) {
		for j, p := range points {
			if !everywhere && j%len(left) != i {
				continue
			}
			// On 6.12 a death while devices are adopted crashes the kernel at the next
			// adoption; see the limits in docs/safety.md.
			adopting := rig.OldestKernel(t) && strings.HasPrefix(p, "serve: ")
			if adopting || leftOut(t, p) {
				b.reached[p] = true
				continue
			}
			crashed++
			t.Run(left[i].point+", "+p, func(t *testing.T) {
				want := dirty(i, t)
				b.arm(t, p)
				b.Launch()
				rig.WaitUntil(t, "the daemon to die at its start, or to live", func() bool {
					_, err := b.Client.Info(t.Context())
					return b.Ended() || err == nil
				})
				if !b.Ended() {
					// Nothing to commit, for instance, after this death.
					t.Log("this start does not come to the point")
					_ = os.Remove(b.order())
				} else {
					b.crashed[p]++
					b.Run()
				}
				b.reached[p] = true
				expect(t, "started again", look(t, b.Daemon), want)
			})
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	t.Logf("%d points, %d starts", len(points), crashed)
}
