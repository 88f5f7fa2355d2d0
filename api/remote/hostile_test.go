package remote

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/certs"
)

// usage is how many goroutines and descriptors this process has.
func usage(t *testing.T) (goroutines, descriptors int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return runtime.NumGoroutine(), len(list)
}

// empty tells whether the server knows of no connection.
func (w *world) empty() bool {
	l := w.srv.listener.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending) == 0 && len(l.known) == 0 && len(l.count) == 0
}

// TestThousandConnectionsLeaveNothing: opened and dropped at every point of their
// life, they leave no goroutine, no descriptor and no place taken.
func TestThousandConnectionsLeaveNothing(t *testing.T) {
	w := newWorld(t, "allow host1 backup tank/db\n")
	_, path := w.issue("host1")
	conf := w.config(path)
	w.ask(conf)
	w.until("the first is gone", w.empty)
	goroutines, descriptors := usage(t)
	one := func(i int) {
		raw, err := net.Dial("tcp", w.address)
		if err != nil {
			t.Error(err)
			return
		}
		defer raw.Close()
		if i%2 == 0 { // an abrupt end
			defer func() { _ = raw.(*net.TCPConn).SetLinger(0) }()
		}
		switch i % 5 {
		case 0: // nothing
		case 1: // a part of a handshake
			_, _ = raw.Write([]byte{0x16, 3, 1, 2, 0, 1, 0})
		case 2: // not TLS
			_, _ = io.WriteString(raw, "GET / HTTP/1.1\r\n\r\n")
		case 3: // a handshake and half a request
			c := tlsClient(raw, conf)
			_, _ = io.WriteString(c, "POST /v1/swaps HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
		case 4: // a snapshot
			c := tlsClient(raw, conf)
			body := `{"volumes":["tank/db"]}`
			_, _ = fmt.Fprintf(c, "POST /v1/snapshots HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			_, _ = c.Read(make([]byte, 1))
		}
	}
	snapshots := 0
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for range w.svc.ended {
			snapshots++
		}
	}()
	var wg sync.WaitGroup
	for lane := range 4 {
		wg.Go(func() {
			for i := lane; i < 1000; i += 4 {
				one(i)
			}
		})
	}
	wg.Wait()
	w.until("all places are free", w.empty)
	w.until("all goroutines have ended and all descriptors are closed", func() bool {
		g, d := usage(t)
		return g <= goroutines+1 && d <= descriptors // and the one above
	})
	if status, err := w.ask(conf); err != nil || status != 200 {
		t.Errorf("afterwards: %d, %v", status, err)
	}
	close(w.svc.ended)
	<-drained
	if snapshots == 0 {
		t.Error("no snapshot was taken")
	}
}

// TestClientsThatDoNotGetToThePoint: at each point of a connection, who is slow is
// let go.
func TestClientsThatDoNotGetToThePoint(t *testing.T) {
	short := 50 * time.Millisecond // the test's patience; the real ones are in defaults
	w := newWorld(t, "allow host1 admin *\n", func(l *limits) { l.handshake, l.header, l.body, l.idle = short, short, short, short })
	_, path := w.issue("host1")
	conf := w.config(path)
	for what, text := range map[string]string{
		"silent from the start": "", "a part of a hello": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
	} {
		c := w.tcp()
		_, _ = io.WriteString(c, text)
		w.closed(what, c)
	}
	for what, text := range map[string]string{
		"silent after the handshake": "",
		"half a header":              "POST /v1/pools HTTP/1.1\r\nHost: x\r\n",
		"half a body":                "POST /v1/swaps HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"pairs\":",
		"a body that nobody reads":   "DELETE /v1/volumes/tank%2Fdb HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
		"idle after a request":       "GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n",
		"a long header":              "GET /v1/info HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10),
	} {
		c := w.dial(conf)
		_, _ = io.WriteString(c, text)
		w.closed(what, c)
	}
	w.until("all places are free", w.empty)
	for name, d := range map[string]time.Duration{"handshake": defaults.handshake, "header": defaults.header, "body": defaults.body, "idle": defaults.idle, "write": defaults.write} {
		if d <= 0 || d > time.Minute {
			t.Errorf("the bound for %s is %v", name, d)
		}
	}
}

// TestWhoSaysNothingKeepsNobodyOut: with all places for handshakes taken, and taken
// again, a client that goes on gets in.
func TestWhoSaysNothingKeepsNobodyOut(t *testing.T) {
	w := newWorld(t, "allow host1 list *\n", func(l *limits) { l.pending, l.handshake = 4, time.Hour })
	c := w.client("host1")
	var silent []net.Conn
	for range 20 {
		silent = append(silent, w.tcp())
		if _, err := c.Info(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l := w.srv.listener.Load()
	l.mu.Lock()
	n := len(l.pending)
	l.mu.Unlock()
	if n > 4 {
		t.Errorf("%d connections are in their handshake", n)
	}
	w.closed("the first of them", silent[0])
}

// TestAnswersThatNobodyTakes: a client that does not read has its connection for a
// while only.
func TestAnswersThatNobodyTakes(t *testing.T) {
	w := newWorld(t, "allow host1 list *\n", func(l *limits) { l.write = 50 * time.Millisecond })
	_, path := w.issue("host1")
	raw := w.tcp()
	_ = raw.(*net.TCPConn).SetReadBuffer(4096)
	c := tlsClient(raw, w.config(path))
	go func() { // more answers than the buffers of both sides hold
		ask := strings.Repeat("GET /v1/volumes HTTP/1.1\r\nHost: x\r\n\r\n", 100)
		for {
			if _, err := io.WriteString(c, ask); err != nil {
				return
			}
		}
	}()
	w.until("the connection is there", func() bool { return !w.empty() })
	w.until("the connection is gone", w.empty)
}

// TestConnectionsAreCounted: a client has so many connections, and is told when it
// wants more; another client still gets in.
func TestConnectionsAreCounted(t *testing.T) {
	w := newWorld(t, "allow host1 backup tank/db\nallow host2 list *\n", func(l *limits) { l.perClient, l.known = 2, 8 })
	_, path := w.issue("host1")
	c := api.Target{Server: w.address, Cert: path}.Client(func(string) string { return "" })
	defer c.Close()
	var ends []func()
	for range 2 {
		_, end, err := c.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"db"}})
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, func() { _ = end(t.Context()) })
	}
	if _, err := c.Info(t.Context()); api.CodeOf(err) != api.CodeBusy || !strings.Contains(err.Error(), "host1 has 2 connections") {
		t.Errorf("a third connection: %v", err)
	}
	// Those that are told so are few, too: the rest is closed at once.
	conf := w.config(path)
	for range 10 {
		w.dial(conf)
	}
	if _, err := w.client("host2").Info(t.Context()); err != nil {
		t.Errorf("another client: %v", err)
	}
	l := w.srv.listener.Load()
	l.mu.Lock()
	n := l.count["host1"]
	l.mu.Unlock()
	if n > 2+tellOver {
		t.Errorf("host1 has %d connections", n)
	}
	for _, end := range ends {
		end()
		<-w.svc.ended
	}
}

