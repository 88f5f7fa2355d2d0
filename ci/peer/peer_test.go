package peer

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// local is a server on this machine.
func local(t *testing.T) *Machine {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return &Machine{server: l.Addr().String()}
}

func TestRun(t *testing.T) {
	m := local(t)
	dir := t.TempDir()
	for _, tt := range []struct {
		script      string
		status      int
		out, errOut string
	}{
		{"echo out; echo err >&2; exit 7", 7, "out\n", "err\n"},
		{"kill -9 $$", 128 + int(syscall.SIGKILL), "", ""},
		{"echo $NAME $PWD", 0, "value " + dir + "\n", ""},
		{"head -c 1000000 /dev/zero | tr '\\0' x", 0, strings.Repeat("x", 1000000), ""},
		{"sleep 100 & echo left", 0, "left\n", ""},
	} {
		var out, errOut strings.Builder
		status, err := m.Run(Command{Args: []string{"sh", "-c", tt.script}, Env: []string{"NAME=value"}, Dir: dir}, &out, &errOut)
		if err != nil || status != tt.status || out.String() != tt.out || errOut.String() != tt.errOut {
			t.Errorf("%s: %d, %v, %d bytes, %q", tt.script, status, err, out.Len(), errOut.String())
		}
	}
	for _, args := range [][]string{nil, {"/no/such/program"}} {
		if _, err := m.Run(Command{Args: args}, nil, nil); err == nil {
			t.Errorf("%q was run", args)
		}
	}
}

// TestKill: with the connection all that was started goes.
func TestKill(t *testing.T) {
	m := local(t)
	pids := filepath.Join(t.TempDir(), "pids")
	var out strings.Builder
	p, err := m.Start(Command{Args: []string{"sh", "-c", "sleep 1000 & echo $$ $! >" + pids + ".new; mv " + pids + ".new " + pids + "; wait"}}, &out, &out)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for len(list) == 0 {
		text, _ := os.ReadFile(pids)
		list = strings.Fields(string(text))
		time.Sleep(time.Millisecond)
	}
	p.Kill()
	if _, err := p.Wait(); err == nil {
		t.Error("a killed program has a status")
	}
	for _, s := range list {
		pid, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		for alive(pid) {
			time.Sleep(time.Millisecond) // the test's own limit ends this
		}
	}
}

// alive tells whether a process runs; one that waits to be collected does not.
func alive(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, state, _ := strings.Cut(string(text), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

func TestOther(t *testing.T) {
	t.Setenv(PeerEnv, "")
	t.Setenv(AddressEnv, "")
	if _, err := Other(); err == nil || !strings.Contains(err.Error(), PeerEnv) {
		t.Errorf("without a second machine: %v", err)
	}
	t.Setenv(PeerEnv, "192.0.2.2")
	t.Setenv(AddressEnv, "192.0.2.1")
	if m, err := Other(); err != nil || m.Address != "192.0.2.2" || m.Own != "192.0.2.1" {
		t.Errorf("%+v, %v", m, err)
	}
}
