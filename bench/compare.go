package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// How far figures of two runs may lie apart before it means something.
const (
	// exactNoise: in exact mode the same build repeats to well within this.
	exactNoise = 0.005
	// wallNoise: below this a wall-mode difference is not worth a word, even
	// when the rounds of the two runs do not overlap.
	wallNoise = 0.01
	// checkLimit is how far a row may fall below the baseline.
	checkLimit = 0.02
	// otherMachineLimit is that for ratios, where kernel, QEMU or fio are others
	// than the baseline's: they shift ratios by themselves.
	otherMachineLimit = 0.05
)

// change is what became of one row.
type change struct {
	key
	old, new float64 // IOPS
	// beyond tells that the difference is more than the runs' own spread.
	beyond bool
}

func (c change) relative() float64 { return c.new/c.old - 1 }

// compareResults matches two runs row by row. Rows that only one of them has
// are listed by themselves.
func compareResults(old, now []result) (changes []change, onlyOld, onlyNew []key) {
	before := map[key]result{}
	for _, r := range old {
		if r.Missing == "" {
			before[r.key()] = r
		}
	}
	seen := map[key]bool{}
	for _, r := range now {
		if r.Missing != "" {
			continue
		}
		o, ok := before[r.key()]
		if !ok {
			onlyNew = append(onlyNew, r.key())
			continue
		}
		seen[r.key()] = true
		c := change{key: r.key(), old: o.IOPS, new: r.IOPS}
		if r.Mode == modeExact {
			c.beyond = math.Abs(c.relative()) > exactNoise
		} else {
			apart := r.IOPSMin > o.IOPSMax || r.IOPSMax < o.IOPSMin
			c.beyond = apart && math.Abs(c.relative()) > wallNoise
		}
		changes = append(changes, c)
	}
	for _, r := range old {
		if r.Missing == "" && !seen[r.key()] {
			onlyOld = append(onlyOld, r.key())
		}
	}
	return changes, onlyOld, onlyNew
}

// printComparison says what changed beyond the spread.
func printComparison(w io.Writer, old, now []result) {
	if len(old) > 0 && len(now) > 0 && !old[0].sameMachine(now[0].versions) {
		fmt.Fprintf(w, "note: measured on different machines, absolute figures do not compare:\n  old: %s\n  new: %s\n", old[0].machine(), now[0].machine())
	}
	changes, onlyOld, onlyNew := compareResults(old, now)
	same := 0
	for _, c := range changes {
		if !c.beyond {
			same++
			continue
		}
		fmt.Fprintf(w, "%+6.1f %%  %v: %.0f → %.0f IOPS\n", 100*c.relative(), c.key, c.old, c.new)
	}
	fmt.Fprintf(w, "%d of %d rows changed beyond the spread\n", len(changes)-same, len(changes))
	for _, k := range onlyOld {
		fmt.Fprintf(w, "only in the old run: %v\n", k)
	}
	for _, k := range onlyNew {
		fmt.Fprintf(w, "only in the new run: %v\n", k)
	}
}

// ours tells whether a subject is swapback's own.
func ours(subject string) bool {
	return strings.HasPrefix(subject, "volume-") || strings.HasPrefix(subject, "null-")
}

const howToChange = `The baseline is changed only by a commit of its own reason: run "make bench-baseline",
commit bench/baseline.json, and say in the commit's body why the figures fell.`

// checkBaseline fails when a row of a run fell below the baseline. On the
// machine that the baseline is of, IOPS are compared. On any other they mean
// nothing, and ratios to the raw device of the same run are compared instead;
// those of the kernel's own drivers are the kernel's affair then.
func checkBaseline(w io.Writer, baseline, now []result) error {
	if len(baseline) == 0 || len(now) == 0 {
		return errors.New("nothing to compare: the baseline or the result is empty")
	}
	same := baseline[0].sameMachine(now[0].versions)
	limit, unit := checkLimit, "IOPS"
	figure := func(r result) float64 { return r.IOPS }
	if !same {
		limit, unit = otherMachineLimit, "of the raw device's IOPS"
		figure = func(r result) float64 { return r.RatioRaw }
		fmt.Fprintf(w, "This is not the machine of the baseline, so ratios to the raw device are compared, with %.0f %% of room:\n  baseline: %s\n  now:      %s\n",
			100*limit, baseline[0].machine(), now[0].machine())
	}
	found := map[key]result{}
	lacking := map[string]string{} // why, by subject
	for _, r := range now {
		found[r.key()] = r
		if r.Missing != "" {
			lacking[r.Subject] = r.Missing
			fmt.Fprintf(w, "not checked: %s: %s\n", r.Subject, r.Missing)
		}
	}
	checked, fallen, risen := 0, 0, 0
	for _, b := range baseline {
		if b.Missing != "" || lacking[b.Subject] != "" || !same && !ours(b.Subject) {
			continue
		}
		n, ok := found[b.key()]
		if !ok {
			fmt.Fprintf(w, "FAIL  %v: in the baseline, but was not measured\n", b.key())
			fallen++
			continue
		}
		checked++
		old, new := figure(b), figure(n)
		switch d := new/old - 1; {
		case old <= 0 || math.IsNaN(d):
			return fmt.Errorf("%v: the baseline has no figure to compare with (needs the subject raw)", b.key())
		case d < -limit:
			fmt.Fprintf(w, "FAIL  %v: %.5g → %.5g %s, %.1f %% (at most %.0f %% are allowed)\n", b.key(), old, new, unit, 100*d, -100*limit)
			fallen++
		case d > limit:
			fmt.Fprintf(w, "ok    %v: %.5g → %.5g %s, +%.1f %%; raise the baseline, or this can be lost again unseen\n", b.key(), old, new, unit, 100*d)
			risen++
		}
	}
	if fallen > 0 {
		fmt.Fprintln(w, howToChange)
		return fmt.Errorf("%d of %d rows fell below the baseline", fallen, checked)
	}
	fmt.Fprintf(w, "none of %d rows fell below the baseline\n", checked)
	return nil
}
