package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
)

// Config is what a controller asks of a host. Hashes and Groups are in the order in
// which they are preferred; empty, they are SHA-256, 384 and 512, and the groups from
// 3072 bits on, then that of 2048.
type Config struct {
	Host, Subsys string // NQNs
	Secret       Secret // that the host has to know
	// Own is the secret that the controller proves to a host that asks; a zero one
	// makes that fail.
	Own    Secret
	Hashes []Hash
	Groups []Group
}

func (c Config) withDefaults() Config {
	if len(c.Hashes) == 0 {
		c.Hashes = []Hash{SHA256, SHA384, SHA512}
	}
	if len(c.Groups) == 0 {
		c.Groups = []Group{FFDHE3072, FFDHE4096, FFDHE6144, FFDHE8192, FFDHE2048}
	}
	return c
}

// step is what has to come, or go, next.
type step uint8

const (
	awaitNegotiate step = iota
	owesChallenge
	awaitReply
	owesSuccess1
	awaitSuccess2
	owesFailure
	awaitChallenge // of a Host
	awaitSuccess1
	done
	failed
)

// Controller authenticates one host on one queue, once. It belongs to one goroutine at a
// time.
type Controller struct {
	cfg  Config
	step step
	why  Reason

	id     uint16
	hash   Hash
	group  Group
	own    exchange
	public []byte
	value  []byte
	seq    uint32
	answer []byte // R2; nil: not asked for
}

// NewController begins, with a host that is to send Negotiate.
func NewController(cfg Config) *Controller { return &Controller{cfg: cfg.withDefaults()} }

// Begins tells whether a message of a host is one that begins.
func Begins(b []byte) bool {
	kind, _, err := kindOf(b)
	return err == nil && kind == msgNegotiate
}

// Ended tells whether all is said: the host has proved itself, or both know that it has not.
func (c *Controller) Ended() bool { return c.step == done || c.step == failed }

// Done tells whether the host has proved itself, and the controller what it was asked.
func (c *Controller) Done() bool { return c.step == done }

// Err is why it has failed: a Reason; nil while it has not.
func (c *Controller) Err() error {
	if c.step == owesFailure || c.step == failed {
		return c.why
	}
	return nil
}

// fail has Failure1 sent next.
func (c *Controller) fail(r Reason) { c.step, c.why = owesFailure, r }

// Take takes a message of the host. What is wrong with it is told by the next Give.
func (c *Controller) Take(b []byte) {
	kind, id, err := kindOf(b)
	switch {
	case err != nil:
		c.fail(ReasonPayload)
	case kind == msgNegotiate && c.step == awaitNegotiate:
		c.negotiated(b)
	case kind == msgFailure2:
		c.step, c.why = failed, parseFailure(b)
	case id != c.id:
		c.fail(ReasonPayload)
	case kind == msgReply && c.step == awaitReply:
		c.replied(b)
	case kind == msgSuccess2 && c.step == awaitSuccess2:
		c.step = done
	default:
		c.fail(ReasonMessage)
	}
}

func (c *Controller) negotiated(b []byte) {
	n, err := parseNegotiate(b)
	c.id = n.id
	if err != nil {
		c.fail(err.(Reason))
		return
	}
	hash := slices.IndexFunc(c.cfg.Hashes, func(h Hash) bool { return slices.Contains(n.hashes, h) })
	group := slices.IndexFunc(c.cfg.Groups, func(g Group) bool { return slices.Contains(n.groups, g) })
	switch {
	case hash < 0:
		c.fail(ReasonHash)
	case group < 0:
		c.fail(ReasonGroup)
	default:
		c.hash, c.group, c.step = c.cfg.Hashes[hash], c.cfg.Groups[group], owesChallenge
	}
}

// Give is the next message for the host; nil: it is the host's turn. The error is that
// there is no randomness.
func (c *Controller) Give() ([]byte, error) {
	switch c.step {
	case owesChallenge:
		return c.challenge()
	case owesSuccess1:
		c.step = done
		if c.answer != nil {
			c.step = awaitSuccess2
		}
		return success1(c.id, c.hash, c.answer), nil
	case owesFailure:
		c.step = failed
		return failure(msgFailure1, c.id, c.why), nil
	}
	return nil, nil
}

func (c *Controller) challenge() (_ []byte, err error) {
	c.value, c.seq, err = newChallenge(c.hash)
	if err != nil {
		return nil, err
	}
	c.public = nil
	if c.group != GroupNull {
		if c.own, err = newExchange(c.group); err != nil {
			return nil, err
		}
		c.public = c.own.public()
	}
	c.step = awaitReply
	return challenge{id: c.id, hash: c.hash, group: c.group, seq: c.seq, value: c.value, public: c.public}.append(), nil
}

// newChallenge draws a challenge and its number, which is not 0.
func newChallenge(h Hash) (value []byte, seq uint32, err error) {
	b := make([]byte, h.Size()+4)
	if _, err := rand.Read(b); err != nil {
		return nil, 0, fmt.Errorf("nvmeof: drawing a challenge: %w", err)
	}
	return b[4:], binary.LittleEndian.Uint32(b) | 1, nil
}

func (c *Controller) replied(b []byte) {
	r, err := parseReply(b, c.hash, c.group)
	if err != nil {
		c.fail(ReasonPayload)
		return
	}
	var session []byte
	if c.group != GroupNull {
		if session, err = c.own.shared(r.public); err != nil {
			c.fail(ReasonPayload)
			return
		}
	}
	key := c.cfg.Secret.transformed(c.cfg.Host)
	want := proof(c.hash, key, augmented(c.hash, session, c.value), c.seq, c.id, "HostHost", c.cfg.Host, c.cfg.Subsys)
	if len(c.cfg.Secret.key) == 0 || !hmac.Equal(want, r.response) {
		c.fail(ReasonFailed)
		return
	}
	c.answer = nil
	if r.value != nil {
		if len(c.cfg.Own.key) == 0 {
			c.fail(ReasonFailed)
			return
		}
		key := c.cfg.Own.transformed(c.cfg.Subsys)
		c.answer = proof(c.hash, key, augmented(c.hash, session, r.value), r.seq, c.id, "Controller", c.cfg.Subsys, c.cfg.Host)
	}
	c.step = owesSuccess1
}
