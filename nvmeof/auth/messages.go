package auth

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

var le = binary.LittleEndian

// Types of messages: the first two bytes.
const (
	msgNegotiate = 0x0000
	msgChallenge = 0x0101
	msgReply     = 0x0201
	msgSuccess1  = 0x0301
	msgSuccess2  = 0x0401
	msgFailure2  = 0xf000
	msgFailure1  = 0xf100
)

// Reason says why an authentication has failed (code 01h, explanation).
type Reason uint8

// Reasons.
const (
	ReasonFailed   Reason = 0x01
	ReasonProtocol Reason = 0x02 // no protocol that both know
	ReasonHash     Reason = 0x04
	ReasonGroup    Reason = 0x05
	ReasonPayload  Reason = 0x06
	ReasonMessage  Reason = 0x07 // not the message that had to come
)

func (r Reason) Error() string {
	switch r {
	case ReasonFailed:
		return "nvmeof: authentication failed"
	case ReasonProtocol:
		return "nvmeof: authentication: no protocol in common"
	case ReasonHash:
		return "nvmeof: authentication: no hash function in common"
	case ReasonGroup:
		return "nvmeof: authentication: no Diffie-Hellman group in common"
	case ReasonPayload:
		return "nvmeof: authentication: a message that makes no sense"
	case ReasonMessage:
		return "nvmeof: authentication: not the message that had to come"
	}
	return fmt.Sprintf("nvmeof: authentication failed (%02xh)", uint8(r))
}

// kindOf is a message's type, and its transaction.
func kindOf(b []byte) (kind, id uint16, err error) {
	if len(b) < 6 {
		return 0, 0, errors.New("a message of less than 6 bytes")
	}
	return le.Uint16(b), le.Uint16(b[4:]), nil
}

func header(kind, id uint16) []byte {
	return append(le.AppendUint16(nil, kind), 0, 0, byte(id), byte(id>>8))
}

// negotiate offers hashes and groups:
//
//	offset bytes
//	     0     6  header
//	     6     1  SC_C, 0
//	     7     1  NAPD, 1: number of descriptors
//	     8    64  descriptor: AUTHID 01h, reserved, hashes, groups, then 30 bytes
//	              for the numbers of the ones and 30 for those of the others
type negotiate struct {
	id     uint16
	hashes []Hash
	groups []Group
}

const (
	negotiateSize = 72
	maxOffers     = 30
)

func (n negotiate) append() []byte {
	b := append(header(msgNegotiate, n.id), 0, 1, 1, 0, byte(len(n.hashes)), byte(len(n.groups)))
	b = append(b, make([]byte, 60)...)
	for i, h := range n.hashes {
		b[12+i] = byte(h)
	}
	for i, g := range n.groups {
		b[42+i] = byte(g)
	}
	return b
}

func parseNegotiate(b []byte) (n negotiate, err error) {
	if len(b) < negotiateSize {
		return n, ReasonPayload
	}
	n.id = le.Uint16(b[4:])
	hashes, groups := int(b[10]), int(b[11])
	switch {
	case b[6] != 0 || b[7] == 0:
		return n, ReasonPayload
	case b[8] != 1:
		return n, ReasonProtocol
	case hashes > maxOffers || groups > maxOffers:
		return n, ReasonPayload
	}
	for _, v := range b[12 : 12+hashes] {
		n.hashes = append(n.hashes, Hash(v))
	}
	for _, v := range b[42 : 42+groups] {
		n.groups = append(n.groups, Group(v))
	}
	return n, nil
}

// challenge:
//
//	offset bytes
//	     0     6  header
//	     6     1  HL: bytes of a digest
//	     8     1  hash
//	     9     1  group
//	    10     2  DHVLEN
//	    12     4  SEQNUM
//	    16    HL  challenge
//	        DHVLEN public value
type challenge struct {
	id     uint16
	hash   Hash
	group  Group
	seq    uint32
	value  []byte
	public []byte
}

func (c challenge) append() []byte {
	b := append(header(msgChallenge, c.id), byte(c.hash.Size()), 0, byte(c.hash), byte(c.group))
	b = le.AppendUint16(b, uint16(len(c.public)))
	b = le.AppendUint32(b, c.seq)
	return append(append(b, c.value...), c.public...)
}

func parseChallenge(b []byte) (c challenge, err error) {
	if len(b) < 16 {
		return c, ReasonPayload
	}
	c = challenge{id: le.Uint16(b[4:]), hash: Hash(b[8]), group: Group(b[9]), seq: le.Uint32(b[12:])}
	n, public := int(b[6]), int(le.Uint16(b[10:]))
	if c.hash.Size() == 0 || n != c.hash.Size() || !c.group.known() || public != c.group.Bits()/8 || len(b) < 16+n+public {
		return c, ReasonPayload
	}
	c.value, c.public = slices.Clone(b[16:16+n]), slices.Clone(b[16+n:16+n+public])
	return c, nil
}

// reply:
//
//	offset bytes
//	     0     6  header
//	     6     1  HL
//	     8     1  CVALID: the second challenge is one
//	    10     2  DHVLEN
//	    12     4  SEQNUM
//	    16    HL  response to the first challenge
//	          HL  second challenge, zeroes when it is none
//	        DHVLEN public value
type reply struct {
	id       uint16
	hash     Hash // of HL
	seq      uint32
	response []byte
	value    []byte // nil: no second challenge
	public   []byte
}

func (r reply) append() []byte {
	n := len(r.response)
	b := append(header(msgReply, r.id), byte(n), 0, 0, 0)
	if r.value != nil {
		b[8] = 1
	}
	b = le.AppendUint16(b, uint16(len(r.public)))
	b = le.AppendUint32(b, r.seq)
	b = append(b, r.response...)
	if r.value != nil {
		b = append(b, r.value...)
	} else {
		b = append(b, make([]byte, n)...)
	}
	return append(b, r.public...)
}

func parseReply(b []byte, h Hash, g Group) (r reply, err error) {
	n, public := h.Size(), g.Bits()/8
	if len(b) < 16+2*n+public || int(b[6]) != n || int(le.Uint16(b[10:])) != public || b[8] > 1 {
		return r, ReasonPayload
	}
	r = reply{id: le.Uint16(b[4:]), seq: le.Uint32(b[12:]), response: slices.Clone(b[16 : 16+n])}
	if b[8] == 1 {
		r.value = slices.Clone(b[16+n : 16+2*n])
	}
	r.public = slices.Clone(b[16+2*n : 16+2*n+public])
	return r, nil
}

// success1: header, HL at 6, RVALID at 8, and the response at 16 when it is there.
func success1(id uint16, h Hash, response []byte) []byte {
	b := append(header(msgSuccess1, id), byte(h.Size()), 0, 0)
	if response != nil {
		b[8] = 1
	}
	return append(append(b, make([]byte, 7)...), response...)
}

func parseSuccess1(b []byte, h Hash) (response []byte, err error) {
	n := h.Size()
	switch {
	case len(b) < 16 || b[8] > 1:
		return nil, ReasonPayload
	case b[8] == 0:
		return nil, nil
	case int(b[6]) != n || len(b) < 16+n:
		return nil, ReasonPayload
	}
	return slices.Clone(b[16 : 16+n]), nil
}

func success2(id uint16) []byte { return append(header(msgSuccess2, id), make([]byte, 10)...) }

// failure: header, reason code 01h, explanation.
func failure(kind, id uint16, r Reason) []byte { return append(header(kind, id), 1, byte(r)) }

func parseFailure(b []byte) Reason {
	if len(b) < 8 {
		return ReasonPayload
	}
	return Reason(b[7])
}
