// Backup measures "swapback backup" beside borg, restic and cp: programs as they
// are installed, at their defaults, encrypted, on an image of a disk in a file.
// See bench/README.md for the rows and what is made equal for all.
//
//	backup run [flags]        measure; writes backup.json and backup.html
//	backup report FOLDER      make the page again from the result in it
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const usage = "usage: backup run [flags] | report FOLDER"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "backup:", err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	switch {
	case len(args) > 0 && args[0] == "run":
		return runCommand(ctx, args[1:])
	case len(args) == 2 && args[0] == "report":
		r, err := readReport(args[1])
		if err != nil {
			return err
		}
		return writePage(args[1], r)
	}
	return errors.New(usage)
}

type options struct {
	swapback string
	dir, out string
	size     int64
	data     string
	cache    string
	rounds   int
	programs string
	check    bool
}

func runCommand(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("backup run", flag.ContinueOnError)
	f.StringVar(&o.swapback, "swapback", "build/bin/swapback", "the program that is measured")
	f.StringVar(&o.dir, "dir", "build/bench-backup", "folder for image, repositories and targets, all on one file system; they are removed")
	f.StringVar(&o.out, "out", "build/bench", "folder for the results")
	f.Func("size", "size of the image, such as 3G or 512M (default 3G)", func(s string) (err error) {
		o.size, err = parseSize(s)
		return err
	})
	f.StringVar(&o.data, "data", "fio", "what can be compressed in the image: fio (as it writes it) or text")
	f.StringVar(&o.cache, "cache", cacheWarm, "what a program will read is in the page cache before (warm), or nothing is (cold)")
	f.IntVar(&o.rounds, "rounds", 5, "how often each row is measured")
	f.StringVar(&o.programs, "programs", "swapback,borg,restic,cp", "measure these only, separated by commas")
	f.BoolVar(&o.check, "check", false, "fail when a target is missed")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.size == 0 {
		o.size = 3 << 30
	}
	if f.NArg() > 0 || o.rounds < 1 {
		return errors.New(usage)
	}
	if fillers[o.data] == nil {
		return fmt.Errorf("-data: there is no %q", o.data)
	}
	if o.cache != cacheWarm && o.cache != cacheCold {
		return fmt.Errorf("-cache: %q is neither warm nor cold", o.cache)
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.remove()
	r, err := b.run(ctx)
	if err != nil {
		return err
	}
	if err := writeReport(o.out, r); err != nil {
		return err
	}
	if err := writePage(o.out, r); err != nil {
		return err
	}
	if err := printReport(os.Stdout, r); err != nil {
		return err
	}
	fmt.Printf("%s and %s are in %s\n", reportFile, pageFile, o.out)
	if o.check {
		var missed []string
		for _, t := range r.Targets {
			if !t.OK {
				missed = append(missed, t.Name)
			}
		}
		if len(missed) > 0 {
			return fmt.Errorf("targets missed: %s", strings.Join(missed, "; "))
		}
	}
	return nil
}

// chosen are the programs of a list of names, in their own order.
func chosen(all []program, names string) ([]program, error) {
	want := strings.Split(names, ",")
	for _, name := range want {
		if !slices.ContainsFunc(all, func(p program) bool { return p.name == name }) {
			return nil, fmt.Errorf("-programs: there is no %q", name)
		}
	}
	return slices.DeleteFunc(all, func(p program) bool { return !slices.Contains(want, p.name) }), nil
}

// absolute makes paths that hold in every working folder.
func absolute(paths ...*string) error {
	for _, p := range paths {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}
