package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
)

type poolCheckOptions struct {
	repair bool
	save   string
}

func newPoolCheck(a *app) *cobra.Command {
	var o poolCheckOptions
	cmd := &cobra.Command{
		Use:   "check POOL",
		Short: "Check a pool's consistency, and mend it",
		Long: `Compare a pool's labels and metadata on all disks, the owners of its extents, the
kernel's tables and the block devices with each other. Nothing is changed. The
exit code is 1 when something is not as it should be.

With --repair, what needs no decision is mended: damaged labels and metadata
slots, disks that were left out and can be written to again, extents reserved
for nothing, devices with a wrong or missing table, devices that belong to
nothing and are not open. The metadata is kept in a file on the daemon's machine
first, and with --save in one here. The exit code is 1 when something is left.`,
		Example: `  swapback pool check tank
  swapback pool check tank --repair
  swapback pool check tank --repair --save tank-before.meta --json`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completePools(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.save != "" && !o.repair {
				return usagef("--save is for --repair").withRemedy("swapback pool metadata dump POOL -o FILE saves the metadata of any pool")
			}
			return runPoolCheck(cmd.Context(), a, o, args[0])
		},
	}
	cmd.Flags().BoolVar(&o.repair, "repair", false, "mend what needs no decision")
	cmd.Flags().StringVar(&o.save, "save", "", "save the metadata in this new file too before anything is mended")
	return cmd
}

func runPoolCheck(ctx context.Context, a *app, o poolCheckOptions, name string) error {
	c := a.client()
	defer c.Close()
	if o.save != "" {
		m, err := c.PoolMetadata(ctx, name)
		if err != nil {
			return a.nearPools(ctx, c, err, name)
		}
		if err := writeNew(o.save, []byte(m.Dump)); err != nil {
			return err
		}
	}
	check, verb := c.CheckPool, "checking pool "
	if o.repair {
		check, verb = c.RepairPool, "repairing pool "
	}
	var report api.CheckReport
	err := a.wait(verb+name, func() (err error) {
		report, err = check(ctx, name)
		return err
	})
	if err != nil {
		return a.nearPools(ctx, c, err, name)
	}
	err = a.print(report, func(w io.Writer) { writeReport(w, report) })
	if err != nil || report.OK {
		return err
	}
	return problems(fmt.Sprintf("pool %s has %s", report.Pool, plural(len(report.Problems), "problem")))
}

func writeReport(w io.Writer, report api.CheckReport) {
	for _, line := range report.Checked {
		fmt.Fprintf(w, "checked  %s\n", line)
	}
	for _, line := range report.Found {
		fmt.Fprintf(w, "found    %s\n", line)
	}
	if report.Saved != "" {
		fmt.Fprintf(w, "kept     the old metadata in %s\n", report.Saved)
	}
	for _, line := range report.Mended {
		fmt.Fprintf(w, "mended   %s\n", line)
	}
	for _, line := range report.Problems {
		fmt.Fprintf(w, "PROBLEM  %s\n", line)
	}
	if report.OK {
		fmt.Fprintf(w, "pool %s is consistent\n", report.Pool)
		return
	}
	fmt.Fprintf(w, "pool %s has %s\n", report.Pool, plural(len(report.Problems), "problem"))
}

func newPoolRejoin(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rejoin POOL",
		Short: "Take back disks that were missing or failed",
		Long: `Look for disks of a pool that were missing when it was opened, or that could not
be written to since. What was committed without them is written on them, and the
volumes on them answer again. A disk that was used without the others meanwhile
is refused: the pool is split then, and the message says what to do.

A pool that was found and could not be opened is opened, if it can be now.`,
		Example:           `  swapback pool rejoin tank`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completePools(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPoolRejoin(cmd.Context(), a, args[0])
		},
	}
}

func runPoolRejoin(ctx context.Context, a *app, name string) error {
	c := a.client()
	defer c.Close()
	pool, err := c.RejoinPool(ctx, name)
	if err != nil {
		return a.nearPools(ctx, c, err, name)
	}
	return a.print(pool, func(w io.Writer) {
		if !pool.Degraded {
			fmt.Fprintf(w, "pool %s is whole: all of its %s take part\n", pool.Name, plural(len(pool.Members), "disk"))
			return
		}
		fmt.Fprintf(w, "pool %s is degraded\n", pool.Name)
		for _, m := range pool.Members {
			if m.Problem != "" {
				fmt.Fprintf(w, "  disk %d (%s) is %s: %s\n", m.Index, m.Path, m.State, m.Problem)
			}
		}
	})
}

func newPoolMetadata(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use:   "metadata",
		Short: "Save and restore a pool's metadata, for rescue",
		Long: `The metadata says which volumes a pool has and where their data lies. It is on
every disk of the pool, twice. These commands are for the day on which that was
not enough. A dump is a text file, see docs/formats.md.`,
		Example: `  swapback pool metadata dump tank -o tank.meta
  swapback pool metadata restore tank.meta --disk /dev/nvme0n1`,
	}, newMetadataDump(a), newMetadataRestore(a))
}

type metadataDumpOptions struct {
	disks  []string
	output string
}

