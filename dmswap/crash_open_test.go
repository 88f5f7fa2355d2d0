package dmswap

import (
	"math/rand"
	"testing"
)

// TestEveryCrashOfAnOpening kills the process before each effect of an operation,
// and the next one while it opens the pool or when it just has: before an effect
// that is chosen by chance, since all are thousands. The third finds the old world
// or the new one, in perfect order, and the one that the second saw when that had
// opened the pool.
func TestEveryCrashOfAnOpening(t *testing.T) {
	base, m := populated(t), wholeMachine(t)
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			before, after, effects := outcomes(t, base, op, m)
			rng := rand.New(rand.NewSource(1))
			for n := 1; n <= effects; n += stride() {
				left, first := base.clone(), rng.Intn(2) == 1
				p := m.open(left)
				left.effects, left.deadline = 0, n
				_ = op.run(p)
				left.end(first, rng)

				whole := left.clone()
				saw := fingerprint(m.open(whole))
				k, second := 1+rng.Intn(whole.effects+1), rng.Intn(2) == 1
				left.deadline = left.effects + k
				// A process that is dead may still be told that all went well.
				if _, err := left.tryOpen(); left.dead != (k <= whole.effects) || err != nil && !left.dead {
					t.Fatalf("effect %d of %d never happened: %v", k, whole.effects, err)
				}
				left.end(second, rng)
				again := m.open(left)
				mustCheck(t, again)
				got := fingerprint(again)
				if got != before && got != after {
					t.Errorf("the world is\n%sneither\n%snor\n%s", got, before, after)
				}
				if k > whole.effects && got != saw {
					t.Errorf("the pool was opened to\n%sand then to\n%s", saw, got)
				}
				if t.Failed() {
					t.Fatalf("killed before effect %d (power cut: %v), then before effect %d of %d of the opening (power cut: %v)",
						n, first, k, whole.effects, second)
				}
			}
		})
	}
}
