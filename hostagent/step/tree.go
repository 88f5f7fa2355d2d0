package step

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/hostagent/printable"
)

// Process is one process. A number alone is used again; together with the time
// it started it is unique for as long as the machine runs.
type Process struct {
	PID     int    `json:"pid"`
	Start   uint64 `json:"start"` // clock ticks after boot, see proc_pid_stat(5)
	Command string `json:"command,omitempty"`
}

// Alive tells whether the process is still there.
func (p Process) Alive() bool {
	s, err := readStat(p.PID)
	return err == nil && s.start == p.Start && s.state != 'Z' && s.state != 'X'
}

func describe(list []Process) string {
	var parts []string
	for _, p := range list {
		parts = append(parts, fmt.Sprintf("%s (process %d)", p.Command, p.PID))
	}
	return strings.Join(parts, ", ")
}

// stat is what is of use in /proc/PID/stat.
type stat struct {
	pid, parent int
	command     string
	state       byte
	start       uint64
}

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(text))
}

// parseStat reads a line of proc_pid_stat(5). The command stands in brackets
// and may hold brackets and blanks itself.
func parseStat(line string) (stat, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return stat{}, fmt.Errorf("process line %q has no command", line)
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 20 {
		return stat{}, fmt.Errorf("process line %q is cut short", line)
	}
	// One letter; a byte of another kind would not survive being printed.
	if state := fields[0]; len(state) != 1 || state[0] <= ' ' || state[0] > '~' {
		return stat{}, fmt.Errorf("process line %q has the state %q, not a letter", line, state)
	}
	s := stat{command: printable.Line(line[open+1 : end]), state: fields[0][0]}
	var err error
	if s.pid, err = strconv.Atoi(strings.TrimSpace(line[:open])); err != nil {
		return stat{}, fmt.Errorf("process line %q: %w", line, err)
	}
	if s.parent, err = strconv.Atoi(fields[1]); err != nil {
		return stat{}, fmt.Errorf("process line %q: %w", line, err)
	}
	if s.start, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
		return stat{}, fmt.Errorf("process line %q: %w", line, err)
	}
	return s, nil
}

// Self is this process.
func Self() Process { return identify(os.Getpid()) }

func identify(pid int) Process {
	p := Process{PID: pid}
	if s, err := readStat(pid); err == nil {
		p.Start, p.Command = s.start, s.command
	}
	return p
}

// tree is the processes below us that belong to the command.
type tree struct {
	self, main int
	// ignored are children that were there before.
	ignored []int
}

func (t *tree) ignorePresent() error {
	all, err := allProcesses()
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.parent == t.self {
			t.ignored = append(t.ignored, s.pid)
		}
	}
	return nil
}

func allProcesses() ([]stat, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var list []stat
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil { // else it has ended meanwhile
			list = append(list, s)
		}
	}
	return list, nil
}

// below returns the command's processes, zombies too. The list of processes is
// not one instant: a process that is forked while it is read may be missed, so
// callers look until nothing is found.
func (t *tree) below() []stat {
	all, err := allProcesses()
	if err != nil {
		return nil
	}
	children := map[int][]stat{}
	for _, s := range all {
		children[s.parent] = append(children[s.parent], s)
	}
	var found []stat
	next := []int{t.self}
	for len(next) > 0 {
		pid := next[0]
		next = next[1:]
		for _, s := range children[pid] {
			if pid == t.self && slices.Contains(t.ignored, s.pid) {
				continue
			}
			found = append(found, s)
			next = append(next, s.pid)
		}
	}
	return found
}

// alive returns the command's processes that have not ended.
func (t *tree) alive() []Process {
	var list []Process
	for _, s := range t.below() {
		if s.state != 'Z' && s.state != 'X' {
			list = append(list, Process{PID: s.pid, Start: s.start, Command: s.command})
		}
	}
	return list
}

// reap collects orphans that have ended. The command itself is left to its own
// waiter.
func (t *tree) reap() {
	for _, s := range t.below() {
		if s.parent == t.self && s.pid != t.main && s.state == 'Z' {
			_, _ = unix.Wait4(s.pid, nil, unix.WNOHANG, nil)
		}
	}
}

// stop ends everything: TERM, after the grace KILL. It returns what is left
// even so.
func (t *tree) stop(grace time.Duration) []Process {
	defer t.reap()
	if t.signalUntilGone(unix.SIGTERM, grace) {
		return nil
	}
	if t.signalUntilGone(unix.SIGKILL, killTime) {
		return nil
	}
	return t.alive()
}

// signalUntilGone sends a signal once to each process, also to those that
// appear later, until there is none or the time is over.
func (t *tree) signalUntilGone(sig unix.Signal, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	sent := map[Process]bool{}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		t.reap()
		alive := t.alive()
		if len(alive) == 0 {
			return true
		}
		for _, p := range alive {
			if !sent[p] {
				_ = unix.Kill(p.PID, sig) // it may have ended meanwhile
				_ = unix.Kill(p.PID, unix.SIGCONT)
				sent[p] = true
			}
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause)
	}
}
