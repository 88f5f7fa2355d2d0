package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/swapback/swapback/api/certs"
)

// DefaultPort is where swapbackd answers clients from afar, unless told otherwise.
const DefaultPort = "7443"

// Environment variables that name a daemon on another machine and what opens it.
const (
	ServerEnv = "SWAPBACK_SERVER"
	CertEnv   = "SWAPBACK_CERT"
	KeyEnv    = "SWAPBACK_KEY"
	CAEnv     = "SWAPBACK_CA"
)

// Target says where swapbackd is: at a unix socket of this machine, or at an
// address of another one.
type Target struct {
	Socket string
	Server string // HOST or HOST:PORT
	// Files with the client's certificate, its key, and its authorities, read anew
	// for each connection. An empty Key or CA means that it is in Cert.
	Cert, Key, CA string
	// Device returns this machine's block device of the volume with a UUID, or "". What
	// another machine's daemon says of devices is about that machine: a client puts
	// what Device returns in its place.
	Device func(uuid string) string
}

// FromEnv fills in from the environment what is empty. A socket and a server are
// never guessed between.
func (t Target) FromEnv(getenv func(string) string) (Target, error) {
	if t.Socket != "" && t.Server != "" {
		return t, &Error{Code: CodeInvalid, Message: "a socket and a server are named", Remedy: "give --socket for the daemon of this machine, or --server for another"}
	}
	if t.Socket == "" && t.Server == "" {
		t.Socket, t.Server = getenv(SocketEnv), getenv(ServerEnv)
		if t.Socket != "" && t.Server != "" {
			return t, &Error{Code: CodeInvalid, Message: SocketEnv + " and " + ServerEnv + " are both set", Remedy: "unset one of them, or give --socket or --server"}
		}
	}
	if t.Server == "" {
		return t, nil
	}
	if t.Cert == "" {
		t.Cert = getenv(CertEnv)
		if t.Key == "" {
			t.Key = getenv(KeyEnv)
		}
	}
	if t.CA == "" {
		t.CA = getenv(CAEnv)
	}
	return t, nil
}

// Client returns a client for the daemon there. Nothing is connected or read
// before the first call, which also tells what is wrong with t.
func (t Target) Client(getenv func(string) string) *Client {
	t, err := t.FromEnv(getenv)
	if err != nil {
		return &Client{err: err, http: &http.Client{}}
	}
	if t.Server == "" {
		if t.Socket == "" {
			t.Socket = DefaultSocket
		}
		return NewClient(t.Socket)
	}
	address, err := t.address()
	if err != nil {
		return &Client{err: err, http: &http.Client{}}
	}
	c := newClient(address, "https://"+address, &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return t.dial(ctx, address) },
	})
	c.device = t.Device
	if c.device == nil {
		c.device = func(string) string { return "" }
	}
	c.refused = func(err error) error {
		return &Error{
			Code: CodeUnavailable, Message: fmt.Sprintf("no swapbackd at %s: %v", address, err),
			Remedy: "see whether swapbackd runs there with --api-listen, and what is between the two machines",
		}
	}
	return c
}

// address is Server with a port.
func (t Target) address() (string, error) {
	bad := func(why string) error {
		return &Error{Code: CodeInvalid, Message: fmt.Sprintf("server %.100q: %s", t.Server, why), Remedy: "want HOST or HOST:PORT, such as storage.example.com or [2001:db8::1]:" + DefaultPort}
	}
	if t.Cert == "" {
		return "", &Error{
			Code: CodeInvalid, Message: "no certificate is named for " + t.Server,
			Remedy: "give --cert FILE or set " + CertEnv + "; swapback cert issue, on the storage machine, makes one",
		}
	}
	host, port, err := net.SplitHostPort(t.Server)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(t.Server, "["), "]"), DefaultPort
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", bad("is no address")
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", bad(fmt.Sprintf("%q is no port", port))
	}
	if host == "" || strings.ContainsAny(host, " /?#@%[]\\") {
		return "", bad("names no host")
	}
	return net.JoinHostPort(host, port), nil
}

