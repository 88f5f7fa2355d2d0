package nvmeof

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// keys are secrets that change.
type keys struct {
	mu     sync.Mutex
	cfg    auth.Config
	needed bool
	wait   chan struct{} // nil, or what asking for them waits for
}

func (k *keys) ask(string) (auth.Config, bool) {
	k.mu.Lock()
	cfg, needed, wait := k.cfg, k.needed, k.wait
	k.mu.Unlock()
	if wait != nil {
		<-wait
	}
	return cfg, needed
}

// renew draws new ones, and returns the host that knows them.
func (k *keys) renew(t *testing.T) auth.Host {
	t.Helper()
	host, err := auth.NewSecret(auth.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	own, err := auth.NewSecret(auth.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cfg = auth.Config{Secret: host, Own: own, Groups: []auth.Group{auth.FFDHE2048}}
	k.needed = true
	return auth.Host{Secret: host, Peer: own, Hashes: []auth.Hash{auth.SHA256}, Groups: []auth.Group{auth.FFDHE2048}}
}

func (k *keys) set(needed bool, wait chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.needed, k.wait = needed, wait
}

const anewNQN = "nqn.2026-01.org.example:renewed"

func keysRig(t *testing.T, opt Options) (*rig, *keys) {
	t.Helper()
	r, k := newRig(t, opt), &keys{}
	s, err := r.target.AddSubsystem(SubsystemConfig{NQN: anewNQN, AnyHost: true, Authenticate: k.ask})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddNamespace(NamespaceConfig{Backend: r.memoryBackend(r.memory), UUID: [16]byte{6}}); err != nil {
		t.Fatal(err)
	}
	return r, k
}

// connectAs connects a host with two I/O queues, which read well.
func (r *rig) connectAs(h *auth.Host) *nvmetest.Controller {
	r.t.Helper()
	c := r.connect(func(c *nvmetest.Config) { c.Subsys, c.Queues, c.Auth = anewNQN, 2, h })
	works(r.t, "connected", c.IO...)
	return c
}

func works(t *testing.T, when string, queues ...*nvmetest.Queue) {
	t.Helper()
	for i, q := range queues {
		if err := q.Read(1, 0, make([]byte, 512)); err != nil {
			t.Errorf("%s, queue %d: %v", when, i+1, err)
		}
	}
}

// send sends one message of an authentication.
func send(q *nvmetest.Queue, message []byte) error {
	cmd := wire.SQE{}
	cmd.SetAuthentication(wire.FCAuthSend, uint32(len(message)))
	_, err := q.Do(&cmd, message, nil)
	return err
}

// TestAuthenticateAnew: a host proves itself again on queues that are in use, as often as
// it likes, with the secret that holds by then.
func TestAuthenticateAnew(t *testing.T) {
	variants(t, func(t *testing.T, opt Options, change func(*nvmetest.Config)) {
		r, k := keysRig(t, opt)
		h := k.renew(t)
		c := r.connect(change, func(c *nvmetest.Config) { c.Subsys, c.Queues, c.Auth = anewNQN, 2, &h })
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					works(t, "meanwhile", c.IO...)
				}
			}
		}()
		for n := range 3 {
			for i, q := range append([]*nvmetest.Queue{c.Admin}, c.IO...) {
				if err := c.Authenticate(q, h); err != nil {
					t.Errorf("%d, queue %d: %v", n, i, err)
				}
			}
			if n > 0 {
				h = k.renew(t)
			}
		}
		close(stop)
		<-stopped
		if _, err := c.Identify(wire.CNSController, 0); err != nil {
			t.Error(err)
		}
	})
}

