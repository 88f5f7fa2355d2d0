package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/hostagent"
)

type recoverOptions struct {
	busyOptions
	from   string
	onto   []string
	reason string
	verify bool
}

func newRecover(a *app) *cobra.Command {
	var o recoverOptions
	cmd := &cobra.Command{
		Use:   "recover VOLUME... [--from BACKUP] [--onto SPARE]",
		Short: "Put volumes back to a backup and keep what failed",
		Long: `Put volumes back to a backup: restore it onto an unused second volume, swap the
two, and quarantine the failed content, which stays whole under the other name.
The volumes keep their names and devices. Several volumes come back together
from one backup, in one swap, or none does.

Without --from, and with --from latest, it is the latest backup that holds all of
the volumes. A backup that is named has to hold them too, by UUID or POOL/NAME.
Without --onto a volume named VOLUME-spare that nobody holds is taken, else one
is created. A volume that is named with --onto is written over. Unmount the
volumes first: a volume that somebody holds is refused with everybody named, and
so is one that a job or another recovery is working on (locks are in
$SWAPBACK_RUN_DIR, default /run/swapback).`,
		Example: `  swapback recover db --repo /backups
  swapback recover db --from 20260301T120000 --onto db-spare
  swapback recover db log --onto db=spare1 --onto log=spare2 --reason "bad import"`,
		Args:              args(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeVolumes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRecover(cmd.Context(), a, o, args)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "backup to go back to (default: the latest of the volumes)")
	f.StringArrayVar(&o.onto, "onto", nil, "SPARE, or VOLUME=SPARE when several volumes are recovered; repeatable")
	f.StringVar(&o.reason, "reason", "", "why, for the label of the failed data")
	f.BoolVar(&o.verify, "verify", false, "read the restored volumes back before they are swapped")
	o.addTo(cmd)
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("from", a.completeBackups(-1)))
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("onto", a.completeVolumes(-1)))
	return cmd
}

// recoverResult is the last object of a stream.
type recoverResult struct {
	Type string `json:"type"` // "result"
	hostagent.RecoverResult
}

func runRecover(ctx context.Context, a *app, o recoverOptions, names []string) error {
	if err := o.check(); err != nil {
		return err
	}
	onto, err := sparesOf(names, o.onto)
	if err != nil {
		return err
	}
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	// The latest is that of the volumes, which the recovery looks up.
	if o.from != "" && o.from != hostagent.Latest {
		b, err := a.findBackup(ctx, repo, o.from)
		if err != nil {
			return err
		}
		o.from = b.ID
	}
	if o.reason == "" {
		o.reason = "recovered by hand"
	}
	c := a.service()
	defer c.Close()
	p := a.newProgress()
	result, err := hostagent.Recover(ctx, hostagent.RecoverOptions{
		Service: c, Repo: repo, Locks: a.locks("recover"), Volumes: names, From: o.from, Onto: onto,
		Busy: o.busy, HoldFor: o.holdFor, AllowHolders: o.allowHolders,
		VerifyAfter: o.verify, Reason: o.reason, Progress: p.update, Logger: a.logger(),
	})
	p.end()
	if err != nil {
		return a.nearVolumes(ctx, c, err, slices.Concat(names, ontoNames(onto))...)
	}
	if a.json {
		return a.event(recoverResult{"result", result})
	}
	return a.print(result, func(w io.Writer) { a.writeRecover(w, result) })
}

// sparesOf reads --onto: SPARE for the only volume, or VOLUME=SPARE.
func sparesOf(names, onto []string) (map[string]string, error) {
	spares := map[string]string{}
	for _, text := range onto {
		volume, spare, named := strings.Cut(text, "=")
		if !named {
			if len(names) > 1 {
				return nil, usagef("--onto %s: %d volumes are to be recovered", text, len(names)).
					withRemedy("write --onto VOLUME=SPARE for each")
			}
			volume, spare = names[0], text
		}
		switch {
		case !slices.Contains(names, volume):
			return nil, usagef("--onto %s: volume %q is not among those to be recovered", text, volume)
		case spare == "":
			return nil, usagef("--onto %s: no spare volume named", text)
		case spares[volume] != "":
			return nil, usagef("--onto names two spare volumes for %s", volume)
		}
		spares[volume] = spare
	}
	return spares, nil
}

func ontoNames(onto map[string]string) []string {
	var names []string
	for _, spare := range onto {
		names = append(names, spare)
	}
	slices.Sort(names)
	return names
}

func (a *app) writeRecover(w io.Writer, r hostagent.RecoverResult) {
	for _, v := range r.Volumes {
		fmt.Fprintf(w, "%s is back to backup %s of %s\n", v.Volume, r.Backup, a.time(r.Created))
		fmt.Fprintf(w, "  what failed is %s now", v.Spare)
		if v.Quarantined {
			fmt.Fprint(w, ", read-only and in quarantine")
		}
		fmt.Fprintln(w)
	}
	var phases []string
	for _, p := range r.Phases {
		phases = append(phases, fmt.Sprintf("%s %s", p.Phase, formatSeconds(p.Seconds)))
	}
	fmt.Fprintf(w, "took %s: %s; I/O paused for %s\n", formatSeconds(r.Seconds), strings.Join(phases, ", "), formatSeconds(r.Swap.Pause))
	if r.Swap.Coherent {
		fmt.Fprintln(w, "page cache and disks agree")
	}
	for _, text := range r.Warnings {
		fmt.Fprintf(w, "WARNING: %s\n", text)
	}
}
