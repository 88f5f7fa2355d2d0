package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
)

// TestSocketIsPrivateFromItsFirstMoment: with the mask of a careless caller,
// the socket is the owner's alone even before its group is set.
func TestSocketIsPrivateFromItsFirstMoment(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	path := filepath.Join(t.TempDir(), "sock")
	ln, err := bind(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if mode := modeOf(t, path); mode != os.ModeSocket|0o600 {
		t.Errorf("the socket is made as %v", mode)
	}
	if now := unix.Umask(0); now != 0 {
		t.Errorf("the mask is %#o afterwards", now)
	}
}

// otherGroup is a group that the caller may give a file to, and that no file is
// in by itself; for a user with one group there is only that.
func otherGroup(t *testing.T) (name string, gid int) {
	t.Helper()
	var candidates []string
	if os.Geteuid() == 0 {
		candidates = append(candidates, "nogroup")
	} else {
		own, err := os.Getgroups()
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range own {
			if g, err := user.LookupGroupId(strconv.Itoa(id)); err == nil {
				candidates = append(candidates, g.Name)
			}
		}
	}
	for _, name := range candidates {
		g, err := user.LookupGroup(name)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := strconv.Atoi(g.Gid); err == nil && id != os.Getegid() {
			return name, id
		}
	}
	g, err := user.LookupGroupId(strconv.Itoa(os.Getegid()))
	if err != nil {
		t.Fatal(err)
	}
	return g.Name, os.Getegid()
}

func TestSocketIsRootsOrTheGroups(t *testing.T) {
	name, gid := otherGroup(t)
	for _, tt := range []struct {
		group string
		mode  uint32
		gid   int
	}{{"no-such-group", 0o600, os.Getegid()}, {name, 0o660, gid}} {
		path := filepath.Join(t.TempDir(), "made", "sock")
		ln, err := listen(path, tt.group)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode != unix.S_IFSOCK|tt.mode || st.Uid != uint32(os.Geteuid()) || st.Gid != uint32(tt.gid) {
			t.Errorf("group %s: the socket has mode %#o, user %d, group %d; want mode %#o, user %d, group %d",
				tt.group, st.Mode, st.Uid, st.Gid, unix.S_IFSOCK|tt.mode, os.Geteuid(), tt.gid)
		}
		if _, err := listen(path, tt.group); err == nil || !strings.Contains(err.Error(), "another daemon") {
			t.Errorf("a second daemon on the socket: %v", err)
		}
		ln.Close()
	}
}

func TestSocketOfADeadDaemonIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	ln, err := listen(path, "no-such-group")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
}

// TestSocketIsNotPutWhereOthersRule: where others can replace it, or something
// is in the way, no socket is made.
func TestSocketIsNotPutWhereOthersRule(t *testing.T) {
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	sticky := t.TempDir()
	if err := os.Chmod(sticky, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if ln, err := listen(filepath.Join(sticky, "sock"), "no-such-group"); err != nil {
		t.Errorf("a directory such as /tmp: %v", err)
	} else {
		ln.Close()
	}
	link := filepath.Join(t.TempDir(), "link")
	target := filepath.Join(t.TempDir(), "target")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	for path, word := range map[string]string{filepath.Join(open, "sock"): "writable by others", link: "in the way"} {
		ln, err := listen(path, "no-such-group")
		if err == nil {
			ln.Close()
			t.Fatalf("%s: a socket was made", path)
		}
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := os.Lstat(target); err == nil {
		t.Error("a link was followed")
	}
}

func modeOf(t *testing.T, path string) os.FileMode {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Mode()
}

// TestConnectionsAreLimited: one more than the limit waits until another goes.
func TestConnectionsAreLimited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	inner, err := bind(path)
	if err != nil {
		t.Fatal(err)
	}
	ln := limit(inner, 2)
	accepted := make(chan net.Conn, 3)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	var clients []net.Conn
	for range 3 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	first := <-accepted
	second := <-accepted
	select {
	case <-accepted:
		t.Error("a third connection was accepted beside two")
	case <-time.After(50 * time.Millisecond): // too short a wait can only miss the error
	}
	first.Close()
	first.Close() // gives one place free, not two
	third := <-accepted
	if n := len(ln.(*limitedListener).free); n != 2 {
		t.Errorf("%d places are taken by two connections", n)
	}
	for _, c := range append(clients, second, third) {
		c.Close()
	}
	ln.Close()
	<-ended
}

// TestChangesAreLoggedWithTheirCaller: who asked is in the log, what the body
// holds is not.
func TestChangesAreLoggedWithTheirCaller(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	ln, err := listen(path, "no-such-group")
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- serve(ctx, ln, http.NotFoundHandler(), slog.New(slog.NewJSONHandler(&logged, nil)))
	}()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	for _, method := range []string{"GET", "DELETE"} {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://x/v1/volumes/a%0Ab", strings.NewReader("body-of-the-caller"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	client.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var line struct {
		Method, Path string
		UID, PID     int
	}
	if err := json.Unmarshal(logged.Bytes(), &line); err != nil {
		t.Fatalf("%v in %s", err, &logged)
	}
	if line.Method != "DELETE" || line.Path != "/v1/volumes/a%0Ab" || line.UID != os.Getuid() || line.PID != os.Getpid() {
		t.Errorf("logged %s", &logged)
	}
	if strings.Contains(logged.String(), "body-of") {
		t.Errorf("the body is in the log: %s", &logged)
	}
}

// TestClientsThatDoNotGetToThePoint: one that is silent, one with a header and one
// with a body that never ends, and one with a header that is too long: each is
// let go, and its place is free again.
func TestClientsThatDoNotGetToThePoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	ln, err := listen(path, "no-such-group")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	// No service: none of these requests may reach one.
	srv := newServer(t.Context(), api.NewHandler(nil, nil, "test", log), log)
	if srv.ReadHeaderTimeout != headerTime || srv.IdleTimeout != idleTime {
		t.Errorf("the server waits %v for a header, %v for a request", srv.ReadHeaderTimeout, srv.IdleTimeout)
	}
	srv.ReadHeaderTimeout = 100 * time.Millisecond // the test's patience; the real one is above
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	for what, text := range map[string]string{
		"silent": "", "half a header": "POST /v1/pools HTTP/1.1\r\nHost: x\r\n",
		"half a body": "POST /v1/pools HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"name\":",
		"long header": "GET /v1/pools HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2*maxHeader) + "\r\n",
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		// The server may have closed before all is written.
		_, _ = io.WriteString(c, text)
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Minute))
		answer, err := io.ReadAll(c)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection stays open", what)
		}
		if len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 4")) {
			t.Errorf("%s: answered %.100q", what, answer)
		}
		c.Close()
	}
	_ = srv.Close()
	<-done
	if n := len(ln.(*limitedListener).free); n != 0 {
		t.Errorf("%d places are still taken", n)
	}
}
