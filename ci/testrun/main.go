// Command testrun runs the integration tests: every package that has tests
// with the build tag vm, one after another in one boot of the test machine.
//
//	testrun [-kernel 7.3] [-pkg ./ublk/...] [-run regexp] [-v]
//
// It compiles the tests on the host and calls itself in the machine, with
// -inside, to run them. When one of the packages wants a second machine (it
// imports ci/peer), there is one, in which it calls itself with -peer.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

type options struct {
	kernel  string
	pkg     string
	run     string
	count   int
	verbose bool
	timeout time.Duration
	inside  string
	peer    bool
	native  bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.kernel, "kernel", os.Getenv("KERNEL"), "kernel to run on ($KERNEL)")
	flag.StringVar(&o.pkg, "pkg", os.Getenv("PKG"), "package pattern; empty for all ($PKG)")
	flag.StringVar(&o.run, "run", os.Getenv("RUN"), "run only the tests that match ($RUN)")
	flag.IntVar(&o.count, "count", 1, "run every test this often")
	flag.BoolVar(&o.verbose, "v", os.Getenv("V") != "", "show all output ($V)")
	flag.DurationVar(&o.timeout, "timeout", envDuration("TEST_TIMEOUT", 45*time.Minute), "limit for each package ($TEST_TIMEOUT)")
	flag.StringVar(&o.inside, "inside", "", "")
	flag.BoolVar(&o.peer, "peer", false, "")
	flag.Parse()
	o.native, _ = strconv.ParseBool(os.Getenv("NATIVE"))
	var err error
	switch {
	case o.peer:
		err = servePeer()
	case o.inside != "":
		err = runInside(ctx, &o)
	default:
		err = runOutside(ctx, &o)
	}
	var failed *failedError
	switch {
	case errors.As(err, &failed):
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "testrun:", err)
		os.Exit(2)
	}
}

// failedError: tests failed, and the report has said which.
type failedError struct{ status int }

func (e *failedError) Error() string { return fmt.Sprintf("tests failed (status %d)", e.status) }

func envDuration(name string, fallback time.Duration) time.Duration {
	if d, err := time.ParseDuration(os.Getenv(name)); err == nil {
		return d
	}
	return fallback
}
