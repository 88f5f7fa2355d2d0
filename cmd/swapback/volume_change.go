package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
)

type volumeGrowOptions struct{ size sizeFlag }

func newVolumeGrow(a *app) *cobra.Command {
	var o volumeGrowOptions
	cmd := &cobra.Command{
		Use:   "grow VOLUME --size SIZE",
		Short: "Give a volume more space",
		Long: `Give a volume a new, larger size. Its device grows at once where the kernel can
do that (6.16 and later), else with the next attach. The filesystem on it has
to be told: resize2fs, xfs_growfs.`,
		Example:           `  swapback volume grow db --size 2G`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeGrow(cmd.Context(), a, o, args[0])
		},
	}
	cmd.Flags().Var(&o.size, "size", "new size (required)")
	return cmd
}

func runVolumeGrow(ctx context.Context, a *app, o volumeGrowOptions, name string) error {
	if o.size <= 0 {
		return usagef("volume grow %s: no size given", name).withRemedy("give --size with the new size")
	}
	return a.changeVolume(ctx, name, "is larger now", func(c *api.Client) (api.Volume, error) {
		return c.GrowVolume(ctx, name, int64(o.size))
	})
}

// changeVolume makes one change to a volume and says that it is done.
func (a *app) changeVolume(ctx context.Context, name, what string, change func(*api.Client) (api.Volume, error)) error {
	c := a.client()
	defer c.Close()
	v, err := change(c)
	if err != nil {
		return a.nearVolumes(ctx, c, err, name)
	}
	return a.printVolume(v, what)
}

type volumeDeleteOptions struct{ force, yes bool }

func newVolumeDelete(a *app) *cobra.Command {
	var o volumeDeleteOptions
	cmd := &cobra.Command{
		Use:   "delete VOLUME...",
		Short: "Delete volumes",
		Long: `Delete volumes and free their extents. A volume that somebody holds is refused.
A volume in quarantine is evidence: deleting it needs --force. The data is
lost; backups of it stay.`,
		Example: `  swapback volume delete db-spare
  swapback volume delete db-spare log-spare --yes`,
		Args:              args(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeVolumes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeDelete(cmd.Context(), a, o, args)
		},
	}
	cmd.Flags().BoolVar(&o.force, "force", false, "delete volumes that are in quarantine too")
	addYes(cmd, &o.yes)
	return cmd
}

func runVolumeDelete(ctx context.Context, a *app, o volumeDeleteOptions, names []string) error {
	c := a.client()
	defer c.Close()
	var volumes []api.Volume
	var loss []string
	for _, name := range names {
		v, err := c.Volume(ctx, name)
		if err != nil {
			return a.nearVolumes(ctx, c, err, name)
		}
		if v.Position.Quarantine != nil && !o.force {
			return &api.Error{
				Code:    api.CodeQuarantined,
				Message: fmt.Sprintf("volume %s/%s is in quarantine: %s", v.Pool, v.Name, v.Position.Quarantine.Reason),
				Remedy:  "release it first, or give --force to delete the evidence",
			}
		}
		volumes = append(volumes, v)
		loss = append(loss, a.lossOf(v))
	}
	if err := a.confirm("delete", loss, o.yes); err != nil {
		return err
	}
	var deleted []string
	for _, v := range volumes {
		// By UUID: the name may mean another volume by the time of the answer.
		if err := c.DeleteVolume(ctx, v.UUID, o.force); err != nil {
			if len(deleted) > 0 {
				return fmt.Errorf("deleted %v, then: %w", deleted, err)
			}
			return err
		}
		deleted = append(deleted, v.Pool+"/"+v.Name)
	}
	return a.done("deleted", deleted, plural(len(deleted), "volume")+" deleted")
}

type volumeAttachOptions struct {
	readOnly bool
	device   int
}

func newVolumeAttach(a *app) *cobra.Command {
	var o volumeAttachOptions
	cmd := &cobra.Command{
		Use:   "attach VOLUME",
		Short: "Serve a volume as a block device",
		Long: `Serve a volume as a block device, now and whenever the daemon runs, until it is
detached. It gets the device number that it had before, unless --device asks for
another.`,
		Example: `  swapback volume attach db
  swapback volume attach db --read-only --device 7`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeAttach(cmd.Context(), a, o, args[0])
		},
	}
	cmd.Flags().BoolVar(&o.readOnly, "read-only", false, "refuse writes")
	cmd.Flags().IntVar(&o.device, "device", -1, "wanted N of /dev/ublkbN (default: the volume's last one)")
	return cmd
}

func runVolumeAttach(ctx context.Context, a *app, o volumeAttachOptions, name string) error {
	req := api.AttachRequest{ReadOnly: o.readOnly}
	if o.device >= 0 {
		req.Device = &o.device
	}
	return a.changeVolume(ctx, name, "attached", func(c *api.Client) (api.Volume, error) {
		return c.Attach(ctx, name, req)
	})
}

func newVolumeDetach(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "detach VOLUME",
		Short: "Take a volume's block device away",
		Long: `Take the block device of a volume away. It is refused while somebody holds the
device. The volume keeps its content and its device number.`,
		Example:           `  swapback volume detach db`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeVolume(cmd.Context(), args[0], "detached", func(c *api.Client) (api.Volume, error) {
				return c.Detach(cmd.Context(), args[0])
			})
		},
	}
}

type quarantineOptions struct {
	reason string
	expect uint64
}

func newVolumeQuarantine(a *app) *cobra.Command {
	var o quarantineOptions
	cmd := &cobra.Command{
		Use:   "quarantine VOLUME --reason TEXT",
		Short: "Label a volume as failed data and make it read-only",
		Long: `Put a volume in quarantine: it becomes read-only, is not probed or mounted by the
system, cannot be swapped or restored onto, and carries the reason until it is
released. Recovery does this with the data that failed.`,
		Example:           `  swapback volume quarantine db --reason "ledger does not add up"`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeQuarantine(cmd.Context(), a, o, args[0])
		},
	}
	cmd.Flags().StringVar(&o.reason, "reason", "", "why (required)")
	cmd.Flags().Uint64Var(&o.expect, "expect", 0, "refuse unless the position has this generation")
	return cmd
}

func runVolumeQuarantine(ctx context.Context, a *app, o quarantineOptions, name string) error {
	reason := api.Reason(o.reason)
	if reason == "" {
		return usagef("volume quarantine %s: no reason given", name).withRemedy("give --reason TEXT")
	}
	req := api.QuarantineRequest{Quarantine: api.Quarantine{Reason: reason, Time: a.now()}, Generation: o.expect}
	return a.changeVolume(ctx, name, "in quarantine", func(c *api.Client) (api.Volume, error) {
		return c.Quarantine(ctx, name, req)
	})
}

func newVolumeRelease(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "release VOLUME",
		Short:             "Release a volume from quarantine",
		Long:              `Take a volume's quarantine label away. It is writable again and may be swapped, restored onto and deleted.`,
		Example:           `  swapback volume release db-spare`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeVolume(cmd.Context(), args[0], "released", func(c *api.Client) (api.Volume, error) {
				return c.ReleaseQuarantine(cmd.Context(), args[0])
			})
		},
	}
}
