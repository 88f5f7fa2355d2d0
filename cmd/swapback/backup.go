package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent"
)

func newBackup(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use:   "backup",
		Short: "Take, show, compare, copy, restore, verify and delete backups",
		Long: `A backup is a point-in-time image of one or more volumes in a repository, which
--repo or ` + RepoEnv + ` names. Backups are named by their id, a unique beginning
of it, or "latest".`,
		Example: `  swapback backup create db log --repo /backups
  swapback backup list --repo /backups`,
	}, newBackupCreate(a), newBackupList(a), newBackupShow(a), newBackupRestore(a), newBackupMount(a), newBackupVerify(a),
		newBackupDiff(a), newBackupCopy(a), newBackupDelete(a), newBackupForget(a))
}

type backupCreateOptions struct {
	cowSize         sizeFlag
	comment         string
	tags            []string
	full            bool
	verifyUnchanged bool

	sources    []string
	changes    string
	allowInUse bool

	limit      sizeFlag
	noThrottle bool
}

func newBackupCreate(a *app) *cobra.Command {
	var o backupCreateOptions
	cmd := &cobra.Command{
		Use:   "create {VOLUME... | --source NAME=PATH...}",
		Short: "Take a backup of volumes, or of other devices and files",
		Long: `Take one backup of all named volumes at one instant, while they are in use: a
snapshot is taken, read into the repository, and removed. --cow-size bounds how
much may be written to each volume meanwhile; when it is exceeded the backup
fails and the volume is not harmed.

Where it is known what was written to a volume since an earlier backup, only
that is read, and the result is the same as if all had been: every backup has
all that it needs. Otherwise the backup is a full one and says why. --full reads
everything. --verify-unchanged does, too, and compares it with the earlier
backup: when something differs that was not known to have been written, the
backup is taken all the same and is right, and the exit code is 1.

Whoever uses the machine comes first: while others move data on the disks that are
read and somebody waits for I/O, the backup slows down, to a quarter of its speed
at most; and its process has a low priority. --limit bounds its speed in any case.

When it is interrupted, what it stored is kept for the next backup of the same
volumes, which goes on from there.

With --source it is a device or a file that no pool has, an image for instance,
and no daemon is asked. No snapshot keeps it still, so a device that somebody
holds and a file that somebody writes are refused, unless --allow-in-use is
given. Who knows what was written since an earlier backup of the same NAME says so
in a file for --changes, {"base": BACKUP, "ranges": [{"offset": …, "length": …}]} in
bytes and in order: only that is read then, and the rest is taken from the backup.`,
		Example: `  swapback backup create db --repo /backups
  swapback backup create db log --comment "before the upgrade" --tag upgrade
  swapback backup create db --verify-unchanged
  swapback backup create db --limit 100MiB
  swapback backup create --source vm7=/srv/images/vm7.raw
  swapback backup create db --json | tail -n 1`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeVolumes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackupCreate(cmd.Context(), a, o, args)
		},
	}
	f := cmd.Flags()
	f.Var(&o.cowSize, "cow-size", "space for old data while the backup runs, per volume (default: the volume's size, at most half of what is free)")
	f.StringVar(&o.comment, "comment", "", "what the backup is for")
	f.StringSliceVar(&o.tags, "tag", nil, "word to find the backup by; repeatable")
	f.BoolVar(&o.full, "full", false, "read everything, whatever is known to be unchanged")
	f.BoolVar(&o.verifyUnchanged, "verify-unchanged", false, "read everything, and check that what is known to be unchanged is")
	f.StringArrayVar(&o.sources, "source", nil, "back up the device or file PATH as NAME (NAME=PATH); repeatable")
	f.Var(&o.limit, "limit", "read no more than this in a second")
	f.BoolVar(&o.noThrottle, "no-throttle", false, "do not give way to others who need the disks or the processors")
	f.StringVar(&o.changes, "changes", "", "file that says what of the --source may have changed since a backup; only that is read")
	f.BoolVar(&o.allowInUse, "allow-in-use", false, "read a --source although somebody may write to it meanwhile")
	return cmd
}

// backupResult is the last object of a stream.
type backupResult struct {
	Type string `json:"type"` // "result"
	backup.Backup
	// Missed is what --verify-unchanged found to differ.
	Missed []backup.Missed `json:"missed,omitempty"`
}

