package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent"
)

type restoreOptions struct {
	onto, toFile, toDevice string
	volume                 string
	delta                  bool
	overwrite              bool
	allowLarger            bool
	stopAtDamage           bool
	verify                 bool
	yes                    bool
}

func newBackupRestore(a *app) *cobra.Command {
	var o restoreOptions
	cmd := &cobra.Command{
		Use:   "restore BACKUP {--onto VOLUME | --to-device DEVICE | --to-file FILE}",
		Short: "Bring a volume of a backup back onto a volume, a device or into a file",
		Long: `Write a volume of a backup over all of another volume of the same size, over a
block device that is not swapback's, or into a file. Every block is checked
before it is written. What a target held is lost, so it has to be confirmed; a
target that somebody holds, that is in quarantine or that belongs to a pool is
refused. Restoring does not touch the volume that the backup was taken of,
unless it is the target: to put a volume back and keep what failed, use
"swapback recover".

--delta reads the target, compares it by hash and writes only what differs. A
restore that was interrupted leaves a target that is partly what it was and
partly the backup; the same command with --delta goes on from there.

What is damaged in the repository does not stop the rest: the missing byte
ranges are listed at the end, read as zeroes (with --delta they stay as they
were), and the exit code is 6. --stop-at-damage ends at the first instead.

Ranges that the backup has as zeroes become holes in files; devices get a write
of zeroes that lets them free the space.`,
		Example: `  swapback backup restore latest --onto db-spare --repo /backups
  swapback backup restore 20260301T120000 --volume db --onto db-look --yes
  swapback backup restore latest --onto db-spare --delta --verify
  swapback backup restore latest --volume db --to-file /tmp/db.img
  swapback backup restore latest --volume db --to-device /dev/sdc`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeBackups(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRestore(cmd.Context(), a, o, args[0])
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.onto, "onto", "", "volume to write over")
	f.StringVar(&o.toDevice, "to-device", "", "block device to write over")
	f.StringVar(&o.toFile, "to-file", "", "file to write, a new one without --overwrite or --delta")
	f.StringVar(&o.volume, "volume", "", "which volume of the backup, when it holds several")
	f.BoolVar(&o.delta, "delta", false, "write only what differs from what the target has")
	f.BoolVar(&o.overwrite, "overwrite", false, "write over a file that is there")
	f.BoolVar(&o.allowLarger, "allow-larger", false, "take a device or file that is larger, and zero the rest of it")
	f.BoolVar(&o.stopAtDamage, "stop-at-damage", false, "end at the first damaged part of the backup")
	f.BoolVar(&o.verify, "verify", false, "read the target back afterwards and compare")
	addYes(cmd, &o.yes)
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("onto", a.completeVolumes(-1)))
	return cmd
}

// check refuses flags that do not go together.
func (o restoreOptions) check(id string) error {
	targets := 0
	for _, s := range []string{o.onto, o.toDevice, o.toFile} {
		if s != "" {
			targets++
		}
	}
	switch {
	case targets != 1:
		return usagef("backup restore %s: where to is not clear", id).
			withRemedy("give one of --onto VOLUME, --to-device DEVICE and --to-file FILE")
	case o.overwrite && o.toFile == "":
		return usagef("backup restore %s: --overwrite is for --to-file", id).
			withRemedy("volumes and devices are always written over, when that is confirmed")
	case o.allowLarger && o.onto != "":
		return usagef("backup restore %s: --allow-larger is for --to-device and --to-file", id).
			withRemedy("name a volume of the size that the backup has, or create one")
	}
	return nil
}

// restoreResult is the last object of a stream.
type restoreResult struct {
	Type string `json:"type"` // "result"
	backup.RestoreResult
}

func runRestore(ctx context.Context, a *app, o restoreOptions, id string) error {
	if err := o.check(id); err != nil {
		return err
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
	switch {
	case o.toFile != "":
		result, err = a.restoreToFile(ctx, repo, b, o, p)
	case o.toDevice != "":
		result, err = a.restoreToDevice(ctx, repo, b, o, p)
	default:
		result, err = a.restoreOnto(ctx, repo, b, o, p)
	}
	p.end()
	var damaged *backup.DamagedError
	partial := errors.As(err, &damaged) && !damaged.Stopped
	if err != nil && !partial {
		return incomplete(err, result, o)
	}
	if a.json {
		err = a.event(restoreResult{"result", result})
	} else {
		err = a.print(result, func(w io.Writer) { writeRestore(w, result, o, damaged) })
	}
	if err != nil || !partial {
		return err
	}
	return &cliError{
		exit: exitPartial, code: codeDamaged,
		message: fmt.Sprintf("restore of %s from backup %s to %s: %s can't be read back from the repository; all else was restored",
			result.Volume.Name, result.Backup, result.Target, formatSize(result.MissingBytes)),
		remedy: "put back what can be had from elsewhere with swapback repo heal and restore again with --delta, or restore an earlier backup",
	}
}

// incomplete says how to go on from a restore that ended half-way.
func incomplete(err error, result backup.RestoreResult, o restoreOptions) error {
	if !result.Incomplete {
		return err
	}
	if o.onto == "" { // else it has been said
		err = fmt.Errorf("%w\n  %s holds an incomplete image now", err, result.Target)
	}
	return fmt.Errorf("%w\n  to go on from there, give the same command with --delta", err)
}

func writeRestore(w io.Writer, r backup.RestoreResult, o restoreOptions, damaged *backup.DamagedError) {
	fmt.Fprintf(w, "%s of backup %s is on %s: %s of data, %s zeroed", r.Volume.Name, r.Backup, r.Target,
		formatSize(r.DataBytes), formatSize(r.ZeroBytes))
	if o.delta {
		fmt.Fprintf(w, ", %s unchanged", formatSize(r.UnchangedBytes))
	}
	if r.MissingBytes > 0 {
		fmt.Fprintf(w, ", %s MISSING", formatSize(r.MissingBytes))
	}
	if r.Verified {
		fmt.Fprint(w, ", read back")
	}
	fmt.Fprintf(w, ", %s\n", formatSeconds(r.Seconds))
	if len(r.Bad) == 0 {
		return
	}
	state := "read as zeroes"
	if damaged.Kept {
		state = "are as the target had them"
	}
	fmt.Fprintf(w, "missing are these bytes, which %s:\n", state)
	t := newTable("FROM", "TO", "SIZE", "OBJECT", "REASON")
	for _, bad := range r.Bad {
		t.row(fmt.Sprint(bad.Offset), fmt.Sprint(bad.Offset+bad.Length-1), formatSize(bad.Length), bad.Object, bad.Reason)
	}
	t.write(w)
}

// restoreOnto asks before the target's content is written over.
func (a *app) restoreOnto(ctx context.Context, repo *backup.Repository, b backup.Backup, o restoreOptions, p *progress) (backup.RestoreResult, error) {
	c := a.service()
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
		Overwrite: true, Delta: o.delta, StopAtDamage: o.stopAtDamage, VerifyAfter: o.verify, Progress: p.update, Logger: a.logger(),
	})
}