// dialTime bounds the making of a connection, and the handshake on it.
const dialTime = 20 * time.Second

// dial makes a connection on which both sides are known.
func (t Target) dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	pair, roots, err := t.load()
	if err != nil {
		return nil, err
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(address)
	conn := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host, RootCAs: roots, Certificates: []tls.Certificate{pair}})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, &handshakeError{err}
	}
	return conn, nil
}

func (t Target) load() (tls.Certificate, *x509.CertPool, error) {
	now := time.Now()
	pair, err := certs.LoadPair(t.Cert, t.Key, certs.ForClient, now)
	if err != nil {
		return pair, nil, err
	}
	ca := t.CA
	if ca == "" {
		ca = t.Cert
	}
	roots, err := certs.LoadAuthorities(ca, now)
	return pair, roots, err
}

// handshakeError is of a connection on which nothing was asked yet.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return "TLS handshake: " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// notTrusted explains a connection on which one side does not accept the other;
// nil when that is not what happened.
func (c *Client) notTrusted(err error) error {
	var (
		file      *certs.Error
		handshake *handshakeError
		remote    *net.OpError
		verify    *tls.CertificateVerificationError
		hostname  x509.HostnameError
		header    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &file):
		return &Error{Code: CodeInvalid, Message: file.File + ": " + file.Problem, Remedy: file.Remedy}
	case errors.As(err, &hostname):
		return &Error{
			Code: CodeUnavailable, Message: fmt.Sprintf("swapbackd at %s has a certificate for other names: %s", c.at, strings.Join(certs.Hosts(hostname.Certificate), ", ")),
			Remedy: "call it by one of these, or give it a certificate for this one (swapback cert renew)",
		}
	case errors.As(err, &verify):
		return &Error{
			Code: CodeUnavailable, Message: fmt.Sprintf("what answers at %s is not trusted: %v", c.at, verify.Err),
			Remedy: "see whether it is the right server, and whether --ca (or the file of --cert) has the authority of its certificate",
		}
	case errors.As(err, &remote) && remote.Op == "remote error":
		// An alert, before anything was done that was asked for. In TLS 1.3 a server
		// judges a client when that takes the handshake for done.
		return &Error{
			Status: http.StatusForbidden, Code: CodeDenied, Message: fmt.Sprintf("swapbackd at %s refuses this client's certificate or connection: %v", c.at, remote.Err),
			Remedy: "its log says why: it may have been revoked, expired there, or signed by an authority that it does not trust",
		}
	case errors.As(err, &header):
		return &Error{Code: CodeUnavailable, Message: fmt.Sprintf("what answers at %s does not speak TLS", c.at), Remedy: "see whether the address is that of swapbackd's --api-listen"}
	case errors.As(err, &handshake):
		return &Error{
			Code: CodeUnavailable, Message: fmt.Sprintf("no connection to swapbackd at %s: %v", c.at, handshake.err),
			Remedy: "see whether the address is that of swapbackd's --api-listen; its log says what it met",
		}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: CodeUnavailable, Message: fmt.Sprintf("swapbackd at %s did not answer in %v", c.at, dialTime), Remedy: "see what is between the two machines"}
	}
	return nil
}

// here puts this machine's devices into what a daemon on another machine answers.
// Another machine's paths name other things here.
func (c *Client) here(out any) {
	if c.device == nil {
		return
	}
	one := func(v *Volume) { v.Device, v.Link, v.Backend = c.device(v.UUID), "", "" }
	switch v := out.(type) {
	case *Volume:
		one(v)
	case *[]Volume:
		for i := range *v {
			one(&(*v)[i])
		}
	case *Snapshot:
		for i := range v.Volumes {
			one(&v.Volumes[i].Volume)
			v.Volumes[i].Device = ""
		}
	}
}
