// Package certs makes and reads the certificates by which swapbackd and its
// clients know each other over TCP: a small authority of one's own in a folder,
// certificates that it signs for the daemon and for each client, and the checks of
// files that anybody else's certificates go through as well.
//
// Whom a client's certificate stands for is its one URI of the form
// "swapback:NAME" among the subject's alternative names. Nothing else in it counts,
// so that no field that an authority fills by other rules becomes a name here.
//
// Times are this machine's. Nothing here is kept in memory: a call reads what
// the files hold then. Functions are safe for concurrent use, except that two at
// once that write into one folder may refuse each other.
package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"regexp"
)

// Scheme of the URI that holds the name of a client.
const Scheme = "swapback"

// MaxName is how many bytes the name of a client may have.
const MaxName = 64

var namePattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)

// CheckName tells whether a client can have a name.
func CheckName(name string) error {
	if len(name) > MaxName || !namePattern.MatchString(name) {
		return fmt.Errorf("client name %.80q: want at most %d letters, digits, '.', '_' and '-' with a letter, digit or '_' first", name, MaxName)
	}
	return nil
}

// ClientName returns whom a certificate stands for.
func ClientName(c *x509.Certificate) (string, error) {
	var found []string
	for _, u := range c.URIs {
		if u.Scheme == Scheme {
			found = append(found, u.Opaque)
			if *u != *nameURI(u.Opaque) {
				return "", fmt.Errorf("certificate %s names no client: its URI is %.100q, want %s:NAME", Serial(c), u.String(), Scheme)
			}
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("certificate %s names %d clients, want one URI %s:NAME", Serial(c), len(found), Scheme)
	}
	if err := CheckName(found[0]); err != nil {
		return "", fmt.Errorf("certificate %s: %w", Serial(c), err)
	}
	return found[0], nil
}

func nameURI(name string) *url.URL { return &url.URL{Scheme: Scheme, Opaque: name} }

// Serial is a certificate's serial number as text: lower-case hexadecimal digits
// without leading zeros.
func Serial(c *x509.Certificate) string { return SerialText(c.SerialNumber) }

// SerialText is [Serial] of a bare number.
func SerialText(n *big.Int) string { return n.Text(16) }

// Fingerprint is the SHA-256 of a certificate in lower-case hexadecimal digits.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// Error is something wrong with a file, and what to do about it.
type Error struct {
	File    string
	Problem string
	Remedy  string
	Err     error // may be nil
}

func (e *Error) Error() string {
	s := e.File + ": " + e.Problem
	if e.Remedy != "" {
		s += "\n  " + e.Remedy
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }
