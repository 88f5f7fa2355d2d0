// Bench measures swapback's volumes beside what else serves a block device, and
// says what changed since. See README.md for the modes, rows and columns.
//
//	bench run [flags]                measure; writes result.json and index.html
//	bench scale [flags]              what more queues and volumes cost; scale.json
//	bench compare OLD NEW            what changed beyond the spread
//	bench check BASELINE NEW         fail when a row fell below the baseline
//	bench report FOLDER              make index.html again from the results in it
//
// "bench run" makes and removes devices, so it runs as root in the machine that
// make bench boots, or on a host whose disks are given away.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const usage = "usage: bench run [flags] | scale [flags] | compare OLD NEW | check BASELINE NEW | report FOLDER"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	what, args := args[0], args[1:]
	switch {
	case what == "run":
		return runCommand(ctx, args)
	case what == "scale":
		return scaleCommand(ctx, args)
	case what == "compare" && len(args) == 2, what == "check" && len(args) == 2:
		old, err := readResults(args[0])
		if err != nil {
			return err
		}
		now, err := readResults(args[1])
		if err != nil {
			return err
		}
		if what == "check" {
			return checkBaseline(os.Stdout, old, now)
		}
		printComparison(os.Stdout, old, now)
		return nil
	case what == "report" && len(args) == 1:
		return writeReport(args[0])
	}
	return errors.New(usage)
}

// Files in the folder of a run.
const (
	resultFile = "result.json"
	reportFile = "index.html"
)

// exactEnv is set in a machine whose clock counts instructions.
const exactEnv = "SWAPBACK_EXACT"

type runOptions struct {
	mode, jobs, out      string
	subjects, rows       string
	runtime, ramp, disks string
	scheduler            string
	short, remote        bool
	rounds               int
	size                 int64
}

func runCommand(ctx context.Context, args []string) error {
	var o runOptions
	f := flag.NewFlagSet("bench run", flag.ContinueOnError)
	o.common(f)
	f.BoolVar(&o.short, "short", false, "few rows and subjects, for every change")
	f.BoolVar(&o.remote, "remote", false, "what other hosts get by NVMe/TCP, beside the kernel's target")
	f.StringVar(&o.subjects, "subjects", "", "measure these only, separated by commas")
	f.StringVar(&o.rows, "rows", "", "measure these only, separated by commas")
	f.IntVar(&o.rounds, "rounds", 0, "how often each row is measured (default: exact 1, its short form 3, wall 5)")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("bench run takes no %q", f.Args())
	}
	return measureAll(ctx, o)
}

// common are the flags of run and scale.
func (o *runOptions) common(f *flag.FlagSet) {
	mode := modeWall
	if os.Getenv(exactEnv) != "" {
		mode = modeExact
	}
	f.StringVar(&o.mode, "mode", mode, "exact, in a machine whose clock counts instructions, or wall")
	f.StringVar(&o.runtime, "runtime", "", "how long a row runs (default: exact 250ms, wall 2s)")
	f.StringVar(&o.ramp, "ramp", "", "what passes before it counts (default: exact 20ms, wall 500ms)")
	f.StringVar(&o.disks, "disks", os.Getenv("SWAPBACK_TEST_DISKS"), "wall mode: disks to use, separated by blanks; what they carry is lost")
	f.Int64Var(&o.size, "size", 1<<30, "wall mode: bytes that are written and read")
	f.StringVar(&o.scheduler, "scheduler", "none", "I/O scheduler of every subject; empty leaves what its driver chose")
	f.StringVar(&o.jobs, "jobs", "bench", "folder of the fio job files")
	f.StringVar(&o.out, "out", "build/bench", "folder for the results")
}

func (o *runOptions) stage() stageOptions {
	return stageOptions{
		mode: o.mode, jobs: o.jobs, disks: strings.Fields(o.disks), size: o.size,
		runtime: o.runtime, ramp: o.ramp, scheduler: o.scheduler,
		notice: func(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) },
	}
}

// orDefault fills in what depends on the mode.
func (o *runOptions) orDefault() error {
	switch o.mode {
	case modeExact:
		if os.Getenv(exactEnv) == "" {
			return errors.New("exact mode needs a machine whose clock counts instructions: make bench boots one")
		}
		// The short form decides whether a change is let in, and a round now and
		// then lies a percent or two off: a few milliseconds of fio's clock.
		rounds := 1
		if o.short {
			rounds = 3
		}
		o.rounds, o.runtime, o.ramp = cmp.Or(o.rounds, rounds), cmp.Or(o.runtime, "250ms"), cmp.Or(o.ramp, "20ms")
	case modeWall:
		o.rounds, o.runtime, o.ramp = cmp.Or(o.rounds, 5), cmp.Or(o.runtime, "2s"), cmp.Or(o.ramp, "500ms")
	default:
		return fmt.Errorf("-mode %q: want %s or %s", o.mode, modeExact, modeWall)
	}
	if o.rounds < 0 {
		return fmt.Errorf("-rounds %d: want at least 1", o.rounds)
	}
	return nil
}

func measureAll(ctx context.Context, o runOptions) (err error) {
	if err := o.orDefault(); err != nil {
		return err
	}
	r := &runner{rounds: o.rounds}
	rows, err := rowsOf(o.jobs, o.mode, o.short)
	if err != nil {
		return err
	}
	if r.rows, err = choose(rows, func(r row) string { return r.name }, o.rows); err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	var all []subject
	for _, s := range subjects() {
		if s.remote == o.remote && (!o.short || s.short || s.remote || o.subjects != "") && (!s.exact || o.mode == modeExact) {
			all = append(all, s)
		}
	}
	if r.subjects, err = choose(all, func(s subject) string { return s.name }, o.subjects); err != nil {
		return fmt.Errorf("-subjects: %w", err)
	}
	if r.versions, err = findVersions(ctx); err != nil {
		return err
	}
	if r.stage, err = newStage(ctx, o.stage()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stage.close(context.WithoutCancel(ctx))) }()
	list, err := r.run(ctx)
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(o.out, resultFile), list); err != nil {
		return err
	}
	if err := printTable(os.Stdout, list); err != nil {
		return err
	}
	return writeReport(o.out)
}
