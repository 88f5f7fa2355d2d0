package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
)

func newRepoStats(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "stats",
		Short: "Show what is in a repository and what it takes",
		Long: `Show how much the backups hold, how much of it is stored once for many, how well it
compresses, and what of the repository no backup needs. Manifests and tables are
read, and no data.

DATA is what the images hold that is not zero, DISTINCT the chunks of it that are
stored, STORED what these take. A chunk that two volumes share counts for both.`,
		Example: `  swapback repo stats --repo /backups
  swapback repo stats --json`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runRepoStats(cmd.Context(), a)
		},
	}
}

// statsJSON is what "repo stats --json" prints.
type statsJSON struct {
	backup.Stats
	DedupRatio       float64 `json:"dedup_ratio"`
	CompressionRatio float64 `json:"compression_ratio"`
}

func runRepoStats(ctx context.Context, a *app) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	st, err := repo.Stats(ctx)
	if err != nil {
		return err
	}
	return a.print(statsJSON{st, st.Total.Dedup(), st.Total.Compression()}, func(w io.Writer) { writeStats(w, st) })
}

func writeStats(w io.Writer, st backup.Stats) {
	var f fields
	f.add("Repository", "%s", st.Repository)
	f.add("Location", "%s", st.Location)
	if st.Encrypted {
		f.add("Encrypted", "yes")
	} else {
		f.add("Encrypted", "no")
	}
	f.add("Chunks of", "%s", formatSize(st.ChunkSize))
	f.add("Backups", "%d", st.Backups)
	if st.Damaged > 0 {
		f.add("Damaged", "%s can't be read; see: swapback repo check", plural(st.Damaged, "manifest or table"))
	}
	f.add("Stored", "%s in %s", formatSize(st.StoredBytes), plural(st.Packs, "pack"))
	f.add("  chunks", "%s: %s", formatSize(st.Total.Stored), plural(int(st.Total.Chunks), "chunk"))
	f.add("  tables", "%s: %s", formatSize(st.NodeBytes), plural(int(st.Nodes), "node"))
	f.add("  index", "%s", formatSize(st.IndexBytes))
	f.add("  manifests", "%s", formatSize(st.ManifestBytes))
	if st.InterruptedBytes > 0 {
		f.add("  waiting", "%s of an interrupted backup, for its next run", formatSize(st.InterruptedBytes))
	}
	if n := st.UnusedBytes + st.UnusedPackBytes; n > 0 {
		f.add("  unused", "%s: %s in %s that no backup needs, %s in others; see: swapback repo prune", formatSize(n),
			formatSize(st.UnusedPackBytes), plural(st.UnusedPacks, "pack"), formatSize(st.UnusedBytes))
	}
	f.write(w)
	fmt.Fprintln(w)
	t := newTable("VOLUME", "BACKUPS", "SIZE", "DATA", "DISTINCT", "STORED", "DEDUP", "COMPRESSION")
	row := func(name string, backups int, u backup.Usage) {
		t.row(name, fmt.Sprint(backups), formatSize(u.Size), formatSize(u.Data), formatSize(u.Distinct), formatSize(u.Stored),
			fmt.Sprintf("%.2f", u.Dedup()), fmt.Sprintf("%.2f", u.Compression()))
	}
	for _, v := range st.Volumes {
		name := v.Name
		if v.Pool != "" {
			name = v.Pool + "/" + name
		}
		row(name, v.Backups, v.Usage)
	}
	row("all", st.Backups, st.Total)
	t.write(w)
}

func newRepoCheck(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check that a repository is whole",
		Long: `Look at every object of a repository: config, keys, manifests, tables, packs and
their directories, leases and notes. Each has to be in its place and whole, and
tables and packs have to fit together. What is wrong is named with what to do about
it, and the exit code is 1. What operations left that ended early is named as well,
and is no harm. Nothing is repaired, and no data is read: for that there is
"swapback backup verify --all".`,
		Example: `  swapback repo check --repo /backups
  swapback repo check --json`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runRepoCheck(cmd.Context(), a)
		},
	}
}

// checkJSON is what "repo check --json" prints.
type checkJSON struct {
	OK bool `json:"ok"`
	backup.CheckReport
}

func runRepoCheck(ctx context.Context, a *app) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	rep, err := repo.Check(ctx)
	if err != nil {
		return err
	}
	found := len(rep.Problems)
	if err := a.print(checkJSON{found == 0, rep}, func(w io.Writer) { writeRepoCheck(w, rep) }); err != nil || found == 0 {
		return err
	}
	return problems(fmt.Sprintf("repository %s: %s found", repo.Location(), plural(found, "problem")))
}

func writeRepoCheck(w io.Writer, r backup.CheckReport) {
	list := func(word string, findings []backup.Finding) {
		for _, f := range findings {
			fmt.Fprintf(w, "%s  %s: %s\n", word, f.Object, f.Detail)
			if f.Remedy != "" {
				fmt.Fprintf(w, "         %s\n", f.Remedy)
			}
		}
	}
	list("DAMAGED", r.Problems)
	list("note   ", r.Notes)
	fmt.Fprintf(w, "%s, %s, %s, %s", plural(r.Backups, "backup"), plural(int(r.Nodes), "table node"),
		plural(r.Packs, "pack"), plural(int(r.Chunks), "chunk"))
	if r.Keys > 0 {
		fmt.Fprintf(w, ", %s", plural(r.Keys, "key"))
	}
	fmt.Fprintf(w, " in %s: ", formatSeconds(r.Seconds))
	if n := len(r.Problems); n > 0 {
		fmt.Fprintln(w, plural(n, "problem"))
		return
	}
	fmt.Fprintln(w, "all good; data is read by: swapback backup verify")
}
