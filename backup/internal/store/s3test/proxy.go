package s3test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// Fault is what a Proxy does with a request instead of passing it on in peace.
type Fault int

const (
	None      Fault = iota
	Busy            // 503 SlowDown, and the server hears nothing
	Cut             // the server hears nothing, and the connection is closed
	LostReply       // the server does it, and the connection is closed before the answer
	HalfReply       // half of the answer's body, then the connection is closed
	Slow            // the answer comes late
)

// Proxy stands between a client and a Server and does harm. Choose is asked for
// every request; requests are numbered from 1.
type Proxy struct {
	Addr string

	mu     sync.Mutex
	n      int
	choose func(n int, r *http.Request) Fault
	counts map[string]int // requests passed on, by method
	faults int
}

// NewProxy stands before the server until the test ends.
func NewProxy(t testing.TB, s *Server, choose func(n int, r *http.Request) Fault) *Proxy {
	t.Helper()
	p := &Proxy{choose: choose, counts: map[string]int{}}
	transport := &http.Transport{DisableCompression: true}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, s, transport) }))
	p.Addr = srv.Listener.Addr().String()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// Faults is how many requests came to harm.
func (p *Proxy) Faults() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults
}

// Count is how many requests of a method were passed on.
func (p *Proxy) Count(method string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[method]
}

func (p *Proxy) next(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	f := p.choose(p.n, r)
	if f != None {
		p.faults++
	}
	if f != Busy && f != Cut {
		p.counts[r.Method]++
	}
	return f
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, s *Server, transport *http.Transport) {
	f := p.next(r)
	switch f {
	case Busy:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>`)
		return
	case Cut:
		hangUp(w)
		return
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", s.Addr, ""
	// The signature is for the host that the client knows.
	resp, err := transport.RoundTrip(out)
	if err != nil {
		hangUp(w)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || f == LostReply {
		hangUp(w)
		return
	}
	if f == Slow {
		time.Sleep(200 * time.Millisecond)
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	if f == HalfReply && len(body) > 1 {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, bytes.NewReader(body[:len(body)/2]))
		if fl, ok := w.(http.Flusher); ok {
			fl.Flush()
		}
		hangUp(w)
		return
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(body)
}

// hangUp closes the connection as if the network had gone.
func hangUp(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
