// Swapback-agent runs jobs on swapback volumes: steps with save points, and
// recovery when a step fails.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The first signal stops the step under way and brings the volumes back;
	// the second one breaks that off too.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup means it
		signal.Notify(signals, syscall.SIGHUP)
	}
	// A reader of our output that goes away must not end us in the middle of a
	// recovery. Not Ignore: steps would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, cancel := context.WithCancel(context.Background())
	stop := make(chan struct{})
	go func() {
		<-signals
		close(stop)
		<-signals
		cancel()
	}()
	a := &app{
		out: os.Stdout, errOut: os.Stderr, getenv: os.Getenv, stop: stop,
	}
	code := a.run(ctx, os.Args[1:])
	cancel()
	os.Exit(code)
}
