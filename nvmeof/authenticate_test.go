package nvmeof

import (
	"errors"
	"testing"
	"time"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// authRig is a rig with a second subsystem that asks its host for a secret.
func authRig(t *testing.T, opt Options) (r *rig, host, own auth.Secret, nqn string) {
	t.Helper()
	r = newRig(t, opt)
	var err error
	if host, err = auth.NewSecret(auth.SHA256); err != nil {
		t.Fatal(err)
	}
	if own, err = auth.NewSecret(auth.SHA512); err != nil {
		t.Fatal(err)
	}
	nqn = "nqn.2026-01.org.example:guarded"
	s, err := r.target.AddSubsystem(SubsystemConfig{NQN: nqn, Hosts: []string{nvmetest.HostNQN, "nqn.2026-01.org.example:trusted"}, Authenticate: func(name string) (auth.Config, bool) {
		return auth.Config{Secret: host, Own: own, Groups: []auth.Group{auth.FFDHE2048}}, name == nvmetest.HostNQN
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddNamespace(NamespaceConfig{Backend: r.memoryBackend(r.memory), UUID: [16]byte{5}}); err != nil {
		t.Fatal(err)
	}
	return r, host, own, nqn
}

func TestAuthentication(t *testing.T) {
	variants(t, func(t *testing.T, opt Options, change func(*nvmetest.Config)) {
		r, host, own, nqn := authRig(t, opt)
		for _, mutual := range []bool{false, true} {
			c := r.connect(change, func(c *nvmetest.Config) {
				c.Subsys, c.Queues = nqn, 2
				c.Auth = &auth.Host{Secret: host, Hashes: []auth.Hash{auth.SHA384, auth.SHA256}, Groups: []auth.Group{auth.GroupNull, auth.FFDHE2048}}
				if mutual {
					c.Auth.Peer = own
				}
			})
			for _, q := range c.IO {
				if err := q.Read(1, 0, make([]byte, 512)); err != nil {
					t.Errorf("mutual %v: %v", mutual, err)
				}
			}
		}
		trusted := r.connect(change, func(c *nvmetest.Config) { c.Subsys, c.Host = nqn, "nqn.2026-01.org.example:trusted" })
		if err := trusted.IO[0].Read(1, 0, make([]byte, 512)); err != nil {
			t.Errorf("a host that need not: %v", err)
		}
	})
}

// TestUnproved: a host that has not proved who it is gets nothing, on no queue, and not
// for long.
func TestUnproved(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		opt.Handshake = 500 * time.Millisecond
		r, host, _, nqn := authRig(t, opt)
		required := wire.AuthRequired | wire.DNR
		good := &auth.Host{Secret: host, Hashes: []auth.Hash{auth.SHA256}, Groups: []auth.Group{auth.FFDHE2048}}
		if _, err := nvmetest.Connect(nvmetest.Config{Addr: r.addr, Subsys: nqn}); !errors.Is(err, required) {
			t.Errorf("a host that says nothing: %v", err)
		}
		wrong, err := auth.NewSecret(auth.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nvmetest.Connect(nvmetest.Config{Addr: r.addr, Subsys: nqn, Auth: &auth.Host{Secret: wrong, Hashes: good.Hashes, Groups: good.Groups}}); !errors.Is(err, auth.ReasonFailed) {
			t.Errorf("a host with another secret: %v", err)
		}
		c := r.connect(func(c *nvmetest.Config) { c.Subsys, c.Auth, c.Queues = nqn, good, 2 })
		// An I/O queue has to prove it once more.
		c.IO[1].Close()
		c.Auth = nil
		eventually(t, "the queue is connected again", func() bool { return c.AddQueue(2) == nil })
		q := c.IO[len(c.IO)-1]
		wantStatus(t, "reading unproved", q.Read(1, 0, make([]byte, 512)), required)
		<-q.Done()
		if err := c.IO[0].Read(1, 0, make([]byte, 512)); err != nil {
			t.Errorf("the queue that has: %v", err)
		}
		// Messages that make no sense, and their lengths.
		for _, cmd := range []wire.SQE{{CDW10: 0, CDW11: 64}, {CDW10: 0xe9010100, CDW11: 63}} {
			cmd.Opcode, cmd.FCType, cmd.Flags, cmd.SGL = wire.OpFabrics, wire.FCAuthSend, wire.FlagSGL, inCapsule(0, 64)
			wantStatus(t, "a command that is wrong", c.IO[0].DoRaw(cmd, make([]byte, 64)), wire.InvalidField|wire.DNR)
		}
		cmd := wire.SQE{}
		cmd.SetAuthentication(wire.FCAuthReceive, 64)
		_, err = c.IO[0].Do(&cmd, nil, make([]byte, 64))
		wantStatus(t, "receiving out of turn", err, wire.SequenceError|wire.DNR)
	})
}
