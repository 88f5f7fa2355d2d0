package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/holders/pagecache"
	"github.com/swapback/swapback/volume"
)

// helperArg makes the program a [volume.Helper] and nothing else. It is no flag,
// because it is nobody's but the daemon's. What the helper is asked for are lines
// on its standard input; it answers each with a line of JSON, and says once first
// that it has the devices open.
const helperArg = "helper"

// Questions.
const (
	askWriteBack = "write-back"
	askCoherent  = "check-coherent"
	askEnd       = "end" // has no answer
)

type answer struct {
	Error string   `json:"error,omitempty"`
	Lost  []string `json:"lost,omitempty"` // for each device, empty when nothing is
}

// helper is the daemon's end of a helper. It is for one goroutine.
type helper struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan answer // closed when there will be no more
	said    *bytes.Buffer
	ended   chan struct{}
	dead    error // why it was killed
}

// startHelper is for [volume.Options.Helper].
func startHelper(ctx context.Context, devices []string) (volume.Helper, error) {
	h := &helper{answers: make(chan answer, 1), said: new(bytes.Buffer), ended: make(chan struct{})}
	h.cmd = exec.Command("/proc/self/exe", append([]string{helperArg, strconv.Itoa(os.Getpid())}, devices...)...)
	h.cmd.Env = []string{"GOMAXPROCS=1"}
	h.cmd.Stderr = h.said
	h.cmd.WaitDelay = time.Second
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start a helper: %w", err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a helper: %w", err)
	}
	if err := h.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a helper: %w", err)
	}
	go func() {
		for dec := json.NewDecoder(out); ; {
			var a answer
			if dec.Decode(&a) != nil {
				break
			}
			h.answers <- a
		}
		_ = h.cmd.Wait() // what it said tells more
		close(h.answers)
		close(h.ended)
	}()
	if _, err := h.hear(ctx); err != nil {
		h.Close()
		return nil, fmt.Errorf("start a helper: %w", err)
	}
	return h, nil
}

func (h *helper) PID() int { return h.cmd.Process.Pid }

func (h *helper) WriteBack(ctx context.Context) ([]error, error) {
	a, err := h.ask(ctx, askWriteBack)
	if err != nil {
		return nil, err
	}
	lost := make([]error, len(a.Lost))
	for i, text := range a.Lost {
		if text != "" {
			lost[i] = errors.New(text)
		}
	}
	return lost, nil
}

func (h *helper) CheckAllCoherent(ctx context.Context) error {
	_, err := h.ask(ctx, askCoherent)
	return err
}

func (h *helper) ask(ctx context.Context, what string) (answer, error) {
	if h.dead != nil {
		return answer{}, h.dead
	}
	if _, err := io.WriteString(h.in, what+"\n"); err != nil {
		return answer{}, fmt.Errorf("helper: %w", err)
	}
	return h.hear(ctx)
}

// hear waits for an answer. When ctx ends before, the helper is killed and left to
// itself: it may be waiting in the kernel for one of this process's devices, where
// a kill does not reach it.
func (h *helper) hear(ctx context.Context) (answer, error) {
	select {
	case a, ok := <-h.answers:
		switch {
		case !ok:
			return a, fmt.Errorf("helper: it ended: %v: %s", h.cmd.ProcessState, bytes.TrimSpace(h.said.Bytes()))
		case a.Error != "":
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-ctx.Done():
		h.dead = context.Cause(ctx)
		_ = h.cmd.Process.Kill()
		return answer{}, h.dead
	}
}

// endTime bounds the wait for a helper that is asked to end: longer waits only one
// that waits for a device.
const endTime = 5 * time.Second

func (h *helper) Close() {
	_, _ = io.WriteString(h.in, askEnd+"\n")
	_ = h.in.Close()
	if h.dead != nil {
		return // nobody knows when it goes
	}
	select {
	case <-h.ended:
	case <-time.After(endTime):
		_ = h.cmd.Process.Kill()
	}
}

// helperMain is the life of the other process. It returns the exit code.
func helperMain(args []string) int {
	failed := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	if len(args) == 0 {
		return failed(errors.New("helper: whose?"))
	}
	// It ends when it is told to, or after the daemon; not before the daemon, like
	// everything of its unit that is stopped, nor of what the daemon hears no more.
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGPIPE)
	_ = os.WriteFile("/proc/self/comm", []byte(volume.HelperName), 0) // who is found holding a device
	parent, err := strconv.Atoi(args[0])
	if err != nil {
		return failed(err)
	}
	daemon, err := unix.PidfdOpen(parent, 0)
	if err != nil || os.Getppid() != parent {
		return failed(fmt.Errorf("helper: process %d is not there: %v", parent, err))
	}
	devices := args[1:]
	for _, d := range devices {
		// Kept open until this process ends.
		if _, err := unix.Open(d, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return failed(fmt.Errorf("open %s: %w", d, err))
		}
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(answer{}); err != nil {
		return failed(err)
	}
	ctx := context.Background()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var a answer
		switch in.Text() {
		case askEnd:
			return 0
		case askWriteBack:
			lost, err := pagecache.WriteBack(ctx, devices)
			a.Error = text(err)
			for _, err := range lost {
				a.Lost = append(a.Lost, text(err))
			}
		case askCoherent:
			a.Error = text(pagecache.CheckAllCoherent(ctx, devices))
		}
		if err := out.Encode(a); err != nil {
			break
		}
	}
	// The daemon was killed. When all of it has ended its files are closed.
	fds := []unix.PollFd{{Fd: int32(daemon), Events: unix.POLLIN}}
	for {
		if n, err := unix.Poll(fds, -1); n > 0 || err != unix.EINTR {
			return 0
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
