//go:build vm

package storm

import (
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// TestKilledBehindTheCommit kills the daemon as soon as it shows a swap, while it
// still has the caches compared with the disks. A daemon that read its own
// devices itself did not end then, ever, and its devices were lost.
func TestKilledBehindTheCommit(t *testing.T) {
	d := rig.Start(t)
	d.Pool()
	a := d.Volume("a", 8*rig.MiB)
	d.Volume("b", 8*rig.MiB)
	cut := 0
	for round := range rig.Count(t, "SOAK_COMMITS", 4) {
		before := d.Show("a").Position.ID
		answer := make(chan error, 1)
		go func() {
			_, err := d.Client.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "b"}}})
			answer <- err
		}()
		rig.WaitUntil(t, "the swap to show", func() bool { return d.Show("a").Position.ID != before })
		time.Sleep(time.Duration(round%10) * 20 * time.Millisecond)
		d.Kill()
		if err := <-answer; err != nil {
			cut++
		}
		d.Run()
		d.Check()
		if d.Show("a").Position.ID == before {
			t.Error("a swap that was shown has not happened")
		}
		if err := writeStamp(a.Device, 0, "x"); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d swaps were cut off behind their commit", cut)
}
