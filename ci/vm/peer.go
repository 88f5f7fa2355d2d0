package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/swapback/swapback/ci/internal/guestcfg"
	"github.com/swapback/swapback/ci/internal/qemu"
)

// The network of two machines. Nobody else is in it, and its addresses are those
// that are set aside for examples (RFC 5737).
const (
	firstAddress = "192.0.2.1"
	peerAddress  = "192.0.2.2"
	networkBits  = "/24"
	firstMAC     = "52:54:00:00:02:01"
	peerMAC      = "52:54:00:00:02:02"
)

// peerCPUs is two so that the peer has more than one queue of everything.
const peerCPUs = 2

// peerOf makes a peer's configuration: the first machine's programs and kernel,
// another command, no disks. The first gets what it needs to meet it.
func peerOf(o *options, first *guestcfg.Config, bin string) *guestcfg.Config {
	alone := *o
	alone.disks, alone.out = 0, ""
	peer := *first
	peer.Command, peer.Env = o.peer, environment(&alone, bin, first.Release)
	peer.Disks, peer.Out, peer.Host = 0, false, "swapback-peer"
	for _, m := range []struct {
		cfg         *guestcfg.Config
		own, others string
	}{{first, firstAddress, peerAddress}, {&peer, peerAddress, firstAddress}} {
		m.cfg.Address = m.own + networkBits
		m.cfg.Env = append(m.cfg.Env, "SWAPBACK_TEST_ADDRESS="+m.own, "SWAPBACK_TEST_PEER="+m.others)
	}
	return &peer
}

// errPeerEnded: the peer's command, which serves the first machine's, came to its end first.
var errPeerEnded = errors.New("the second machine's command ended before the first machine's did")

type ending struct {
	status int
	err    error
}

// withPeer runs the peer, and the first machine as soon as the peer's command is about
// to start. Both have ended when it returns.
func (b *boots) withPeer(ctx context.Context, first *qemu.Run) (int, error) {
	a, z, err := qemu.Cable()
	if err != nil {
		return 0, err
	}
	defer a.Close()
	defer z.Close()
	ready := make(chan struct{})
	peer := &qemu.Run{
		Machine: *b.peer, Boot: first.Boot,
		// The first machine ends it: it has to boot yet, and then its own limit counts.
		Limit: first.Boot + first.Limit + time.Minute,
		// What the peer says is for whoever looks for what went wrong.
		Stdout: b.stderr, Stderr: b.stderr, Notice: b.notice,
		OnReady: func(time.Duration) { close(ready) },
	}
	first.Machine.Network = &qemu.Network{End: a, MAC: firstMAC}
	peer.Machine.Network = &qemu.Network{End: z, MAC: peerMAC}
	peer.Machine.Accel = first.Machine.Accel
	return together(ctx, peer.Do, ready, first.Do)
}

// together runs peer, and first when peer is ready, and ends one when the other has ended.
// What the first made of it counts, unless the peer's end came before.
func together(ctx context.Context, peer func(context.Context) (int, error), ready <-chan struct{}, first func(context.Context) (int, error)) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := func(do func(context.Context) (int, error)) <-chan ending {
		ended := make(chan ending, 1)
		go func() {
			status, err := do(ctx)
			ended <- ending{status, err}
		}()
		return ended
	}
	peerEnd := start(peer)
	select {
	case e := <-peerEnd:
		return e.ofPeer()
	case <-ready:
	}
	firstEnd := start(first)
	select {
	case e := <-firstEnd:
		cancel()
		<-peerEnd
		return e.status, e.err
	case e := <-peerEnd:
		cancel()
		<-firstEnd
		return e.ofPeer()
	}
}

// ofPeer is how the run ended when the peer ended it.
func (e ending) ofPeer() (int, error) {
	if e.err != nil {
		return 0, fmt.Errorf("the second machine: %w", e.err)
	}
	return 0, fmt.Errorf("%w (status %d)", errPeerEnded, e.status)
}
