package main

import (
	"bytes"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/certs"
	"github.com/swapback/swapback/api/remote"
)

func TestRemoteArguments(t *testing.T) {
	for listen, good := range map[string]bool{"": true, ":7443": true, "192.0.2.7:7443": true, "[2001:db8::7]:7443": true, "7443": false, "192.0.2.7": false, "host:": false, "2001:db8::7:7443": false} {
		if err := checkRemote(remote.Options{Listen: listen}); (err == nil) != good {
			t.Errorf("--api-listen=%s: %v", listen, err)
		}
	}
}

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

// TestRemoteAPI: nothing listens unless told; a hangup has the files read again;
// the end is waited for.
func TestRemoteAPI(t *testing.T) {
	log := &lines{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	until := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("it never came about that %s", what)
			}
		}
	}
	startRemote(t.Context(), remote.Options{}, nil, nil, logger)()

	dir := filepath.Join(t.TempDir(), "remote")
	ca, err := certs.Init(dir, time.Hour, time.Now(), map[string][]byte{"access": []byte("swapback-access 1\nallow prom metrics *\n")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.IssueServer([]string{"127.0.0.1"}, time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	end := startRemote(t.Context(), remote.Options{
		Listen: address, Cert: filepath.Join(dir, certs.ServerFile), CA: filepath.Join(dir, certs.AuthorityFile), Access: filepath.Join(dir, "access"),
	}, nil, http.NotFoundHandler(), logger)
	until("it answers", func() bool { return log.has("msg=answering") })
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	until("the files are read again", func() bool { return log.has("were read again") })

	_, text, err := ca.IssueClient("prom", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "prom.pem")
	if err := certs.WriteNew(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c := api.Target{Server: address, Cert: path}.Client(func(string) string { return "" })
	defer c.Close()
	if _, err := c.Info(t.Context()); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("what is not allowed: %v", err)
	}
	end()
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("it still answers at its end")
	}
}