// TestFilesAreReadAgain: a bad file changes nothing and is told of once; a good one
// counts at once.
func TestFilesAreReadAgain(t *testing.T) {
	w := newWorld(t, "allow host1 list tank/db\n")
	c := w.client("host1")
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := certs.Replace(w.path(name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []struct {
		text string
		mode os.FileMode
		want string
	}{
		{"swapback-access 1\nallow host1 lost tank/db\n", 0o644, "line 2: unknown right"},
		{"swapback-access 2\n", 0o644, "line 1"},
		{"", 0o644, "line 1"},
		{"swapback-access 1\n", 0o666, "chmod go-w"},
	} {
		write("access", bad.text, bad.mode)
		if err := w.srv.Reload(); err == nil || !strings.Contains(err.Error(), bad.want) || !strings.Contains(err.Error(), w.path("access")) {
			t.Errorf("reload of %q: %v", bad.text, err)
		}
		w.until("it is told", func() bool { return strings.Contains(w.log.String(), strings.ReplaceAll(bad.want, `"`, `\"`)) })
		if _, err := c.Volume(t.Context(), "tank/db"); err != nil {
			t.Errorf("after %q: %v", bad.text, err)
		}
	}
	write("access", "swapback-access 1\nallow host1 list tank/secret\n", 0o644)
	w.until("the good file counts", func() bool {
		_, err := c.Volume(t.Context(), "tank/secret")
		return err == nil
	})
	if _, err := c.Volume(t.Context(), "tank/db"); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("the right that is gone: %v", err)
	}
	// A new certificate for the daemon under another name, by itself.
	if _, err := w.ca.IssueServer([]string{"127.0.0.1", "new.example.com"}, life, time.Now()); err != nil {
		t.Fatal(err)
	}
	_, path := w.issue("host1")
	conf := w.config(path)
	conf.ServerName = "new.example.com"
	w.until("the new certificate is shown", func() bool { _, err := w.ask(conf); return err == nil })
}

// TestServerWaitsForItsFiles: without them, and without its address, it serves
// nobody, says why, and begins when they are there. It never ends by itself.
func TestServerWaitsForItsFiles(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "remote"), svc: &store{ended: make(chan struct{}, 9)}, log: &text{}}
	w.srv = New(w.options(taken.Addr().String()))
	w.srv.every = 20 * time.Millisecond
	w.run()
	said := func(what string) {
		t.Helper()
		w.until("it says "+what, func() bool { return strings.Contains(w.log.String(), what) })
	}
	said("server.pem: there is no such file")
	if w.ca, err = certs.Init(w.dir, life, time.Now(), map[string][]byte{"access": []byte("swapback-access 1\nallow host1 list *\n")}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.ca.IssueServer([]string{"127.0.0.1"}, -time.Minute, time.Now()); err != nil {
		t.Fatal(err)
	}
	said("expired on")
	if _, err := w.ca.IssueServer([]string{"127.0.0.1"}, time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	said("the remote API is not served\" api=remote err=\"listen for clients from afar: listen tcp " + taken.Addr().String() + ": bind: address already in use")
	taken.Close()
	w.until("the server listens", func() bool { return w.srv.listener.Load() != nil })
	w.address = taken.Addr().String()
	if _, err := w.client("host1").Info(t.Context()); err != nil {
		t.Error(err)
	}
	said("the daemon's certificate ends soon")
	said("a client's certificate ends soon")
	if n := strings.Count(w.log.String(), "address already in use"); n != 1 {
		t.Errorf("the address was complained of %d times", n)
	}
}
