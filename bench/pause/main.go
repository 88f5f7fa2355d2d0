// Pause measures how long a swap keeps I/O waiting, beside the least that the
// kernel allows: one suspend and resume of one idle dm-linear device and one
// 4 KiB FUA write to each member, measured in the same boot. It starts a
// swapbackd of its own on the disks that it is given and removes everything it
// made. What the disks carry is lost.
//
//	pause -disk /dev/nullb0 -disk /dev/nullb1 -mode exact -out build/bench/pause.json -check
//
// It runs as root; bench/pause/run.sh shows how the disks come about.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

type options struct {
	disks  []string
	out    string
	mode   string
	daemon string
	swaps  int
	points int
	only   string
	check  bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pause:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("pause", flag.ContinueOnError)
	flags.Func("disk", "block device to use as a member, its content is lost; repeatable", func(s string) error {
		o.disks = append(o.disks, s)
		return nil
	})
	flags.StringVar(&o.out, "out", "build/bench/pause.json", "where the result goes")
	flags.StringVar(&o.mode, "mode", "wall", "what the clock counts, for the record: wall or exact")
	flags.StringVar(&o.daemon, "daemon", "swapbackd", "the daemon to measure")
	flags.IntVar(&o.swaps, "swaps", 1000, "swaps under load")
	flags.IntVar(&o.points, "sweep-swaps", 20, "swaps at each point of a sweep")
	flags.StringVar(&o.only, "only", "swaps,extents,fragments,pairs", "what to measure beside the floor")
	flags.BoolVar(&o.check, "check", false, "fail when the bar is missed")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if len(o.disks) == 0 || o.swaps < 1 || o.points < 1 || flags.NArg() > 0 {
		return o, errors.New("want at least one -disk, counts of at least 1 and no other arguments")
	}
	return o, nil
}

func (o *options) wants(what string) bool { return slices.Contains(strings.Split(o.only, ","), what) }

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	f, err := measureFloor(ctx, o.disks)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	results := f.results()
	floor := f.judged()
	measured, err := measure(ctx, o, floor)
	results = append(results, measured...)
	// What was measured before a failure is worth keeping: it took long enough.
	err = errors.Join(err, finish(ctx, results, o.mode, floor), printTable(results), write(o.out, results))
	if err != nil {
		return err
	}
	missed := judge(results)
	for _, m := range missed {
		fmt.Println("bar missed:", m)
	}
	if o.check && len(missed) > 0 {
		return fmt.Errorf("%d bars missed", len(missed))
	}
	return nil
}

// measure runs everything that needs the daemon.
func measure(ctx context.Context, o options, floor float64) (results []result, err error) {
	d, err := startDaemon(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.end()) }()
	for _, step := range []struct {
		name string
		run  func(context.Context, *daemon, options) ([]result, error)
	}{
		{"swaps", swapsUnderLoad},
		{"extents", extentSweep},
		{"fragments", fragmentSweep},
		{"pairs", pairSweep},
	} {
		if !o.wants(step.name) {
			continue
		}
		list, err := step.run(ctx, d, o)
		results = append(results, list...)
		if err != nil {
			return results, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return results, nil
}
