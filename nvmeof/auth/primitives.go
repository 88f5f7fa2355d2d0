package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"math/big"
	"slices"
	"strings"
	"sync"
)

// Hash is a hash function, by its number on the wire.
type Hash uint8

// Hash functions.
const (
	SHA256 Hash = 1
	SHA384 Hash = 2
	SHA512 Hash = 3
)

// Size is the bytes of its digests; 0: there is no such function.
func (h Hash) Size() int {
	switch h {
	case SHA256:
		return 32
	case SHA384:
		return 48
	case SHA512:
		return 64
	}
	return 0
}

func (h Hash) new() hash.Hash {
	switch h {
	case SHA384:
		return sha512.New384()
	case SHA512:
		return sha512.New()
	}
	return sha256.New()
}

// mac is HMAC over the parts, one behind the other.
func (h Hash) mac(key []byte, parts ...[]byte) []byte {
	m := hmac.New(h.new, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

// Group is a Diffie-Hellman group of RFC 7919, by its number on the wire.
type Group uint8

// Groups.
const (
	GroupNull Group = 0 // no key is exchanged
	FFDHE2048 Group = 1
	FFDHE3072 Group = 2
	FFDHE4096 Group = 3
	FFDHE6144 Group = 4
	FFDHE8192 Group = 5
)

// Bits of a group's prime; 0 for none.
func (g Group) Bits() int {
	switch g {
	case FFDHE2048:
		return 2048
	case FFDHE3072:
		return 3072
	case FFDHE4096:
		return 4096
	case FFDHE6144:
		return 6144
	case FFDHE8192:
		return 8192
	}
	return 0
}

// known tells whether there is such a group.
func (g Group) known() bool { return g <= FFDHE8192 }

// nothingUpMySleeve are the X of RFC 7919, appendix A, by which its primes come to be
// safe ones: p = 2^b - 2^(b-64) + (floor(2^(b-130) e) + X) 2^64 - 1.
var nothingUpMySleeve = map[Group]int64{
	FFDHE2048: 560316, FFDHE3072: 2625351, FFDHE4096: 5736041, FFDHE6144: 15705020, FFDHE8192: 10965728,
}

var primes = func() (list [FFDHE8192 + 1]func() *big.Int) {
	for g := range list {
		list[g] = sync.OnceValue(func() *big.Int { return makePrime(Group(g)) })
	}
	return list
}()

func (g Group) prime() *big.Int { return primes[g]() }

func makePrime(g Group) *big.Int {
	b := uint(g.Bits())
	one := big.NewInt(1)
	p := scaledE(b - 130)
	p.Add(p, big.NewInt(nothingUpMySleeve[g]))
	p.Lsh(p, 64)
	p.Add(p, new(big.Int).Lsh(one, b))
	p.Sub(p, new(big.Int).Lsh(one, b-64))
	return p.Sub(p, one)
}

// scaledE is floor(2^n e), by the series of e with bits to spare.
func scaledE(n uint) *big.Int {
	const spare = 64
	term := new(big.Int).Lsh(big.NewInt(1), n+spare)
	sum := new(big.Int)
	for i := int64(1); term.Sign() > 0; i++ {
		sum.Add(sum, term)
		term.Quo(term, big.NewInt(i))
	}
	return sum.Rsh(sum, spare)
}

// exchange is one side's half of a key exchange.
type exchange struct {
	group  Group
	secret *big.Int
}

func newExchange(g Group) (exchange, error) {
	p := g.prime()
	// Twice the strength of the largest hash is enough for an exponent (RFC 7919, 5.2).
	secret, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 512))
	if err != nil {
		return exchange{}, err
	}
	secret.SetBit(secret, 511, 1)
	return exchange{g, secret.Mod(secret, p)}, nil
}

// public is what the other side gets, as long as the prime.
func (e exchange) public() []byte {
	p := e.group.prime()
	return new(big.Int).Exp(big.NewInt(2), e.secret, p).FillBytes(make([]byte, e.group.Bits()/8))
}

