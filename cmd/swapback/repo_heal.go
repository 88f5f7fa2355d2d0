package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
)

type healOptions struct {
	from      []string
	fromRepo  []string
	secret    otherSecret
	packs     []string
	scan      bool
	noVolumes bool
	dryRun    bool
}

func newRepoHeal(a *app) *cobra.Command {
	var o healOptions
	cmd := &cobra.Command{
		Use:   "heal",
		Short: "Put back what is damaged while something still has it",
		Long: `Read the data of all backups, and look for what is damaged where it may still be:
elsewhere in the repository, on the volumes that the backups are of (when the daemon
can be reached), on the devices and in the images of --from, and in the repositories
of --from-repo: copies of this one, or such that backups were copied to or from. What
is found is taken only when its hash is right, and stored anew; every backup that has
it is good again.

Nothing else changes, and backups may run meanwhile. The exit code is 1 when something
stays damaged, which is then named. What is damaged a volume has only until it is
written over: the sooner, the better.`,
		Example: `  swapback repo heal --repo /backups
  swapback repo heal --dry-run
  swapback repo heal --from /dev/ublkb0 --from /var/images/db.img --scan
  swapback repo heal --from-repo s3://copies/backups --from-passphrase-file /root/copies
  swapback repo heal --pack packs/3f/3f9a1c0755d64d7a90a8ad3e1f0c2b44`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runRepoHeal(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.from, "from", nil, "device or image that may have it; repeatable")
	f.StringArrayVar(&o.fromRepo, "from-repo", nil, "repository that may have it; repeatable")
	o.secret.addTo(f, "from")
	f.StringArrayVar(&o.packs, "pack", nil, "read only the chunks in this pack, as verify names it; repeatable")
	f.BoolVar(&o.scan, "scan", false, "look everywhere on devices and in images, and not only where the backups have it")
	f.BoolVar(&o.noVolumes, "no-volumes", false, "do not look on the daemon's volumes")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "only say what could be put back")
	return cmd
}

// healResult is the last object of a stream.
type healResult struct {
	Type string `json:"type"` // "result"
	OK   bool   `json:"ok"`
	backup.HealReport
}

func runRepoHeal(ctx context.Context, a *app, o healOptions) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	options := backup.HealOptions{Packs: o.packs, From: o.from, Scan: o.scan, DryRun: o.dryRun}
	if a.verbose {
		options.Logger = a.logger() // else what it logs is in the report too
	}
	for _, location := range o.fromRepo {
		other, err := o.secret.open(ctx, a, location)
		if err != nil {
			return err
		}
		defer other.Close()
		options.Repositories = append(options.Repositories, other)
	}
	var unheard error
	if !o.noVolumes {
		options.Volumes = func(ctx context.Context, which []backup.VolumeRef) (paths []string) {
			paths, unheard = a.devicesOf(ctx, which)
			return paths
		}
	}
	p := a.newProgress()
	options.Progress = p.update
	report, err := repo.Heal(ctx, options)
	p.end()
	if err != nil {
		return err
	}
	left := report.Bad.Sum() - report.Healed.Sum()
	if a.json {
		err = a.event(healResult{"result", left == 0, report})
	} else {
		err = a.print(report, func(w io.Writer) {
			writeHeal(w, report)
			if unheard != nil && left > 0 {
				fmt.Fprintf(w, "the volumes were not looked at: %v\n", unheard)
			}
		})
	}
	if err != nil || left == 0 {
		return err
	}
	return problems(fmt.Sprintf("repository %s: %s damaged", repo.Location(), plural(left, "part")))
}

// devicesOf returns the devices of those of the volumes that are attached. Nothing has
// to be frozen: what is read from them counts only when its hash is right.
func (a *app) devicesOf(ctx context.Context, which []backup.VolumeRef) ([]string, error) {
	c := a.client()
	defer c.Close()
	volumes, err := c.Volumes(ctx, "")
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, v := range volumes {
		wanted := func(r backup.VolumeRef) bool { return r.UUID == v.UUID || r.Pool == v.Pool && r.Name == v.Name }
		if v.Device != "" && slices.ContainsFunc(which, wanted) {
			paths = append(paths, v.Device)
		}
	}
	return paths, nil
}

func writeHeal(w io.Writer, r backup.HealReport) {
	for _, d := range r.Left {
		fmt.Fprintf(w, "DAMAGED  %v\n", d)
	}
	for _, text := range r.Other {
		fmt.Fprintf(w, "DAMAGED  %s\n", text)
	}
	fmt.Fprintf(w, "%s, %s read in %s: ", plural(r.Backups, "backup"), plural(int(r.Chunks), "chunk"), formatSeconds(r.Seconds))
	if r.Bad.Sum() == 0 {
		fmt.Fprintln(w, "all good")
		return
	}
	healed := "put back"
	if r.DryRun {
		healed = "could be put back"
	}
	fmt.Fprintf(w, "%s damaged, %d %s\n", plural(r.Bad.Sum(), "part"), r.Healed.Sum(), healed)
	var names []string
	for name := range r.Sources {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(w, "  %d from %s\n", r.Sources[name], name)
	}
	if n := len(r.Changed); n > 0 {
		fmt.Fprintf(w, "%s good again where that was\n", plural(n, "backup"))
	}
}
