package dmswap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand"
	"slices"
	"strings"
	"testing"
)

var ctx = context.Background()

// operation is something whose every prefix is tried.
type operation struct {
	name string
	run  func(p *Pool) error
}

var operations = []operation{
	{"create", func(p *Pool) error {
		_, err := p.CreateVolume(ctx, VolumeSpec{Name: "new", Size: 3 << 20, Zero: true})
		return err
	}},
	{"create striped", func(p *Pool) error {
		_, err := p.CreateVolume(ctx, VolumeSpec{Name: "new", Size: 3<<20 + 4096, Stripes: 2})
		return err
	}},
	{"grow", func(p *Pool) error {
		_, err := p.GrowVolume(ctx, "a", 7<<20)
		return err
	}},
	{"delete", func(p *Pool) error { return p.DeleteVolume(ctx, "a") }},
	{"swap", func(p *Pool) error { return swapNow(p, SwapPair{A: "a", B: "b"}) }},
	{"swap of two pairs", func(p *Pool) error { return swapNow(p, SwapPair{A: "a", B: "b"}, SwapPair{A: "s", B: "d"}) }},
	{"swap with a label", func(p *Pool) error {
		return swapNow(p, SwapPair{A: "a", B: "b", Quarantine: &Quarantine{Reason: "failed"}})
	}},
	{"swap with a commit between its parts", func(p *Pool) error {
		s, err := p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b"}})
		if err != nil {
			return err
		}
		// Changes nothing that a fingerprint shows, but takes the staged slots.
		err = p.SetPosition(ctx, "d", func(a *PositionAttrs) { a.DescendsFrom = "b1" })
		if err != nil {
			return errors.Join(err, s.Abort(ctx))
		}
		return s.Execute(ctx)
	}},
	{"prepare and abort", func(p *Pool) error {
		s, err := p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b"}})
		if err != nil {
			return err
		}
		return s.Abort(ctx)
	}},
	{"snapshot", func(p *Pool) error {
		list, err := p.OpenSnapshots(ctx, []string{"a", "s"}, SnapshotOptions{})
		if err != nil {
			return err
		}
		for _, s := range list {
			if err := s.Close(ctx); err != nil {
				return err
			}
		}
		return nil
	}},
	{"quarantine", func(p *Pool) error {
		return p.SetPosition(ctx, "a", func(a *PositionAttrs) { a.Quarantine = &Quarantine{Reason: "test"} })
	}},
	{"attach", func(p *Pool) error {
		return p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.Attached, a.DeviceNumber = true, 7 })
	}},
	{"deactivate", func(p *Pool) error { return p.Deactivate(ctx) }},
}

func swapNow(p *Pool, pairs ...SwapPair) error {
	s, err := p.PrepareSwap(ctx, pairs)
	if err != nil {
		return err
	}
	if err := s.Execute(ctx); err != nil {
		return err
	}
	s.DropCaches()
	return nil
}

