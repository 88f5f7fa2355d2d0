package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// command is a program with its arguments, to be run in a folder.
type command struct {
	args []string
	dir  string
	env  []string // beside PATH
}

// sample is what one run of a command took.
type sample struct {
	Seconds float64 `json:"seconds"`
	// SyncSeconds is the part of Seconds in which the restored file was written
	// back after the program had ended.
	SyncSeconds float64 `json:"sync_seconds,omitempty"`
	CPU         float64 `json:"cpu_seconds"` // user and system, of all its processes
	MaxRSS      int64   `json:"max_rss"`     // bytes, of the largest process
	ReadBytes   int64   `json:"read_bytes"`  // asked of the disk, not of the page cache
	WriteBytes  int64   `json:"write_bytes"` // handed to the disk, or to the page cache to be
}

// measure runs a command. It has nothing from us but PATH, HOME and what it asks
// for, and its output is kept for the error.
func measure(ctx context.Context, c command) (s sample, out []byte, err error) {
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Dir, cmd.Env = c.dir, append([]string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}, c.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return s, nil, err
	}
	// A process that has ended and was not waited for yet still has its counters.
	for {
		if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			break
		}
	}
	s.Seconds = time.Since(start).Seconds()
	counters, ioErr := os.ReadFile(fmt.Sprintf("/proc/%d/io", cmd.Process.Pid))
	if err := cmd.Wait(); err != nil {
		return s, nil, fmt.Errorf("%s: %w\n%s", strings.Join(c.args, " "), err, stderr.Bytes())
	}
	if ioErr != nil {
		return s, nil, ioErr
	}
	if s.ReadBytes, s.WriteBytes, err = parseIO(string(counters)); err != nil {
		return s, nil, err
	}
	ru := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	s.MaxRSS = ru.Maxrss << 10
	s.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	return s, stdout.Bytes(), nil
}

// parseIO reads /proc/PID/io, see proc(5).
func parseIO(text string) (read, written int64, err error) {
	found := 0
	for line := range strings.Lines(text) {
		for name, to := range map[string]*int64{"read_bytes: %d": &read, "write_bytes: %d": &written} {
			if _, err := fmt.Sscanf(line, name, to); err == nil {
				found++
			}
		}
	}
	if found != 2 {
		return 0, 0, fmt.Errorf("no counters in %q", text)
	}
	return read, written, nil
}

// cold writes everything in a folder back and drops it from the page cache, so
// that all begin alike: of everything on the machine when we may, else of each
// file by itself.
func cold(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	err = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// Values of -cache.
const (
	cacheWarm = "warm"
	cacheCold = "cold"
)

// warm reads all files of a folder, or a file, into the page cache.
func warm(path string) error {
	return filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	})
}

// sizeOf is the sum of the sizes of all files in a folder.
func sizeOf(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		st, err := e.Info()
		if err == nil {
			n += st.Size()
		}
		return err
	})
	return n, err
}

// same tells where two files differ first; -1 when they do not.
func same(a, b string) (int64, error) {
	fa, err := os.Open(a)
	if err != nil {
		return 0, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return 0, err
	}
	defer fb.Close()
	pa, pb := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		na, ea := io.ReadFull(fa, pa)
		nb, eb := io.ReadFull(fb, pb)
		if na != nb || !bytes.Equal(pa[:na], pb[:nb]) {
			return off, nil
		}
		off += int64(na)
		switch {
		case ea == io.EOF || ea == io.ErrUnexpectedEOF:
			return -1, nil
		case ea != nil || eb != nil:
			return 0, errors.Join(ea, eb)
		}
	}
}

// syncFile writes a file back to the disk and says how long that took.
func syncFile(path string) (seconds float64, err error) {
	start := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return time.Since(start).Seconds(), nil
}
