package auth

import (
	"crypto/hmac"
	"errors"
)

// Host proves itself to a controller, and has the controller prove itself when it
// knows its secret. It belongs to one goroutine. It says Start, and answers each
// message of the controller with Answer until Done.
type Host struct {
	Host, Subsys string // NQNs
	Secret       Secret
	Peer         Secret // the controller's; zero: it need not prove itself
	Hashes       []Hash
	Groups       []Group
	ID           uint16 // of the transaction

	hash   Hash
	seq    uint32
	value  []byte
	wanted []byte
	step   step
}

// Start is the first message.
func (h *Host) Start() []byte {
	h.step = awaitChallenge
	return negotiate{h.ID, h.Hashes, h.Groups}.append()
}

// Done tells whether all is proved.
func (h *Host) Done() bool { return h.step == done }

// Answer takes a message and returns what to send next; nil: nothing. The error, a
// Reason most often, is why it has failed; what is returned with it is still to be sent.
func (h *Host) Answer(b []byte) ([]byte, error) {
	answer, err := h.answer(b)
	if err != nil {
		h.step = failed
	}
	var reason Reason
	if answer == nil && errors.As(err, &reason) && h.ours(b) {
		answer = failure(msgFailure2, h.ID, reason)
	}
	return answer, err
}

// ours tells whether a message is to be answered: a failure is not.
func (h *Host) ours(b []byte) bool {
	kind, _, err := kindOf(b)
	return err != nil || kind != msgFailure1
}

func (h *Host) answer(b []byte) ([]byte, error) {
	kind, id, err := kindOf(b)
	switch {
	case err != nil:
		return nil, ReasonPayload
	case kind == msgFailure1:
		return nil, parseFailure(b)
	case id != h.ID:
		return nil, ReasonPayload
	case kind == msgChallenge && h.step == awaitChallenge:
		return h.challenged(b)
	case kind == msgSuccess1 && h.step == awaitSuccess1:
		return h.succeeded(b)
	}
	return nil, ReasonMessage
}

func (h *Host) challenged(b []byte) ([]byte, error) {
	c, err := parseChallenge(b)
	if err != nil {
		return nil, ReasonPayload
	}
	h.hash = c.hash
	r := reply{id: h.ID, hash: c.hash}
	var session []byte
	if c.group != GroupNull {
		own, err := newExchange(c.group)
		if err != nil {
			return nil, err
		}
		if session, err = own.shared(c.public); err != nil {
			return nil, ReasonPayload
		}
		r.public = own.public()
	}
	r.response = proof(c.hash, h.Secret.transformed(h.Host), augmented(c.hash, session, c.value), c.seq, h.ID, "HostHost", h.Host, h.Subsys)
	h.wanted = nil
	if len(h.Peer.key) > 0 {
		if h.value, h.seq, err = newChallenge(c.hash); err != nil {
			return nil, err
		}
		r.value, r.seq = h.value, h.seq
		h.wanted = proof(c.hash, h.Peer.transformed(h.Subsys), augmented(c.hash, session, h.value), h.seq, h.ID, "Controller", h.Subsys, h.Host)
	}
	h.step = awaitSuccess1
	return r.append(), nil
}

func (h *Host) succeeded(b []byte) ([]byte, error) {
	got, err := parseSuccess1(b, h.hash)
	if err != nil {
		return nil, ReasonPayload
	}
	if h.wanted == nil {
		h.step = done
		return nil, nil
	}
	if !hmac.Equal(h.wanted, got) {
		return nil, ReasonFailed
	}
	h.step = done
	return success2(h.ID), nil
}
