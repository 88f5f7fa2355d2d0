package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
)

type pruneOptions struct {
	maxUnused string
	dryRun    bool
	all       bool
}

// keepInterrupted is how long prune leaves an interrupted backup to its next run.
const keepInterrupted = 7 * 24 * time.Hour

func newRepoPrune(a *app) *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove what no backup needs",
		Long: `Remove objects that no backup needs, such as deleted backups and crashed ones leave
behind. "backup delete" and "backup forget" do that as well, after deleting.

Of packs of which backups need only a part, prune writes that part to new packs, until
no more than --max-unused of the repository is needed by nobody. 100% rewrites
nothing.

What an interrupted backup stored is kept for seven days, for the next backup of
the same volumes to go on from. --all removes it at once.

Backups and running operations are not touched: what they may need stays until they
have ended, and is removed by the next prune.`,
		Example: `  swapback repo prune --repo /backups
  swapback repo prune --dry-run
  swapback repo prune --max-unused 0%`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runRepoPrune(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVar(&o.maxUnused, "max-unused", "5%", "share of the repository that may stay although nothing needs it")
	cmd.Flags().BoolVar(&o.all, "all", false, "also remove what interrupted backups left for their next run")
	cmd.Flags().BoolVarP(&o.dryRun, "dry-run", "n", false, "only say what would be removed")
	return cmd
}

func runRepoPrune(ctx context.Context, a *app, o pruneOptions) error {
	most, err := parseShare(o.maxUnused)
	if err != nil {
		return usagef("--max-unused: %v", err)
	}
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	age := keepInterrupted
	if o.all {
		age = 0
	}
	if !o.dryRun {
		if _, err := repo.DropInterrupted(ctx, age); err != nil {
			return err
		}
	}
	report, err := repo.Prune(ctx, backup.PruneOptions{Repack: true, MaxUnused: most, DryRun: o.dryRun, Logger: a.logger()})
	if err != nil {
		return err
	}
	return a.print(report, func(w io.Writer) { fmt.Fprintln(w, pruneText(report)) })
}

func pruneText(r backup.PruneReport) string {
	freed, kept := "freed in", "kept"
	if r.DryRun {
		freed, kept = "would be freed in", "would be kept"
	}
	s := fmt.Sprintf("%s %s %s", formatSize(r.Bytes), freed, plural(r.Packs, "pack"))
	switch {
	case r.Repacked > 0 && r.DryRun:
		s += fmt.Sprintf("; %s would be written anew, %s", plural(r.Repacked, "pack"), formatSize(r.Moved))
	case r.Repacked > 0:
		s += fmt.Sprintf("; %s written anew, %s", plural(r.Repacked, "pack"), formatSize(r.Moved))
	}
	if r.Waiting > 0 {
		s += fmt.Sprintf("; %s %s until %s under way ended", plural(r.Waiting, "pack"), kept, plural(r.Leases, "operation"))
	}
	if r.Unused > 0 {
		s += fmt.Sprintf("; %s in other packs stays unused", formatSize(r.Unused))
	}
	return s
}
