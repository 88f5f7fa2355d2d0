package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"time"
)

// NewRequest makes a key, which does not leave the client, and a request for a
// certificate with the client's name (PKCS #10), both in PEM form.
func NewRequest(name string) (key, request []byte, err error) {
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	_, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{nameURI(name)}}, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("make a request for a certificate: %w", err)
	}
	if key, err = encodeKey(signer); err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// IssueRequested signs a certificate for a client that has made its key itself. Of
// the request its key counts, and a name that it may have must be the client's. What
// comes back holds the certificate and the authority's.
func (a *Authority) IssueRequested(name string, request []byte, life time.Duration, now time.Time) (*x509.Certificate, []byte, error) {
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	key, err := parseRequest(name, request)
	if err != nil {
		return nil, nil, err
	}
	c, err := a.signKey(clientTemplate(name), key, life, now)
	if err != nil {
		return nil, nil, err
	}
	return c, append(encodeCert(c), encodeCert(a.cert)...), nil
}

// parseRequest returns the key of a request that is good for a name.
func parseRequest(name string, request []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("it holds no request for a certificate in PEM form")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("it can't be read: %w", err)
	}
	// Whoever asks has the key.
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("it is not signed with its own key: %w", err)
	}
	for _, u := range r.URIs {
		if u.Scheme == Scheme && *u != *nameURI(name) {
			return nil, fmt.Errorf("it asks for another name, %.100q", u.String())
		}
	}
	switch k := r.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P224() {
			return nil, fmt.Errorf("its key is on the curve P-224, which TLS 1.3 does not have")
		}
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return nil, fmt.Errorf("its RSA key has %d bits, want 2048 to 8192", n)
		}
	default:
		return nil, fmt.Errorf("its key is of a kind that TLS 1.3 does not have")
	}
	return r.PublicKey, nil
}
