package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/swapback/swapback/ci/internal/guestcfg"
)

// Run is one boot of a machine.
type Run struct {
	Machine Machine
	// Boot is how long the machine may take until it is ready.
	Boot time.Duration
	// Limit is how long the command may take after that.
	Limit time.Duration
	// Stdout and Stderr receive the command's output.
	Stdout, Stderr io.Writer
	Notice         func(format string, args ...any)
	// OnReady is called when the command is about to start.
	OnReady func(boot time.Duration)
}

// ErrBoot: the machine did not come up. Nothing has run in it; it may be tried again.
var ErrBoot = errors.New("the machine did not come up")

// ErrLost: the machine's kernel stopped while the command was running.
var ErrLost = errors.New("the machine was lost while the command ran")

// ErrCrash: the emulation failed while the command was running. That says
// nothing about the command.
var ErrCrash = errors.New("QEMU failed while the command ran")

// ErrTimeout: the command ran longer than Limit.
var ErrTimeout = errors.New("the command took too long")

// Do boots the machine, runs the command and returns its exit status. The
// machine is gone when Do returns.
func (r *Run) Do(ctx context.Context) (int, error) {
	// In /tmp whatever $TMPDIR says: a socket's path has room for 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "swapback-vm-")
	if err != nil {
		return 0, fmt.Errorf("make a folder for the machine's sockets: %w", err)
	}
	defer os.RemoveAll(dir)

	m := r.Machine
	m.Sockets = map[string]string{}
	listeners := map[string]net.Listener{}
	for i, port := range []string{guestcfg.PortControl, guestcfg.PortStdout, guestcfg.PortStderr} {
		path := filepath.Join(dir, strconv.Itoa(i))
		l, err := net.Listen("unix", path)
		if err != nil {
			return 0, fmt.Errorf("make a socket for the machine: %w", err)
		}
		defer l.Close()
		m.Sockets[port] = path
		listeners[port] = l
	}
	q, err := start(&m)
	if err != nil {
		return 0, err
	}
	defer q.kill()

	// A QEMU that ends before it has connected must not leave us waiting for it.
	go func() {
		<-q.done
		for _, l := range listeners {
			l.Close()
		}
	}()
	var streams sync.WaitGroup
	for port, w := range map[string]io.Writer{guestcfg.PortStdout: r.Stdout, guestcfg.PortStderr: r.Stderr} {
		streams.Go(func() { copyStream(listeners[port], w) })
	}
	words := make(chan string, 16)
	go readWords(listeners[guestcfg.PortControl], words)

	status, err := r.follow(ctx, q, words)
	// Ending QEMU closes the ports: what they carried is in the sockets by now,
	// and the copying ends when it has been read.
	q.stop()
	streams.Wait()
	return status, err
}

// follow watches the machine from its start to the command's end.
func (r *Run) follow(ctx context.Context, q *process, words <-chan string) (int, error) {
	began := time.Now()
	timer := time.NewTimer(r.Boot)
	defer timer.Stop()
	ready := false
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-timer.C:
			if ready {
				return 0, fmt.Errorf("%w (limit %s)", ErrTimeout, r.Limit)
			}
			return 0, fmt.Errorf("%w within %s", ErrBoot, r.Boot)
		case <-q.trouble:
			return 0, fmt.Errorf("%w: %s", ErrBoot, q.complaint())
		case <-q.done:
			// The last words may still be on their way.
			for words != nil {
				w, ok := <-words
				if !ok {
					break
				}
				if status, err, end := r.word(w, &ready, began, timer); end {
					return status, err
				}
			}
			switch {
			case !ready:
				return 0, fmt.Errorf("%w: %s", ErrBoot, q.complaint())
			case q.crashed():
				return 0, fmt.Errorf("%w: %s", ErrCrash, q.complaint())
			case r.Machine.Accel != KVM && staleInstruction(r.Machine.Console):
				return 0, fmt.Errorf("%w: it ran an instruction that the kernel had replaced (\"Oops: int3\")", ErrCrash)
			}
			return 0, fmt.Errorf("%w: %s", ErrLost, q.complaint())
		case w, ok := <-words:
			if !ok {
				words = nil
				continue
			}
			if status, err, end := r.word(w, &ready, began, timer); end {
				return status, err
			}
		}
	}
}