func newMetadataDump(a *app) *cobra.Command {
	var o metadataDumpOptions
	cmd := &cobra.Command{
		Use:   "dump {POOL | --disk DISK...}",
		Short: "Save a pool's metadata",
		Long: `Save the metadata of a pool that the daemon has open, or with --disk the newest
that can be read on disks of a pool that is not open; that needs no daemon.`,
		Example: `  swapback pool metadata dump tank -o tank.meta
  swapback pool metadata dump --disk /dev/nvme0n1 --disk /dev/nvme1n1 -o tank.meta`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (len(o.disks) > 0) {
				return usagef("name a pool, or disks with --disk")
			}
			return runMetadataDump(cmd.Context(), a, o, args)
		},
		ValidArgsFunction: a.completePools(1),
	}
	cmd.Flags().StringArrayVar(&o.disks, "disk", nil, "read this disk of a pool that is not open; repeatable")
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "new file (default: standard output)")
	return cmd
}

func runMetadataDump(ctx context.Context, a *app, o metadataDumpOptions, pool []string) error {
	var m api.PoolMetadata
	if len(pool) == 1 {
		c := a.client()
		defer c.Close()
		var err error
		if m, err = c.PoolMetadata(ctx, pool[0]); err != nil {
			return a.nearPools(ctx, c, err, pool[0])
		}
	} else {
		d, err := dmswap.ReadDump(ctx, o.disks)
		if err != nil {
			return locked(err, "the daemon has the pool open: name the pool instead of its disks")
		}
		text, err := d.Encode()
		if err != nil {
			return err
		}
		m = api.PoolMetadata{Pool: d.Pool(), Generation: d.Generation(), Dump: string(text)}
	}
	if o.output == "" {
		return a.print(m, func(w io.Writer) { io.WriteString(w, m.Dump) })
	}
	if err := writeNew(o.output, []byte(m.Dump)); err != nil {
		return err
	}
	return a.print(map[string]any{"pool": m.Pool, "generation": m.Generation, "file": o.output}, func(w io.Writer) {
		fmt.Fprintf(w, "metadata of pool %s, generation %d, is in %s\n", m.Pool, m.Generation, o.output)
	})
}

type metadataRestoreOptions struct {
	disks      []string
	force, yes bool
	keep       string
}

func newMetadataRestore(a *app) *cobra.Command {
	var o metadataRestoreOptions
	cmd := &cobra.Command{
		Use:   "restore FILE --disk DISK...",
		Short: "Write saved metadata on the disks of a pool",
		Long: `Write a dump on disks of a pool that is not open. What would change is shown
first. Disks that are not named follow when the pool is opened, unless they have
something newer than the dump.

A dump that is older than what a disk has, or that a disk would not follow by
itself, is refused unless --force is given: what was committed since is lost.
So is a disk that has lost its label and all metadata; with --force, and all
other disks of the pool named, it becomes the one that is missing. A dump of
another pool is always refused. The old metadata of every disk is kept in a file.`,
		Example: `  swapback pool metadata restore tank.meta --disk /dev/nvme0n1 --disk /dev/nvme1n1
  swapback pool metadata restore tank.meta --disk /dev/nvme1n1 --force --yes`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(o.disks) == 0 {
				return usagef("no disk named").withRemedy("give --disk DISK for every disk to write")
			}
			return runMetadataRestore(cmd.Context(), a, o, args[0])
		},
	}
	cmd.Flags().StringArrayVar(&o.disks, "disk", nil, "write on this disk; repeatable")
	cmd.Flags().BoolVar(&o.force, "force", false, "lose what is newer on the disks than in the dump")
	cmd.Flags().StringVar(&o.keep, "keep-dir", dmswap.DefaultKeepDir, "folder for the old metadata")
	addYes(cmd, &o.yes)
	return cmd
}

// restoredJSON is what "pool metadata restore --json" prints.
type restoredJSON struct {
	Pool       string   `json:"pool"`
	Generation uint64   `json:"generation"`
	Changes    []string `json:"changes"`
	Kept       []string `json:"kept"`
}

func runMetadataRestore(ctx context.Context, a *app, o metadataRestoreOptions, file string) (err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	d, err := dmswap.DecodeDump(text)
	if err != nil {
		return err
	}
	r, err := dmswap.PrepareRestore(ctx, d, dmswap.RestoreOptions{Disks: o.disks, Force: o.force, KeepDir: o.keep})
	if err != nil {
		return locked(err, "the daemon has the pool open: stop it first (systemctl stop swapbackd)")
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := a.confirm(fmt.Sprintf("write the metadata of pool %s, generation %d, on", d.Pool(), d.Generation()), r.Changes, o.yes); err != nil {
		return err
	}
	if err := r.Apply(ctx); err != nil {
		return err
	}
	return a.print(restoredJSON{d.Pool(), d.Generation(), r.Changes, r.Kept}, func(w io.Writer) {
		for _, line := range r.Changes {
			fmt.Fprintln(w, line)
		}
		for _, path := range r.Kept {
			fmt.Fprintf(w, "old metadata is in %s\n", path)
		}
		fmt.Fprintf(w, "metadata of pool %s is restored; to open it start the daemon, or say: swapback pool rejoin %s\n", d.Pool(), d.Pool())
	})
}

// locked gives the error of a disk that another process has locked a remedy.
func locked(err error, remedy string) error {
	if errors.Is(err, dmswap.ErrBusy) {
		return &cliError{exit: exitInUse, code: api.CodeBusy, message: err.Error(), remedy: remedy}
	}
	return err
}

// writeNew writes a file that does not exist yet, durably.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return usagef("%s exists already", path).withRemedy("name another file")
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
