package dmswap

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// swapWorld has a pool with two volumes, and a list of the effects since the
// last call of reset.
func swapWorld(t *testing.T) (p *Pool, effects *[]string, w *world) {
	t.Helper()
	p, w = testPool(t, 32, 32)
	for _, name := range []string{"a", "b", "c"} {
		mustCreate(t, p, VolumeSpec{Name: name, Size: 4 << 20})
	}
	effects = new([]string)
	w.fail = func(what string) error { *effects = append(*effects, what); return nil }
	return p, effects, w
}

func prepare(t *testing.T, p *Pool, a, b string) *Swap {
	t.Helper()
	s, err := p.PrepareSwap(ctx, []SwapPair{{A: a, B: b}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestThePauseHasNoWorkInIt: what is left for Execute is one suspend and one
// resume per device and one durable block per member.
func TestThePauseHasNoWorkInIt(t *testing.T) {
	p, effects, _ := swapWorld(t)
	s := prepare(t, p, "a", "b")
	*effects = nil
	if err := s.Execute(ctx); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, e := range *effects {
		kinds[strings.Fields(e)[0]]++
	}
	if len(kinds) != 3 || kinds["suspend"] != 2 || kinds["resume"] != 2 || kinds["fua"] != 2*2 {
		t.Errorf("the pause holds %v", *effects)
	}
}

// TestACommitBetweenPrepareAndExecute makes what was staged void, whether it
// succeeds or fails half-way: either way it has written over the slots.
func TestACommitBetweenPrepareAndExecute(t *testing.T) {
	for _, fails := range []bool{false, true} {
		p, _, w := swapWorld(t)
		s := prepare(t, p, "a", "b")
		generation := p.Info().Generation
		w.fail = func(what string) error {
			if fails && strings.HasPrefix(what, "sync disk") {
				return errors.New("injected")
			}
			return nil
		}
		err := p.SetVolume(ctx, "c", func(a *VolumeAttrs) { a.Attached = true })
		if (err != nil) != fails {
			t.Fatalf("the commit between: %v", err)
		}
		w.fail = nil
		b, _ := p.Volume("b")
		if err := s.Execute(ctx); err != nil {
			t.Fatal(err)
		}
		for _, pool := range []*Pool{p, w.open(t)} {
			mustCheck(t, pool)
			a, _ := pool.Volume("a")
			c, _ := pool.Volume("c")
			if a.Position.ID != b.Position.ID || c.Attached == fails || pool.Info().Generation <= generation+1 {
				t.Errorf("fails %v: a %+v, c %+v, generation %d after %d", fails, a.Position, c, pool.Info().Generation, generation)
			}
		}
	}
}

// TestTwoPreparedSwaps: the second to be prepared takes the first one's place
// in the slots, and both go through.
func TestTwoPreparedSwaps(t *testing.T) {
	p, _, w := swapWorld(t)
	mustCreate(t, p, VolumeSpec{Name: "d", Size: 4 << 20})
	first, second := prepare(t, p, "a", "b"), prepare(t, p, "c", "d")
	b, _ := p.Volume("b")
	d, _ := p.Volume("d")
	if err := errors.Join(first.Execute(ctx), second.Execute(ctx)); err != nil {
		t.Fatal(err)
	}
	for _, pool := range []*Pool{p, w.open(t)} {
		mustCheck(t, pool)
		a, _ := pool.Volume("a")
		c, _ := pool.Volume("c")
		if a.Position.ID != b.Position.ID || c.Position.ID != d.Position.ID {
			t.Errorf("a shows %s, c shows %s", a.Position.ID, c.Position.ID)
		}
	}
}

// TestAStagedSwapIsCalledOff: what was staged is of no account afterwards, and
// its number is never used again.
func TestAStagedSwapIsCalledOff(t *testing.T) {
	p, effects, w := swapWorld(t)
	before, generation := fingerprint(p), p.Info().Generation
	s := prepare(t, p, "a", "b")
	*effects = nil
	if err := s.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(*effects, func(e string) bool { return !strings.HasPrefix(e, "clear") }) {
		t.Errorf("the abort did %v", *effects)
	}
	again := w.open(t)
	mustCheck(t, again)
	if fingerprint(p) != before || fingerprint(again) != before || again.Info().Generation != generation {
		t.Errorf("after the abort:\n%s", fingerprint(again))
	}
	if err := p.SetVolume(ctx, "c", func(a *VolumeAttrs) { a.Attached = true }); err != nil {
		t.Fatal(err)
	}
	if got := p.Info().Generation; got != generation+2 {
		t.Errorf("generation %d after %d and one that was staged", got, generation)
	}
}

// TestStagingFails: the swap is refused with the devices as they were.
func TestStagingFails(t *testing.T) {
	p, _, w := swapWorld(t)
	w.fail = func(what string) error {
		if strings.HasPrefix(what, "write disk") {
			return errors.New("injected")
		}
		return nil
	}
	if s, err := p.PrepareSwap(ctx, []SwapPair{{A: "a", B: "b"}}); err == nil || s != nil || !strings.Contains(err.Error(), "a and b") {
		t.Fatalf("got %v, %v", s, err)
	}
	w.fail = nil
	mustCheck(t, p) // no table is left in an inactive slot
	if err := swapNow(p, SwapPair{A: "a", B: "b"}); err != nil {
		t.Error(err)
	}
}
