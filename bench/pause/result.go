package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
)

// result is one point: so many swaps, or rounds of a floor, under one load.
// Times are in microseconds; those of the phases are medians.
type result struct {
	Mode    string  `json:"mode"`
	What    string  `json:"what"`
	N       int     `json:"n"`
	Count   int     `json:"count"`
	Floor   float64 `json:"floor_us"`
	Median  float64 `json:"median_us"`
	P99     float64 `json:"p99_us"`
	Max     float64 `json:"max_us"`
	FioMax  float64 `json:"fio_max_us"`
	Drain   float64 `json:"drain_us"`
	Suspend float64 `json:"suspend_us"`
	Commit  float64 `json:"commit_us"`
	Resume  float64 `json:"resume_us"`
	// What takes no pause: all before it, and the check of the caches after it.
	Before float64 `json:"before_us"`
	After  float64 `json:"after_us"`
	Held   uint64  `json:"held"`
	Kernel string  `json:"kernel"`
	QEMU   string  `json:"qemu"`
}

// samples are the figures of one point, in seconds.
type samples struct {
	pause, drain, suspend, commit, resume []float64
	before, after                         []float64
	held                                  uint64
}

func (s *samples) add(r api.SwapResult) {
	s.pause = append(s.pause, r.Pause)
	s.drain, s.suspend = append(s.drain, r.Phases.Drain), append(s.suspend, r.Phases.Suspend)
	s.commit, s.resume = append(s.commit, r.Phases.Commit), append(s.resume, r.Phases.Resume)
	s.before, s.after = append(s.before, r.Phases.Preflight+r.Phases.Preload), append(s.after, r.Phases.Verify)
	s.held += r.Held
}

func (s *samples) result(what string, n int) result {
	r := spread(what, n, s.pause)
	r.Drain, r.Suspend, r.Commit, r.Resume = median(s.drain), median(s.suspend), median(s.commit), median(s.resume)
	r.Before, r.After = median(s.before), median(s.after)
	r.Held = s.held
	return r
}

// spread makes a result of durations in seconds.
func spread(what string, n int, seconds []float64) result {
	return result{
		What: what, N: n, Count: len(seconds),
		Median: median(seconds), P99: quantile(seconds, 0.99), Max: quantile(seconds, 1),
	}
}

func median(seconds []float64) float64 { return quantile(seconds, 0.5) }

// quantile returns microseconds, of a value that was measured.
func quantile(seconds []float64, q float64) float64 {
	list := slices.Sorted(slices.Values(seconds))
	return list[min(int(q*float64(len(list))), len(list)-1)] * 1e6
}

func seconds(d time.Duration) float64 { return d.Seconds() }

// finish writes into all results what they share.
func finish(ctx context.Context, results []result, mode string, floor float64) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	qemu := ""
	vendor, err := os.ReadFile("/sys/class/dmi/id/sys_vendor")
	if err == nil && strings.Contains(string(vendor), "QEMU") {
		out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
		if err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			qemu = strings.TrimPrefix(first, "QEMU emulator version ")
		}
	}
	for i := range results {
		r := &results[i]
		r.Mode, r.Floor, r.Kernel, r.QEMU = mode, floor, unix.ByteSliceToString(uts.Release[:]), qemu
	}
	return nil
}

func write(path string, results []result) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// announce shows a point as soon as it is measured.
func announce(r result) result {
	fmt.Printf("%s, %d: median %.0f µs, longest of %d %.0f µs\n", r.What, r.N, r.Median, r.Count, r.Max)
	return r
}

func printTable(results []result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "µs\tn\tcount\tmedian\tp99\tmax\t×floor\tmax ×floor\tdrain\tsuspend\tcommit\tresume\tbefore\tafter\theld\tfio max\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%d\t%d\t%.0f\t%.0f\t%.0f\t%.2f\t%.2f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%d\t%.0f\t\n", r.What, r.N, r.Count,
			r.Median, r.P99, r.Max, r.Median/r.Floor, r.Max/r.Floor, r.Drain, r.Suspend, r.Commit, r.Resume, r.Before, r.After, r.Held, r.FioMax)
	}
	return w.Flush()
}

// The bar: the median pause under load is at most twice the floor, the longest
// at most five times, and from one point of a sweep to the next the pause grows
// by no larger factor than the work.
const (
	barMedian = 2
	barMax    = 5
)

func judge(results []result) (missed []string) {
	for i, r := range results {
		switch r.What {
		case whatLoad:
			if r.Median > barMedian*r.Floor {
				missed = append(missed, fmt.Sprintf("median pause of %.0f µs is %.2f times the floor, not at most %d", r.Median, r.Median/r.Floor, barMedian))
			}
			if r.Max > barMax*r.Floor {
				missed = append(missed, fmt.Sprintf("longest pause of %.0f µs is %.2f times the floor, not at most %d", r.Max, r.Max/r.Floor, barMax))
			}
		case whatExtents, whatFragments, whatPairs:
			if i == 0 || results[i-1].What != r.What {
				continue
			}
			last := results[i-1]
			// Below the floor it is chance whether the kernel expedited a grace
			// period: that is no growth.
			if grown, work := r.Median/max(last.Median, r.Floor), float64(r.N)/float64(last.N); grown > work {
				missed = append(missed, fmt.Sprintf("%s: from %d to %d the pause grows by %.2f, the work by %.2f", r.What, last.N, r.N, grown, work))
			}
		}
	}
	return missed
}
