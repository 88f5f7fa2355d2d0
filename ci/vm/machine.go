package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/swapback/swapback/ci/internal/debian"
	"github.com/swapback/swapback/ci/internal/guestcfg"
	"github.com/swapback/swapback/ci/internal/hosttools"
	"github.com/swapback/swapback/ci/internal/initramfs"
	"github.com/swapback/swapback/ci/internal/kernel"
	"github.com/swapback/swapback/ci/internal/qemu"
)

// kvmBoot is the deadline for a boot that tries KVM. A KVM that works boots in
// a second or two; one that does not may hang without a word.
const kvmBoot = 25 * time.Second

func runMachine(ctx context.Context, o *options, stdout, stderr io.Writer, notice func(string, ...any)) (int, error) {
	series, err := kernel.Find(o.kernel)
	if err != nil {
		return 0, err
	}
	if err := hosttools.Ensure(ctx, hosttools.VM(), notice); err != nil {
		return 0, err
	}
	cacheDir, err := kernel.CacheDir()
	if err != nil {
		return 0, err
	}
	cache := &kernel.Cache{Dir: cacheDir, Fetcher: &debian.Fetcher{Root: "/", Notice: notice}, Notice: notice}
	k, err := cache.Get(ctx, series)
	if err != nil {
		return 0, err
	}
	work, err := newWork()
	if err != nil {
		return 0, err
	}
	defer work.remove()

	m := qemu.Machine{CPUs: o.cpus, CPU: o.cpu, Memory: o.memory, Kernel: k.Image, Initrd: work.path("initrd"), Console: work.path(firstLog)}
	if o.out != "" {
		if m.Out, err = filepath.Abs(o.out); err != nil {
			return 0, fmt.Errorf("find the folder %s: %w", o.out, err)
		}
		if err := os.MkdirAll(m.Out, 0o755); err != nil {
			return 0, fmt.Errorf("make the folder for results: %w", err)
		}
	}
	if m.Disks, err = makeDisks(o, work); err != nil {
		return 0, err
	}
	bin, err := work.keepPrograms(o.bin)
	if err != nil {
		return 0, err
	}
	b := &boots{o: o, machine: m, accels: newAccels(cacheDir), stdout: stdout, stderr: stderr, notice: notice, release: k.Release}
	first, peer, err := configure(o, k, bin)
	if err != nil {
		return 0, err
	}
	if err := writeInitrd(ctx, k, first, m.Initrd); err != nil {
		return 0, err
	}
	if peer != nil {
		b.peer = &qemu.Machine{CPUs: peerCPUs, CPU: o.cpu, Memory: o.memory, Kernel: k.Image, Initrd: work.path("initrd-peer"), Console: work.path(peerLog)}
		if err := writeInitrd(ctx, k, peer, b.peer.Initrd); err != nil {
			return 0, err
		}
	}

	began := time.Now()
	status, err := b.run(ctx)
	if err != nil && ctx.Err() == nil {
		work.showConsoles(stderr)
	}
	work.complain(notice)
	if !o.quiet && err == nil {
		notice("exit status %d after %.1f s", status, time.Since(began).Seconds())
	}
	return status, err
}

// boots runs a machine, and the peer that it may have, again where a first boot failed.
type boots struct {
	o              *options
	machine        qemu.Machine
	peer           *qemu.Machine // nil for none
	accels         *accels
	stdout, stderr io.Writer
	notice         func(string, ...any)
	release        string
}

func (b *boots) run(ctx context.Context) (int, error) {
	switch {
	case b.o.exact:
		return b.withRetry(ctx, qemu.Exact)
	case b.o.accel == "tcg":
		return b.withRetry(ctx, qemu.TCG)
	case b.o.accel == "kvm":
		return b.withRetry(ctx, qemu.KVM)
	}
	known, reason := b.accels.best()
	switch known {
	case qemu.KVM:
		return b.withRetry(ctx, qemu.KVM)
	case qemu.TCG:
		return b.withRetry(ctx, qemu.TCG)
	}
	if reason != "" { // there is no KVM to try
		return b.withRetry(ctx, qemu.TCG)
	}
	status, err := b.once(ctx, qemu.KVM, kvmBoot)
	if !errors.Is(err, qemu.ErrBoot) {
		b.accels.remember(qemu.KVM, "it booted")
		return status, err
	}
	b.notice("KVM does not work here (%v); from now on the machine is emulated (ACCEL=kvm tries again)", err)
	status, err = b.withRetry(ctx, qemu.TCG)
	if !errors.Is(err, qemu.ErrBoot) {
		b.accels.remember(qemu.TCG, "KVM did not boot and emulation did")
	}
	return status, err
}

// withRetry boots a second time if the first did not come up: QEMU's emulation
// crashes about once in 40 boots. Once the command has begun there is no retry,
// unless the caller has said that it may be run again.
func (b *boots) withRetry(ctx context.Context, accel qemu.Accel) (int, error) {
	status, err := b.once(ctx, accel, b.o.boot)
	again := b.o.again && b.o.diskDir == "" && errors.Is(err, qemu.ErrCrash)
	if !again && !errors.Is(err, qemu.ErrBoot) {
		return status, err
	}
	kept := filepath.Join("build/vm", "failed.log")
	_ = os.Rename(b.machine.Console, kept)
	if b.peer != nil {
		_ = os.Rename(b.peer.Console, filepath.Join("build/vm", "failed-peer.log"))
	}
	b.notice("%v; once more, from the beginning (the first try's log: %s)", err, kept)
	if again {
		for _, d := range b.machine.Disks {
			if err := qemu.BlankDisk(d.Path); err != nil {
				return 0, err
			}
		}
	}
	return b.once(ctx, accel, b.o.boot)
}

