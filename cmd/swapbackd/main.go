// Swapbackd is the storage daemon: it opens the pools of this machine, serves
// their volumes as /dev/ublkbN and answers the control API on a unix socket.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/remote"
	"github.com/swapback/swapback/ublk"
	"github.com/swapback/swapback/version"
	"github.com/swapback/swapback/volume"
)

// Exit codes of swapbackd, as its help states them.
const (
	exitFailed = 1
	exitUsage  = 2
)

type options struct {
	socket    string
	group     string
	disks     []string
	runDir    string
	linkDir   string
	queues    int
	depth     int
	dataPath  string
	logLevel  string
	logFormat string
	onExit    string
	wait      time.Duration
	timeout   time.Duration
	holdFor   time.Duration
	keepDir   string
	nvme      nvmeOptions
	remote    remote.Options
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == helperArg {
		os.Exit(helperMain(os.Args[2:]))
	}
	cmd := newCommand()
	err := cmd.Execute()
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "swapbackd: %v\n", err)
	if _, usage := err.(usageError); usage {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailed)
}

type usageError struct{ error }

func newCommand() *cobra.Command { return newCommandOf(new(options)) }

// newCommandOf is the command with its flags in o.
func newCommandOf(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "swapbackd",
		Short: "Serve the volumes of this machine's pools as block devices",
		Long: `Swapbackd opens every pool that it finds on this machine's disks, serves the
attached volumes as /dev/ublkbN and answers the control API on a unix socket.

When swapbackd ends or is killed, the kernel keeps the block devices and holds
their I/O. The next swapbackd adopts them: applications see a pause, no error.
To take the devices away instead, give --on-exit=stop.

With --nvme-listen it also serves exported volumes to other hosts, by NVMe/TCP.
Nobody can connect but the hosts that "swapback export create" has named.

With --api-listen it answers the API over TLS as well, to clients with certificates and
only what --api-access allows each of them (swapback cert init).

Signals: SIGTERM and SIGINT end the daemon as --on-exit says. SIGHUP has the files
of --api-listen read again.
Exit codes: 0 ended as asked, 1 failed, 2 bad arguments.`,
		Example: `  swapbackd
  swapbackd --disk /dev/nvme0n1 --disk /dev/nvme1n1 --log-level debug
  swapbackd --socket /tmp/sb.sock --run-dir /tmp/sb --on-exit stop
  swapbackd --nvme-listen 192.0.2.1 --nvme-secrets /etc/swapback/nvme-secrets
  swapbackd --api-listen 192.0.2.7:7443`,
		Args:          cobra.NoArgs,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), *o)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := cmd.Flags()
	f.StringVar(&o.socket, "socket", envOr(api.SocketEnv, api.DefaultSocket), "unix socket of the control API ($"+api.SocketEnv+")")
	f.StringVar(&o.group, "group", "swapback", "group that may use the socket, when it exists")
	f.StringArrayVar(&o.disks, "disk", nil, "look for pool members on this block device only; repeatable (default: all disks)")
	f.StringVar(&o.runDir, "run-dir", "/run/swapback", "directory for the lock and the marks of quarantined devices")
	f.StringVar(&o.linkDir, "link-dir", "/dev/swapback", "directory for the links POOL/VOLUME to block devices")
	f.DurationVar(&o.wait, "wait-for-members", 10*time.Second, "how long a pool with a missing disk is waited for after the machine has started, before it is opened degraded")
	f.DurationVar(&o.timeout, "disk-timeout", 10*time.Second, "how long a disk may take for a write of the pool's metadata before the change is refused with its name")
	f.DurationVar(&o.holdFor, "hold-for", 10*time.Second, "how long a swap may hold I/O before its commit, unless it says so itself; well below the 30s after which hosts give an NVMe command up")
	f.StringVar(&o.keepDir, "metadata-dir", "/var/lib/swapback/metadata", "directory for the metadata that pool check --repair keeps before it writes")
	f.StringVar(&o.dataPath, "data-path", "auto", "how data gets from the block layer to the disks: auto, copy, zero-copy or batch (for measuring; adopted devices keep theirs)")
	f.IntVar(&o.queues, "queues", 0, "queues per volume (default: number of CPUs, at most 4)")
	f.IntVar(&o.depth, "depth", 64, "requests in flight per queue, 1 to 4096")
	o.nvme.flags(f)
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	remoteFlags(f, &o.remote)
	f.StringVar(&o.onExit, "on-exit", "keep", "keep: leave the devices to the next swapbackd; stop: remove them")
	return cmd
}

