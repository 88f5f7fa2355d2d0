package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/swapback/swapback/api/access"
	"github.com/swapback/swapback/api/certs"
)

var noContext = context.Background()

// peer is one connection whose other end is known.
type peer struct {
	raw  net.Conn // below TLS: closing it asks nobody
	cert *x509.Certificate
	name string
	over bool // more connections than a client may have: each is told so

	mu   sync.Mutex
	used []use // by the request under way
}

type use struct {
	right        access.Right
	pool, volume string
	host         string // that the client speaks for; then there is nothing else here
}

func (u use) String() string {
	if u.host != "" {
		return "the word for host " + u.host
	}
	return fmt.Sprintf("the right %s to %s/%s", u.right, u.pool, u.volume)
}

func (u use) allowed(t *access.Table, client string) bool {
	if u.host != "" {
		return t.SpeaksFor(client, u.host)
	}
	if u.volume == "*" {
		return t.MayPool(client, u.right, u.pool)
	}
	return t.May(client, u.right, u.pool, u.volume)
}

// done forgets what a request used.
func (p *peer) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used = nil
}

// state is what the files said when they were read last. It does not change.
type state struct {
	tls   *tls.Config
	roots *x509.CertPool
	table *access.Table
	leaf  *x509.Certificate // the daemon's own
}

// judge tells whom a certificate stands for, and why its connection is refused, be it
// new or open.
func (st *state) judge(chain []*x509.Certificate, now time.Time) (string, error) {
	if len(chain) == 0 {
		return "", fmt.Errorf("no certificate was shown")
	}
	leaf, between := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: st.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return "", fmt.Errorf("certificate %s: %w", certs.Serial(leaf), err)
	}
	name, err := certs.ClientName(leaf)
	if err != nil {
		return "", err
	}
	if why := st.table.Revoked(leaf); why != "" {
		return name, fmt.Errorf("certificate %s of %s is revoked (%s)", certs.Serial(leaf), name, why)
	}
	return name, nil
}

// lost tells why an open connection may go on no longer, or "".
func (st *state) lost(p *peer, chain []*x509.Certificate, now time.Time) string {
	if _, err := st.judge(chain, now); err != nil {
		return err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.used, func(u use) bool { return !u.allowed(st.table, p.name) })
	if i < 0 {
		return ""
	}
	return fmt.Sprintf("%v, which it was using, is gone", p.used[i])
}
