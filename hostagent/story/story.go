// Package story writes what happens in a run of a job, for people and for
// programs at once:
//
//	DIR/JOB/20260301T120000Z.log     what people read, with the steps' output
//	DIR/JOB/20260301T120000Z.jsonl   one [Event] to a line
//
// What people read also goes to a terminal. A log that can't be written must
// not stop a job that is going well, and even less a recovery: the first such
// error is kept for [Story.Close].
package story

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/hostagent/printable"
)

// Event is one line of the story for programs. Fields that say nothing about
// an event are left out.
type Event struct {
	Time    time.Time `json:"time"`
	Elapsed float64   `json:"elapsed_seconds"` // since the run began
	// Event is a stable word, one of the constants.
	Event    string  `json:"event"`
	Job      string  `json:"job"`
	Step     string  `json:"step,omitempty"`
	Attempt  int     `json:"attempt,omitempty"` // of the step, from 1
	ExitCode *int    `json:"exit_code,omitempty"`
	Backup   string  `json:"backup,omitempty"`
	Volume   string  `json:"volume,omitempty"`
	Spare    string  `json:"spare,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"` // how long it took
	// Text is the line that people read.
	Text string `json:"text"`
	// Data holds everything else, such as the result of a recovery.
	Data any `json:"data,omitempty"`
}

// Words of [Event].
const (
	JobStarted      = "job_started"
	JobEnded        = "job_ended"
	Mounted         = "mounted"
	Unmounted       = "unmounted"
	SavePoint       = "save_point"
	SavePointFailed = "save_point_failed"
	StepStarted     = "step_started"
	StepEnded       = "step_ended"
	StepFailed      = "step_failed"
	StraysStopped   = "strays_stopped"
	RecoveryStarted = "recovery_started"
	RecoveryPhase   = "recovery_phase"
	Recovered       = "recovered"
	RecoveryFailed  = "recovery_failed"
	Warning         = "warning"
	Note            = "note"
	BackupsDeleted  = "backups_deleted"
	Durations       = "durations"
)

// Story is the log of one run. Its methods may be called concurrently.
type Story struct {
	job      string
	start    time.Time
	now      func() time.Time
	terminal io.Writer

	mu      sync.Mutex
	human   *os.File
	events  *os.File
	failure error
}

// Options describe a story.
type Options struct {
	Dir string // folder for logs of all jobs
	Job string
	// Terminal gets what people read as well; nil for none.
	Terminal io.Writer
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Open makes the two files.
func Open(o Options) (*Story, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Terminal == nil {
		o.Terminal = io.Discard
	}
	s := &Story{job: o.Job, now: o.Now, start: o.Now(), terminal: o.Terminal}
	dir := filepath.Join(o.Dir, o.Job)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("folder for logs: %w", err)
	}
	if err := checkFolders(o.Dir, dir); err != nil {
		return nil, err
	}
	base := filepath.Join(dir, s.start.UTC().Format("20060102T150405Z"))
	for n := 1; ; n++ {
		path := base
		if n > 1 {
			path = fmt.Sprintf("%s-%d", base, n)
		}
		err := s.create(path)
		if errors.Is(err, fs.ErrExist) && n < 1000 {
			continue // two runs within a second
		}
		if err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
		return s, nil
	}
}

// create makes both files, or none. Neither may be there: what is there already
// can be a link to somewhere else.
func (s *Story) create(path string) (err error) {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL | os.O_APPEND
	if s.events, err = os.OpenFile(path+".jsonl", flags, 0o640); err != nil {
		return err
	}
	if s.human, err = os.OpenFile(path+".log", flags, 0o640); err != nil {
		return errors.Join(err, s.events.Close(), os.Remove(path+".jsonl"))
	}
	return nil
}

