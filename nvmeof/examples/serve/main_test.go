package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/swapback/swapback/nvmeof/nvmetest"
)

func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"memory", "1M"}, {"file", path}, {"file", path, "-no-ring", "-host", nvmetest.HostNQN},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		r, w := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			err := run(ctx, append(args, "-listen", "127.0.0.1:0"), w)
			w.CloseWithError(io.EOF)
			ended <- err
		}()
		line, err := bufio.NewReader(r).ReadString('\n')
		if err != nil {
			t.Fatalf("%v: %v, %v", args, err, <-ended)
		}
		var addr, port, nqn string
		if _, err := fmt.Sscanf(line, "nvme connect -t tcp -a %s -s %s -n %s", &addr, &port, &nqn); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		c, err := nvmetest.Connect(nvmetest.Config{Addr: addr + ":" + port, Subsys: nqn, Queues: 1})
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		if err := c.IO[0].Read(1, 1<<11-8, b); err != nil || (b[0] == 7) != (args[0] == "file") {
			t.Errorf("%v: read %d, %v", args, b[0], err)
		}
		c.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{
		nil, {"file"}, {"file", "/none"}, {"memory", ""}, {"memory", "x"}, {"memory", "G"}, {"memory", "99999999T"}, {"memory", "100"},
		{"disk", "x"}, {"memory", "1M", "-uuid", "x"}, {"memory", "1M", "-nqn", "x"}, {"memory", "1M", "-host", "x"}, {"memory", "1M", "-listen", "x"},
	} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
