package certs

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Files in the folder of an authority. The daemon reads the first two and the
// rights beside them; the key can be kept on another machine.
const (
	AuthorityFile = "ca.pem"
	ServerFile    = "server.pem" // certificate and key
	KeyFile       = "ca.key"
	issuedDir     = "issued" // every certificate that was signed, by its serial number
)

// clockSkew is how far the clocks of two machines may be apart.
const clockSkew = time.Hour

// Authority signs certificates. Its folder belongs to one user, who must be the
// caller or root.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
}

// Init makes an authority in a folder that is not there yet or is empty, which
// signs for life. more are files to put beside, by their names. All of it is there
// when Init returns nil, and nothing otherwise.
func Init(dir string, life time.Duration, now time.Time, more map[string][]byte) (*Authority, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "swapback authority " + serial.Text(16)[:8]},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(life),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign the authority's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificate back: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("folder for the authority: %w", err)
	}
	made, err := os.MkdirTemp(parent, ".swapback-cert-")
	if err != nil {
		return nil, fmt.Errorf("folder for the authority: %w", err)
	}
	defer os.RemoveAll(made)
	err = errors.Join(
		os.Mkdir(filepath.Join(made, issuedDir), 0o700),
		writeNew(filepath.Join(made, AuthorityFile), encodeCert(cert), 0o644),
		writeNew(filepath.Join(made, KeyFile), keyPEM, 0o600))
	for name, text := range more {
		err = errors.Join(err, writeNew(filepath.Join(made, name), text, 0o644))
	}
	if err != nil {
		return nil, fmt.Errorf("folder for the authority: %w", err)
	}
	// A folder that is empty is replaced, any other refuses.
	if err := syscall.Rename(made, dir); err != nil { // os.Rename replaces no folder
		if errors.Is(err, fs.ErrExist) {
			return nil, &Error{File: dir, Problem: "is there and not empty", Remedy: "swapback cert issue signs with the authority in it; to begin anew name another folder with --dir", Err: fs.ErrExist}
		}
		return nil, &Error{File: dir, Problem: "can't be made: " + err.Error(), Err: err}
	}
	return &Authority{dir: dir, cert: cert, key: key}, syncDir(parent)
}

// Open reads the authority of a folder.
func Open(dir string) (*Authority, error) {
	certPEM, err := ReadPublic(filepath.Join(dir, AuthorityFile))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, KeyFile)
	keyPEM, err := ReadPrivate(path)
	if err != nil {
		return nil, err
	}
	cert, err := decodeCert(certPEM)
	if err != nil || !cert.IsCA {
		return nil, &Error{File: filepath.Join(dir, AuthorityFile), Problem: "is not the certificate of an authority", Err: err}
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, &Error{File: path, Problem: "has no private key in PEM form"}
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, &Error{File: path, Problem: "has no private key that can be read", Err: err}
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, &Error{File: path, Problem: "holds a key that can't sign"}
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, &Error{File: path, Problem: "is not the key of " + AuthorityFile + " beside it"}
	}
	return &Authority{dir: dir, cert: cert, key: key}, nil
}

// IssueServer signs a certificate for the daemon under the names and addresses by
// which clients call it, and puts it with a new key into the authority's folder, in the place
// of one that is there.
func (a *Authority) IssueServer(hosts []string, life time.Duration, now time.Time) (*x509.Certificate, error) {
	if err := CheckHosts(hosts); err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "swapbackd"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	c, text, err := a.sign(tmpl, life, now)
	if err != nil {
		return nil, err
	}
	return c, Replace(filepath.Join(a.dir, ServerFile), text, 0o600)
}

// ServerHosts are the names and addresses of the server's present certificate.
func (a *Authority) ServerHosts() ([]string, error) {
	path := filepath.Join(a.dir, ServerFile)
	b, err := ReadPrivate(path)
	if err != nil {
		return nil, err
	}
	c, err := decodeCert(b)
	if err != nil {
		return nil, &Error{File: path, Problem: "has no certificate that can be read", Err: err}
	}
	return Hosts(c), nil
}

