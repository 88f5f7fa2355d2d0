package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// result is what became of one target.
type result struct {
	pkg, target string
	took        time.Duration
	execs       int64
	found       string // "new interesting: …", as the fuzzer says it
	problem     string // what went wrong, with all output; empty when all is well
}

func (r result) String() string {
	line := fmt.Sprintf("%-28s %-24s %6.1fs  %9d inputs  %s\n", r.pkg, r.target, r.took.Seconds(), r.execs, r.found)
	if r.problem == "" {
		return "ok    " + line
	}
	return "FAIL  " + line + "      " + strings.ReplaceAll(strings.TrimSpace(r.problem), "\n", "\n      ") + "\n"
}

// job is a target that is ready to run.
type job struct {
	pkg    pkg
	target string
	bin    string // the package's tests
}

func (p pkg) build(ctx context.Context, o options) (bin string, err error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return "", err
	}
	bin = filepath.Join(dir, "bin", strings.ReplaceAll(p.name(), "/", "-")+".test")
	args := []string{"test", "-c", "-o", bin, p.ImportPath}
	if !o.plain {
		args = append(args, "-fuzz=Fuzz")
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("it does not compile: %w\n%s", err, out)
	}
	return bin, nil
}

// status is the fuzzer's last word on how far it is.
var status = regexp.MustCompile(`(?m)^fuzz: elapsed: .*execs: (\d+) \([^)]*\)(?:, (new interesting: .*))?$`)

// run runs the target in its own process and its package's folder, where the
// fuzzer looks for testdata.
func (j job) run(ctx context.Context, o options) (r result) {
	r = result{pkg: j.pkg.name(), target: j.target}
	began := time.Now()
	defer func() { r.took = time.Since(began) }()
	cache, err := filepath.Abs(filepath.Join(o.dir, "cache", j.pkg.name()))
	if err != nil {
		r.problem = err.Error()
		return r
	}
	// Making an input smaller that reached new code is not counted and would
	// take most of a short run: 60 s for each is what the fuzzer allows itself.
	const minimize = "-test.fuzzminimizetime=100x"
	var out watch
	cmd := exec.CommandContext(ctx, j.bin, "-test.run=^$", "-test.fuzz=^"+j.target+"$", "-test.fuzztime="+o.time,
		"-test.fuzzcachedir="+cache, "-test.parallel=1", minimize, "-test.timeout=0")
	cmd.Dir, cmd.Stdout, cmd.Stderr = j.pkg.Dir, &out, &out
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out.patience, out.stuck = o.patience, func() { abortWorkers(cmd.Process.Pid) }
	if err := cmd.Start(); err != nil {
		r.problem = err.Error()
		return r
	}
	err = cmd.Wait()
	text := out.text.String()
	if all := status.FindAllStringSubmatch(text, -1); all != nil {
		last := all[len(all)-1]
		r.execs, _ = strconv.ParseInt(last[1], 10, 64)
		r.found = last[2]
	}
	switch {
	case err != nil && !cutShort(text):
		r.problem = text
	case r.execs == 0:
		r.problem = "it was given no input\n" + text
	}
	return r
}

// watch keeps a fuzzer's output and calls stuck when it has told of no progress
// for some time. It speaks every three seconds.
type watch struct {
	patience time.Duration
	stuck    func()
	text     bytes.Buffer
	line     []byte
	last     string
	since    time.Time
}

var elapsed = regexp.MustCompile(`^fuzz: elapsed: [^,]*, `)

func (w *watch) Write(p []byte) (int, error) {
	w.text.Write(p)
	w.line = append(w.line, p...)
	for {
		i := bytes.IndexByte(w.line, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.look(string(w.line[:i]))
		w.line = w.line[i+1:]
	}
}

func (w *watch) look(line string) {
	at := elapsed.FindString(line)
	what, _, _ := strings.Cut(line[len(at):], " (")
	switch {
	case at == "":
	case what != w.last || what == "minimizing": // that has a limit of its own
		w.last, w.since = what, time.Now()
	case time.Since(w.since) >= w.patience:
		w.stuck()
	}
}

// abortWorkers ends the processes that run the inputs with the signal that the
// fuzzer takes for a crash: it then writes down the input that it gave last.
func abortWorkers(pid int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range lists {
		text, _ := os.ReadFile(name)
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				_ = syscall.Kill(child, syscall.SIGABRT)
			}
		}
	}
}

// cutShort tells whether the only complaint is that the time was over while a
// worker had an input in hand, which the fuzzer of Go 1.26 at times reports as
// a failure of the target. A real one names its input.
func cutShort(text string) bool {
	return strings.Contains(text, "\n    context deadline exceeded\n") && !strings.Contains(text, "testdata/fuzz/")
}