func runBackupCreate(ctx context.Context, a *app, o backupCreateOptions, names []string) error {
	if o.full && o.verifyUnchanged {
		return usagef("--full and --verify-unchanged exclude each other: a full backup compares nothing")
	}
	if (len(names) == 0) == (len(o.sources) == 0) {
		return usagef("swapback backup create: what to back up is not clear").
			withRemedy("name volumes, or give --source NAME=PATH: they have no instant in common")
	}
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	if !o.noThrottle && a.yield != nil {
		a.yield()
	}
	p := a.newProgress()
	var b backup.Backup
	if len(o.sources) > 0 {
		b, err = a.backupSources(ctx, repo, o, p)
	} else {
		b, err = a.backupVolumes(ctx, repo, o, names, p)
	}
	p.end()
	var missed *backup.MissedError
	if err != nil && !errors.As(err, &missed) {
		return err
	}
	if a.json {
		result := backupResult{Type: "result", Backup: b}
		if missed != nil {
			result.Missed = missed.Volumes
		}
		if werr := a.event(result); werr != nil {
			return werr
		}
		return err
	}
	a.say(a.out, "backup %s of %s: %s of data in %s, %s stored, %s\n", b.ID, strings.Join(volumeNames(b), ", "),
		formatSize(dataBytes(b)), formatSize(b.Size()), formatSize(b.StoredBytes()), formatSeconds(b.Seconds))
	a.writeBases(a.out, b)
	return err
}

// writeBases tells which volumes were backed up against an earlier backup, and which
// were not although they might have been.
func (a *app) writeBases(w io.Writer, b backup.Backup) {
	for _, v := range b.Volumes {
		switch {
		case v.Base != "":
			a.say(w, "  %s: incremental on %s: %s read, %s changed\n", v.Name, v.Base, formatSize(v.ReadBytes), formatSize(v.ChangedBytes))
		case v.FullBecause != "":
			a.say(w, "  %s: full: %s\n", v.Name, v.FullBecause)
		}
	}
}

func (a *app) backupVolumes(ctx context.Context, repo *backup.Repository, o backupCreateOptions, names []string, p *progress) (backup.Backup, error) {
	c := a.service()
	defer c.Close()
	b, err := hostagent.Backup(ctx, hostagent.BackupOptions{
		Service: c, Repo: repo, Volumes: names, COWSize: int64(o.cowSize),
		Comment: o.comment, Tags: o.tags, Full: o.full, VerifyUnchanged: o.verifyUnchanged,
		Limit: int64(o.limit), FullSpeed: o.noThrottle,
		Progress: p.update, Logger: a.logger(),
	})
	if err != nil {
		return b, a.nearVolumes(ctx, c, err, names...)
	}
	return b, nil
}

func volumeNames(b backup.Backup) []string {
	var names []string
	for _, v := range b.Volumes {
		names = append(names, v.Name)
	}
	return names
}

func dataBytes(b backup.Backup) (n int64) {
	for _, v := range b.Volumes {
		n += v.DataBytes
	}
	return n
}

type backupListOptions struct{ volume, tag string }

func newBackupList(a *app) *cobra.Command {
	var o backupListOptions
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List backups, the oldest first",
		Long:    `List the backups of a repository, the oldest first, all or those of one volume or with one tag.`,
		Example: `  swapback backup list --repo /backups
  swapback backup list --volume db --tag upgrade`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runBackupList(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVar(&o.volume, "volume", "", "only backups that hold this volume (name or UUID)")
	cmd.Flags().StringVar(&o.tag, "tag", "", "only backups with this tag")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("volume", a.completeVolumes(-1)))
	return cmd
}

func runBackupList(ctx context.Context, a *app, o backupListOptions) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	list, err := repo.List(ctx)
	if err != nil {
		return err
	}
	chosen := []backup.Backup{}
	for _, b := range list {
		if o.matches(b) {
			chosen = append(chosen, b)
		}
	}
	return a.print(chosen, func(w io.Writer) { a.writeBackups(w, chosen) })
}

func (o backupListOptions) matches(b backup.Backup) bool {
	if b.Damaged != "" {
		return true // it may be the one that is looked for
	}
	if o.tag != "" && !slices.Contains(b.Tags, o.tag) {
		return false
	}
	return o.volume == "" || slices.ContainsFunc(b.Volumes, func(v backup.BackupVolume) bool {
		return o.volume == v.Name || o.volume == v.UUID || o.volume == v.Pool+"/"+v.Name
	})
}

func (a *app) writeBackups(w io.Writer, list []backup.Backup) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no backups; take one with: swapback backup create VOLUME")
		return
	}
	t := newTable("ID", "CREATED", "VOLUMES", "SIZE", "DATA", "STORED", "TAGS", "NOTE")
	for _, b := range list {
		if b.Damaged != "" {
			t.row(b.ID, "", "", "", "", "", "", "DAMAGED: "+b.Damaged)
			continue
		}
		t.row(b.ID, a.time(b.Created), strings.Join(volumeNames(b), ","), formatSize(b.Size()),
			formatSize(dataBytes(b)), formatSize(b.StoredBytes()), strings.Join(b.Tags, ","), noteOfBackup(b))
	}
	t.write(w)
}

// noteOfBackup tells what a backup was taken for.
func noteOfBackup(b backup.Backup) string {
	var notes []string
	if b.Job != "" {
		notes = append(notes, "job "+b.Job)
	}
	if b.Step != "" {
		notes = append(notes, "step "+b.Step)
	}
	if b.Comment != "" {
		notes = append(notes, b.Comment)
	}
	return strings.Join(notes, ", ")
}