// checkFolders refuses folders for logs that somebody else can change: he could
// take a log away, or have it written somewhere else. A folder such as /tmp, in
// which everybody may change his own only, will do for dir but not for sub.
func checkFolders(dir, sub string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("folder for logs %s: %w", dir, err)
	}
	if st.Mode&0o002 != 0 && st.Mode&unix.S_ISVTX == 0 {
		return fmt.Errorf("folder for logs %s is writable by everybody; use another, or: chmod o-w %s", dir, dir)
	}
	if err := unix.Lstat(sub, &st); err != nil {
		return fmt.Errorf("folder for logs %s: %w", sub, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("folder for logs %s is no directory but a link or something else; remove it", sub)
	case st.Uid != uint32(os.Geteuid()) && st.Uid != 0:
		return fmt.Errorf("folder for logs %s belongs to user %d; remove it, or use another folder", sub, st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("folder for logs %s is writable by others; chmod go-w %s", sub, sub)
	}
	return nil
}

// LogPath is the file that people read, EventsPath the one for programs.
func (s *Story) LogPath() string { return s.human.Name() }

// EventsPath is the file for programs.
func (s *Story) EventsPath() string { return s.events.Name() }

// Started is when the story began.
func (s *Story) Started() time.Time { return s.start }

// Tell writes an event. Time, Elapsed and Job are filled in.
func (s *Story) Tell(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Time = s.now().UTC()
	e.Elapsed = e.Time.Sub(s.start).Seconds()
	e.Job = s.job
	line, err := json.Marshal(e)
	if err != nil {
		s.note(err)
	} else {
		_, err = s.events.Write(append(line, '\n'))
		s.note(err)
	}
	indent := ""
	for text := range strings.SplitSeq(printable.Text(e.Text), "\n") {
		s.line(fmt.Sprintf("%8.1fs  %s%s\n", e.Elapsed, indent, text))
		indent = "  "
	}
}

// line writes to both places that people read.
func (s *Story) line(text string) {
	_, err := io.WriteString(s.human, text)
	s.note(err)
	// A terminal that went away (a closed ssh session) stops nothing.
	_, _ = io.WriteString(s.terminal, text)
}

func (s *Story) note(err error) {
	if err != nil && s.failure == nil {
		s.failure = fmt.Errorf("log: %w", err)
	}
}

// Close closes the files and returns the first error of writing them.
func (s *Story) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(s.human.Close())
	s.note(s.events.Close())
	return s.failure
}

// maxLine bounds a line of output that is held back until it is whole.
const maxLine = 16 << 10

// Output writes the output of a step, line by line. Close it when the step
// has ended. It is not safe for concurrent use.
type Output struct {
	s    *Story
	held []byte
	tail []string
}

// Output returns a writer for a step's output.
func (s *Story) Output() *Output { return &Output{s: s} }

// tailLines is how many lines [Output.Tail] keeps.
const tailLines = 5

// Write never fails.
func (o *Output) Write(p []byte) (int, error) {
	o.held = append(o.held, p...)
	for {
		i := bytes.IndexByte(o.held, '\n')
		if i < 0 {
			break
		}
		o.emit(o.held[:i])
		o.held = o.held[i+1:]
	}
	if len(o.held) > maxLine {
		o.emit(o.held)
		o.held = nil
	}
	return len(p), nil
}

// Close writes a last line without an end.
func (o *Output) Close() {
	if len(o.held) > 0 {
		o.emit(o.held)
		o.held = nil
	}
}

// Tail returns the last lines, for the message about a failure.
func (o *Output) Tail() []string { return o.tail }

func (o *Output) emit(line []byte) {
	text := lastState(line)
	if len(o.tail) == tailLines {
		o.tail = o.tail[1:]
	}
	o.tail = append(o.tail, text)
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	o.s.line("           | " + text + "\n")
}

// lastState makes a line of output fit for a terminal. Of a line that redraws
// itself with \r only the last state is kept.
func lastState(line []byte) string {
	line = bytes.TrimRight(line, "\r")
	if i := bytes.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	return printable.Text(string(line))
}
