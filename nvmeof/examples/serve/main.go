// Command serve shows package nvmeof at work: it serves a file, a block device or a
// piece of memory to NVMe/TCP hosts until it is told to end.
//
//	serve file PATH [-listen ADDRESS] [-nqn NQN] [-host NQN]... [-uuid UUID] [-no-ring]
//	      [-in-capsule BYTES]
//	serve memory SIZE [...]
//
// SIZE may end in K, M, G or T. Without -host everybody may connect, so it listens on
// the loopback address unless -listen says otherwise. SIGUSR1 closes the gate, SIGUSR2
// opens it again. It prints the line that connects a Linux host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/swapback/swapback/nvmeof"
)

func main() {
	nvmeof.ReserveProcs(runtime.NumCPU())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: serve file PATH | memory SIZE [options]")

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if len(args) < 2 {
		return errUsage
	}
	flags := flag.NewFlagSet("serve "+args[0], flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:4420", "address to listen on")
	nqn := flags.String("nqn", "nqn.2026-01.org.example:serve", "name of the subsystem")
	id := flags.String("uuid", "6c3f1d52-52f0-4b0b-9f0e-0d9b7a1e5c11", "identity of the disk")
	inCapsule := flags.Int("in-capsule", 0, "bytes of a write that may come along with its command; 0: the default")
	noRing := flags.Bool("no-ring", false, "do without io_uring")
	var hosts []string
	flags.Func("host", "name of a host that may connect; none: everybody", func(s string) error {
		hosts = append(hosts, s)
		return nil
	})
	if err := flags.Parse(args[2:]); err != nil {
		return err
	}
	identity, err := uuid.Parse(*id)
	if err != nil {
		return fmt.Errorf("-uuid: %w", err)
	}
	backend, free, err := open(args[0], args[1])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, free()) }()

	target, err := nvmeof.New(nvmeof.Options{Logger: slog.Default(), NoRing: *noRing, InCapsule: *inCapsule})
	if err != nil {
		return err
	}
	subsystem, err := target.AddSubsystem(nvmeof.SubsystemConfig{
		NQN: *nqn, Serial: identity.String()[:8], Model: "example", Hosts: hosts, AnyHost: len(hosts) == 0,
	})
	if err != nil {
		return err
	}
	disk, err := subsystem.AddNamespace(nvmeof.NamespaceConfig{Backend: backend, UUID: identity})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	addr := l.Addr().(*net.TCPAddr)
	fmt.Fprintf(out, "nvme connect -t tcp -a %s -s %d -n %s\n", addr.IP, addr.Port, *nqn)

	serving := make(chan error, 1)
	go func() { serving <- target.Serve(l) }()
	gate := make(chan os.Signal, 1)
	signal.Notify(gate, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(gate)
	for {
		select {
		case s := <-gate:
			if s == syscall.SIGUSR1 {
				disk.Hold()
			} else {
				disk.Release()
			}
		case err := <-serving:
			return errors.Join(err, shut(target))
		case <-ctx.Done():
			return errors.Join(shut(target), <-serving)
		}
	}
}

// shut gives what is in flight a while to land.
func shut(target *nvmeof.Target) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return target.Close(ctx)
}

func open(what, subject string) (*nvmeof.Backend, func() error, error) {
	switch what {
	case "file":
		b, err := nvmeof.OpenBackend(subject, nvmeof.Limits{VolatileCache: true, Discard: true})
		if err != nil {
			return nil, nil, err
		}
		return b, b.Close, nil
	case "memory":
		size, err := parseSize(subject)
		if err != nil {
			return nil, nil, err
		}
		m, err := nvmeof.NewMemory(size)
		if err != nil {
			return nil, nil, err
		}
		b, err := nvmeof.NewHandlerBackend("memory", m, nvmeof.Limits{Size: size, Discard: true})
		if err != nil {
			return nil, nil, errors.Join(err, m.Close())
		}
		return b, m.Close, nil
	}
	return nil, nil, errUsage
}

func parseSize(s string) (uint64, error) {
	shift := 0
	for i, unit := range []string{"K", "M", "G", "T"} {
		if number, ok := strings.CutSuffix(s, unit); ok {
			s, shift = number, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n<<shift>>shift != n {
		return 0, fmt.Errorf("size %q: want a number, perhaps with K, M, G or T", s)
	}
	return n << shift, nil
}
