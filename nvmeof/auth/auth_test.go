package auth

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

// TestPrimes: what the formula gives are safe primes of the right size, which no
// wrong digit would.
func TestPrimes(t *testing.T) {
	for g := FFDHE2048; g <= FFDHE8192; g++ {
		p := g.prime()
		if p.BitLen() != g.Bits() {
			t.Errorf("group %d: %d bits", g, p.BitLen())
		}
		rounds := 2
		if testing.Short() || g > FFDHE4096 {
			rounds = 0 // Baillie-PSW alone
		}
		if !p.ProbablyPrime(rounds) || !new(big.Int).Rsh(p, 1).ProbablyPrime(rounds) {
			t.Errorf("group %d: not a safe prime", g)
		}
	}
	// The first and last words of RFC 7919, A.1.
	text := fmt.Sprintf("%X", FFDHE2048.prime())
	if !strings.HasPrefix(text, "FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1") || !strings.HasSuffix(text, "886B423861285C97FFFFFFFFFFFFFFFF") {
		t.Errorf("ffdhe2048 is %s", text)
	}
}

func TestSecrets(t *testing.T) {
	for _, h := range []Hash{SHA256, SHA384, SHA512} {
		s, err := NewSecret(h)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseSecret(s.Text())
		if err != nil || back.hash != h || !bytes.Equal(back.key, s.key) {
			t.Errorf("%v of hash %d came back as %v, %v", s, h, back, err)
		}
		for _, printed := range []string{fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s", s, s, s, s)} {
			if strings.Contains(printed, s.Text()[10:20]) || strings.Contains(printed, fmt.Sprint(s.key[:4])) {
				t.Errorf("a secret prints itself: %s", printed)
			}
		}
	}
	if _, err := NewSecret(9); err == nil {
		t.Error("a secret for a hash that is none")
	}
	good, _ := NewSecret(SHA256)
	text := good.Text()
	for _, bad := range []string{
		"", "DHHC-1:", "DHHC-1:00:", "DHHC-2" + text[6:], strings.Replace(text, ":01:", ":04:", 1), strings.Replace(text, ":01:", ":03:", 1),
		text[:len(text)-1], text[:12] + "!" + text[13:], text[:12] + "AAAA" + text[16:], "DHHC-1:00:AAAA:",
	} {
		if _, err := ParseSecret(bad); err == nil && bad != text {
			t.Errorf("%q was taken", bad)
		}
	}
}

const host, subsys = "nqn.2026-01.org.example:host", "nqn.2026-01.org.example:disks"

