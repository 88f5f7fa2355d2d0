// Swapback is the command line of swapback: it asks the storage daemon for
// pools, volumes and swaps, keeps backups in a repository, and brings volumes
// back from them.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/swapback/swapback/backup"
)

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(backup.MemoryLimit)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// The first signal ends the command in good order; after it the default
	// is back, so that a second one ends it at once.
	context.AfterFunc(ctx, stop)
	a := &app{
		in:     os.Stdin,
		out:    os.Stdout,
		errOut: os.Stderr,
		inTTY:  term.IsTerminal(int(os.Stdin.Fd())),
		errTTY: term.IsTerminal(int(os.Stderr.Fd())),
		getenv: os.Getenv,
		now:    time.Now,
		yield:  yield,
		local:  time.Local,
	}
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