func (b *boots) once(ctx context.Context, accel qemu.Accel, boot time.Duration) (int, error) {
	r := &qemu.Run{
		Machine: b.machine, Boot: boot, Limit: b.o.timeout,
		Stdout: b.stdout, Stderr: b.stderr, Notice: b.notice,
		OnReady: func(d time.Duration) {
			if !b.o.quiet {
				b.notice("Linux %s, %s, up in %.1f s", b.release, accel, d.Seconds())
			}
		},
	}
	r.Machine.Accel = accel
	if b.peer != nil {
		return b.withPeer(ctx, r)
	}
	return r.Do(ctx)
}

func makeDisks(o *options, w *work) ([]qemu.Disk, error) {
	size, err := parseSize(o.diskSize)
	if err != nil {
		return nil, err
	}
	dir, keep := w.dir, false
	if o.diskDir != "" {
		dir, keep = o.diskDir, true
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make the folder for disks: %w", err)
		}
		if err := w.lockDisks(dir); err != nil {
			return nil, err
		}
	}
	var disks []qemu.Disk
	for i := range o.disks {
		name := fmt.Sprintf("swapback%d", i)
		path := filepath.Join(dir, name+".img")
		direct, err := qemu.MakeDisk(path, size)
		if err != nil {
			return nil, err
		}
		disks = append(disks, qemu.Disk{Path: path, Serial: name, Keep: keep, Direct: direct})
	}
	return disks, nil
}

// diskNames is how a machine of n disks calls them.
func diskNames(n int) string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("/dev/nvme%dn1", i))
	}
	return strings.Join(names, " ")
}

// configure says what the inits of the machine and of its peer are to do; that of the
// peer is nil if there is to be none.
func configure(o *options, k *kernel.Kernel, bin string) (first, peer *guestcfg.Config, err error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, nil, fmt.Errorf("find the checkout: %w", err)
	}
	first = &guestcfg.Config{
		Command: o.command, Dir: dir, Env: environment(o, bin, k.Release),
		ModuleTree: k.Tree, Release: k.Release, Shown: []string{dir},
		Disks: o.disks, Out: o.out != "", Host: "swapback-vm",
	}
	if o.peer != "" {
		peer = peerOf(o, first, bin)
	}
	return first, peer, nil
}

func writeInitrd(ctx context.Context, k *kernel.Kernel, cfg *guestcfg.Config, path string) error {
	mods, err := kernel.ReadModules(k.Tree)
	if err != nil {
		return err
	}
	early, err := mods.Order(kernel.Early())
	if err != nil {
		return err
	}
	wants := kernel.Late()
	if cfg.Address != "" {
		wants = append(wants, kernel.Network()...)
	}
	late, err := mods.Order(wants)
	if err != nil {
		return err
	}
	loaded := map[string]bool{}
	for _, f := range early {
		loaded[f.Path] = true
		cfg.Early = append(cfg.Early, guestcfg.Module{Path: "/modules/" + filepath.Base(f.Path), Args: f.Args})
	}
	for _, f := range late {
		if !loaded[f.Path] {
			cfg.Late = append(cfg.Late, guestcfg.Module{Path: filepath.Join("/lib/modules", k.Release, f.Path), Args: f.Args})
		}
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("encode the machine's configuration: %w", err)
	}
	init, err := guestInit(ctx)
	if err != nil {
		return err
	}

	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write the initramfs: %w", err)
	}
	defer f.Close()
	w := initramfs.NewWriter(f)
	// Errors stick to the writer; Close reports the first.
	_ = w.Char("dev/console", 0o600, 5, 1)
	_ = w.File("init", 0o755, init)
	_ = w.File(guestcfg.File, 0o600, text)
	for i, m := range early {
		data, err := os.ReadFile(filepath.Join(k.Tree, m.Path))
		if err != nil {
			return fmt.Errorf("read a kernel module: %w", err)
		}
		_ = w.File(cfg.Early[i].Path, 0o644, data)
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

// environment is the command's: nothing of the host's leaks in but what was asked for.
func environment(o *options, bin, release string) []string {
	path := []string{bin, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	if gobin, err := exec.LookPath("go"); err == nil {
		path = append(path, filepath.Dir(gobin))
	}
	env := []string{
		"PATH=" + strings.Join(path, ":"),
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/bash", "TERM=dumb", "LANG=C.UTF-8",
		"SWAPBACK_VM=" + release,
		"SWAPBACK_TEST_DISKS=" + diskNames(o.disks),
	}
	if o.out != "" {
		env = append(env, "SWAPBACK_OUT=/out")
	}
	if o.exact {
		env = append(env, "SWAPBACK_EXACT=1")
	}
	return append(env, o.env...)
}

// guestInit is the init program, built from this checkout. "make" builds it
// beside this program; "go run ./ci/vm" does it here.
func guestInit(ctx context.Context) ([]byte, error) {
	if self, err := os.Executable(); err == nil {
		if data, err := os.ReadFile(filepath.Join(filepath.Dir(self), "guest")); err == nil {
			return data, nil
		}
	}
	tmp, err := os.MkdirTemp("", "swapback-guest-")
	if err != nil {
		return nil, fmt.Errorf("build the machine's init: %w", err)
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "guest")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out, "github.com/swapback/swapback/ci/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the machine's init: %w\n%s", err, text)
	}
	return os.ReadFile(out)
}
