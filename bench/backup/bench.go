package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Rows, in the order of a round.
const (
	rowFull        = "full"        // the first backup, into an empty repository
	rowRestore     = "restore"     // of that, into a new file
	rowUnchanged   = "unchanged"   // once more; the same bytes with a new time of change
	rowChanged     = "changed"     // once more, after a hundredth was written
	rowIncremental = "incremental" // and again, told what was written by who can be told
)

var rows = []string{rowFull, rowRestore, rowUnchanged, rowChanged, rowIncremental}

// chunkSize is that of our repositories, by default.
const chunkSize = 1 << 20

// result is one row of one program: the median of the rounds, by time.
type result struct {
	Program string `json:"program"`
	Row     string `json:"row"`
	sample
	SecondsMin float64 `json:"seconds_min"`
	SecondsMax float64 `json:"seconds_max"`
	// Stored is what the row added to the repository, in bytes.
	Stored  int64    `json:"stored_bytes"`
	Samples []sample `json:"samples"`
}

// report is all of a run.
type report struct {
	Date     time.Time         `json:"date"`
	Kernel   string            `json:"kernel"`
	CPU      string            `json:"cpu"`
	CPUs     int               `json:"cpus"`
	Size     int64             `json:"size"`
	Data     string            `json:"data"`  // what the third that can be compressed is made of
	Cache    string            `json:"cache"` // whether what is read was in the page cache
	Rounds   int               `json:"rounds"`
	Versions map[string]string `json:"versions"`
	Results  []result          `json:"results"`
	// ChangedChunks is what the chunks have that were written to before the row
	// incremental, in bytes.
	ChangedChunks int64    `json:"changed_chunk_bytes"`
	Targets       []target `json:"targets"`
}

// bench is a run under way.
type bench struct {
	o        options
	programs []program
	report   report
	image    string              // what is backed up; those below take turns under its name
	variants map[string]string   // by the first row that has it
	changes  string              // what was written before the row incremental
	samples  map[string][]sample // by program and row
	stored   map[string]int64
}

func newBench(ctx context.Context, o options) (*bench, error) {
	if err := absolute(&o.swapback, &o.dir); err != nil {
		return nil, err
	}
	list, err := chosen(programs(o.swapback), o.programs)
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, programs: list, samples: make(map[string][]sample), stored: make(map[string]int64)}
	if b.report, err = describe(); err != nil {
		return nil, err
	}
	b.report.Size, b.report.Data, b.report.Cache, b.report.Rounds = o.size, o.data, o.cache, o.rounds
	if b.report.Versions, err = findVersions(ctx, list); err != nil {
		return nil, err
	}
	// What may be removed afterwards is only what we made.
	if err := os.MkdirAll(filepath.Dir(o.dir), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(o.dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w; a run makes its folder and removes it: remove what an earlier one left", err)
	}
	b.image = filepath.Join(o.dir, "image")
	b.changes = filepath.Join(o.dir, "changes")
	b.variants = map[string]string{rowFull: b.image + ".first", rowChanged: b.image + ".second", rowIncremental: b.image + ".third"}
	return b, nil
}

func (b *bench) remove() { os.RemoveAll(b.o.dir) }

func (b *bench) notice(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "backup: "+format+"\n", args...)
}

func (b *bench) run(ctx context.Context) (report, error) {
	b.notice("making the image")
	if err := b.makeImages(); err != nil {
		return report{}, fmt.Errorf("make image: %w", err)
	}
	for round := range b.o.rounds {
		for i, p := range b.programs {
			if err := p.prepare(ctx, b.home(p)); err != nil {
				return report{}, fmt.Errorf("prepare %s: %w", b.programs[i].name, err)
			}
		}
		// Another one begins in each round, and they take turns in each row.
		order := slices.Concat(b.programs[round%len(b.programs):], b.programs[:round%len(b.programs)])
		for _, row := range rows {
			if err := b.show(row); err != nil {
				return report{}, err
			}
			for _, p := range order {
				if row != rowRestore && p.create == nil {
					continue
				}
				if err := b.measure(ctx, round, row, p); err != nil {
					return report{}, fmt.Errorf("%s, %s: %w", p.name, row, err)
				}
			}
		}
	}
	for _, p := range b.programs {
		for _, row := range rows {
			if s := b.samples[p.name+" "+row]; s != nil {
				b.report.Results = append(b.report.Results, summary(p.name, row, s, b.stored[p.name+" "+row]))
			}
		}
	}
	b.report.Targets = judge(b.report)
	return b.report, nil
}

