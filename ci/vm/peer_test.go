package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/swapback/swapback/ci/internal/guestcfg"
	"github.com/swapback/swapback/ci/internal/kernel"
	"github.com/swapback/swapback/ci/internal/qemu"
)

func TestConfigurePeer(t *testing.T) {
	clearEnv(t)
	k := &kernel.Kernel{Release: "1.2.3", Tree: "/tree"}
	o, err := parse([]string{"-disks", "1", "-out", "o", "-env", "X=1", "--", "first"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if first, peer, err := configure(o, k, "/bin"); err != nil || peer != nil || first.Address != "" || first.Host != "swapback-vm" {
		t.Errorf("one machine: %+v, %+v, %v", first, peer, err)
	}
	o.peer = "second"
	first, peer, err := configure(o, k, "/bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []struct {
		cfg                          *guestcfg.Config
		command, host, address, meet string
		disks                        int
		out                          bool
	}{
		{first, "first", "swapback-vm", "192.0.2.1/24", "SWAPBACK_TEST_PEER=192.0.2.2", 1, true},
		{peer, "second", "swapback-peer", "192.0.2.2/24", "SWAPBACK_TEST_PEER=192.0.2.1", 0, false},
	} {
		c := m.cfg
		if c.Command != m.command || c.Host != m.host || c.Address != m.address || c.Disks != m.disks || c.Out != m.out || c.Release != "1.2.3" {
			t.Errorf("%s: %+v", m.command, c)
		}
		if !slices.Contains(c.Env, m.meet) || !slices.Contains(c.Env, "X=1") || slices.Contains(c.Env, "SWAPBACK_OUT=/out") != m.out {
			t.Errorf("%s: %q", m.command, c.Env)
		}
	}
	if _, err := parse([]string{"-native", "-peer", "second", "--", "first"}, io.Discard); err == nil {
		t.Error("two machines without a machine")
	}
}

// TestTogether: whichever machine ends first, the other is ended too.
func TestTogether(t *testing.T) {
	type do = func(context.Context) (int, error)
	untilCancelled := func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() }
	ends := func(status int, err error) do { return func(context.Context) (int, error) { return status, err } }
	for name, tt := range map[string]struct {
		peer, first do
		ready       bool
		status      int
		err         error
	}{
		"the first ends":          {untilCancelled, ends(7, nil), true, 7, nil},
		"the first fails":         {untilCancelled, ends(0, qemu.ErrLost), true, 0, qemu.ErrLost},
		"the peer does not boot":  {ends(0, qemu.ErrBoot), nil, false, 0, qemu.ErrBoot},
		"QEMU of the peer fails":  {ends(0, qemu.ErrCrash), untilCancelled, true, 0, qemu.ErrCrash},
		"the peer's command ends": {ends(0, nil), untilCancelled, true, 0, errPeerEnded},
	} {
		ready := make(chan struct{})
		var running atomic.Int32
		counted := func(f do) do {
			return func(ctx context.Context) (int, error) {
				running.Add(1)
				defer running.Add(-1)
				return f(ctx)
			}
		}
		if tt.ready {
			close(ready)
		}
		status, err := together(t.Context(), counted(tt.peer), ready, counted(tt.first))
		if status != tt.status || !errors.Is(err, tt.err) {
			t.Errorf("%s: %d, %v", name, status, err)
		}
		if n := running.Load(); n != 0 {
			t.Errorf("%s: %d machines are left", name, n)
		}
	}
}
