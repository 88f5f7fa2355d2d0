package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
)

type diffOptions struct {
	volume string
	all    bool
}

func newBackupDiff(a *app) *cobra.Command {
	var o diffOptions
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Show which ranges of a volume differ between two backups",
		Long: `Show the byte ranges in which a volume differs between two backups, in whole
chunks. Only the tables are read, and only where they differ: it takes no longer
for a large volume with few changes. What one backup has beyond the end of the
other differs, too.

The first ranges are shown, or --all; --json gives every range as a line of its own.`,
		Example: `  swapback backup diff 20260301T120000 latest --repo /backups
  swapback backup diff 20260301T120000 20260302T120000 --volume db --all
  swapback backup diff 20260301T120000 latest --json | tail -n 1`,
		Args:              args(cobra.ExactArgs(2)),
		ValidArgsFunction: a.completeBackups(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackupDiff(cmd.Context(), a, o, args)
		},
	}
	cmd.Flags().StringVar(&o.volume, "volume", "", "which volume of the backups, when they hold several")
	cmd.Flags().BoolVar(&o.all, "all", false, "show every range")
	return cmd
}

// diffRange is one line of a stream of --json.
type diffRange struct {
	Type string `json:"type"` // "range"
	backup.Range
}

// diffResult is the last object of a stream.
type diffResult struct {
	Type string `json:"type"` // "result"
	backup.DiffResult
}

// diffShown is how many ranges people see who did not ask for all.
const diffShown = 20

func runBackupDiff(ctx context.Context, a *app, o diffOptions, ids []string) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	if ids, err = a.fullIDs(ctx, repo, ids); err != nil {
		return err
	}
	shown := int64(0)
	result, err := repo.Diff(ctx, backup.DiffOptions{A: ids[0], B: ids[1], Volume: o.volume}, func(r backup.Range) error {
		switch {
		case a.json:
			return a.event(diffRange{"range", r})
		case o.all || shown < diffShown:
			shown++
			a.say(a.out, "%d-%d  %s\n", r.Offset, r.Offset+r.Length-1, formatSize(r.Length))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if a.json {
		return a.event(diffResult{"result", result})
	}
	if more := result.Ranges - shown; more > 0 {
		a.say(a.out, "and %s; --all shows them\n", plural(int(more), "more range"))
	}
	if result.Ranges == 0 {
		a.say(a.out, "%s is the same in %s and %s\n", result.Volume.Name, result.A, result.B)
		return nil
	}
	a.say(a.out, "%s of %s differ between %s and %s, in %s\n", formatSize(result.Bytes), result.Volume.Name,
		result.A, result.B, plural(int(result.Ranges), "range"))
	return nil
}
