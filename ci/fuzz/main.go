// Command fuzz runs every fuzz target of the module for a while.
//
//	fuzz [-time 10s] [-j 2] [-run regexp] [package pattern …]
//
// All packages are compiled first, so that no target loses its time to the
// compiler. Then -j targets run at the same time, each on one processor. There
// is one line per target. An input that a target fails on is left as testdata/fuzz/TARGET/…
// beside the target, where plain "go test" runs it again and where it is
// committed together with the fix. Inputs that only reached new code are kept
// in build/fuzz for the next time.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"sync"
	"syscall"
	"time"
)

type options struct {
	time     string // as -test.fuzztime takes it: 10s or 1000x
	jobs     int
	run      *regexp.Regexp
	patterns []string
	dir      string // for binaries and what was found
	// plain leaves the instrumentation out, by which the fuzzer is led to new
	// code: it compiles faster and finds less.
	plain bool
	// patience is how long one input may take. The fuzzer itself ends such a
	// one with the target's time and calls it a success.
	patience time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	o := options{dir: "build/fuzz", patience: 6 * time.Second}
	flag.StringVar(&o.time, "time", "10s", "how long each target runs, or how many inputs it gets (1000x)")
	flag.IntVar(&o.jobs, "j", runtime.NumCPU(), "targets at the same time")
	run := flag.String("run", "", "run only the targets that match")
	flag.BoolVar(&o.plain, "plain", false, "leave the instrumentation out")
	flag.Parse()
	o.patterns = flag.Args()
	var err error
	if o.run, err = regexp.Compile(*run); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz: -run:", err)
		os.Exit(2)
	}
	failed, err := fuzz(ctx, o)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(2)
	case failed > 0:
		os.Exit(1)
	}
}

// fuzz runs all targets and returns how many failed.
func fuzz(ctx context.Context, o options) (failed int, err error) {
	pkgs, err := find(ctx, o)
	if err != nil {
		return 0, err
	}
	if len(pkgs) == 0 {
		return 0, fmt.Errorf("no fuzz target matches")
	}
	began := time.Now()
	var mu sync.Mutex
	var targets int
	var execs int64
	report := func(r result) {
		mu.Lock()
		defer mu.Unlock()
		targets++
		execs += r.execs
		if r.problem != "" {
			failed++
		}
		fmt.Print(r)
	}
	var jobs []job
	for _, p := range pkgs {
		bin, err := p.build(ctx, o)
		for _, target := range p.targets {
			if err != nil {
				report(result{pkg: p.name(), target: target, problem: err.Error()})
			} else {
				jobs = append(jobs, job{p, target, bin})
			}
		}
	}
	compiled := time.Since(began)
	work := make(chan job)
	var wg sync.WaitGroup
	for range max(o.jobs, 1) {
		wg.Go(func() {
			for j := range work {
				if r := j.run(ctx, o); ctx.Err() == nil {
					report(r)
				}
			}
		})
	}
	for _, j := range jobs {
		work <- j
	}
	close(work)
	wg.Wait()
	fmt.Printf("%d targets, %d inputs, %d failed, in %.0f s (%.0f s of them to compile)\n",
		targets, execs, failed, time.Since(began).Seconds(), compiled.Seconds())
	return failed, ctx.Err()
}
