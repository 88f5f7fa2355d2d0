package main

import (
	"context"
	"fmt"
	"io"

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

type verifyOptions struct{ structureOnly bool }

func newBackupVerify(a *app) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify [BACKUP...]",
		Short: "Read backups back and check every block",
		Long: `Read backups back, all of them when none is named, and compare every block with
its hash. The exit code is 1 when something is damaged. --structure-only reads
manifests and tables but no data.`,
		Example: `  swapback backup verify --repo /backups
  swapback backup verify latest
  swapback backup verify --structure-only --json`,
		ValidArgsFunction: a.completeBackups(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVerify(cmd.Context(), a, o, args)
		},
	}
	cmd.Flags().BoolVar(&o.structureOnly, "structure-only", false, "check manifests and tables only")
	return cmd
}

// verifyResult is the last object of a stream.
type verifyResult struct {
	Type string `json:"type"` // "result"
	OK   bool   `json:"ok"`
	backup.VerifyReport
}

func runVerify(ctx context.Context, a *app, o verifyOptions, ids []string) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	for i, id := range ids {
		b, err := a.findBackup(ctx, repo, id)
		if err != nil {
			return err
		}
		ids[i] = b.ID
	}
	p := a.newProgress()
	options := backup.VerifyOptions{StructureOnly: o.structureOnly, Progress: p.update}
	if a.verbose {
		options.Logger = a.logger() // else what it logs is in the report too
	}
	report, err := repo.Verify(ctx, options, ids...)
	p.end()
	found := len(report.Damage) + len(report.Other)
	// A report with findings is the result, whatever error comes with it.
	if err != nil && found == 0 {
		return err
	}
	if a.json {
		err = a.event(verifyResult{"result", found == 0, report})
	} else {
		err = a.print(report, func(w io.Writer) { writeVerify(w, report) })
	}
	if err != nil || found == 0 {
		return err
	}
	return problems(fmt.Sprintf("repository %s: %s found", repo.Location(), plural(found, "damaged part")))
}

func writeVerify(w io.Writer, r backup.VerifyReport) {
	for _, d := range r.Damage {
		fmt.Fprintf(w, "DAMAGED  %v\n", d)
	}
	for _, text := range r.Other {
		fmt.Fprintf(w, "DAMAGED  %s\n", text)
	}
	fmt.Fprintf(w, "%s, %s read for %s of volumes in %s: ", plural(r.Backups, "backup"),
		plural(int(r.Chunks), "block"), formatSize(r.Bytes), formatSeconds(r.Seconds))
	if n := len(r.Damage) + len(r.Other); n > 0 {
		fmt.Fprintf(w, "%s\n", plural(n, "damaged part"))
		return
	}
	fmt.Fprintln(w, "all good")
}
