package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
)

// busyOptions are the flags of every command that swaps.
type busyOptions struct {
	busy         string
	holdFor      time.Duration
	allowHolders bool
}

func (o *busyOptions) addTo(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.busy, "busy", api.BusyHold, "what I/O meets during the swap: hold or refuse")
	f.Var((*holdFlag)(&o.holdFor), "hold-for", "call the swap off when it is not committed after this time (default: swapbackd --hold-for, 10s)")
	f.BoolVar(&o.allowHolders, "allow-holders", false, "swap although somebody holds a device open")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("busy",
		cobra.FixedCompletions([]string{api.BusyHold, api.BusyRefuse}, cobra.ShellCompDirectiveNoFileComp)))
}

func (o *busyOptions) check() error {
	if o.busy != api.BusyHold && o.busy != api.BusyRefuse {
		return usagef("--busy %s: want hold or refuse", o.busy)
	}
	return nil
}

// holdFlag is a positive duration; without the flag swapbackd's own holds.
type holdFlag time.Duration

func (h *holdFlag) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return fmt.Errorf("want a positive duration such as 10s")
	}
	*h = holdFlag(d)
	return nil
}

func (h *holdFlag) String() string {
	if *h == 0 {
		return ""
	}
	return time.Duration(*h).String()
}

func (h *holdFlag) Type() string { return "DURATION" }

type swapOptions struct {
	busyOptions
	expect []string
}

func newSwap(a *app) *cobra.Command {
	var o swapOptions
	cmd := &cobra.Command{
		Use:   "swap A B [C D]...",
		Short: "Exchange the contents of pairs of volumes",
		Long: `Exchange the positions of A and B, of C and D, and so on, in one atomic commit:
afterwards each name shows the other's content, on the device it had before.
All pairs change, or none does. The same swap again is undo.

The volumes of a pair must be of equal size and in one pool, neither in
quarantine, and nobody may hold their devices. --allow-holders is for raw users
that can stand a change of content under them; never swap under a mount.

While the swap is under way I/O is held (--busy hold) or answered EBUSY
(--busy refuse). --expect names the generations that the positions must have,
one pair for each pair of volumes (0 for any), as "volume show" tells them.`,
		Example: `  swapback swap db db-spare
  swapback swap db db-spare --expect 7,4
  swapback swap db db-spare log log-spare --expect 7,4 --expect 3,0 --busy refuse`,
		Args: args(cobra.MatchAll(cobra.MinimumNArgs(2), func(_ *cobra.Command, args []string) error {
			if len(args)%2 != 0 {
				return fmt.Errorf("%d volumes named, volume %s has no partner", len(args), args[len(args)-1])
			}
			return nil
		})),
		ValidArgsFunction: a.completeVolumes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSwap(cmd.Context(), a, o, args)
		},
	}
	o.addTo(cmd)
	cmd.Flags().StringArrayVar(&o.expect, "expect", nil, "GENERATION,GENERATION expected of a pair; repeatable, in the order of the pairs")
	return cmd
}

func runSwap(ctx context.Context, a *app, o swapOptions, names []string) error {
	if err := o.check(); err != nil {
		return err
	}
	pairs, err := pairsOf(names, o.expect)
	if err != nil {
		return err
	}
	c := a.service()
	defer c.Close()
	result, err := c.Swap(ctx, api.SwapRequest{
		Pairs: pairs, Busy: o.busy, HoldFor: o.holdFor.Seconds(), AllowHolders: o.allowHolders,
	})
	if err != nil {
		return a.nearVolumes(ctx, c, err, names...)
	}
	return a.print(result, func(w io.Writer) { writeSwap(w, result) })
}

// pairsOf joins names and expected generations. Generations may stand in one
// flag or in several, as long as there is one for each name, or none at all.
func pairsOf(names, expect []string) ([]api.SwapPair, error) {
	var generations []uint64
	for _, flag := range expect {
		for text := range strings.SplitSeq(flag, ",") {
			n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
			if err != nil {
				return nil, usagef("--expect %s: %q is not a generation", flag, text).
					withRemedy("write GENERATION,GENERATION as volume show tells them, 0 for any")
			}
			generations = append(generations, n)
		}
	}
	if len(generations) == 0 {
		generations = make([]uint64, len(names))
	}
	if len(generations) != len(names) {
		return nil, usagef("--expect names %s for %s", plural(len(generations), "generation"), plural(len(names), "volume")).
			withRemedy("give one pair of generations for each pair of volumes, 0 for any")
	}
	var pairs []api.SwapPair
	for i := 0; i < len(names); i += 2 {
		pairs = append(pairs, api.SwapPair{A: names[i], B: names[i+1], ExpectA: generations[i], ExpectB: generations[i+1]})
	}
	return pairs, nil
}

func writeSwap(w io.Writer, r api.SwapResult) {
	undo, expect := "swapback swap", ""
	for _, p := range r.Pairs {
		fmt.Fprintf(w, "swapped %s and %s; generations now %d and %d\n", p.A, p.B, p.GenerationA, p.GenerationB)
		undo += " " + p.A + " " + p.B
		expect += fmt.Sprintf(" --expect %d,%d", p.GenerationA, p.GenerationB)
	}
	io := fmt.Sprintf("%s held", plural(int(r.Held), "request"))
	if r.Busy == api.BusyRefuse {
		io = fmt.Sprintf("%s refused", plural(int(r.Refused), "request"))
	}
	fmt.Fprintf(w, "paused for %s, %s\n", formatSeconds(r.Pause), io)
	p := r.Phases
	fmt.Fprintf(w, "preflight %s, preload %s, drain %s, suspend %s, commit %s, resume %s, verify %s\n",
		formatSeconds(p.Preflight), formatSeconds(p.Preload), formatSeconds(p.Drain), formatSeconds(p.Suspend),
		formatSeconds(p.Commit), formatSeconds(p.Resume), formatSeconds(p.Verify))
	if r.Coherent {
		fmt.Fprintln(w, "page cache and disks agree")
	}
	if r.Warning != "" {
		fmt.Fprintf(w, "WARNING: %s\n", r.Warning)
	}
	fmt.Fprintf(w, "undo with: %s%s\n", undo, expect)
}

// formatSeconds writes a duration for people: "12.3 ms", "4.2 s", "1m40s".
func formatSeconds(s float64) string {
	switch {
	case s < 0:
		return "0 ms"
	case s < 1:
		return fmt.Sprintf("%.1f ms", s*1000)
	case s < 60:
		return fmt.Sprintf("%.1f s", s)
	}
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}
