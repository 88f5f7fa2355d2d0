// Command serve shows package ublk at work: it serves a file, a block device or
// a piece of memory as /dev/ublkbN until it is told to end.
//
//	serve file PATH [-id N] [-queues N] [-depth N] [-data-path P] [-read-only] [-adopt]
//	serve memory SIZE [...]
//	serve null SIZE [...]
//	serve list
//	serve delete N
//
// SIZE may end in K, M, G or T. SIGINT or SIGTERM stops and deletes the device;
// after SIGKILL, or with SIGHUP, it stays in the kernel, and "serve file PATH
// -id N -adopt" takes it over while its clients wait.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/swapback/swapback/ublk"
)

func main() {
	if err := ublk.ReexecIOFlusher(); err != nil {
		fmt.Fprintln(os.Stderr, "serve: going on without:", err)
	}
	ublk.ReserveProcs(runtime.NumCPU())
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

const usage = "usage: serve file PATH | memory SIZE | null SIZE [options] | list | delete N"

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	what, args := args[0], args[1:]
	if what == "list" {
		return list(ctx, out)
	}
	if len(args) == 0 {
		return errors.New(usage)
	}
	subject, args := args[0], args[1:]
	switch what {
	case "delete":
		return remove(ctx, subject)
	case "file", "memory", "null":
		return serve(ctx, what, subject, args, out)
	}
	return errors.New(usage)
}

func serve(ctx context.Context, what, subject string, args []string, out io.Writer) error {
	var o ublk.Options
	flags := flag.NewFlagSet("serve "+what, flag.ContinueOnError)
	flags.IntVar(&o.ID, "id", -1, "device number, -1 for any")
	flags.IntVar(&o.Queues, "queues", 1, "hardware queues")
	flags.IntVar(&o.Depth, "depth", ublk.DefaultDepth, "requests per queue")
	flags.BoolVar(&o.ReadOnly, "read-only", false, "make a read-only device")
	path := flags.String("data-path", "auto", "auto, copy, zero-copy or batch")
	flags.BoolVar(&o.Ungated, "ungated", false, "leave the gate out, to measure it")
	changes := flags.Bool("change-map", false, "record writes in blocks of 64 KiB, to measure it")
	adopt := flags.Bool("adopt", false, "take over device -id, whose server is gone")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if o.DataPath, err = ublk.ParseDataPath(*path); err != nil {
		return err
	}
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))

	backend, closeBackend, err := open(what, subject)
	if err != nil {
		return err
	}
	defer closeBackend()

	if *changes {
		if o.ChangeMap, err = ublk.NewChangeMap(backend.Limits().Size, 64<<10); err != nil {
			return err
		}
	}

	// Before the device appears, so that no signal finds it without a handler.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	begin := ublk.Start
	if *adopt {
		begin = ublk.Adopt
	}
	device, err := begin(ctx, backend, o)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, device.Path())

	select {
	case s := <-signals:
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if s == syscall.SIGHUP {
			return device.Abandon(ctx)
		}
		return device.Stop(ctx)
	case <-device.Done():
		return errors.Join(fmt.Errorf("%s has ended", device.Path()), device.Err())
	}
}

// open makes the backend and says how to close it.
func open(what, subject string) (*ublk.Backend, func() error, error) {
	if what == "file" {
		b, err := ublk.OpenBackend(subject)
		if err != nil {
			return nil, nil, err
		}
		return b, b.Close, nil
	}
	size, err := parseSize(subject)
	if err != nil {
		return nil, nil, err
	}
	limits := ublk.Limits{Size: size}
	if what == "null" {
		b, err := ublk.NewHandlerBackend("null", ublk.Null{}, limits)
		return b, func() error { return nil }, err
	}
	limits.MaxDiscard, limits.MaxWriteZeroes = 1<<30, 1<<30
	m, err := ublk.NewMemory(size)
	if err != nil {
		return nil, nil, err
	}
	b, err := ublk.NewHandlerBackend("memory", m, limits)
	return b, m.Close, err
}

// parseSize reads bytes with an optional binary suffix.
func parseSize(text string) (uint64, error) {
	digits := strings.TrimRight(text, "KMGT")
	shift, known := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[text[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || !known || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q is not a size (want for example 512M)", text)
	}
	return n << shift, nil
}

func list(ctx context.Context, out io.Writer) error {
	c, err := ublk.OpenControl(ublk.ControlOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	infos, err := c.List(ctx)
	for _, i := range infos {
		fmt.Fprintf(out, "%d\t%v\tpid %d\t%d queues of %d\n", i.ID, i.State, i.PID, i.Queues, i.Depth)
	}
	return err
}

func remove(ctx context.Context, id string) error {
	n, err := strconv.Atoi(id)
	if err != nil {
		return fmt.Errorf("%q is not a device number", id)
	}
	c, err := ublk.OpenControl(ublk.ControlOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Delete(ctx, n)
}
