package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
)

func newPool(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use:   "pool",
		Short: "Create, show, check and delete pools of disks",
		Long: `A pool is a set of member disks, cut into extents, that volumes are made of.
Every member carries a label and the pool's metadata.`,
		Example: `  swapback pool create tank /dev/nvme0n1 /dev/nvme1n1
  swapback pool show tank`,
	}, newPoolCreate(a), newPoolList(a), newPoolShow(a), newPoolCheck(a), newPoolRejoin(a), newPoolMetadata(a), newPoolDelete(a))
}

type poolCreateOptions struct {
	extentSize sizeFlag
	force      bool
}

func newPoolCreate(a *app) *cobra.Command {
	var o poolCreateOptions
	cmd := &cobra.Command{
		Use:   "create NAME DISK...",
		Short: "Create a pool on disks",
		Long: `Create a pool on one or more block devices. Disks that carry something (a
filesystem, a partition table, LVM, another pool) are left alone unless --force
is given; disks that are in use are refused in any case. What the disks hold is lost.`,
		Example: `  swapback pool create tank /dev/nvme0n1 /dev/nvme1n1
  swapback pool create tank /dev/nvme0n1 --extent-size 16M`,
		Args: args(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPoolCreate(cmd.Context(), a, o, args[0], args[1:])
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	cmd.Flags().Var(&o.extentSize, "extent-size", "unit of allocation, a power of two (default 4MiB)")
	cmd.Flags().BoolVar(&o.force, "force", false, "overwrite what the disks carry")
	return cmd
}

func runPoolCreate(ctx context.Context, a *app, o poolCreateOptions, name string, disks []string) error {
	c := a.client()
	defer c.Close()
	// The daemon knows nothing of where we are.
	paths := make([]string, len(disks))
	for i, disk := range disks {
		path, err := filepath.Abs(disk)
		if err != nil {
			return usagef("disk %s: %v", disk, err)
		}
		paths[i] = path
	}
	pool, err := c.CreatePool(ctx, api.CreatePoolRequest{
		Name: name, Disks: paths, ExtentSize: int64(o.extentSize), Force: o.force,
	})
	if err != nil {
		return err
	}
	return a.print(pool, func(w io.Writer) {
		fmt.Fprintf(w, "pool %s: %s on %s, extents of %s\n",
			pool.Name, formatSize(pool.Size), plural(len(pool.Members), "disk"), formatSize(pool.ExtentSize))
	})
}

func newPoolList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the pools that are open",
		Long: `List the pools that the daemon has open. Pools that it found but could not open
are shown with the reason on stderr.`,
		Example: `  swapback pool list
  swapback pool list --json`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runPoolList(cmd.Context(), a)
		},
	}
}

func runPoolList(ctx context.Context, a *app) error {
	c := a.client()
	defer c.Close()
	pools, err := c.Pools(ctx)
	if err != nil {
		return err
	}
	if pools == nil {
		pools = []api.Pool{}
	}
	if err := a.print(pools, func(w io.Writer) { writePools(w, pools) }); err != nil || a.json {
		return err
	}
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	for _, f := range info.Failed {
		a.say(a.errOut, "pool %s (%s) could not be opened: %s\n", f.Name, strings.Join(f.Disks, ", "), f.Error)
	}
	return nil
}

func writePools(w io.Writer, pools []api.Pool) {
	if len(pools) == 0 {
		fmt.Fprintln(w, "no pools; create one with: swapback pool create NAME DISK...")
		return
	}
	t := newTable("NAME", "SIZE", "FREE", "VOLUMES", "DISKS", "EXTENT", "GENERATION")
	for _, p := range pools {
		t.row(p.Name, formatSize(p.Size), formatSize(p.Free), strconv.Itoa(p.Volumes),
			strconv.Itoa(len(p.Members)), formatSize(p.ExtentSize), strconv.FormatUint(p.Generation, 10))
	}
	t.write(w)
}

// poolDetails is what "pool show --json" prints: the pool and its volumes.
type poolDetails struct {
	api.Pool
	VolumeList []api.Volume `json:"volume_list"`
}

func newPoolShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show POOL",
		Short:             "Show a pool, its disks and its volumes",
		Long:              `Show a pool: its member disks with what is free on each, and its volumes.`,
		Example:           `  swapback pool show tank`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completePools(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPoolShow(cmd.Context(), a, args[0])
		},
	}
}

func runPoolShow(ctx context.Context, a *app, name string) error {
	c := a.client()
	defer c.Close()
	pool, err := c.Pool(ctx, name)
	if err != nil {
		return a.nearPools(ctx, c, err, name)
	}
	volumes, err := c.Volumes(ctx, pool.Name)
	if err != nil {
		return err
	}
	if volumes == nil {
		volumes = []api.Volume{}
	}
	return a.print(poolDetails{pool, volumes}, func(w io.Writer) { a.writePool(w, pool, volumes) })
}

func (a *app) writePool(w io.Writer, pool api.Pool, volumes []api.Volume) {
	var f fields
	f.add("Pool", "%s", pool.Name)
	f.add("UUID", "%s", pool.UUID)
	f.add("Created", "%s", a.time(pool.Created))
	f.add("Size", "%s in %d extents of %s", formatSize(pool.Size), pool.Extents, formatSize(pool.ExtentSize))
	f.add("Free", "%s in %d extents", formatSize(pool.Free), pool.FreeExtents)
	f.add("Generation", "%d", pool.Generation)
	if pool.Degraded {
		f.add("State", "%s", "degraded: volumes with extents on a disk that takes no part answer errors there")
	}
	f.write(w)
	fmt.Fprintln(w)
	t := newTable("DISK", "DEVICE", "STATE", "SIZE", "FREE", "UUID")
	for _, m := range pool.Members {
		t.row(strconv.Itoa(m.Index), m.Path, m.State, formatSize(m.Extents*pool.ExtentSize),
			formatSize(m.FreeExtents*pool.ExtentSize), m.UUID)
	}
	t.write(w)
	for _, m := range pool.Members {
		if m.Problem != "" {
			fmt.Fprintf(w, "disk %d (%s) takes no part: %s\n", m.Index, m.Path, m.Problem)
		}
	}
	if len(volumes) > 0 {
		fmt.Fprintln(w)
		writeVolumes(w, volumes)
	}
}

type poolDeleteOptions struct{ force, yes bool }

func newPoolDelete(a *app) *cobra.Command {
	var o poolDeleteOptions
	cmd := &cobra.Command{
		Use:   "delete POOL",
		Short: "Delete a pool",
		Long: `Delete a pool: wipe its labels, so that its disks are blank to swapback. A pool
that has volumes is deleted only with --force; a volume that somebody holds
keeps its pool in any case. The data is lost.`,
		Example: `  swapback pool delete tank
  swapback pool delete tank --force --yes`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completePools(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPoolDelete(cmd.Context(), a, o, args[0])
		},
	}
	cmd.Flags().BoolVar(&o.force, "force", false, "delete the pool's volumes too")
	addYes(cmd, &o.yes)
	return cmd
}

func runPoolDelete(ctx context.Context, a *app, o poolDeleteOptions, name string) error {
	c := a.client()
	defer c.Close()
	pool, err := c.Pool(ctx, name)
	if err != nil {
		return a.nearPools(ctx, c, err, name)
	}
	volumes, err := c.Volumes(ctx, pool.Name)
	if err != nil {
		return err
	}
	loss := []string{fmt.Sprintf("pool %s on %s", pool.Name, strings.Join(memberPaths(pool), ", "))}
	for _, v := range volumes {
		loss = append(loss, a.lossOf(v))
	}
	if err := a.confirm("delete", loss, o.yes); err != nil {
		return err
	}
	if err := c.DeletePool(ctx, pool.UUID, o.force); err != nil {
		return err
	}
	return a.done("deleted", []string{pool.Name}, fmt.Sprintf("pool %s deleted", pool.Name))
}

func memberPaths(pool api.Pool) []string {
	var paths []string
	for _, m := range pool.Members {
		paths = append(paths, m.Path)
	}
	return paths
}
