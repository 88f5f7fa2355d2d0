// Package gotest follows what a test binary prints when run with -test.v, and
// makes of it a short report: one line per test, all of the output of those
// that failed.
package gotest

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
)

// Counts are numbers of top-level tests.
type Counts struct {
	Passed, Failed, Skipped int
}

// Add adds another package's counts.
func (c *Counts) Add(d Counts) {
	c.Passed += d.Passed
	c.Failed += d.Failed
	c.Skipped += d.Skipped
}

func (c Counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.Passed, c.Failed, c.Skipped)
}

// Follower is the io.Writer for one test binary's output. It is not safe for
// use by several goroutines.
type Follower struct {
	out     io.Writer
	verbose bool
	counts  Counts
	line    []byte
	// running is the top-level test that is under way, "" between tests;
	// began is when it was first named.
	running string
	began   time.Time
	// failing says that the last test to end has failed.
	failing bool
	output  bytes.Buffer
	// attrs are what the test reports with T.Attr: figures worth a line even
	// when all is well.
	attrs []string
	now   func() time.Time
}

// NewFollower reports to out; verbose passes everything on as it comes.
func NewFollower(out io.Writer, verbose bool) *Follower {
	return &Follower{out: out, verbose: verbose, now: time.Now}
}

// Write takes some of the test binary's output.
func (f *Follower) Write(p []byte) (int, error) {
	if f.verbose {
		if _, err := f.out.Write(p); err != nil {
			return 0, err
		}
	}
	f.line = append(f.line, p...)
	for {
		i := bytes.IndexByte(f.line, '\n')
		if i < 0 {
			return len(p), nil
		}
		f.take(string(f.line[:i]))
		f.line = f.line[i+1:]
	}
}

// Close ends the report. A binary that ended in the middle of a test (a panic,
// a timeout, a kill) failed that test; one that failed otherwise (in TestMain,
// say) counts as one failure. ok is whether the binary exited with status 0.
func (f *Follower) Close(ok bool) Counts {
	if len(f.line) > 0 {
		f.take(string(f.line))
		f.line = nil
	}
	switch {
	case f.running != "":
		f.result("FAIL", f.running, fmt.Sprintf("did not end, after %.1fs", f.now().Sub(f.began).Seconds()))
	case !ok && f.counts.Failed == 0:
		f.counts.Failed++
		fmt.Fprintf(f.out, "  FAIL  outside of any test\n")
		f.spill()
	}
	return f.counts
}

func (f *Follower) take(line string) {
	mark := strings.TrimPrefix(line, "\x16") // test2json's marker, if it was asked for
	for _, prefix := range []string{"=== RUN ", "=== PAUSE ", "=== CONT ", "=== NAME "} {
		rest, ok := strings.CutPrefix(mark, prefix)
		if !ok {
			continue
		}
		name, sub, _ := strings.Cut(strings.TrimSpace(rest), "/")
		switch {
		case prefix == "=== RUN " && sub == "":
			f.start(name)
		case prefix == "=== PAUSE " && sub == "":
			f.running = "" // a parallel test, which waits for its turn
		case prefix == "=== CONT " && name != f.running:
			f.start(name)
		}
		return
	}
	if rest, ok := strings.CutPrefix(mark, "=== ATTR "); ok {
		if name, attr, ok := strings.Cut(strings.TrimSpace(rest), " "); ok {
			if _, sub, ok := strings.Cut(name, "/"); ok {
				attr = sub + " " + attr
			}
			f.attrs = append(f.attrs, attr)
		}
		return
	}
	for _, verdict := range []string{"PASS", "FAIL", "SKIP"} {
		// Subtests are indented: only top-level tests count.
		if rest, ok := strings.CutPrefix(mark, "--- "+verdict+": "); ok {
			name, took, _ := strings.Cut(rest, " ")
			f.result(verdict, name, strings.Trim(took, "()"))
			return
		}
	}
	if mark == "PASS" || mark == "FAIL" {
		return // the binary's last line, which the summary makes superfluous
	}
	if f.failing && f.running == "" {
		// What follows a failure belongs to it: its subtests, a panic's stack.
		if !f.verbose {
			fmt.Fprintf(f.out, "        %s\n", line)
		}
		return
	}
	f.output.WriteString(line)
	f.output.WriteByte('\n')
}

func (f *Follower) start(name string) {
	f.running, f.began, f.failing = name, f.now(), false
	f.output.Reset()
	f.attrs = nil
}

func (f *Follower) result(verdict, name, took string) {
	switch verdict {
	case "PASS":
		f.counts.Passed++
		verdict = "ok  "
	case "FAIL":
		f.counts.Failed++
	case "SKIP":
		f.counts.Skipped++
		verdict = "skip"
	}
	fmt.Fprintf(f.out, "  %s  %s (%s)\n", verdict, name, took)
	for _, a := range f.attrs {
		fmt.Fprintf(f.out, "        %s\n", a)
	}
	// The output of a test stands before its verdict, so it can be told whose
	// it is by what came since the test began.
	if verdict != "ok  " && !f.verbose {
		f.spill()
	}
	f.running, f.failing = "", verdict == "FAIL"
	f.output.Reset()
	f.attrs = nil
}

func (f *Follower) spill() {
	for line := range strings.Lines(f.output.String()) {
		fmt.Fprintf(f.out, "        %s", line)
	}
	f.output.Reset()
}