// populated is the world that every operation begins in.
func populated(t *testing.T) *world {
	w := newWorld(t, 32, 32)
	p := w.open(t)
	for _, spec := range []VolumeSpec{
		{Name: "a", Size: 4 << 20}, {Name: "b", Size: 4 << 20},
		{Name: "s", Size: 3<<20 + 8192, Stripes: 2}, {Name: "d", Size: 3<<20 + 8192},
	} {
		mustCreate(t, p, spec)
	}
	mustCheck(t, p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return w
}

// fingerprint describes everything that an operation may change.
func fingerprint(p *Pool) string {
	var b strings.Builder
	for _, v := range p.Volumes() {
		fmt.Fprintf(&b, "%s %d %v %d %v gen %d %v %v\n", v.Name, v.Size, v.Attached, v.DeviceNumber, v.Position.Segments,
			v.Position.Generation, v.Position.StripeSize, v.Position.Quarantine)
	}
	return b.String()
}

// stride is 1: a crash before each effect. With -short, for the race detector, under
// which these take ten times as long, every fifth will do.
func stride() int {
	if testing.Short() {
		return 5
	}
	return 1
}

// TestEveryCrash kills the process before each of its effects on the world, as
// kill -9 does (what was written stays, the kernel's devices stay) and as a
// power cut does (what was not flushed is lost in part, devices are gone). The
// pool has to open to the old world or to the new one, in perfect order.
func TestEveryCrash(t *testing.T) {
	crashAtEvery(t, populated(t), operations, wholeMachine(t))
}

// TestEveryCrashWithoutADisk is the same for swaps by which volumes on a dead
// disk are replaced. When the disk is back, what they had is whole again.
func TestEveryCrashWithoutADisk(t *testing.T) {
	swaps := []operation{
		{"of a pair", func(p *Pool) error { return swapNow(p, SwapPair{A: "a", B: "b"}) }},
		{"with a label", func(p *Pool) error {
			return swapNow(p, SwapPair{A: "a", B: "b", Quarantine: &Quarantine{Reason: "its disk died"}})
		}},
		{"of two pairs", func(p *Pool) error {
			label := &Quarantine{Reason: "its disk died"}
			return swapNow(p, SwapPair{A: "a", B: "b", Quarantine: label}, SwapPair{A: "s", B: "d", Quarantine: label})
		}},
		{"prepare and abort", func(p *Pool) error {
			s, err := p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b"}})
			if err != nil {
				return err
			}
			return s.Abort(ctx)
		}},
	}
	for dead := range 2 {
		t.Run(fmt.Sprintf("member %d", dead), func(t *testing.T) {
			crashAtEvery(t, populated(t), swaps, machine{
				open: func(w *world) *Pool {
					p, err := w.tryOpenOn(func(i int) bool { return i == dead })
					if err != nil {
						t.Fatal(err)
					}
					if a, _ := p.Volume("a"); a.Degraded == "" {
						if b, _ := p.Volume("b"); b.Degraded == "" {
							t.Fatal("neither a nor b is on the dead disk")
						}
					}
					return p
				},
				check: mustCheckDegraded,
			})
		})
	}
}

// machine is how a process opens the pool, and what a check of it must find.
type machine struct {
	open  func(w *world) *Pool
	check func(t *testing.T, p *Pool)
}

func wholeMachine(t *testing.T) machine {
	return machine{open: func(w *world) *Pool { return w.open(t) }, check: mustCheck}
}

func crashAtEvery(t *testing.T, base *world, ops []operation, m machine) {
	for _, op := range ops {
		t.Run(op.name, func(t *testing.T) {
			before, after, effects := outcomes(t, base, op, m)
			seen := map[string]int{}
			for n := effects; n >= 1; n -= stride() { // the last is in the new world
				for _, power := range []bool{false, true} {
					w := base.clone()
					p := m.open(w)
					w.effects, w.deadline = 0, n
					_ = op.run(p)
					if !w.dead {
						t.Fatalf("effect %d of %d never happened", n, effects)
					}
					w.end(power, rand.New(rand.NewSource(int64(n))))
					again := m.open(w)
					m.check(t, again)
					got := fingerprint(again)
					switch got {
					case before:
						seen["old"]++
					case after:
						seen["new"]++
					default:
						t.Errorf("killed before effect %d (power cut: %v):\n%sis neither\n%snor\n%s", n, power, got, before, after)
					}
					if again.Info().Degraded() {
						whole := w.open(t)
						mustCheck(t, whole)
						if back := fingerprint(whole); back != got {
							t.Errorf("killed before effect %d (power cut: %v):\n%sbut when the disk is back\n%s", n, power, got, back)
						}
					}
					if t.Failed() {
						t.FailNow()
					}
				}
			}
			if before != after && (seen["old"] == 0 || seen["new"] == 0) {
				t.Errorf("%d effects led to %v: not both worlds were seen", effects, seen)
			}
		})
	}
}

// end is that of a process that is killed, or whose machine loses its power. The
// next one can act.
func (w *world) end(power bool, rng *rand.Rand) {
	if power {
		for _, d := range w.disks {
			d.cutPower(rng)
		}
		w.kernel.reboot()
	}
	w.reborn()
}

// outcomes runs an operation to its end and returns the worlds before and
// after, and how many effects it has.
func outcomes(t *testing.T, base *world, op operation, m machine) (before, after string, effects int) {
	t.Helper()
	w := base.clone()
	p := m.open(w)
	before = fingerprint(p)
	w.effects = 0
	if err := op.run(p); err != nil {
		t.Fatal(err)
	}
	effects = w.effects
	if p.state == nil {
		m.check(t, p)
	}
	return before, fingerprint(p), effects
}

// TestEveryFailure makes each effect fail once, while the process goes on: the
// operation ends in the old world with an error or in the new one, and the pool
// is in order and usable, or says that it is not.
func TestEveryFailure(t *testing.T) {
	base := populated(t)
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			before, after, effects := outcomes(t, base, op, wholeMachine(t))
			for n := 1; n <= effects; n += stride() {
				w := base.clone()
				p := w.open(t)
				count, failed := 0, ""
				w.fail = func(what string) error {
					if count++; count == n {
						failed = what
						return fmt.Errorf("injected failure of: %s", what)
					}
					return nil
				}
				err := op.run(p)
				w.fail = nil
				got := fingerprint(p)
				if got != before && got != after {
					t.Fatalf("failure %d (%s): %v leads to\n%sneither\n%snor\n%s", n, failed, err, got, before, after)
				}
				if got == before && before != after && err == nil {
					t.Errorf("failure %d (%s): nothing was done, and no error says so", n, failed)
				}
				// A failure that was undone leaves nothing to mend. A member that
				// could not be written to is left out, which the check reports.
				told := errors.Is(err, ErrCommitted) || errors.Is(err, ErrDamaged) || op.name == "prepare and abort" ||
					err != nil && strings.Contains(err.Error(), "closing the snapshot")
				if p.state == nil && !told {
					mustCheckDegraded(t, p)
				}
				if left := p.Info().Degraded(); left && !strings.Contains(failed, "disk") {
					t.Errorf("failure %d (%s): a member is left out", n, failed)
				}
				if open := p.openSnapshots(); len(open) > 0 {
					for _, s := range open {
						if err := s.Close(ctx); err != nil {
							t.Errorf("failure %d (%s): closing the snapshot a second time: %v", n, failed, err)
						}
					}
					mustCheckDegraded(t, p)
				}
				again := w.open(t)
				mustCheck(t, again)
				if state := fingerprint(again); state != got {
					t.Errorf("failure %d (%s): the process saw\n%sbut after opening again it is\n%s", n, failed, got, state)
				}
				if t.Failed() {
					t.Fatalf("that was failure %d (%s): %v", n, failed, err)
				}
			}
		})
	}
}