func secret(t *testing.T, h Hash) Secret {
	t.Helper()
	s, err := NewSecret(h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// converse has the two talk until neither has more to say.
func converse(t *testing.T, h *Host, c *Controller, spoil func(n int, b []byte) []byte) (hostErr error) {
	t.Helper()
	message := h.Start()
	for n := 0; message != nil; n += 2 {
		if n > 10 {
			t.Fatal("they talk for ever")
		}
		c.Take(spoil(n, message))
		answer, err := c.Give()
		if err != nil {
			t.Fatal(err)
		}
		if answer == nil {
			break
		}
		message, err = h.Answer(spoil(n+1, answer))
		if err != nil {
			hostErr = err
		}
	}
	return hostErr
}

func faithfully(_ int, b []byte) []byte { return b }

func TestEveryHashAndGroup(t *testing.T) {
	for _, mutual := range []bool{false, true} {
		for _, hash := range []Hash{SHA256, SHA384, SHA512} {
			for group := GroupNull; group <= FFDHE3072; group++ {
				t.Run(fmt.Sprintf("hash %d, group %d, mutual %v", hash, group, mutual), func(t *testing.T) {
					theirs, ours := secret(t, hash), secret(t, SHA256)
					h := &Host{Host: host, Subsys: subsys, Secret: theirs, Hashes: []Hash{hash}, Groups: []Group{group}, ID: 7}
					if mutual {
						h.Peer = ours
					}
					c := NewController(Config{Host: host, Subsys: subsys, Secret: theirs, Own: ours, Groups: []Group{group}})
					if err := converse(t, h, c, faithfully); err != nil || !h.Done() || !c.Done() || c.Err() != nil {
						t.Errorf("host %v, %v; controller %v, %v", h.Done(), err, c.Done(), c.Err())
					}
					// Another one needs another controller.
					if err := converse(t, h, c, faithfully); !errors.Is(err, ReasonMessage) || c.Done() || !c.Ended() {
						t.Errorf("again: %v; controller %v", err, c.Done())
					}
				})
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	right, wrong := secret(t, SHA256), secret(t, SHA256)
	for _, tt := range []struct {
		name       string
		host       Host
		config     Config
		ours       error // what the controller says
		theirs     error // what the host says
		controller bool  // the controller is content
	}{
		{"another secret", Host{Secret: wrong}, Config{Secret: right}, ReasonFailed, ReasonFailed, false},
		{"no secret on this side", Host{Secret: Secret{}}, Config{}, ReasonFailed, ReasonFailed, false},
		{"the name of another host", Host{Secret: right, Host: host + "x"}, Config{Secret: right}, ReasonFailed, ReasonFailed, false},
		{"a controller with another secret", Host{Secret: right, Peer: right}, Config{Secret: right, Own: wrong}, ReasonFailed, ReasonFailed, false},
		{"a controller that has none", Host{Secret: right, Peer: right}, Config{Secret: right}, ReasonFailed, ReasonFailed, false},
		{"no hash in common", Host{Secret: right, Hashes: []Hash{9}}, Config{Secret: right}, ReasonHash, ReasonHash, false},
		{"no group in common", Host{Secret: right, Groups: []Group{GroupNull}}, Config{Secret: right}, ReasonGroup, ReasonGroup, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := tt.host
			h.Subsys, h.ID = subsys, 3
			if h.Host == "" {
				h.Host = host
			}
			if h.Hashes == nil {
				h.Hashes = []Hash{SHA256}
			}
			if h.Groups == nil {
				h.Groups = []Group{FFDHE2048}
			}
			cfg := tt.config
			cfg.Host, cfg.Subsys = host, subsys
			c := NewController(cfg)
			err := converse(t, &h, c, faithfully)
			if !errors.Is(err, tt.theirs) || !errors.Is(c.Err(), tt.ours) || c.Done() || h.Done() {
				t.Errorf("host %v, %v; controller %v, %v", h.Done(), err, c.Done(), c.Err())
			}
		})
	}
}

// TestSpoiled: whichever byte of whichever message is changed on the way, neither side
// is content with a peer that is not what it should be.
func TestSpoiled(t *testing.T) {
	s, own := secret(t, SHA256), secret(t, SHA256)
	for n := range 5 {
		for at := 0; at < 120; at += 3 {
			h := &Host{Host: host, Subsys: subsys, Secret: s, Peer: own, Hashes: []Hash{SHA256}, Groups: []Group{GroupNull}, ID: 7}
			c := NewController(Config{Host: host, Subsys: subsys, Secret: s, Own: own, Groups: []Group{GroupNull}})
			changed := false
			_ = converse(t, h, c, func(i int, b []byte) []byte {
				if i == n && at < len(b) {
					b = bytes.Clone(b)
					b[at] ^= 0x10
					changed = true
				}
				return b
			})
			proofs := n == 1 && at >= 16 || n == 2 && at >= 16 && at < 48 // challenge, response
			if changed && proofs && c.Done() {
				t.Errorf("message %d, byte %d: the controller is content", n, at)
			}
			if changed && n == 3 && at >= 16 && h.Done() {
				t.Errorf("message %d, byte %d: the host is content", n, at)
			}
		}
	}
	// A public value of 0, 1 or p-1 would give the session key away.
	c := NewController(Config{Host: host, Subsys: subsys, Secret: s, Groups: []Group{FFDHE2048}})
	h := &Host{Host: host, Subsys: subsys, Secret: s, Hashes: []Hash{SHA256}, Groups: []Group{FFDHE2048}}
	err := converse(t, h, c, func(i int, b []byte) []byte {
		if i == 2 {
			clear(b[16+64:])
			b[len(b)-1] = 1
		}
		return b
	})
	if !errors.Is(err, ReasonPayload) || c.Done() {
		t.Errorf("a public value of 1: host %v, controller %v", err, c.Err())
	}
}

func TestOutOfOrder(t *testing.T) {
	c := NewController(Config{Host: host, Subsys: subsys, Secret: secret(t, SHA256)})
	if b, err := c.Give(); b != nil || err != nil {
		t.Errorf("it speaks first: %x, %v", b, err)
	}
	for _, b := range [][]byte{nil, {1}, success2(0), reply{response: make([]byte, 32)}.append(), bytes.Repeat([]byte{0xff}, 100)} {
		c := NewController(Config{Host: host, Subsys: subsys})
		c.Take(b)
		answer, err := c.Give()
		if kind, _, _ := kindOf(answer); err != nil || kind != msgFailure1 || c.Done() || c.Err() == nil {
			t.Errorf("%x: answered %x, %v", b, answer, err)
		}
	}
}

// FuzzTake: no message makes a controller content, or panic.
func FuzzTake(f *testing.F) {
	h := &Host{Host: host, Subsys: subsys, Hashes: []Hash{SHA256}, Groups: []Group{GroupNull}}
	f.Add(h.Start(), reply{response: make([]byte, 32), value: make([]byte, 32)}.append())
	f.Add(h.Start(), success2(0))
	f.Add(h.Start(), failure(msgFailure2, 0, ReasonFailed))
	key, err := NewSecret(SHA256)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		c := NewController(Config{Host: host, Subsys: subsys, Secret: key, Own: key, Groups: []Group{GroupNull}})
		for _, b := range [][]byte{first, second, first} {
			c.Take(b)
			if _, err := c.Give(); err != nil {
				t.Error(err)
			}
			if c.Done() {
				t.Error("content without a proof")
			}
		}
		other := &Host{Host: host, Subsys: subsys, Secret: key, Peer: key}
		_, _ = other.Answer(first)
		_, _ = other.Answer(second)
		if other.Done() {
			t.Error("the host is content without a proof")
		}
	})
}
