package api

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
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
