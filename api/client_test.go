package api

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestClientOutlivesADaemon has a daemon that answers one request on each
// connection, as one does that dies and is replaced before the next.
func TestClientOutlivesADaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
				// It dies when the next request has arrived.
				_, _ = r.ReadByte()
			}()
		}
	}()
	c := NewClient(socket)
	defer c.Close()
	for i := range 3 {
		if err := c.DeletePool(t.Context(), "tank", false); err != nil {
			t.Fatalf("request %d: %v", 2*i+1, err)
		}
		if _, err := c.CreateVolume(t.Context(), CreateVolumeRequest{Name: "v"}); err != nil {
			t.Fatalf("request %d: %v", 2*i+2, err)
		}
	}
}

// TestAnswerWithoutEnd: whatever listens there, a client reads and keeps a bounded
// part of what it says, and lets go of it.
func TestAnswerWithoutEnd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan int64, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.WriteString(w, `{"name":"`)
		all := int64(n)
		for part := strings.Repeat("x", 64<<10); err == nil; all += int64(n) {
			n, err = io.WriteString(w, part)
		}
		wrote <- all
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	c := NewClient(socket)
	defer c.Close()
	c.longest = 1 << 20
	for name, call := range map[string]func(context.Context) error{
		"show":     func(ctx context.Context) error { _, err := c.Volume(ctx, "db"); return err },
		"delete":   func(ctx context.Context) error { return c.DeleteVolume(ctx, "db", false) },
		"snapshot": func(ctx context.Context) error { _, _, err := c.OpenSnapshot(ctx, SnapshotRequest{}); return err },
	} {
		if err := call(t.Context()); CodeOf(err) != CodeInternal || !strings.Contains(err.Error(), "more than 1048576 bytes") || len(err.Error()) > 1024 {
			t.Errorf("%s: %.200v", name, err)
		}
		// Beside the bound there are the buffers of the socket.
		if n := <-wrote; n > 8<<20 {
			t.Errorf("%s: %d bytes were taken", name, n)
		}
	}
}