// TestCommitSurvivesLostWrites cuts the power at every point of two commits in
// a row, with many choices of which sectors arrived.
func TestCommitSurvivesLostWrites(t *testing.T) {
	base := newWorld(t, 8, 8)
	generations := func(w *world) uint64 {
		p, err := w.tryOpen()
		if err != nil {
			t.Fatal(err)
		}
		return p.Info().Generation
	}
	start := generations(base.clone())
	for n := 1; n <= 20; n++ {
		seen := map[uint64]int{}
		for seed := range int64(20) {
			w := base.clone()
			p := w.open(t)
			w.effects, w.deadline = 0, n
			for i := range 2 {
				_ = p.SetVolume(ctx, "none", nil)
				p.mu.Lock()
				_ = p.commit(func(m *metadata) error { return nil })
				p.mu.Unlock()
				_ = i
			}
			rng := rand.New(rand.NewSource(seed))
			for _, d := range w.disks {
				d.cutPower(rng)
			}
			w.reborn()
			g := generations(w)
			seen[g]++
			if g < start || g > start+2 {
				t.Fatalf("cut before effect %d: generation %d", n, g)
			}
			// 8 effects per commit: body, sync, header, its end on two members.
			if done := uint64((n - 1) / 8); g < start+done {
				t.Fatalf("cut before effect %d: generation %d, but %d commits had returned", n, g, done)
			}
		}
		if n == 20 && !slices.Equal(slices.Collect(maps.Keys(seen)), []uint64{start + 2}) {
			t.Errorf("after two whole commits: %v", seen)
		}
	}
}
