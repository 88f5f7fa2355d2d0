// Command vm runs a shell command in a fresh virtual machine that has ublk,
// device-mapper and NVMe disks, and exits with the command's status.
//
//	vm [flags] -- COMMAND
//
// "make vm CMD='…'" is the usual way to call it. Every flag can be given as an
// environment variable too; "vm -help" lists both.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/swapback/swapback/ci/internal/qemu"
)

// Exit statuses that are not the command's own.
const (
	exitCrash   = 123
	exitTimeout = 124
	exitHarness = 125
)

type options struct {
	kernel   string
	accel    string
	disks    int
	diskSize string
	diskDir  string
	memory   string
	cpus     int
	cpu      string
	timeout  time.Duration
	boot     time.Duration
	out      string
	bin      string
	env      []string
	exact    bool
	native   bool
	again    bool
	quiet    bool
	command  string
	peer     string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	os.Exit(status)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	notice := func(format string, args ...any) { fmt.Fprintf(stderr, "vm: "+format+"\n", args...) }
	if err != nil {
		notice("%v", err)
		return exitHarness
	}
	var status int
	if o.native {
		status, err = runNative(ctx, o, stdout, stderr, notice)
	} else {
		status, err = runMachine(ctx, o, stdout, stderr, notice)
	}
	switch {
	case err == nil:
		return status
	case ctx.Err() != nil:
		notice("interrupted")
		return 130
	case errors.Is(err, qemu.ErrTimeout):
		notice("%v; the status is %d", err, exitTimeout)
		return exitTimeout
	case errors.Is(err, qemu.ErrCrash):
		notice("%v; the status is %d", err, exitCrash)
		return exitCrash
	default:
		notice("%v; the status is %d", err, exitHarness)
		return exitHarness
	}
}

// list is a flag that can be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func parse(args []string, stderr io.Writer) (*options, error) {
	var o options
	var env list
	f := flag.NewFlagSet("vm", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.kernel, "kernel", os.Getenv("KERNEL"), "kernel to boot: 7.3 or 6.12; empty for the newest ($KERNEL)")
	f.StringVar(&o.accel, "accel", envOr("ACCEL", "auto"), "auto, kvm or tcg ($ACCEL)")
	f.IntVar(&o.disks, "disks", envInt("DISKS", 2), "number of NVMe disks ($DISKS)")
	f.StringVar(&o.diskSize, "disk-size", envOr("DISK_SIZE", "4G"), "size of each disk ($DISK_SIZE)")
	f.StringVar(&o.diskDir, "disk-dir", os.Getenv("DISK_DIR"), "folder that keeps the disks between runs; empty for new ones ($DISK_DIR)")
	f.StringVar(&o.memory, "mem", envOr("MEM", "4G"), "memory of the machine ($MEM)")
	f.IntVar(&o.cpus, "cpus", envInt("CPUS", 2), "processors of the machine ($CPUS)")
	f.StringVar(&o.cpu, "cpu", os.Getenv("CPU"), "emulated processor, as QEMU's -cpu has it; empty for the usual one ($CPU)")
	f.DurationVar(&o.timeout, "timeout", envDuration("VM_TIMEOUT", 30*time.Minute), "how long the command may take ($VM_TIMEOUT)")
	f.DurationVar(&o.boot, "boot-timeout", envDuration("VM_BOOT_TIMEOUT", 3*time.Minute), "how long a boot may take ($VM_BOOT_TIMEOUT)")
	f.StringVar(&o.out, "out", os.Getenv("OUT"), "folder of the host that the command may write to as /out ($OUT)")
	f.StringVar(&o.bin, "bin", "build/bin", "folder of built programs to put first on PATH")
	f.Var(&env, "env", "NAME or NAME=VALUE to set for the command; may be given again (names in $VM_ENV too)")
	f.BoolVar(&o.exact, "icount", envBool("ICOUNT"), "exact mode: the clock counts instructions, for measurements that repeat ($ICOUNT)")
	f.BoolVar(&o.native, "native", envBool("NATIVE"), "no machine: run on this host, with files as disks ($NATIVE)")
	f.BoolVar(&o.again, "again", envBool("AGAIN"), "run the command again, on blank disks, if QEMU itself fails ($AGAIN)")
	f.StringVar(&o.peer, "peer", "", "command of a second machine, which is up before the first one boots and ends with it")
	f.BoolVar(&o.quiet, "quiet", envBool("QUIET"), "say nothing when all is well ($QUIET)")
	f.Usage = func() {
		fmt.Fprintf(stderr, "usage: vm [flags] -- COMMAND\n\nRuns COMMAND with bash as root in a fresh virtual machine and exits with its status.\n"+
			"Without COMMAND, that of $VM_CMD. Status %d: it took too long; %d: the machine failed; %d: QEMU did.\n\n", exitTimeout, exitHarness, exitCrash)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o.command = strings.Join(f.Args(), " ")
	if f.NArg() == 0 {
		o.command = os.Getenv("VM_CMD")
	}
	if strings.TrimSpace(o.command) == "" {
		return nil, errors.New("no command: say make vm CMD='…', or vm -- COMMAND")
	}
	for _, e := range append(env, strings.Fields(os.Getenv("VM_ENV"))...) {
		if !strings.Contains(e, "=") {
			v, ok := os.LookupEnv(e)
			if !ok {
				continue
			}
			e += "=" + v
		}
		o.env = append(o.env, e)
	}
	switch o.accel {
	case "auto", "kvm", "tcg":
	default:
		return nil, fmt.Errorf("-accel %q: choose auto, kvm or tcg", o.accel)
	}
	if o.native && o.peer != "" {
		return nil, errors.New("-peer needs a second machine: leave -native (NATIVE=1) out")
	}
	if o.disks < 0 || o.disks > 16 {
		return nil, fmt.Errorf("-disks %d: choose 0 to 16", o.disks)
	}
	return &o, nil
}

// parseSize reads a number of bytes with K, M, G or T behind it (powers of 1024).
func parseSize(s string) (int64, error) {
	units := map[byte]uint{'K': 10, 'M': 20, 'G': 30, 'T': 40}
	digits, shift := s, uint(0)
	if n := len(s); n > 0 {
		if u, ok := units[strings.ToUpper(s)[n-1]]; ok {
			digits, shift = s[:n-1], u
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("size %q: say a number with K, M, G or T, such as 4G", s)
	}
	return n << shift, nil
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

func envInt(name string, fallback int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return fallback
}

// envDuration accepts a bare number as seconds, as timeout(1) does.
func envDuration(name string, fallback time.Duration) time.Duration {
	v := os.Getenv(name)
	if n, err := strconv.Atoi(v); err == nil {
		return time.Duration(n) * time.Second
	}
	if d, err := time.ParseDuration(v); err == nil {
		return d
	}
	return fallback
}

func envBool(name string) bool {
	b, err := strconv.ParseBool(os.Getenv(name))
	return err == nil && b
}