// staleInstruction recognises in the kernel's log what a race in QEMU's
// emulation does to a kernel that patches itself (QEMU before 8.1).
func staleInstruction(console string) bool {
	data, err := os.ReadFile(console)
	return err == nil && bytes.Contains(data, []byte("Oops: int3"))
}

func (r *Run) word(line string, ready *bool, began time.Time, timer *time.Timer) (status int, err error, end bool) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case guestcfg.Ready:
		*ready = true
		timer.Reset(r.Limit)
		r.OnReady(time.Since(began))
	case guestcfg.Note:
		r.Notice("%s", rest)
	case guestcfg.Exit:
		n, err := strconv.Atoi(rest)
		if err != nil {
			return 0, fmt.Errorf("the machine reported a status that is no number: %q", rest), true
		}
		return n, nil, true
	case guestcfg.Fail:
		if *ready {
			return 0, fmt.Errorf("%w: %s", ErrLost, rest), true
		}
		return 0, fmt.Errorf("%w: %s", ErrBoot, rest), true
	}
	return 0, nil, false
}

func copyStream(l net.Listener, w io.Writer) {
	c, err := l.Accept()
	if err != nil {
		return // the machine ended before it opened the port
	}
	defer c.Close()
	_, _ = io.Copy(w, c)
}

func readWords(l net.Listener, words chan<- string) {
	defer close(words)
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	s := bufio.NewScanner(c)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		words <- s.Text()
	}
}

// process is a running QEMU.
type process struct {
	pid     int
	done    chan struct{}
	trouble chan struct{}

	mu     sync.Mutex
	stderr bytes.Buffer
	state  *os.ProcessState
}

// start starts QEMU so that it dies with us, however we die. The kernel ties
// that to the thread that started it, so a goroutine keeps its thread for it.
func start(m *Machine) (*process, error) {
	q := &process{done: make(chan struct{}), trouble: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.Command(Program, m.Args()...)
		if m.Network != nil {
			cmd.ExtraFiles = []*os.File{m.Network.End} // cableFD
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
		cmd.Stderr = q
		err := cmd.Start()
		if err == nil {
			q.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait()
		q.mu.Lock()
		q.state = cmd.ProcessState
		q.mu.Unlock()
		close(q.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return q, nil
}

// Write receives what QEMU itself says. A /dev/kvm that exists and does not
// work shows here first; QEMU then stops the machine and waits for ever.
func (q *process) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	had := bytes.Contains(q.stderr.Bytes(), kvmError)
	q.stderr.Write(p)
	if !had && bytes.Contains(q.stderr.Bytes(), kvmError) {
		close(q.trouble)
	}
	return len(p), nil
}

var kvmError = []byte("KVM internal error")

// crashed says whether QEMU ended by itself and not because its machine did.
func (q *process) crashed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.state != nil && !q.state.Success()
}

// complaint is what is known about QEMU's end.
func (q *process) complaint() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	text := "QEMU stopped"
	if q.state != nil {
		text = "QEMU ended (" + q.state.String() + ")"
		if q.state.Success() {
			text = "its kernel stopped (a panic, or somebody powered it off)"
		}
	}
	if first, _, _ := strings.Cut(strings.TrimSpace(q.stderr.String()), "\n"); first != "" {
		text += ": " + first
	}
	return text
}

// stop ends QEMU in an orderly way: its disks are written out.
func (q *process) stop() {
	_ = syscall.Kill(q.pid, syscall.SIGTERM)
	select {
	case <-q.done:
	case <-time.After(10 * time.Second):
		q.kill()
	}
}

func (q *process) kill() {
	select {
	case <-q.done:
	default:
		_ = syscall.Kill(q.pid, syscall.SIGKILL)
		<-q.done
	}
}
