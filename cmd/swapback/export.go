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

func newExport(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use:   "export",
		Short: "Let other hosts use volumes, by NVMe/TCP",
		Long: `An exported volume is an NVMe namespace for the hosts that are named, and for
nobody else. It keeps its identity whatever is swapped behind it. The daemon has
to listen (swapbackd --nvme-listen ADDRESS).`,
		Example: `  swapback export create db --host nqn.2014-08.org.nvmexpress:uuid:1b4e28ba-2fa1-11d2-883f-0016d3cca427
  swapback export show db`,
	}, newExportCreate(a), newExportList(a), newExportShow(a), newExportAllow(a), newExportDeny(a), newExportDelete(a))
}

type exportOptions struct {
	hosts        []string
	authenticate bool
}

// addHosts adds the flag that names hosts. No shell knows their names.
func (o *exportOptions) addHosts(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&o.hosts, "host", nil, "NQN of a host, which /etc/nvme/hostnqn has there; repeatable (required)")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("host", cobra.NoFileCompletions))
}

func (o *exportOptions) check(what, volume string) error {
	if len(o.hosts) == 0 {
		return usagef("export %s %s: no host given", what, volume).withRemedy("give --host NQN, which /etc/nvme/hostnqn has on the host")
	}
	return nil
}

func newExportCreate(a *app) *cobra.Command {
	var o exportOptions
	cmd := &cobra.Command{
		Use:   "create VOLUME --host NQN...",
		Short: "Let hosts use a volume",
		Long: `Let hosts use a volume, from now on and whenever the daemon runs, and print what
a host runs to connect. A host for which the daemon has a secret (swapbackd
--nvme-secrets) has to prove that it knows it; with --authenticate one without a
secret is refused. Without secrets a host is only as good as its word.`,
		Example: `  swapback export create db --host nqn.2014-08.org.nvmexpress:uuid:1b4e28ba-2fa1-11d2-883f-0016d3cca427
  swapback export create db --authenticate --host "$(ssh app1 cat /etc/nvme/hostnqn)" --host "$(ssh app2 cat /etc/nvme/hostnqn)"`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check("create", args[0]); err != nil {
				return err
			}
			return a.changeExport(cmd.Context(), args[0], func(c *api.Client) (api.Export, error) {
				return c.CreateExport(cmd.Context(), args[0], api.ExportRequest{Hosts: o.hosts, Authenticate: o.authenticate})
			})
		},
	}
	o.addHosts(cmd)
	cmd.Flags().BoolVar(&o.authenticate, "authenticate", false, "refuse a host for which the daemon has no secret")
	return cmd
}

// changeExport makes one change to an export and shows what it is now.
func (a *app) changeExport(ctx context.Context, name string, change func(*api.Client) (api.Export, error)) error {
	c := a.client()
	defer c.Close()
	e, err := change(c)
	if err != nil {
		return a.nearVolumes(ctx, c, err, name)
	}
	return a.print(e, func(w io.Writer) { writeExport(w, e) })
}

func writeExport(w io.Writer, e api.Export) {
	var f fields
	f.add("Export of", "%s", e.Volume)
	f.add("NQN", "%s", e.NQN)
	f.add("UUID", "%s", e.UUID)
	f.add("Serial", "%s", e.Serial)
	f.add("Size", "%s (%d bytes)", formatSize(e.Size), e.Size)
	f.add("State", "%s", exportState(e))
	f.add("Listens on", "%s", strings.Join(e.Listen, ", "))
	for _, h := range e.Hosts {
		f.add("Host", "%s", h)
	}
	auth := "hosts that the daemon has a secret of"
	if e.Authenticate {
		auth = "every host"
	}
	f.add("Authenticates", "%s", auth)
	for _, h := range e.Connected {
		f.add("Connected", "%s from %s, controller %d with %s", h.Host, h.Address, h.Controller, plural(h.Queues, "I/O queue"))
	}
	if r := e.Reservations; r != nil {
		kept := "kept by the pool"
		if !r.Persist {
			kept = "until the daemon ends"
		}
		f.add("Reserved", "%s, %s", r.Type, kept)
		for _, g := range r.Registrants {
			holder := ""
			if g.Holder {
				holder = ", which holds the reservation"
			}
			f.add("Registered", "host %s with key %s%s", g.HostID, g.Key, holder)
		}
	}
	if e.IO != nil {
		f.add("Read", "%s in %d requests", formatSize(int64(e.IO.ReadBytes)), e.IO.Reads)
		f.add("Written", "%s in %d requests, %d flushes, %d discards, %d zeroings",
			formatSize(int64(e.IO.WriteBytes)), e.IO.Writes, e.IO.Flushes, e.IO.Discards, e.IO.WriteZeroes)
		f.add("Errors", "%d, held %d, refused %d", e.IO.Errors, e.IO.Held, e.IO.Refused)
	}
	f.write(w)
	if len(e.Connect) > 0 {
		fmt.Fprintln(w, "On a host (modprobe nvme-tcp):")
	}
	for _, line := range e.Connect {
		fmt.Fprintf(w, "  %s\n", line)
	}
}

