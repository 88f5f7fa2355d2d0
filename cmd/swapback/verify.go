package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
)

type verifyOptions struct {
	structureOnly bool
	all           bool
	sample        shareFlag
	seed          uint64
	seeded        bool
}

// defaultSample is how much of the data a verification reads that says nothing.
const defaultSample = 0.05

// shareFlag is a share as a flag, above 0: 5%.
type shareFlag float64

func (f *shareFlag) Set(s string) error {
	n, err := parseShare(s)
	if err == nil && n == 0 {
		err = fmt.Errorf("%q is nothing at all", s)
	}
	*f = shareFlag(n)
	return err
}

func parseShare(s string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !strings.HasSuffix(s, "%") || !(n >= 0 && n <= 100) {
		return 0, fmt.Errorf("%q is not a share such as 5%% or 0.5%%", s)
	}
	return n / 100, nil
}

func (f *shareFlag) String() string {
	if *f == 0 {
		return ""
	}
	return strconv.FormatFloat(100*float64(*f), 'g', 6, 64) + "%"
}

func (f *shareFlag) Type() string { return "share" }

func newBackupVerify(a *app) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify [BACKUP...]",
		Short: "Check backups and read their data back",
		Long: `Check backups, all of them when none is named, the newest first: manifests, tables
and the directories of packs always, and of the data a sample, or --all. What is
read is compared with its hash. The exit code is 1 when something is damaged;
"swapback repo heal" then puts back what can be had from elsewhere.

--sample says how much is read (default 5%). The seed says which part: it is printed,
and the same seed reads the same part again. Seeds that follow each other read one
part after the other: with 5%, any 20 of them in a row read everything. Without
--seed a part is chosen at random.`,
		Example: `  swapback backup verify --repo /backups
  swapback backup verify latest --all
  swapback backup verify --sample 10% --seed 3
  swapback backup verify --structure-only --json`,
		ValidArgsFunction: a.completeBackups(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.seeded = cmd.Flags().Changed("seed")
			if o.structureOnly && (o.all || o.sample != 0) || o.all && o.sample != 0 {
				return usagef("backup verify: how much to read is not clear").withRemedy("give one of --structure-only, --sample and --all")
			}
			return runVerify(cmd.Context(), a, o, args)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.structureOnly, "structure-only", false, "read manifests, tables and directories, and no data")
	f.BoolVar(&o.all, "all", false, "read all data")
	f.Var(&o.sample, "sample", "share of the data to read (default 5%)")
	f.Uint64Var(&o.seed, "seed", 0, "which part of the data to read (default: one at random)")
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
	if ids, err = a.fullIDs(ctx, repo, ids); err != nil {
		return err
	}
	p := a.newProgress()
	options := backup.VerifyOptions{StructureOnly: o.structureOnly, Progress: p.update}
	if !o.all && !o.structureOnly {
		options.Sample, options.Seed = float64(o.sample), o.seed
		if o.sample == 0 {
			options.Sample = defaultSample
		}
		if !o.seeded {
			options.Seed = uint64(rand.Uint32())
		}
	}
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
	fmt.Fprintf(w, "%s of %s in %s: %s read", plural(r.Backups, "backup"), formatSize(r.Bytes),
		formatSeconds(r.Seconds), plural(int(r.Nodes), "table node"))
	if r.ChunksRead > 0 {
		fmt.Fprintf(w, ", and %s of %s, %s of %s of data", fmt.Sprint(r.ChunksRead), plural(int(r.Chunks), "chunk"),
			formatSize(r.BytesRead), formatSize(r.ChunkBytes))
	}
	fmt.Fprintln(w)
	if r.Sample > 0 {
		fmt.Fprintf(w, "a sample of %s with seed %d; --seed %d reads the next part, --all everything\n",
			(*shareFlag)(&r.Sample), r.Seed, r.Seed+1)
	}
	if n := len(r.Damage) + len(r.Other); n > 0 {
		fmt.Fprintf(w, "%s; put back what can be had from elsewhere with: swapback repo heal\n", plural(n, "damaged part"))
		return
	}
	fmt.Fprintln(w, "all good")
}