// TestAnewGoesOnMeanwhile: while the secrets are looked for, and while a host takes its
// time, the queue does what it has to; a host that begins once more has no more time for it.
func TestAnewGoesOnMeanwhile(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		opt.Handshake = 2 * time.Second
		r, k := keysRig(t, opt)
		h := k.renew(t)
		c := r.connectAs(&h)
		slow, wait := c.Admin, make(chan struct{})
		works := func(t *testing.T, when string, queues ...*nvmetest.Queue) {
			works(t, when, queues...)
			if _, err := c.Identify(wire.CNSController, 0); err != nil {
				t.Errorf("%s, admin queue: %v", when, err)
			}
		}
		k.set(true, wait)
		negotiate := h.Start()
		cmd := wire.SQE{}
		cmd.SetAuthentication(wire.FCAuthSend, uint32(len(negotiate)))
		begun, err := slow.Send(&cmd, negotiate, nil)
		if err != nil {
			t.Fatal(err)
		}
		works(t, "while the secrets are looked for", c.IO...)
		wantStatus(t, "another message meanwhile", send(slow, negotiate), wire.SequenceError|wire.DNR)
		close(wait)
		if _, err := begun.Wait(); err != nil {
			t.Fatal(err)
		}
		works(t, "in the middle", c.IO...)
		if err := c.Authenticate(slow, h); err != nil {
			t.Errorf("begun once more: %v", err)
		}
		works(t, "then", c.IO...)
		// And never ended.
		for range 3 {
			if err := send(c.IO[0], negotiate); err != nil {
				t.Error(err)
			}
		}
		works(t, "before its time is over", c.IO...)
		<-c.IO[0].Done()
		works(t, "the other queue", c.IO[1])
	})
}

// TestAnewFails: who fails is told so and loses the queue, an admin queue all of them.
func TestAnewFails(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r, k := keysRig(t, opt)
		old := k.renew(t)
		c := r.connectAs(&old)
		right := k.renew(t)
		works(t, "with a secret that has changed", c.IO...)
		if err := c.Authenticate(c.IO[0], old); err != nil {
			t.Errorf("what the admin queue has proved: %v", err)
		}
		if err := c.Authenticate(c.Admin, right); err != nil {
			t.Errorf("the new secret: %v", err)
		}
		if err := c.Authenticate(c.IO[0], old); !errors.Is(err, auth.ReasonFailed) {
			t.Errorf("the old secret: %v", err)
		}
		<-c.IO[0].Done()
		works(t, "the other queue", c.IO[1])
		doubtful := right
		doubtful.Peer = old.Peer
		if err := c.Authenticate(c.IO[1], doubtful); !errors.Is(err, auth.ReasonFailed) {
			t.Errorf("a host that does not believe the controller: %v", err)
		}
		<-c.IO[1].Done()
		if _, err := c.Identify(wire.CNSController, 0); err != nil {
			t.Errorf("the admin queue: %v", err)
		}

		c = r.connectAs(&right)
		if err := c.Authenticate(c.Admin, old); !errors.Is(err, auth.ReasonFailed) {
			t.Errorf("on the admin queue: %v", err)
		}
		for _, q := range append([]*nvmetest.Queue{c.Admin}, c.IO...) {
			<-q.Done()
		}

		c = r.connectAs(&right)
		k.set(false, nil)
		if err := c.Authenticate(c.Admin, right); !errors.Is(err, auth.ReasonFailed) {
			t.Errorf("a secret that was taken away: %v", err)
		}
		<-c.Admin.Done()
	})
}

// TestAnewByName: who came in by its name may prove itself as soon as there is a secret, and
// loses nothing by trying before.
func TestAnewByName(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		opt.Handshake = time.Second
		r, k := keysRig(t, opt)
		c := r.connectAs(nil)
		q := c.IO[0]
		cmd := wire.SQE{}
		cmd.SetAuthentication(wire.FCAuthReceive, 64)
		_, err := q.Do(&cmd, nil, make([]byte, 64))
		wantStatus(t, "nothing was said", err, wire.SequenceError|wire.DNR)
		h := auth.Host{Hashes: []auth.Hash{auth.SHA256}, Groups: []auth.Group{auth.FFDHE2048}}
		wantStatus(t, "there is no secret", send(q, h.Start()), wire.InvalidOpcode|wire.DNR)
		h = k.renew(t)
		if err := c.Authenticate(q, h); err != nil {
			t.Errorf("there is one now: %v", err)
		}
		k.set(false, nil)
		wantStatus(t, "it was taken away", send(q, h.Start()), wire.InvalidOpcode|wire.DNR)
		time.Sleep(opt.Handshake + opt.Handshake/2)
		works(t, "long after that", c.IO...)
	})
}