// Hosts are the names and addresses that a server's certificate is for.
func Hosts(c *x509.Certificate) []string {
	hosts := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// IssueClient signs a certificate for a client. What comes back, for the client
// alone, holds its certificate, its new key and the authority's certificate.
func (a *Authority) IssueClient(name string, life time.Duration, now time.Time) (*x509.Certificate, []byte, error) {
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	c, text, err := a.sign(clientTemplate(name), life, now)
	if err != nil {
		return nil, nil, err
	}
	return c, append(text, encodeCert(a.cert)...), nil
}

func clientTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, URIs: []*url.URL{nameURI(name)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// sign makes a key and signs a certificate for it. The file that comes back holds both.
func (a *Authority) sign(tmpl *x509.Certificate, life time.Duration, now time.Time) (*x509.Certificate, []byte, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	c, err := a.signKey(tmpl, pub, life, now)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	return c, append(encodeCert(c), keyPEM...), nil
}

// signKey fills a template in and signs it. The certificate is kept before anybody
// gets it, so that it can be listed and revoked.
func (a *Authority) signKey(tmpl *x509.Certificate, pub crypto.PublicKey, life time.Duration, now time.Time) (c *x509.Certificate, err error) {
	if now.After(a.cert.NotAfter) {
		return nil, expired(filepath.Join(a.dir, AuthorityFile), a.cert)
	}
	if tmpl.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-clockSkew), now.Add(life)
	if tmpl.NotAfter.After(a.cert.NotAfter) {
		tmpl.NotAfter = a.cert.NotAfter // nobody takes it for longer anyway
	}
	tmpl.KeyUsage, tmpl.BasicConstraintsValid = x509.KeyUsageDigitalSignature, true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("read a new certificate back: %w", err)
	}
	return c, Replace(filepath.Join(a.dir, issuedDir, Serial(c)+".pem"), encodeCert(c), 0o644)
}

// Issued returns every certificate that the authority of a folder has signed,
// those for the server included, the oldest first.
func Issued(dir string) ([]*x509.Certificate, error) {
	paths, err := filepath.Glob(filepath.Join(dir, issuedDir, "*.pem"))
	if err != nil {
		return nil, fmt.Errorf("certificates in %s: %w", dir, err)
	}
	if paths == nil {
		if _, err := os.Stat(filepath.Join(dir, issuedDir)); err != nil {
			return nil, &Error{File: dir, Problem: "is no folder of an authority: " + cause(err), Remedy: "swapback cert init makes one; --dir names another", Err: err}
		}
	}
	var list []*x509.Certificate
	for _, path := range paths {
		b, err := ReadPublic(path)
		if err != nil {
			return nil, err
		}
		c, err := decodeCert(b)
		if err != nil {
			return nil, &Error{File: path, Problem: "is not a certificate", Err: err}
		}
		list = append(list, c)
	}
	slices.SortStableFunc(list, func(a, b *x509.Certificate) int { return a.NotBefore.Compare(b.NotBefore) })
	return list, nil
}

// CheckHosts refuses what no client could call a server by.
func CheckHosts(hosts []string) error {
	if len(hosts) == 0 {
		return errors.New("a server's certificate needs a name or address by which clients call it")
	}
	for _, h := range hosts {
		u, err := url.Parse("https://" + h)
		name := err == nil && h != "" && u.Host == h && u.Hostname() == h && len(h) <= 253
		if !name && net.ParseIP(h) == nil {
			return fmt.Errorf("%.100q is no host name or address", h)
		}
	}
	return nil
}

func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and as long as all others
	return new(big.Int).SetBytes(b[:]), nil
}

func encodeCert(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// decodeCert returns the first certificate of a file.
func decodeCert(b []byte) (*x509.Certificate, error) {
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, errors.New("no certificate in PEM form")
}
