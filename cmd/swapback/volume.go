package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
)

func newVolume(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use:   "volume",
		Short: "Create, show, serve and delete volumes",
		Long: `A volume is a name that a host sees as a block device (/dev/ublkbN, with a link
/dev/swapback/POOL/NAME). The content behind it is its position; a swap
exchanges the positions of two volumes.`,
		Example: `  swapback volume create db --size 1G
  swapback volume list`,
	}, newVolumeCreate(a), newVolumeList(a), newVolumeShow(a), newVolumeHolders(a), newVolumeGrow(a),
		newVolumeDelete(a), newVolumeAttach(a), newVolumeDetach(a), newVolumeQuarantine(a), newVolumeRelease(a))
}

type volumeCreateOptions struct {
	size       sizeFlag
	pool       string
	stripes    int
	stripeSize sizeFlag
	zero       bool
	detached   bool
}

func newVolumeCreate(a *app) *cobra.Command {
	var o volumeCreateOptions
	cmd := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Create a volume and serve it",
		Long: `Create a volume in a pool and serve it as a block device. Its first and last MiB
are zeroed, so that no old signature is found; the rest shows what the disks
held before, unless --zero is given. The size is rounded up to 4 KiB. With
--stripes the content is spread over that many disks.`,
		Example: `  swapback volume create db --size 1G
  swapback volume create log --size 512M --pool tank --stripes 2 --stripe-size 128K
  swapback volume create db-spare --size 1G --detached`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeCreate(cmd.Context(), a, o, args[0])
		},
	}
	f := cmd.Flags()
	f.Var(&o.size, "size", "size of the volume (required)")
	f.StringVar(&o.pool, "pool", "", "pool to create it in (default: the only one)")
	f.IntVar(&o.stripes, "stripes", 0, "disks to stripe over; 0 or 1 is linear")
	f.Var(&o.stripeSize, "stripe-size", "bytes on one disk before the next one's turn (default 64KiB)")
	f.BoolVar(&o.zero, "zero", false, "write zeroes over the whole volume")
	f.BoolVar(&o.detached, "detached", false, "do not serve it yet")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("pool", a.completePools(-1)))
	return cmd
}

func runVolumeCreate(ctx context.Context, a *app, o volumeCreateOptions, name string) error {
	if o.size <= 0 {
		return usagef("volume create %s: no size given", name).withRemedy("give --size, such as --size 1G")
	}
	if o.stripes < 0 {
		return usagef("volume create %s: --stripes %d: want 0 or more", name, o.stripes)
	}
	c := a.client()
	defer c.Close()
	var v api.Volume
	err := a.wait("creating volume "+name, func() (err error) {
		v, err = c.CreateVolume(ctx, api.CreateVolumeRequest{
			Pool: o.pool, Name: name, Size: int64(o.size), Stripes: o.stripes,
			StripeSize: int64(o.stripeSize), Zero: o.zero, Detached: o.detached,
		})
		return err
	})
	if err != nil {
		return a.nearPools(ctx, c, err, o.pool)
	}
	return a.printVolume(v, "created")
}

// printVolume says in one line what happened to a volume.
func (a *app) printVolume(v api.Volume, what string) error {
	return a.print(v, func(w io.Writer) {
		fmt.Fprintf(w, "volume %s/%s (%s) %s", v.Pool, v.Name, formatSize(v.Size), what)
		if v.Device != "" {
			fmt.Fprintf(w, ": %s", v.Device)
			if v.Link != "" {
				fmt.Fprintf(w, " (%s)", v.Link)
			}
			if v.ReadOnly {
				fmt.Fprint(w, ", read-only")
			}
		}
		fmt.Fprintln(w)
	})
}

type volumeListOptions struct{ pool string }

func newVolumeList(a *app) *cobra.Command {
	var o volumeListOptions
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List volumes",
		Long:    `List the volumes of all open pools, or of one pool.`,
		Example: `  swapback volume list
  swapback volume list --pool tank --json`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runVolumeList(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVar(&o.pool, "pool", "", "only this pool's volumes")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("pool", a.completePools(-1)))
	return cmd
}

func runVolumeList(ctx context.Context, a *app, o volumeListOptions) error {
	c := a.client()
	defer c.Close()
	volumes, err := c.Volumes(ctx, o.pool)
	if err != nil {
		return a.nearPools(ctx, c, err, o.pool)
	}
	if volumes == nil {
		volumes = []api.Volume{}
	}
	return a.print(volumes, func(w io.Writer) { writeVolumes(w, volumes) })
}

func writeVolumes(w io.Writer, volumes []api.Volume) {
	if len(volumes) == 0 {
		fmt.Fprintln(w, "no volumes; create one with: swapback volume create NAME --size SIZE")
		return
	}
	t := newTable("NAME", "POOL", "SIZE", "STATE", "DEVICE", "GENERATION", "DESCENDS FROM", "NOTE")
	for _, v := range volumes {
		t.row(v.Name, v.Pool, formatSize(v.Size), v.State, v.Device,
			strconv.FormatUint(v.Position.Generation, 10), v.Position.DescendsFrom, noteOf(v))
	}
	t.write(w)
}

// noteOf returns what somebody looking at a list has to know of a volume.
func noteOf(v api.Volume) string {
	var notes []string
	if q := v.Position.Quarantine; q != nil {
		notes = append(notes, "quarantine: "+q.Reason)
	} else if v.ReadOnly {
		notes = append(notes, "read-only")
	}
	switch {
	case v.SnapshotFull:
		notes = append(notes, "backup running, its snapshot ran full")
	case v.Snapshot:
		notes = append(notes, "backup running")
	}
	if v.Error != "" {
		notes = append(notes, v.Error)
	}
	return strings.Join(notes, "; ")
}

func newVolumeShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show VOLUME",
		Short:             "Show a volume, its position and its counters",
		Long:              `Show a volume: its device, the position behind it with the extents that hold it, the backup it descends from, and how much was read and written.`,
		Example:           `  swapback volume show db`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeShow(cmd.Context(), a, args[0])
		},
	}
}

func runVolumeShow(ctx context.Context, a *app, name string) error {
	c := a.client()
	defer c.Close()
	v, err := c.Volume(ctx, name)
	if err != nil {
		return a.nearVolumes(ctx, c, err, name)
	}
	return a.print(v, func(w io.Writer) { a.writeVolume(w, v) })
}

func (a *app) writeVolume(w io.Writer, v api.Volume) {
	var f fields
	f.add("Volume", "%s/%s", v.Pool, v.Name)
	f.add("UUID", "%s", v.UUID)
	f.add("Size", "%s (%d bytes)", formatSize(v.Size), v.Size)
	state := v.State
	if v.ReadOnly {
		state += ", read-only"
	}
	if v.Error != "" {
		state += ": " + v.Error
	}
	f.add("State", "%s", state)
	f.add("Device", "%s", v.Device)
	f.add("Link", "%s", v.Link)
	f.add("Backend", "%s", v.Backend)
	f.add("Exported as", "%s", v.NQN)
	if v.DataPath != "" {
		f.add("Data path", "%s, %d × %d requests of up to %s", v.DataPath, v.Queues, v.Depth, formatSize(v.MaxIO))
		f.add("Driver", "%s", strings.Join(v.UblkFlags, " "))
	}
	p := v.Position
	f.add("Position", "%s", p.ID)
	f.add("Generation", "%d", p.Generation)
	f.add("Descends from", "%s", p.DescendsFrom)
	if p.Stripes > 1 {
		f.add("Layout", "%d stripes of %s", p.Stripes, formatSize(p.StripeSize))
	} else {
		f.add("Layout", "linear")
	}
	for _, s := range p.Segments {
		f.add("Extents", "%s", segmentText(s))
	}
	if q := p.Quarantine; q != nil {
		f.add("Quarantine", "%s", a.quarantineText(*q))
	}
	if v.Changed != nil {
		f.add("Changed", "%s since %s, in blocks of %s", formatSize(v.Changed.Bytes), a.time(v.Changed.Since), formatSize(v.Changed.BlockSize))
		f.add("Change map", "%s", changeMapText(v.Changed))
	}
	if v.IO != nil {
		f.add("Read", "%s in %d requests", formatSize(int64(v.IO.ReadBytes)), v.IO.Reads)
		f.add("Written", "%s in %d requests, %d flushes, %d discards, %d zeroings",
			formatSize(int64(v.IO.WriteBytes)), v.IO.Writes, v.IO.Flushes, v.IO.Discards, v.IO.WriteZeroes)
		f.add("Errors", "%d, held %d, refused %d", v.IO.Errors, v.IO.Held, v.IO.Refused)
	}
	f.write(w)
}

// changeMapText says what the next backup can be made against, and what that
// outlives.
func changeMapText(c *api.Changed) string {
	text := "counts from backup " + c.Base
	if c.Base == "" {
		text = "counts from no backup: " + c.Why
	}
	if !c.Durable {
		text += "; ends with the daemon"
	}
	return text
}

// segmentText names the extents of a segment: "disk 0: 12-43, disk 1: 12-43".
func segmentText(s api.Segment) string {
	var parts []string
	for _, st := range s.Stripes {
		parts = append(parts, fmt.Sprintf("disk %d: %d-%d", st.Member, st.Start, st.Start+s.Extents-1))
	}
	return strings.Join(parts, ", ")
}

func (a *app) quarantineText(q api.Quarantine) string {
	s := fmt.Sprintf("since %s: %s", a.time(q.Time), q.Reason)
	if q.Volume != "" {
		s += fmt.Sprintf("; failed as %s", q.Volume)
	}
	if q.Job != "" || q.Step != "" {
		s += fmt.Sprintf("; job %s, step %s, exit code %d", q.Job, q.Step, q.ExitCode)
	}
	if q.Backup != "" {
		s += fmt.Sprintf("; replaced from backup %s", q.Backup)
	}
	return s
}

func newVolumeHolders(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "holders VOLUME",
		Short: "Name everybody who uses a volume's device",
		Long: `Name everybody who uses a volume's block device: mounts in every mount namespace,
swap space, devices stacked on it, loop devices, targets, and processes that
have it open; and hosts that are connected to it by NVMe. A swap, a detach or a
deletion is refused while there are any.`,
		Example:           `  swapback volume holders db`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeHolders(cmd.Context(), a, args[0])
		},
	}
}

func runVolumeHolders(ctx context.Context, a *app, name string) error {
	c := a.service()
	defer c.Close()
	list, err := c.Holders(ctx, name)
	if err != nil {
		return a.nearVolumes(ctx, c, err, name)
	}
	if list == nil {
		list = []api.Holder{}
	}
	return a.print(list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintf(w, "nobody holds %s\n", name)
			return
		}
		t := newTable("KIND", "DEVICE", "PID", "COMMAND", "DETAIL")
		for _, h := range list {
			pid := ""
			if h.PID > 0 {
				pid = strconv.Itoa(h.PID)
			}
			t.row(h.Kind, h.Device, pid, h.Command, h.Detail)
		}
		t.write(w)
	})
}
