// Package access says what clients from afar may do: a file of rights, and the
// answers that follow from it. Whoever is not in the file may do nothing.
//
// The file is text, a statement a line. '#' begins a comment; words stand apart by
// spaces or tabs. Anything else than the following is refused with its line:
//
//	swapback-access 1                    the first statement: the format's version
//	allow CLIENT RIGHT[,RIGHT…] VOLUME…  a client may do something with volumes
//	host CLIENT NQN…                     a client speaks for hosts: when it says that nothing
//	                                     there uses a volume, that is so
//	revoke name CLIENT                   all certificates of a client are refused
//	revoke serial HEX                    the certificate with a serial number is
//	revoke sha256 HEX                    the certificate with a fingerprint is
//
// CLIENT is the name in a certificate, '*' does not stand for any. NQN is the name of an
// NVMe host; nothing stands for several. VOLUME is
// POOL/NAME, in which '*' stands for any run of characters on its side of the
// slash, or '*' alone for all volumes of all pools, those to come included.
// Statements add up, in any order; nothing takes a right away but a revocation, which
// counts whatever is allowed.
package access

import (
	"crypto/x509"
	"path"
	"slices"
	"strings"

	"github.com/swapback/swapback/api/certs"
)

// Right is one kind of thing that a client may do. Each of those to volumes brings
// [List] of the same volumes with it.
type Right string

const (
	List    Right = "list"    // see a volume, its state and its holders
	Backup  Right = "backup"  // take an instant, read what has changed, record a backup
	Swap    Right = "swap"    // exchange positions, put failed data into quarantine
	Manage  Right = "manage"  // create, grow, delete, attach, detach, release from quarantine
	Metrics Right = "metrics" // read the counters of the daemon; for all volumes ("*") only
	Admin   Right = "admin"   // all of these, and what goes over a refusal; with POOL/* or "*" the pool too
)

// Rights are all of them, the strongest last.
var Rights = []Right{List, Backup, Swap, Manage, Metrics, Admin}

// Table is what a file says. It does not change, and is safe for concurrent use.
type Table struct {
	grants  map[string][]grant
	hosts   map[string][]string // by client
	names   map[string]bool     // revoked
	serials map[string]bool
	prints  map[string]bool
}

type grant struct {
	rights  []Right
	volumes []string
}

// has tells whether a grant brings a right.
func (g grant) has(r Right) bool {
	return slices.ContainsFunc(g.rights, func(have Right) bool {
		return have == r || have == Admin || r == List && have != Metrics
	})
}

// covers tells whether a pattern stands for a volume.
func covers(pattern, pool, name string) bool {
	if pattern == "*" {
		return true
	}
	// The reader lets no pattern through that Match takes for a bad one.
	ok, err := path.Match(pattern, pool+"/"+name)
	return ok && err == nil
}

// May tells whether a client has a right to the volume POOL/NAME.
func (t *Table) May(client string, r Right, pool, name string) bool {
	return t.any(client, r, func(pattern string) bool { return covers(pattern, pool, name) })
}

// MayPool tells whether a client has a right to all volumes of a pool, those to
// come included, which is what it takes for something that is done to the pool.
func (t *Table) MayPool(client string, r Right, pool string) bool {
	return t.any(client, r, func(pattern string) bool {
		p, rest, _ := strings.Cut(pattern, "/")
		return pattern == "*" || rest == "*" && covers(p+"/x", pool, "x")
	})
}

// MayAll tells whether a client has a right to all volumes of all pools.
func (t *Table) MayAll(client string, r Right) bool {
	return t.any(client, r, func(pattern string) bool { return pattern == "*" || pattern == "*/*" })
}

// MayBeNamed tells whether a client has a right to a volume that is called name in
// some pool, were there one.
func (t *Table) MayBeNamed(client string, r Right, name string) bool {
	return t.any(client, r, func(pattern string) bool {
		_, rest, _ := strings.Cut(pattern, "/")
		return pattern == "*" || covers("x/"+rest, "x", name)
	})
}

// SeesPool tells whether something in a pool is, or may come to be, visible to a
// client.
func (t *Table) SeesPool(client, pool string) bool {
	return t.any(client, List, func(pattern string) bool {
		p, _, _ := strings.Cut(pattern, "/")
		return pattern == "*" || covers(p+"/x", pool, "x")
	})
}

// Has tells whether a client has a right to anything at all.
func (t *Table) Has(client string, r Right) bool {
	return t.any(client, r, func(string) bool { return true })
}

func (t *Table) any(client string, r Right, ok func(pattern string) bool) bool {
	for _, g := range t.grants[client] {
		if g.has(r) && slices.ContainsFunc(g.volumes, ok) {
			return true
		}
	}
	return false
}

// Clients lists the names that something is allowed.
func (t *Table) Clients() []string {
	var list []string
	for name := range t.grants {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// SpeaksFor tells whether a client speaks for a host.
func (t *Table) SpeaksFor(client, nqn string) bool { return slices.Contains(t.hosts[client], nqn) }

// Hosts lists those that a client speaks for.
func (t *Table) Hosts(client string) []string { return append([]string{}, t.hosts[client]...) }

// NameRevoked tells whether all certificates of a client are refused.
func (t *Table) NameRevoked(client string) bool { return t.names[client] }

// Revoked says which statement refuses a certificate, or "".
func (t *Table) Revoked(c *x509.Certificate) string {
	if name, err := certs.ClientName(c); err == nil && t.names[name] {
		return "revoke name " + name
	}
	if s := certs.Serial(c); t.serials[s] {
		return "revoke serial " + s
	}
	if p := certs.Fingerprint(c); t.prints[p] {
		return "revoke sha256 " + p
	}
	return ""
}