func (o options) check() error {
	if o.onExit != "keep" && o.onExit != "stop" {
		return usageError{fmt.Errorf("--on-exit=%s: want keep or stop", o.onExit)}
	}
	if o.depth < 1 || o.depth > 4096 {
		return usageError{fmt.Errorf("--depth=%d: want 1 to 4096", o.depth)}
	}
	if o.wait < 0 || o.wait > time.Hour {
		return usageError{fmt.Errorf("--wait-for-members=%s: want 0s to 1h", o.wait)}
	}
	if o.timeout < time.Second || o.timeout > time.Hour {
		return usageError{fmt.Errorf("--disk-timeout=%s: want 1s to 1h", o.timeout)}
	}
	if o.holdFor < time.Millisecond || o.holdFor > time.Hour {
		return usageError{fmt.Errorf("--hold-for=%s: want 1ms to 1h", o.holdFor)}
	}
	if o.queues < 0 || o.queues > 64 {
		return usageError{fmt.Errorf("--queues=%d: want 1 to 64, or 0 for the default", o.queues)}
	}
	if err := o.nvme.check(); err != nil {
		return err
	}
	return checkRemote(o.remote)
}

func run(ctx context.Context, o options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	path, err := ublk.ParseDataPath(o.dataPath)
	if err != nil {
		return usageError{fmt.Errorf("--data-path: %w", err)}
	}
	log, err := newLogger(o)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("must run as root: it makes block devices")
	}
	noHugeHeap()
	if err := ublk.ReexecIOFlusher(); err != nil {
		return err
	}
	ublk.ReserveProcs(runtime.NumCPU())
	moreProcs()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	ctl, err := volume.Open(ctx, volume.Options{
		Disks: o.disks, WaitForMembers: o.wait, DiskTimeout: o.timeout, HoldFor: o.holdFor, KeepDir: o.keepDir, RunDir: o.runDir, LinkDir: o.linkDir,
		Queues: o.queues, Depth: o.depth, DataPath: path, NVMe: o.nvme.forController(),
		Helper: startHelper, Version: version.String(), Logger: log,
	})
	if err != nil {
		return err
	}
	defer func() {
		// Devices are to be left or removed in good order even when the signal
		// has ended ctx, but a hung disk must not keep the process for ever.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if cerr := ctl.Close(ctx, o.onExit == "stop"); cerr != nil && err == nil {
			err = cerr
		}
		log.Info("swapbackd ended", "devices", map[bool]string{true: "removed", false: "kept"}[o.onExit == "stop"])
	}()

	ln, err := listen(o.socket, o.group)
	if err != nil {
		return err
	}
	defer startRemote(ctx, o.remote, ctl, ctl.Metrics(), log)()
	log.Info("answering", "socket", o.socket)
	notify(log, daemon.SdNotifyReady)
	defer notify(log, daemon.SdNotifyStopping)
	return serve(ctx, ln, api.NewHandler(ctl, ctl.Metrics(), version.String(), log), log)
}

// noHugeHeap keeps huge pages out of Go's heap from the next execution of the
// program on. The kernel otherwise puts pages back, as parts of huge ones, that
// the runtime gave back to it: after 256 volumes had come and gone the daemon held
// 50 MiB where it had held 22, and 2 of them were in use. I/O buffers are not of
// the heap and keep theirs.
func noHugeHeap() {
	if debug := os.Getenv("GODEBUG"); !strings.Contains(debug, "disablethp=") {
		os.Setenv("GODEBUG", strings.TrimPrefix(debug+",disablethp=1", ","))
	}
}

// swapProcs is what Go's scheduler has for swaps, beside a P per processor and
// those that busy queues keep.
const swapProcs = 2

// moreProcs keeps the scheduler from running dry during a swap. A thread that
// waits in a system call keeps its P until the runtime's monitor takes it away,
// which can be 10 ms later. A swap waits in the kernel on several threads at
// once, while idle queues do the same: without spare Ps that was seen in its
// pause.
func moreProcs() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + swapProcs)
	}
}

func newLogger(o options) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level=%s: want debug, info, warn or error", o.logLevel)}
	}
	ho := &slog.HandlerOptions{Level: level}
	switch strings.ToLower(o.logFormat) {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, ho)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, ho)), nil
	}
	return nil, usageError{fmt.Errorf("--log-format=%s: want text or json", o.logFormat)}
}

// notify tells systemd, when it started us, how far we are.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("service manager not notified", "state", state, "err", err)
	}
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}
