package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
)

// spanFlag is a span of the calendar as a flag.
type spanFlag struct{ backup.Span }

func (f *spanFlag) Set(s string) (err error) {
	f.Span, err = backup.ParseSpan(s)
	return err
}

func (f *spanFlag) Type() string { return "span" }

type forgetOptions struct {
	keep   backup.Retention
	within spanFlag
	tags   []string
	job    string
	volume []string
	dryRun bool
	yes    bool
}

func newBackupForget(a *app) *cobra.Command {
	var o forgetOptions
	cmd := &cobra.Command{
		Use:   "forget",
		Short: "Delete backups that no rule keeps",
		Long: `Delete all backups but those that a rule keeps, and the data that no other backup
needs. Backups of the same volumes are looked at by themselves. --keep-daily 7 keeps
the newest backup of each of the last 7 days that have one, and so on; a backup stays
when any rule keeps it. Hours and days are those of this machine's time zone.

--tag, --job and --volume say which backups are looked at at all. A backup that is
damaged is left alone.`,
		Example: `  swapback backup forget --keep-last 3 --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run
  swapback backup forget --keep-within 30d --keep-tag release --yes
  swapback backup forget --job close-of-day --keep-last 5 --yes`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.keep.Within = o.within.Span
			return runBackupForget(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.keep.Last, "keep-last", 0, "keep the last N backups")
	f.IntVar(&o.keep.Hourly, "keep-hourly", 0, "keep the last backup of each of N hours")
	f.IntVar(&o.keep.Daily, "keep-daily", 0, "keep the last backup of each of N days")
	f.IntVar(&o.keep.Weekly, "keep-weekly", 0, "keep the last backup of each of N weeks")
	f.IntVar(&o.keep.Monthly, "keep-monthly", 0, "keep the last backup of each of N months")
	f.IntVar(&o.keep.Yearly, "keep-yearly", 0, "keep the last backup of each of N years")
	f.Var(&o.within, "keep-within", "keep what is at most so much older than the newest (1y6m, 30d, 12h)")
	f.StringSliceVar(&o.keep.Tags, "keep-tag", nil, "keep backups with this tag; repeatable")
	f.StringSliceVar(&o.tags, "tag", nil, "look only at backups with all these tags; repeatable")
	f.StringVar(&o.job, "job", "", "look only at backups that this job took")
	f.StringSliceVar(&o.volume, "volume", nil, "look only at backups that hold these volumes (NAME, POOL/NAME or UUID); repeatable")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "only say what would be deleted")
	addYes(cmd, &o.yes)
	return cmd
}

// forgotten is what "backup forget --json" prints.
type forgotten struct {
	Keep   []backup.Kept   `json:"keep"`
	Forget []backup.Backup `json:"forget"`
	DryRun bool            `json:"dry_run"`
	backup.PruneReport
}

func (o forgetOptions) wants(b backup.Backup) bool {
	for _, t := range o.tags {
		if !slices.Contains(b.Tags, t) {
			return false
		}
	}
	for _, name := range o.volume {
		if !slices.ContainsFunc(b.Volumes, func(v backup.BackupVolume) bool {
			return name == v.Name || name == v.UUID || name == v.Pool+"/"+v.Name
		}) {
			return false
		}
	}
	return o.job == "" || o.job == b.Job
}

func runBackupForget(ctx context.Context, a *app, o forgetOptions) error {
	if o.keep.Empty() {
		return usagef("no rule keeps anything: every backup would be deleted").
			withRemedy("give at least one of --keep-last, --keep-daily, …; to delete backups by name: swapback backup delete")
	}
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	list, err := repo.List(ctx)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(b backup.Backup) bool { return !o.wants(b) })
	stay, gone := o.keep.Choose(list, a.local)
	result := forgotten{Keep: append([]backup.Kept{}, stay...), Forget: append([]backup.Backup{}, gone...), DryRun: o.dryRun}
	if len(gone) > 0 && !o.dryRun {
		var ids, loss []string
		for _, b := range gone {
			ids = append(ids, b.ID)
			loss = append(loss, fmt.Sprintf("backup %s of %s, taken %s", b.ID, describeBackup(b), a.time(b.Created)))
		}
		if err := a.confirm("delete", loss, o.yes); err != nil {
			return err
		}
		_, report, err := deleteBackups(ctx, repo, ids)
		if err != nil {
			return err
		}
		result.PruneReport = report
	}
	return a.print(result, func(w io.Writer) { a.forgetText(w, result) })
}

func (a *app) forgetText(w io.Writer, f forgotten) {
	t := newTable("BACKUP", "TAKEN", "VOLUMES", "", "WHY")
	for _, k := range f.Keep {
		t.row(k.Backup.ID, a.time(k.Backup.Created), describeBackup(k.Backup), "kept", strings.Join(k.Reasons, ", "))
	}
	what := "deleted"
	if f.DryRun {
		what = "would go"
	}
	for _, b := range f.Forget {
		t.row(b.ID, a.time(b.Created), describeBackup(b), what)
	}
	t.write(w)
	switch {
	case f.DryRun:
		fmt.Fprintf(w, "%s would be deleted, %d kept\n", plural(len(f.Forget), "backup"), len(f.Keep))
	case len(f.Forget) == 0:
		fmt.Fprintf(w, "nothing to delete, %d kept\n", len(f.Keep))
	default:
		fmt.Fprintf(w, "%s deleted, %d kept, %s\n", plural(len(f.Forget), "backup"), len(f.Keep), pruneText(f.PruneReport))
	}
}
