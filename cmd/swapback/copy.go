package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
)

type copyOptions struct {
	to      string
	secret  otherSecret
	all     bool
	volumes []string
	tags    []string
}

func newBackupCopy(a *app) *cobra.Command {
	var o copyOptions
	cmd := &cobra.Command{
		Use:   "copy {BACKUP... | --all | --volume VOLUME | --tag TAG} --to REPO",
		Short: "Copy backups to another repository",
		Long: `Copy backups from the repository of --repo to that of --to, which may have other keys
and chunks of another size; make it with "swapback repo init". Copies keep the instant,
the comment and the tags, get ids of their own, and note where they come from.

Nothing is copied twice: backups that are there already are passed over, chunks that
are there already are used again, and of a backup only what differs from one that was
copied before is read. So a copying that was interrupted goes on when it is run again,
and one every night takes what the day has changed. All data is checked on the way.

--volume and --tag choose the backups that hold all these volumes and have all these
tags.`,
		Example: `  swapback backup copy --all --to s3://copies/backups --to-passphrase-file /root/copies
  swapback backup copy latest --to /mnt/disk/backups
  swapback backup copy --volume db --tag release --to /mnt/disk/backups --json | tail -n 1`,
		ValidArgsFunction: a.completeBackups(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackupCopy(cmd.Context(), a, o, args)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.to, "to", "", "repository to copy to")
	o.secret.addTo(f, "to")
	f.BoolVar(&o.all, "all", false, "copy all backups")
	f.StringSliceVar(&o.volumes, "volume", nil, "copy the backups that hold this volume (NAME, POOL/NAME or UUID); repeatable")
	f.StringSliceVar(&o.tags, "tag", nil, "copy the backups with this tag; repeatable")
	return cmd
}

// copyResult is the last object of a stream.
type copyResult struct {
	Type string `json:"type"` // "result"
	backup.CopyReport
	Seconds float64 `json:"seconds"`
}

// copiedEvent is one line of a stream of --json: a backup that is there now.
type copiedEvent struct {
	Type   string `json:"type"` // "copied"
	Backup string `json:"backup"`
	Copy   string `json:"copy"`
}

func runBackupCopy(ctx context.Context, a *app, o copyOptions, ids []string) error {
	chosen := o.all || len(o.volumes)+len(o.tags) > 0
	switch {
	case o.to == "":
		return usagef("backup copy: where to is not clear").withRemedy("give --to REPO")
	case chosen == (len(ids) > 0):
		return usagef("backup copy: which backups is not clear").withRemedy("name them, or give --all, or --volume and --tag")
	}
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	if ids, err = a.fullIDs(ctx, repo, ids); err != nil {
		return err
	}
	if chosen {
		if ids, err = o.choose(ctx, repo); err != nil {
			return err
		}
		if len(ids) == 0 {
			return &backup.Error{Kind: backup.ErrNotFound, Op: "copy from " + repo.Location(), Remedy: "see which there are with: swapback backup list"}
		}
	}
	to, err := o.secret.open(ctx, a, o.to)
	if err != nil {
		return err
	}
	defer to.Close()
	p := a.newProgress()
	start := a.now()
	report, err := repo.CopyTo(ctx, to, backup.CopyOptions{Backups: ids, Progress: p.update, Logger: a.logger(), Copied: func(from, copied backup.Backup) {
		p.end()
		if a.json {
			_ = a.event(copiedEvent{"copied", from.ID, copied.ID}) // the result tells it as well
			return
		}
		a.say(a.out, "%s is %s: %s, %s read, %s stored\n", from.ID, copied.ID, describeBackup(copied), formatSize(readBytes(copied)), formatSize(copied.StoredBytes()))
	}})
	p.end()
	if err != nil {
		return err
	}
	seconds := a.now().Sub(start).Seconds()
	if a.json {
		return a.event(copyResult{"result", report, seconds})
	}
	return a.print(report, func(w io.Writer) {
		fmt.Fprintf(w, "%s copied to %s in %s: %s of volumes, %s read, %s stored; %d there already\n", plural(len(report.Copied), "backup"),
			to.Location(), formatSeconds(seconds), formatSize(report.Size), formatSize(report.Read), formatSize(report.Stored), len(report.Skipped))
	})
}

func readBytes(b backup.Backup) (n int64) {
	for _, v := range b.Volumes {
		n += v.ReadBytes
	}
	return n
}

// choose returns the backups that the flags mean.
func (o copyOptions) choose(ctx context.Context, repo *backup.Repository) (ids []string, err error) {
	list, err := repo.List(ctx)
	for _, b := range list {
		// One that is damaged may be meant: copying it says so.
		if b.Damaged != "" || o.wants(b) {
			ids = append(ids, b.ID)
		}
	}
	return ids, err
}

func (o copyOptions) wants(b backup.Backup) bool {
	for _, t := range o.tags {
		if !slices.Contains(b.Tags, t) {
			return false
		}
	}
	for _, name := range o.volumes {
		if !slices.ContainsFunc(b.Volumes, func(v backup.BackupVolume) bool {
			return name == v.Name || name == v.UUID || name == v.Pool+"/"+v.Name
		}) {
			return false
		}
	}
	return true
}
