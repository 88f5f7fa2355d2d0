//go:build vm && failpoint

package crash

import (
	"context"
	"flag"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// hostOperations are crashed at in the program of the host, not in the daemon.
var hostOperations = []string{"job", "state", "recover", "restore", "backup"}

func flagRun() string { return flag.Lookup("test.run").Value.String() }

// death is an end of the daemon that leaves work to the next one.
type death struct {
	point string // at which it dies
	run   func() error
	after func(world) world
	// leaves are the points behind what is left to be reconciled. At the others of
	// a reconcile nothing has been done yet, or nothing since the one before.
	leaves []string
}

func (b *bench) deaths(t *testing.T) []death {
	swap := func() error {
		_, err := b.Client.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "b"}, {A: "c", B: "d"}}})
		return err
	}
	exchanged := func(w world) world {
		for _, p := range [][2]string{{"a", "b"}, {"c", "d"}} {
			x, y := w[p[0]], w[p[1]]
			w = w.with(p[0], func(v *volume) { v.Sum, v.Descends = y.Sum, y.Descends })
			w = w.with(p[1], func(v *volume) { v.Sum, v.Descends = x.Sum, x.Descends })
		}
		return w
	}
	same := func(w world) world { return w }
	tables := []string{"reconcile: tables loaded", "reconcile: devices resumed"}
	return []death{
		{"swap: committed", swap, exchanged, tables},
		{"snapshot: volumes resumed", func() error {
			_, end, err := b.Client.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"a", "b"}})
			if err == nil {
				err = end(context.WithoutCancel(t.Context()))
			}
			return err
		}, same, append([]string{"reconcile: snapshots cut off", "reconcile: strays removed"}, tables...)},
		{"swap: suspended", swap, same, tables},
		{"delete: mapping removed", func() error {
			return b.Client.DeleteVolume(t.Context(), "e", false)
		}, same, []string{"reconcile: missing devices made"}},
	}
}

// crashStart kills the daemon while it starts and has to mend what a daemon
// before it left half done.
func (b *bench) crashStart(t *testing.T) {
	b.fill(t, "e", 5)
	_, err := b.Client.CreateExport(t.Context(), "d", api.ExportRequest{Hosts: []string{oneHost}})
	b.must(err)
	defer func() { b.must(b.Client.DeleteExport(context.WithoutCancel(t.Context()), "d", false)) }()
	now := look(t, b.Daemon)
	die := func(t *testing.T, d death) {
		t.Helper()
		b.arm(t, d.point)
		if err := d.run(); api.CodeOf(err) != api.CodeUnavailable {
			t.Fatalf("the daemon was to die at %q: %v", d.point, err)
		}
		b.WaitEnd()
		now = d.after(now)
	}
	var points []string
	behind := map[string][]death{} // after which a start comes to the point
	for _, d := range b.deaths(t) {
		die(t, d)
		b.clearTrace(t)
		b.Run()
		for _, p := range b.traced(t) {
			if behind[p] == nil {
				points = append(points, p)
			}
			behind[p] = append(behind[p], d)
		}
		expect(t, "started after "+d.point, look(t, b.Daemon), now)
	}
	starts := 0
	for i, p := range points {
		// On 6.12 a death while devices are adopted crashes the kernel at the next
		// adoption; see the limits in docs/safety.md.
		adopting := rig.OldestKernel(t) && strings.HasPrefix(p, "serve: ")
		if adopting || leftOut(t, p) {
			continue
		}
		for j, d := range behind[p] {
			switch {
			case everywhere:
			case strings.HasPrefix(p, "reconcile: ") && !slices.Contains(d.leaves, p):
				continue
			case !strings.HasPrefix(p, "reconcile: ") && j != i%len(behind[p]):
				continue // the same, whatever there was to mend
			}
			starts++
			t.Run(d.point+", "+p, func(t *testing.T) {
				die(t, d)
				b.arm(t, p)
				b.Launch()
				rig.WaitUntil(t, "the daemon to die at its start, or to live", func() bool {
					_, err := b.Client.Info(t.Context())
					return b.Ended() || err == nil
				})
				if !b.Ended() {
					t.Fatal("this start does not come to the point")
				}
				b.crashed[p]++
				b.Run()
				expect(t, "started again", look(t, b.Daemon), now)
			})
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	t.Logf("%d points, %d starts", len(points), starts)
}
