package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// work is the folder of one run: build/vm/run-PID in the checkout.
type work struct {
	dir  string
	lock *os.File
}

func newWork() (*work, error) {
	root, err := filepath.Abs("build/vm")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the machine: %w", err)
	}
	sweep(root)
	w := &work{dir: filepath.Join(root, fmt.Sprintf("run-%d", os.Getpid()))}
	if err := os.RemoveAll(w.dir); err != nil {
		return nil, fmt.Errorf("make a folder for the machine: %w", err)
	}
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder for the machine: %w", err)
	}
	return w, nil
}

// sweep removes the folders of runs that were killed before they could.
func sweep(root string) {
	dirs, _ := filepath.Glob(filepath.Join(root, "run-*"))
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), "run-"))
		if err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			os.RemoveAll(dir)
		}
	}
}

func (w *work) path(name string) string { return filepath.Join(w.dir, name) }

// The kernels' logs in a run's folder.
const (
	firstLog = "console.log"
	peerLog  = "console-peer.log"
)

// remove keeps the newest logs of kernels: build/vm/console.log and console-peer.log.
func (w *work) remove() {
	for _, name := range []string{firstLog, peerLog} {
		_ = os.Rename(w.path(name), filepath.Join(filepath.Dir(w.dir), name))
	}
	os.RemoveAll(w.dir)
	if w.lock != nil {
		w.lock.Close()
	}
}

// keepPrograms gives the machine its own links to the built programs: a build
// while the machine runs would otherwise change them under its feet.
func (w *work) keepPrograms(bin string) (string, error) {
	to := w.path("bin")
	if err := os.Mkdir(to, 0o755); err != nil {
		return "", fmt.Errorf("keep the built programs: %w", err)
	}
	entries, err := os.ReadDir(bin)
	if os.IsNotExist(err) {
		return to, nil
	}
	if err != nil {
		return "", fmt.Errorf("keep the built programs: %w", err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		from, to := filepath.Join(bin, e.Name()), filepath.Join(to, e.Name())
		if os.Link(from, to) == nil {
			continue
		}
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, data, 0o755)
		}
		if err != nil {
			return "", fmt.Errorf("keep the built programs: %w", err)
		}
	}
	return to, nil
}

// lockDisks keeps two machines from writing to the same disks.
func (w *work) lockDisks(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("lock the disks in %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("the disks in %s are in use by another machine: %w", dir, err)
	}
	w.lock = f
	return nil
}

// showConsoles prints the end of what each kernel said.
func (w *work) showConsoles(out io.Writer) {
	w.showConsole(out, firstLog, "the kernel's log")
	w.showConsole(out, peerLog, "the log of the second machine's kernel")
}

func (w *work) showConsole(out io.Writer, name, what string) {
	data, err := os.ReadFile(w.path(name))
	if err != nil || len(data) == 0 {
		return
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	if n := len(lines); n > 60 {
		lines = lines[n-60:]
	}
	fmt.Fprintf(out, "vm: the end of %s (all of it: build/vm/%s):\n", what, name)
	for _, l := range lines {
		fmt.Fprintf(out, "  | %s\n", strings.TrimRight(l, "\r"))
	}
}

// alarm matches what a kernel prints when something is wrong with itself. I/O
// errors are not among it: tests bring them about.
var alarm = regexp.MustCompile(`BUG: |WARNING: CPU|WARNING: at|Oops|general protection|Call Trace|blocked for more than|Kernel panic|lockdep`)

// complain names the first such line of each log: a test that passes may still have
// hurt the kernel.
func (w *work) complain(notice func(string, ...any)) {
	for _, name := range []string{firstLog, peerLog} {
		data, err := os.ReadFile(w.path(name))
		if err != nil {
			continue
		}
		for _, line := range bytes.Split(data, []byte("\n")) {
			if alarm.Match(line) {
				notice("look at the kernel's log (build/vm/%s): %s", name, bytes.TrimSpace(line))
				break
			}
		}
	}
}
