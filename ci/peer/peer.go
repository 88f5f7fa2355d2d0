// Package peer runs programs on the second machine of a test (vm -peer), from the
// first. A test package that imports it gets that machine from testrun.
//
// The second machine runs [Serve]. A connection is one program: it begins with a
// [Command] and brings back what the program writes and how it ends; with the
// connection's end the program is killed, and with its end all that is in its process
// group. So nothing a test starts outlives it.
// There is no authentication: only these two machines are in their network.
package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Environment variables that both machines have: their own address, the other's.
const (
	AddressEnv = "SWAPBACK_TEST_ADDRESS"
	PeerEnv    = "SWAPBACK_TEST_PEER"
)

// Port is the TCP port of [Serve].
const Port = "7000"

// Command is a program to run.
type Command struct {
	// Args are its name, which PATH of the second machine finds, and its arguments.
	Args []string
	// Env is added to the environment there.
	Env []string `json:",omitempty"`
	// Dir is where it runs; empty for the checkout.
	Dir string `json:",omitempty"`
}

// answer is one of those that a connection brings: a piece of output, and at last how
// the program ended, or why it could not be run.
type answer struct {
	Stdout []byte `json:",omitempty"`
	Stderr []byte `json:",omitempty"`
	// Exit is the exit status, 128+N for a program that was ended by signal N.
	Exit  *int   `json:",omitempty"`
	Error string `json:",omitempty"`
}

// Serve runs what it is told by whoever connects, until the listener is closed.
func Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve the other machine: %w", err)
		}
		go func() {
			defer c.Close()
			s := &session{enc: json.NewEncoder(c)}
			s.serve(c)
		}()
	}
}

// session is a connection on the side that runs the program.
type session struct {
	mu  sync.Mutex // makes whole answers of the two streams
	enc *json.Encoder
}

// say is deaf to errors: a connection that has ended is noticed by its reader.
func (s *session) say(a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.enc.Encode(a)
}

func (s *session) serve(c net.Conn) {
	dec := json.NewDecoder(c)
	var what Command
	if err := dec.Decode(&what); err != nil || len(what.Args) == 0 {
		s.say(answer{Error: fmt.Sprintf("this is no command: %v", err)})
		return
	}
	cmd := exec.Command(what.Args[0], what.Args[1:]...)
	cmd.Dir, cmd.Env = what.Dir, append(os.Environ(), what.Env...)
	cmd.Stdout, cmd.Stderr = stream(func(p []byte) { s.say(answer{Stdout: p}) }), stream(func(p []byte) { s.say(answer{Stderr: p}) })
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second // what it leaves behind may hold its output open
	if err := cmd.Start(); err != nil {
		s.say(answer{Error: err.Error()})
		return
	}
	var mu sync.Mutex
	reaped := false
	go func() {
		_, _ = io.Copy(io.Discard, c) // to its end: nothing more is sent
		mu.Lock()
		defer mu.Unlock()
		if !reaped {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	}()
	err := cmd.Wait()
	mu.Lock()
	reaped = true
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it has left
	mu.Unlock()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		s.say(answer{Error: err.Error()})
		return
	}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	status := ws.ExitStatus()
	if ws.Signaled() {
		status = 128 + int(ws.Signal())
	}
	s.say(answer{Exit: &status})
}

type stream func([]byte)

func (f stream) Write(p []byte) (int, error) { f(p); return len(p), nil }
