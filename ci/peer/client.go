package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// patience is how long the second machine may take to listen, and then to take what
// it is sent, on a host that is busy.
const patience = 2 * time.Minute

// Machine is the second machine as the first sees it. It may be used by several
// goroutines.
type Machine struct {
	// Address is the second machine's, Own the first's.
	Address, Own string

	server string // where it listens
}

// Other is the second machine of this test. It is an error when there is none.
func Other() (*Machine, error) {
	m := &Machine{Address: os.Getenv(PeerEnv), Own: os.Getenv(AddressEnv)}
	if m.Address == "" || m.Own == "" {
		return nil, fmt.Errorf("no second machine: %s is not set (make test-vm gives one to packages that import ci/peer)", PeerEnv)
	}
	m.server = net.JoinHostPort(m.Address, Port)
	return m, nil
}

// Process is a program that was started on the second machine.
type Process struct {
	what string
	conn net.Conn
	done chan struct{}
	// of the reader until done is closed
	status int
	err    error
}

// Start starts a program on the second machine. The writers get what it writes, from
// one goroutine, until the process is done.
func (m *Machine) Start(c Command, stdout, stderr io.Writer) (*Process, error) {
	what := strings.Join(c.Args, " ")
	conn, err := dial(m.server)
	if err != nil {
		return nil, fmt.Errorf("run %s on the second machine: %w", what, err)
	}
	p := &Process{what: what, conn: conn, done: make(chan struct{})}
	if err := json.NewEncoder(conn).Encode(c); err != nil {
		conn.Close()
		return nil, fmt.Errorf("run %s on the second machine: %w", what, err)
	}
	go p.read(stdout, stderr)
	return p, nil
}

// Run runs a program to its end and returns its exit status.
func (m *Machine) Run(c Command, stdout, stderr io.Writer) (int, error) {
	p, err := m.Start(c, stdout, stderr)
	if err != nil {
		return 0, err
	}
	return p.Wait()
}

// dial tries again: the second machine's command is started when the first boots.
func dial(address string) (net.Conn, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", address, patience)
		if err == nil || time.Now().After(deadline) {
			return conn, err
		}
	}
}

func (p *Process) read(stdout, stderr io.Writer) {
	defer close(p.done)
	defer p.conn.Close()
	for dec := json.NewDecoder(p.conn); ; {
		var a answer
		if err := dec.Decode(&a); err != nil {
			p.err = fmt.Errorf("%s on the second machine: the connection ended before it did: %w", p.what, err)
			return
		}
		// A writer that fails has lost output that somebody wants.
		for _, w := range []struct {
			to   io.Writer
			text []byte
		}{{stdout, a.Stdout}, {stderr, a.Stderr}} {
			if len(w.text) == 0 {
				continue
			}
			if _, err := w.to.Write(w.text); err != nil {
				p.err = fmt.Errorf("%s on the second machine: pass its output on: %w", p.what, err)
				return
			}
		}
		switch {
		case a.Error != "":
			p.err = fmt.Errorf("%s on the second machine: %w", p.what, errors.New(a.Error))
			return
		case a.Exit != nil:
			p.status = *a.Exit
			return
		}
	}
}

// Wait waits for the end of the program and returns its exit status, 128+N after
// signal N.
func (p *Process) Wait() (int, error) {
	<-p.done
	return p.status, p.err
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends the program, with all that is in its process group, and does not wait for that.
func (p *Process) Kill() { p.conn.Close() }