func (b *bench) makeImages() error {
	if err := makeImage(b.variants[rowFull], b.o.size, fillers[b.o.data]); err != nil {
		return err
	}
	if _, err := changeImage(b.variants[rowFull], b.variants[rowChanged], 2); err != nil {
		return err
	}
	offsets, err := changeImage(b.variants[rowChanged], b.variants[rowIncremental], 3)
	if err != nil {
		return err
	}
	b.report.ChangedChunks = inChunks(offsets, chunkSize, b.o.size)
	type run struct {
		Offset int64 `json:"offset"`
		Length int64 `json:"length"`
	}
	list := struct {
		Base   string `json:"base"`
		Ranges []run  `json:"ranges"`
	}{Base: "latest"}
	for _, off := range offsets {
		list.Ranges = append(list.Ranges, run{off, block})
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return os.WriteFile(b.changes, text, 0o600)
}

func (b *bench) home(p program) string { return filepath.Join(b.o.dir, p.name) }

// show gives the image that a row is about its name, and a new time of change: a
// device has none, so nobody may tell by it that nothing changed.
func (b *bench) show(row string) error {
	variant := row
	if b.variants[variant] == "" {
		variant = rowFull
	}
	if err := os.Remove(b.image); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.Link(b.variants[variant], b.image); err != nil {
		return err
	}
	now := time.Now()
	return os.Chtimes(b.image, now, now)
}

func (b *bench) measure(ctx context.Context, round int, row string, p program) error {
	target := filepath.Join(b.o.dir, "target")
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	if err := os.Mkdir(target, 0o700); err != nil {
		return err
	}
	repo := filepath.Join(b.home(p), p.repo)
	before, err := sizeOf(repo)
	if err != nil {
		return err
	}
	var c command
	var restored string
	switch {
	case row == rowRestore:
		c, restored = p.restore(b.home(p), rowFull, b.image, target)
	case row == rowIncremental && p.changed != nil:
		c = p.changed(b.home(p), row, b.image, b.changes)
	default:
		c = p.create(b.home(p), row, b.image)
	}
	if err := cold(b.o.dir); err != nil {
		return err
	}
	if b.o.cache == cacheWarm {
		read := b.image
		if row == rowRestore && p.repo != "" {
			read = repo
		}
		if err := warm(read); err != nil {
			return err
		}
	}
	s, _, err := measure(ctx, c)
	if err != nil {
		return err
	}
	if restored != "" {
		// A restore is over when what it wrote would be there after a power cut.
		if s.SyncSeconds, err = syncFile(restored); err != nil {
			return err
		}
		s.Seconds += s.SyncSeconds
	}
	after, err := sizeOf(repo)
	if err != nil {
		return err
	}
	key := p.name + " " + row
	b.samples[key] = append(b.samples[key], s)
	b.stored[key] = after - before
	if row == rowIncremental && p.changed != nil {
		// What was not read has to be right all the same.
		var c command
		c, restored = p.restore(b.home(p), row, b.image, target)
		if _, _, err := measure(ctx, c); err != nil {
			return err
		}
	}
	if restored != "" {
		if at, err := same(b.image, restored); err != nil {
			return err
		} else if at >= 0 {
			return fmt.Errorf("what was restored differs at byte %d", at)
		}
	}
	b.notice("round %d: %-11s %-8s %6.2f s, %5.2f s CPU, %4d MiB", round+1, row, p.name, s.Seconds, s.CPU, s.MaxRSS>>20)
	return nil
}

func summary(program, row string, all []sample, stored int64) result {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b sample) int { return compare(a.Seconds, b.Seconds) })
	r := result{Program: program, Row: row, sample: sorted[len(sorted)/2], Stored: stored, Samples: all,
		SecondsMin: sorted[0].Seconds, SecondsMax: sorted[len(sorted)-1].Seconds}
	// The largest that a process ever was is what a machine must have.
	for _, s := range all {
		r.MaxRSS = max(r.MaxRSS, s.MaxRSS)
	}
	return r
}

func compare(a, b float64) int { return int(math.Copysign(1, a-b)) }

// describe tells what machine this is.
func describe() (report, error) {
	r := report{Date: time.Now().UTC().Truncate(time.Second)}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return r, err
	}
	r.Kernel = strings.TrimSpace(string(release))
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return r, err
	}
	for line := range strings.Lines(string(info)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			r.CPU = strings.TrimSpace(value)
			r.CPUs++
		}
	}
	return r, nil
}
