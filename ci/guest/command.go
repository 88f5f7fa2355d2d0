package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/ci/internal/guestcfg"
)

// link is the three ports to the host. The zero link says nothing.
type link struct {
	mu                      sync.Mutex
	control, stdout, stderr *os.File
}

func (l *link) open(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for name, file := range map[string]**os.File{
		guestcfg.PortControl: &l.control,
		guestcfg.PortStdout:  &l.stdout,
		guestcfg.PortStderr:  &l.stderr,
	} {
		for {
			if dev, ok := portDevice(name); ok {
				// Not through os.OpenFile: it would make the port non-blocking,
				// and a full port would lose the line between two worlds.
				fd, err := unix.Open(dev, unix.O_WRONLY|unix.O_CLOEXEC, 0)
				if err == nil {
					*file = os.NewFile(uintptr(fd), dev)
					break
				}
				if err != unix.ENOENT {
					return fmt.Errorf("open port %s (%s): %w", name, dev, err)
				}
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("port %s did not appear within %s", name, limit)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// say writes one line to the control port.
func (l *link) say(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.control != nil {
		fmt.Fprintln(l.control, line)
	}
}

// runCommand runs the command and returns its status, having passed on all
// that it wrote.
func runCommand(cfg *guestcfg.Config, l *link) (int, error) {
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, fmt.Errorf("open the command's input: %w", err)
	}
	defer null.Close()
	stdout, err := newPump(l.stdout)
	if err != nil {
		return 0, err
	}
	stderr, err := newPump(l.stderr)
	if err != nil {
		return 0, err
	}
	p, err := os.StartProcess("/bin/bash", []string{"bash", "-c", cfg.Command}, &os.ProcAttr{
		Dir:   cfg.Dir,
		Env:   cfg.Env,
		Files: []*os.File{null, stdout.write, stderr.write},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start the command in %s: %w", cfg.Dir, err)
	}
	stdout.start()
	stderr.start()
	status, err := reapUntil(p.Pid)
	if err != nil {
		return 0, err
	}
	stdout.drain()
	stderr.drain()
	return status, nil
}

// reapUntil does init's duty of collecting every orphan, until the one child
// that matters has ended.
func reapUntil(pid int) (int, error) {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait for the command: %w", err)
		case got == pid && ws.Exited():
			return ws.ExitStatus(), nil
		case got == pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		}
	}
}

// pump copies one stream of the command to its port. The command gets a pipe
// and not the port itself, because a port can be opened only once and
// "echo >/dev/stderr" opens it again.
type pump struct {
	read, write *os.File
	port        *os.File
	idle        chan struct{}
}

func newPump(port *os.File) (*pump, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the command's output: %w", err)
	}
	return &pump{read: r, write: w, port: port, idle: make(chan struct{})}, nil
}

func (p *pump) start() {
	p.write.Close()
	go func() {
		defer close(p.idle)
		_, _ = io.CopyBuffer(struct{ io.Writer }{p.port}, struct{ io.Reader }{p.read}, make([]byte, 64<<10))
	}()
}

// drain returns when everything that was in the pipe has reached the port. It
// does not wait for the pipe's end: a daemon that the command left behind may
// hold it open for ever. With a deadline in the past, the copying reads what
// there is and stops at the first read that would have to wait.
func (p *pump) drain() {
	for {
		n, err := pending(p.read)
		if err != nil || n == 0 {
			break
		}
		select {
		case <-p.idle:
			return
		case <-time.After(time.Millisecond):
		}
	}
	// Nothing is left in the pipe, but the last piece may still be on its way
	// from the copier's buffer: ending its next read tells when it is done.
	_ = p.read.SetReadDeadline(time.Unix(1, 0))
	<-p.idle
}

// pending is the number of bytes in a pipe.
func pending(f *os.File) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var ioctlErr error
	err = conn.Control(func(fd uintptr) { n, ioctlErr = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		return 0, err
	}
	return n, ioctlErr
}
