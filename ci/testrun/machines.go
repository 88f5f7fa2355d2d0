package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// machines runs the compiled tests on each kernel, all at the same time: an
// emulated machine keeps one processor of the host busy, and waits for much of
// its time. With more than one kernel each line says whose it is. It returns
// the worst exit status.
func machines(ctx context.Context, o *options, dir string, m *manifest) (status int, err error) {
	inside, err := prepare(o, dir, m)
	if err != nil {
		return 0, err
	}
	kernels := strings.Fields(o.kernel)
	if len(kernels) < 2 {
		return boot(ctx, o.kernel, inside, os.Stdout, os.Stderr)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, k := range kernels {
		// The first machine installs what is missing and finds out how to emulate.
		up := make(chan struct{})
		out := &labelled{mu: &mu, to: os.Stdout, label: k, began: up}
		wg.Go(func() {
			got, bad := boot(ctx, k, inside, out, &labelled{mu: &mu, to: os.Stderr, label: k})
			out.begin()
			mu.Lock()
			defer mu.Unlock()
			status, err = max(status, got), errors.Join(err, bad)
		})
		<-up
	}
	wg.Wait()
	return status, err
}

// prepare writes what the machine reads, and returns the command for it.
func prepare(o *options, dir string, m *manifest) (command string, err error) {
	list := filepath.Join(dir, "manifest.json")
	data, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(list, data, 0o644); err != nil {
		return "", fmt.Errorf("write the list of tests: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	// A copy of our own: a build while the machine runs would pull it away.
	own := filepath.Join(dir, "testrun")
	program, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(own, program, 0o755)
	}
	if err != nil {
		return "", fmt.Errorf("copy this program: %w", err)
	}
	inside := []string{own, "-inside", list, "-count", fmt.Sprint(o.count), "-timeout", o.timeout.String()}
	if o.verbose {
		inside = append(inside, "-v")
	}
	for i, a := range inside {
		inside[i] = quote(a)
	}
	return strings.Join(inside, " "), nil
}

// boot runs a command in a machine and returns its exit status. A failure of
// QEMU is no verdict on what is tested, so it gets a second chance.
func boot(ctx context.Context, kernel, command string, stdout, stderr io.Writer) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find this program: %w", err)
	}
	args := []string{"-again", "-kernel", kernel}
	if os.Getenv("VM_TIMEOUT") == "" {
		args = append(args, "-timeout", "1h") // each package has a limit of its own
	}
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "vm"), append(args, "--", command)...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it has a machine to end
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitCode(), nil
	default:
		return 0, fmt.Errorf("run the test machine: %w", err)
	}
}

// labelled puts a label before each line. Writers of one mutex share a terminal.
type labelled struct {
	mu    *sync.Mutex
	to    io.Writer
	label string
	rest  []byte
	once  sync.Once
	began chan struct{} // closed at the first line, unless nil
}

func (l *labelled) begin() {
	if l.began != nil {
		l.once.Do(func() { close(l.began) })
	}
}

func (l *labelled) Write(p []byte) (int, error) {
	l.begin()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		if _, err := fmt.Fprintf(l.to, "%-5s %s\n", l.label, l.rest[:i]); err != nil {
			return 0, err
		}
		l.rest = l.rest[i+1:]
	}
}
