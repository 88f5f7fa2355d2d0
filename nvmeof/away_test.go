package nvmeof

import (
	"errors"
	"testing"
	"time"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// TestTurnAway: a host that knows nothing of asymmetric access loses its connections, with
// what is held on them, and is told to come again until it may; one that does stays.
func TestTurnAway(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		opt.HoldFor = 50 * time.Millisecond
		r := newRig(t, opt)
		plain, heeds := r.connect(), r.connect(func(c *nvmetest.Config) { c.HostID, c.ANA = [16]byte{9}, true })
		r.ns.Hold()
		cmd := nvmetest.IOCommand(wire.OpWrite, 1, 0, 1)
		held, err := plain.IO[0].Send(&cmd, noise(1, 512), nil)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the write is held", func() bool { return r.ns.Stats().Held == 1 })
		for range 2 {
			r.subsys.TurnAway(true)
		}
		if _, err := held.Wait(); err == nil {
			t.Error("what was held was answered")
		}
		eventually(t, "the host is gone", func() bool { return r.subsys.Controllers() == 1 })
		if _, err := nvmetest.Connect(plain.Config); !errors.Is(err, wire.ConnectBusy) {
			t.Errorf("connecting anew: %v", err)
		}
		if _, err := heeds.Identify(wire.CNSController, 0); err != nil {
			t.Errorf("the host that heeds asymmetric access: %v", err)
		}
		wantStatus(t, "held for too long", heeds.IO[0].Read(1, 0, make([]byte, 512)), wire.NamespaceNotReady.WithDelay(1))

		// One that comes meanwhile may stay until it would lose a command.
		late := r.connect(func(c *nvmetest.Config) { c.HostID = [16]byte{7} })
		if _, err := late.Identify(wire.CNSNamespace, 1); err != nil {
			t.Error(err)
		}
		if err := late.IO[0].Read(1, 0, make([]byte, 512)); err == nil || err == error(wire.NamespaceNotReady.WithDelay(1)) {
			t.Errorf("the late host's read: %v", err)
		}
		eventually(t, "it is gone, too", func() bool { return r.subsys.Controllers() == 1 })

		r.ns.Release()
		r.subsys.TurnAway(false)
		b := make([]byte, 512)
		if err := r.connect().IO[0].Read(1, 0, b); err != nil {
			t.Error(err)
		}
		if b[0] != 0 || b[1] != 0 {
			t.Error("a write that was held on a connection that was ended has landed")
		}
	})
}