func exportState(e api.Export) string {
	state := "serving"
	if !e.Serving {
		state = "not serving: " + e.Error
	}
	if e.ReadOnly {
		state += ", read-only"
	}
	return state
}

func newExportList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             "List exported volumes",
		Long:              `List the volumes that other hosts may use.`,
		Example:           `  swapback export list`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			list, err := c.Exports(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(list, func(w io.Writer) { writeExports(w, list) })
		},
	}
}

func writeExports(w io.Writer, list []api.Export) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no volume is exported; export one with: swapback export create VOLUME --host NQN")
		return
	}
	t := newTable("VOLUME", "NQN", "HOSTS", "CONNECTED", "STATE")
	for _, e := range list {
		t.row(e.Volume, e.NQN, strconv.Itoa(len(e.Hosts)), strconv.Itoa(len(e.Connected)), exportState(e))
	}
	t.write(w)
}

func newExportShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show VOLUME",
		Short:             "Show how hosts reach a volume, and who is connected",
		Long:              `Show an exported volume: its name and identity for hosts, who may use it, who is connected, its counters, and what a host runs to connect.`,
		Example:           `  swapback export show db`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeExport(cmd.Context(), args[0], func(c *api.Client) (api.Export, error) {
				return c.Export(cmd.Context(), args[0])
			})
		},
	}
}

func newExportAllow(a *app) *cobra.Command {
	var o exportOptions
	cmd := &cobra.Command{
		Use:               "allow VOLUME --host NQN...",
		Short:             "Let more hosts use an exported volume",
		Long:              `Let more hosts use an exported volume. Those that may use it already go on.`,
		Example:           `  swapback export allow db --host nqn.2014-08.org.nvmexpress:uuid:6fa459ea-ee8a-3ca4-894e-db77e160355e`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check("allow", args[0]); err != nil {
				return err
			}
			return a.changeExport(cmd.Context(), args[0], func(c *api.Client) (api.Export, error) {
				return c.ChangeExport(cmd.Context(), args[0], api.ChangeExportRequest{Allow: o.hosts})
			})
		},
	}
	o.addHosts(cmd)
	return cmd
}

func newExportDeny(a *app) *cobra.Command {
	var o exportOptions
	cmd := &cobra.Command{
		Use:   "deny VOLUME --host NQN...",
		Short: "Let hosts not use an exported volume any more",
		Long: `Let hosts not use an exported volume any more. Their connections end at once, and
what they have not written is lost: unmount and disconnect there first. The last
host cannot be denied; delete the export.`,
		Example:           `  swapback export deny db --host nqn.2014-08.org.nvmexpress:uuid:6fa459ea-ee8a-3ca4-894e-db77e160355e`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check("deny", args[0]); err != nil {
				return err
			}
			return a.changeExport(cmd.Context(), args[0], func(c *api.Client) (api.Export, error) {
				return c.ChangeExport(cmd.Context(), args[0], api.ChangeExportRequest{Deny: o.hosts})
			})
		},
	}
	o.addHosts(cmd)
	return cmd
}

type exportDeleteOptions struct{ force bool }

func newExportDelete(a *app) *cobra.Command {
	var o exportDeleteOptions
	cmd := &cobra.Command{
		Use:   "delete VOLUME...",
		Short: "End exports",
		Long: `Let no other host use volumes any more. It is refused while hosts are connected,
unless --force is given: then their connections end, and what they have not
written is lost. The volumes and their data stay.`,
		Example: `  swapback export delete db
  swapback export delete db log --force`,
		Args:              args(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeVolumes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runExportDelete(cmd.Context(), a, o, args)
		},
	}
	cmd.Flags().BoolVar(&o.force, "force", false, "end the connections of hosts")
	return cmd
}

func runExportDelete(ctx context.Context, a *app, o exportDeleteOptions, names []string) error {
	c := a.client()
	defer c.Close()
	var ended []string
	for _, name := range names {
		if err := c.DeleteExport(ctx, name, o.force); err != nil {
			err = a.nearVolumes(ctx, c, err, name)
			if len(ended) > 0 {
				return fmt.Errorf("ended %v, then: %w", ended, err)
			}
			return err
		}
		ended = append(ended, name)
	}
	return a.done("ended", ended, plural(len(ended), "export")+" ended")
}
