package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent"
)

type restoreOptions struct {
	onto   string
	toFile string
	volume string
	verify bool
	yes    bool
}

func newBackupRestore(a *app) *cobra.Command {
	var o restoreOptions
	cmd := &cobra.Command{
		Use:   "restore BACKUP {--onto VOLUME | --to-file FILE}",
		Short: "Bring a volume of a backup back onto a volume or into a file",
		Long: `Write a volume of a backup over all of another volume of the same size. Every
block is checked. What the target held is lost, so it has to be confirmed; a
target that somebody holds or that is in quarantine is refused. Restoring does
not touch the volume that the backup was taken of, unless it is the target: to
put a volume back and keep what failed, use "swapback recover".`,
		Example: `  swapback backup restore latest --onto db-spare --repo /backups
  swapback backup restore 20260301T120000 --volume db --onto db-look --yes
  swapback backup restore latest --volume db --to-file /tmp/db.img`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeBackups(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRestore(cmd.Context(), a, o, args[0])
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.onto, "onto", "", "volume to write over")
	f.StringVar(&o.toFile, "to-file", "", "new file to write instead")
	f.StringVar(&o.volume, "volume", "", "which volume of the backup, when it holds several")
	f.BoolVar(&o.verify, "verify", false, "read the target back afterwards and compare")
	addYes(cmd, &o.yes)
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("onto", a.completeVolumes(-1)))
	return cmd
}

// restoreResult is the last object of a stream.
type restoreResult struct {
	Type string `json:"type"` // "result"
	backup.RestoreResult
}

func runRestore(ctx context.Context, a *app, o restoreOptions, id string) error {
	if (o.onto == "") == (o.toFile == "") {
		return usagef("backup restore %s: where to is not clear", id).withRemedy("give either --onto VOLUME or --to-file FILE")
	}
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	b, err := a.findBackup(ctx, repo, id)
	if err != nil {
		return err
	}
	p := a.newProgress()
	var result backup.RestoreResult
	if o.toFile != "" {
		result, err = repo.Restore(ctx, backup.RestoreOptions{
			Backup: b.ID, Volume: o.volume, Target: o.toFile, CreateTarget: true,
			VerifyAfter: o.verify, Progress: p.update, Logger: a.logger(),
		})
	} else {
		result, err = a.restoreOnto(ctx, repo, b, o, p)
	}
	p.end()
	if err != nil {
		return err
	}
	if a.json {
		return a.event(restoreResult{"result", result})
	}
	a.say(a.out, "%s of backup %s is on %s: %s of data, %s zeroed, %s\n", result.Volume.Name, result.Backup,
		result.Target, formatSize(result.DataBytes), formatSize(result.ZeroBytes), formatSeconds(result.Seconds))
	return nil
}

// restoreOnto asks before the target's content is written over.
func (a *app) restoreOnto(ctx context.Context, repo *backup.Repository, b backup.Backup, o restoreOptions, p *progress) (backup.RestoreResult, error) {
	c := a.client()
	defer c.Close()
	v, err := c.Volume(ctx, o.onto)
	if err != nil {
		return backup.RestoreResult{}, a.nearVolumes(ctx, c, err, o.onto)
	}
	if err := a.confirm("write backup "+b.ID+" over", []string{a.lossOf(v)}, o.yes); err != nil {
		return backup.RestoreResult{}, err
	}
	p.start = a.now() // the time until the answer is not the restore's
	return hostagent.Restore(ctx, hostagent.RestoreOptions{
		Service: c, Repo: repo, Locks: a.locks("backup restore"), Backup: b.ID, Volume: v.UUID, Seen: &v.Position, From: o.volume,
		Overwrite: true, VerifyAfter: o.verify, Progress: p.update, Logger: a.logger(),
	})
}
