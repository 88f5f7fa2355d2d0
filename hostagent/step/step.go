// Package step runs one command to its end and leaves no process of it behind.
//
// The command is the leader of a session of its own. A process that leaves the
// session, as a daemon does, becomes a child of ours when its parent ends
// (PR_SET_CHILD_SUBREAPER, linux/prctl.h), so everything that the command
// started is found below us in the tree of processes, and is stopped when the
// command has ended: whatever would go on could hold a mount that is to go, or
// write to data that is about to be put back.
package step

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultGrace is the time between TERM and KILL.
	DefaultGrace = 10 * time.Second
	// killTime bounds the wait for processes that were killed: one that hangs
	// in the kernel does not end.
	killTime = 30 * time.Second
	// drainTime bounds the wait for output when somebody whom we can't see
	// still has the pipe open.
	drainTime = 2 * time.Second
	// reapEvery is how often orphans that have ended are collected.
	reapEvery = 2 * time.Second
)

// Command is what to run.
type Command struct {
	Args []string
	// Script, when there is one, is run by "/bin/sh -e" in place of Args. It is
	// handed over in a file of memory: arguments are everybody's to read.
	Script string
	// User to run as, a name or number; empty for ours. Another needs root.
	User string
	// Env is added to a clean environment (PATH, HOME, USER, LOGNAME, SHELL,
	// LANG). Nothing of our own environment is passed on, nor any descriptor
	// but the standard ones. The mask for new files is 022.
	Env map[string]string
	Dir string // default /
	// Timeout after which the command is stopped; 0 for none.
	Timeout time.Duration
	// Grace is the time between TERM and KILL; default [DefaultGrace].
	Grace time.Duration
	// Output gets what the command and its children write to stdout and
	// stderr. It is written to by one goroutine at a time, and not after Run
	// has returned.
	Output io.Writer
	// Started is called with the command's process, before Run waits for it.
	Started func(Process)
}

// Result tells how a command ended.
type Result struct {
	// ExitCode is the command's own, or 128 and the number of the signal that
	// ended it, as shells count.
	ExitCode int
	Signal   string // name of that signal
	// TimedOut and Stopped say that it was ended by us: because its time ran
	// out, or because the context did.
	TimedOut bool
	Stopped  bool
	// Strays are the processes that were still there when the command itself
	// had ended. They are stopped.
	Strays   []Process
	Duration time.Duration
}

// OK tells whether the command did what it should.
func (r Result) OK() bool { return r.ExitCode == 0 && !r.TimedOut && !r.Stopped }

// String says in a few words how the command ended.
func (r Result) String() string {
	switch {
	case r.TimedOut:
		return "timed out"
	case r.Stopped:
		return "was stopped"
	case r.Signal != "":
		return "was ended by " + r.Signal
	}
	return fmt.Sprintf("exit code %d", r.ExitCode)
}

// StartError: the command could not be started. Nothing of it has run.
type StartError struct {
	Command string
	Err     error
}

func (e *StartError) Error() string { return fmt.Sprintf("start %s: %v", e.Command, e.Err) }

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// StuckError: processes did not end although they were killed.
type StuckError struct{ Processes []Process }

func (e *StuckError) Error() string {
	return fmt.Sprintf("killed, but still there: %s", describe(e.Processes))
}

// Run starts the command, waits for its end, and stops what it leaves behind.
// When ctx is over the command is stopped; that is no error but in the result.
// Errors are [*StartError] and [*StuckError]. One Run at a time: children of
// this process that appear meanwhile are taken for the command's.
func Run(ctx context.Context, c Command) (Result, error) {
	if c.Grace == 0 {
		c.Grace = DefaultGrace
	}
	if c.Script != "" {
		c.Args = scriptArgs
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return Result{}, &StartError{c.Args[0], fmt.Errorf("become the reaper of its children: %w", err)}
	}
	cmd, err := c.prepare()
	if err != nil {
		return Result{}, &StartError{c.Args[0], err}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return Result{}, &StartError{c.Args[0], err}
	}
	defer r.Close()
	t := &tree{self: os.Getpid()}
	if err := t.ignorePresent(); err != nil {
		w.Close()
		return Result{}, &StartError{c.Args[0], err}
	}
	cmd.Stdout, cmd.Stderr = w, w
	start := time.Now()
	err = c.launch(cmd)
	w.Close()
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			// The kernel does not say which of the two it was.
			err = fmt.Errorf("%w (the step's user needs access to the program and to its working directory %s)", err, cmd.Dir)
		}
		return Result{}, &StartError{c.Args[0], err}
	}
	t.main = cmd.Process.Pid
	if c.Started != nil {
		c.Started(identify(t.main))
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		out := c.Output
		if out == nil {
			out = io.Discard
		}
		// A log that can't be written must not stop the command: it is read
		// to the end all the same.
		if _, err := io.Copy(out, r); err != nil {
			_, _ = io.Copy(io.Discard, r)
		}
	}()
	res, err := c.wait(ctx, cmd, t)
	res.Duration = time.Since(start)
	select {
	case <-copied:
	case <-time.After(drainTime):
		r.SetReadDeadline(time.Now())
		<-copied
	}
	return res, err
}

// wait sees the command to its end and its strays to theirs.
func (c Command) wait(ctx context.Context, cmd *exec.Cmd, t *tree) (Result, error) {
	var res Result
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(ended)
	}()
	var timeout <-chan time.Time
	if c.Timeout > 0 {
		timer := time.NewTimer(c.Timeout)
		defer timer.Stop()
		timeout = timer.C
	}
	reap := time.NewTicker(reapEvery)
	defer reap.Stop()
	for running := true; running; {
		select {
		case <-ended:
			running = false
		case <-reap.C:
			t.reap()
		case <-timeout:
			res.TimedOut, running = true, false
		case <-ctx.Done():
			res.Stopped, running = true, false
		}
	}
	if !res.TimedOut && !res.Stopped {
		res.Strays = t.alive()
	}
	stuck := t.stop(c.Grace)
	select {
	case <-ended:
	default:
		if len(stuck) > 0 {
			return res, &StuckError{stuck}
		}
		<-ended
	}
	if len(stuck) > 0 {
		return res, &StuckError{stuck}
	}
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return res, errors.New("no wait status")
	case ws.Signaled():
		res.ExitCode, res.Signal = 128+int(ws.Signal()), unix.SignalName(ws.Signal())
	default:
		res.ExitCode = ws.ExitStatus()
	}
	return res, nil
}
