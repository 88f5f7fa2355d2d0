package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"
)

// maxFile bounds what is read of a file, in bytes.
const maxFile = 1 << 20

// ReadPublic reads a file that decides who may do what: others may read it, but
// only root or the user of this process may have written it.
func ReadPublic(path string) ([]byte, error) { return read(path, 0o022) }

// ReadPrivate reads a file that holds a key: nobody else may read it.
func ReadPrivate(path string) ([]byte, error) { return read(path, 0o077) }

func read(path string, forbidden fs.FileMode) ([]byte, error) {
	// Opening a pipe would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: path, Problem: "there is no such file", Remedy: "swapback cert init and swapback cert issue make what is needed", Err: err}
	}
	if err != nil {
		return nil, &Error{File: path, Problem: "can't be read: " + cause(err), Err: err}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, &Error{File: path, Problem: "can't be looked at: " + cause(err), Err: err}
	}
	if !st.Mode().IsRegular() {
		return nil, &Error{File: path, Problem: "is not a regular file", Remedy: "name the file itself"}
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 && sys.Uid != uint32(os.Geteuid()) {
		return nil, &Error{File: path, Problem: fmt.Sprintf("belongs to user %d, who could change it", sys.Uid), Remedy: "chown root " + path}
	}
	if mode := st.Mode().Perm(); mode&forbidden != 0 {
		e := &Error{File: path, Problem: fmt.Sprintf("others may write it (mode %#o)", mode), Remedy: "chmod go-w " + path}
		if forbidden&0o044 != 0 {
			e.Problem, e.Remedy = fmt.Sprintf("it holds a key, and others may use it (mode %#o)", mode), "chmod 600 "+path
		}
		return nil, e
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, &Error{File: path, Problem: "can't be read: " + cause(err), Err: err}
	}
	if len(b) > maxFile {
		return nil, &Error{File: path, Problem: fmt.Sprintf("has more than %d bytes", maxFile), Remedy: "see whether it is the right file"}
	}
	return b, nil
}

// cause leaves out the path, which the message names already.
func cause(err error) string {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// Use says what a certificate is for.
type Use int

const (
	ForServer Use = iota
	ForClient
)

func (u Use) String() string { return map[Use]string{ForServer: "server", ForClient: "client"}[u] }

func (u Use) extended() x509.ExtKeyUsage {
	if u == ForServer {
		return x509.ExtKeyUsageServerAuth
	}
	return x509.ExtKeyUsageClientAuth
}

// LoadPair reads a certificate, with what is between it and its authority, and its
// key; an empty key path means that the key is in the certificate's file. It
// refuses one that is for another use, or can't be used at the time now.
func LoadPair(certPath, keyPath string, use Use, now time.Time) (tls.Certificate, error) {
	var none tls.Certificate
	readCert := ReadPublic
	if keyPath == "" || keyPath == certPath {
		keyPath, readCert = certPath, ReadPrivate
	}
	certPEM, err := readCert(certPath)
	if err != nil {
		return none, err
	}
	keyPEM := certPEM
	if keyPath != certPath {
		if keyPEM, err = ReadPrivate(keyPath); err != nil {
			return none, err
		}
	}
	if !hasBlock(keyPEM, "PRIVATE KEY") {
		return none, &Error{File: keyPath, Problem: "has no private key in PEM form", Remedy: "name the key's file with --key, or see whether it is the right file"}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return none, &Error{File: certPath, Problem: "does not hold a certificate with the key of " + keyPath + ": " + err.Error(), Remedy: "name a certificate and its own key", Err: err}
	}
	leaf := pair.Leaf
	if !slices.Contains(leaf.ExtKeyUsage, use.extended()) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return none, &Error{File: certPath, Problem: fmt.Sprintf("certificate %s is not for a %s (extended key usage)", Serial(leaf), use), Remedy: fmt.Sprintf("name the %s's certificate", use)}
	}
	return pair, checkTime(certPath, leaf, use, now)
}

func checkTime(path string, c *x509.Certificate, use Use, now time.Time) error {
	remedy := "swapback cert issue makes a new one"
	if use == ForServer {
		remedy = "swapback cert renew makes a new one"
	}
	switch {
	case now.After(c.NotAfter):
		return &Error{File: path, Problem: fmt.Sprintf("certificate %s expired on %s", Serial(c), c.NotAfter.Format(time.DateTime)), Remedy: remedy}
	case now.Before(c.NotBefore):
		return &Error{File: path, Problem: fmt.Sprintf("certificate %s is not valid before %s", Serial(c), c.NotBefore.Format(time.DateTime)), Remedy: "look at this machine's clock"}
	}
	return nil
}

// LoadAuthorities reads the certificates of the authorities that are trusted. A
// file that holds other certificates as well, such as a client's own, is taken for
// its authorities only.
func LoadAuthorities(path string, now time.Time) (*x509.CertPool, error) {
	b, err := ReadPublic(path)
	if err != nil {
		return nil, err
	}
	pool, n := x509.NewCertPool(), 0
	var late error
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, &Error{File: path, Problem: "holds a certificate that can't be read: " + err.Error(), Remedy: "see whether it is the right file", Err: err}
		}
		if !c.IsCA || !c.BasicConstraintsValid {
			continue
		}
		if now.After(c.NotAfter) {
			late = expired(path, c)
			continue
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 && late != nil {
		return nil, late
	}
	if n == 0 {
		return nil, &Error{File: path, Problem: "has no certificate of an authority in PEM form", Remedy: "name the authority's certificate (ca.pem of swapback cert init)"}
	}
	return pool, nil
}

func expired(path string, c *x509.Certificate) error {
	return &Error{
		File: path, Problem: fmt.Sprintf("the authority's certificate expired on %s", c.NotAfter.Format(time.DateTime)),
		Remedy: "make a new authority with swapback cert init, and issue its certificates",
	}
}

// hasBlock tells whether there is a PEM block whose type ends so.
func hasBlock(b []byte, ending string) bool {
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if bytes.HasSuffix([]byte(block.Type), []byte(ending)) {
			return true
		}
	}
	return false
}