func describeBackup(b backup.Backup) string {
	s := strings.Join(volumeNames(b), ",")
	if note := noteOfBackup(b); note != "" {
		s += ": " + note
	}
	return s
}

func newBackupShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show BACKUP",
		Short:             "Show a backup and its volumes",
		Long:              `Show a backup: when it was taken, what for, and each of its volumes.`,
		Example:           `  swapback backup show latest --repo /backups`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeBackups(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackupShow(cmd.Context(), a, args[0])
		},
	}
}

func runBackupShow(ctx context.Context, a *app, id string) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	b, err := a.findBackup(ctx, repo, id)
	if err != nil {
		return err
	}
	return a.print(b, func(w io.Writer) { a.writeBackup(w, b) })
}

// fullIDs finds backups and returns their full ids.
func (a *app) fullIDs(ctx context.Context, repo *backup.Repository, ids []string) ([]string, error) {
	full := make([]string, len(ids))
	for i, id := range ids {
		b, err := a.findBackup(ctx, repo, id)
		if err != nil {
			return nil, err
		}
		full[i] = b.ID
	}
	return full, nil
}

// deleteBackups deletes backups; the error says which of them are gone.
func deleteBackups(ctx context.Context, repo *backup.Repository, ids []string) ([]string, backup.PruneReport, error) {
	deleted, report, err := repo.Delete(ctx, ids...)
	if err != nil && len(deleted) > 0 {
		err = fmt.Errorf("deleted %s, then: %w", strings.Join(deleted, ", "), err)
	}
	return deleted, report, err
}

// findBackup gets a backup and suggests others when there is none such.
func (a *app) findBackup(ctx context.Context, repo *backup.Repository, id string) (backup.Backup, error) {
	b, err := repo.Get(ctx, id)
	var be *backup.Error
	if !errors.Is(err, backup.ErrNotFound) || !errors.As(err, &be) {
		return b, err
	}
	list, lerr := repo.List(ctx)
	if lerr != nil {
		return b, err
	}
	var ids []string
	for _, b := range list {
		ids = append(ids, b.ID)
	}
	if found := near(id, ids); len(found) > 0 {
		e := *be
		e.Remedy = "did you mean " + strings.Join(found, " or ") + "?"
		return b, &e
	}
	return b, err
}

func (a *app) writeBackup(w io.Writer, b backup.Backup) {
	var f fields
	f.add("Backup", "%s", b.ID)
	f.add("Created", "%s", a.time(b.Created))
	f.add("Comment", "%s", b.Comment)
	f.add("Tags", "%s", strings.Join(b.Tags, ", "))
	f.add("Job", "%s", b.Job)
	f.add("Step", "%s", b.Step)
	if c := b.CopiedFrom; c != nil {
		f.add("Copy of", "backup %s in repository %s", c.Backup, c.Repository)
	}
	f.add("Took", "%s", formatSeconds(b.Seconds))
	f.write(w)
	fmt.Fprintln(w)
	t := newTable("VOLUME", "POOL", "SIZE", "DATA", "ZERO", "REUSED", "STORED", "GENERATION")
	for _, v := range b.Volumes {
		t.row(v.Name, v.Pool, formatSize(v.Size), formatSize(v.DataBytes), formatSize(v.ZeroBytes),
			formatSize(v.ReusedBytes), formatSize(v.StoredBytes), fmt.Sprint(v.Generation))
	}
	t.write(w)
	a.writeBases(w, b)
}

type backupDeleteOptions struct{ yes bool }

func newBackupDelete(a *app) *cobra.Command {
	var o backupDeleteOptions
	cmd := &cobra.Command{
		Use:   "delete BACKUP...",
		Short: "Delete backups and free their space",
		Long: `Delete backups, and the data that no other backup needs. Other backups are never
harmed: each carries its own whole table.`,
		Example: `  swapback backup delete 20260301T120000 --repo /backups
  swapback backup delete 20260301T120000 20260302T120000 --yes`,
		Args:              args(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeBackups(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackupDelete(cmd.Context(), a, o, args)
		},
	}
	addYes(cmd, &o.yes)
	return cmd
}

// deletedBackups is what "backup delete --json" prints.
type deletedBackups struct {
	Deleted []string `json:"deleted"`
	backup.PruneReport
}

func runBackupDelete(ctx context.Context, a *app, o backupDeleteOptions, ids []string) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	var full, loss []string
	for _, id := range ids {
		b, err := a.findBackup(ctx, repo, id)
		if err != nil {
			return err
		}
		if slices.Contains(full, b.ID) {
			continue
		}
		full = append(full, b.ID)
		loss = append(loss, fmt.Sprintf("backup %s of %s, taken %s", b.ID, describeBackup(b), a.time(b.Created)))
	}
	if err := a.confirm("delete", loss, o.yes); err != nil {
		return err
	}
	deleted, report, err := deleteBackups(ctx, repo, full)
	if err != nil {
		return err
	}
	result := deletedBackups{deleted, report}
	return a.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "%s deleted, %s\n", plural(len(result.Deleted), "backup"), pruneText(result.PruneReport))
	})
}