// shared is the key that both sides have. What the other side has sent must be
// neither too small nor too large (RFC 7919, 5.1).
func (e exchange) shared(other []byte) ([]byte, error) {
	p := e.group.prime()
	y := new(big.Int).SetBytes(other)
	top := new(big.Int).Sub(p, big.NewInt(1))
	if len(other) != e.group.Bits()/8 || y.Cmp(big.NewInt(1)) <= 0 || y.Cmp(top) >= 0 {
		return nil, errors.New("a public value that is none")
	}
	return y.Exp(y, e.secret, p).FillBytes(make([]byte, len(other))), nil
}

// Secret is a shared secret, as "nvme gen-dhchap-key" makes them:
//
//	DHHC-1:HH:BASE64:
//
// HH is the hash that it is to be transformed with, 00 for none; the base64 text is
// the key, 32, 48 or 64 bytes, and its CRC-32. It does not print itself.
type Secret struct {
	hash Hash // 0: none
	key  []byte
}

// NewSecret makes one, as long as the digest of its hash.
func NewSecret(h Hash) (Secret, error) {
	if h.Size() == 0 {
		return Secret{}, fmt.Errorf("nvmeof: a secret for hash %d, which is none", h)
	}
	s := Secret{h, make([]byte, h.Size())}
	_, err := rand.Read(s.key)
	return s, err
}

const secretPrefix = "DHHC-1:"

// ParseSecret reads one. The error does not tell what it was.
func ParseSecret(text string) (Secret, error) {
	bad := func(what string) (Secret, error) {
		return Secret{}, fmt.Errorf("nvmeof: the secret %s (remedy: nvme gen-dhchap-key)", what)
	}
	rest, ok := strings.CutPrefix(text, secretPrefix)
	if !ok || len(rest) < 4 || rest[2] != ':' || rest[len(rest)-1] != ':' || rest[0] != '0' || rest[1] < '0' || rest[1] > '3' {
		return bad("does not look like DHHC-1:00:…:")
	}
	h := Hash(rest[1] - '0')
	b, err := base64.StdEncoding.DecodeString(rest[3 : len(rest)-1])
	switch {
	case err != nil:
		return bad("is not base64")
	case len(b) != 32+4 && len(b) != 48+4 && len(b) != 64+4:
		return bad("is not of 32, 48 or 64 bytes")
	case h != 0 && len(b)-4 != h.Size():
		return bad("is not as long as its hash")
	}
	key := b[:len(b)-4]
	if crc32.ChecksumIEEE(key) != binary.LittleEndian.Uint32(b[len(key):]) {
		return bad("has a wrong checksum")
	}
	return Secret{h, slices.Clone(key)}, nil
}

// Text is the secret in the form that ParseSecret reads. It is for a file that nobody
// else can read, and for nothing else.
func (s Secret) Text() string {
	b := binary.LittleEndian.AppendUint32(slices.Clone(s.key), crc32.ChecksumIEEE(s.key))
	return fmt.Sprintf("%s%02d:%s:", secretPrefix, s.hash, base64.StdEncoding.EncodeToString(b))
}

// String keeps it to itself, also in a log.
func (s Secret) String() string { return "DHHC-1 secret" }

// GoString is String, for %#v.
func (s Secret) GoString() string { return s.String() }

// transformed is what a secret is to the side with this name.
func (s Secret) transformed(nqn string) []byte {
	if s.hash == 0 {
		return s.key
	}
	return s.hash.mac(s.key, []byte(nqn), []byte("NVMe-over-Fabrics"))
}

// proof is what one side answers a challenge with. The role is "HostHost" or
// "Controller", the names those of who proves and of whom to.
func proof(h Hash, key, challenge []byte, seq uint32, id uint16, role, from, to string) []byte {
	head := binary.LittleEndian.AppendUint32(nil, seq)
	head = binary.LittleEndian.AppendUint16(head, id)
	head = append(head, 0) // SC_C: no secure channel follows
	return h.mac(key, challenge, head, []byte(role), []byte(from), []byte{0}, []byte(to))
}

// augmented is a challenge with the session key in it; without one it is as it was.
func augmented(h Hash, session, challenge []byte) []byte {
	if session == nil {
		return challenge
	}
	sum := h.new()
	sum.Write(session)
	return h.mac(sum.Sum(nil), challenge)
}
