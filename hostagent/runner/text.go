package runner

import (
	"fmt"
	"strings"

	"github.com/swapback/swapback/hostagent"
)

// seconds writes a duration with as many digits as anybody can use.
func seconds(s float64) string {
	switch {
	case s < 1:
		return fmt.Sprintf("%.0f ms", s*1000)
	case s < 60:
		return fmt.Sprintf("%.1f s", s)
	case s < 3600:
		return fmt.Sprintf("%d min %d s", int(s)/60, int(s)%60)
	}
	return fmt.Sprintf("%d h %d min", int(s)/3600, int(s)%3600/60)
}

func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/(1<<10), 0
	for v >= 1<<10 && i < len(units)-1 {
		v /= 1 << 10
		i++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

func plural(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "y"):
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(what, "y"))
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// durations is a table of what took how long.
func (r *run) durations() string {
	var b strings.Builder
	row := func(depth int, what string, took float64, remark string) {
		what = strings.Repeat("  ", depth) + what
		fmt.Fprintf(&b, "\n%-36s %9.3f s", what, took)
		if remark != "" {
			b.WriteString("   " + remark)
		}
	}
	b.WriteString("durations")
	for _, s := range r.res.SavePoints {
		row(0, "save point before "+s.Step, s.Seconds, fmt.Sprintf("%s of data in %s", bytesText(s.Data), bytesText(s.Bytes)))
	}
	for _, rec := range r.res.Recoveries {
		row(0, "recovery after "+rec.Step, rec.WholeSeconds, "from the failure to the volumes being in use again")
		row(1, "unmount", rec.UnmountSeconds, "")
		for _, p := range rec.Phases {
			remark := ""
			if p.Phase == hostagent.PhaseSwap {
				remark = "I/O paused for " + seconds(rec.Swap.Pause)
			}
			row(1, string(p.Phase), p.Seconds, remark)
		}
		row(1, "mount", rec.MountSeconds, "")
	}
	for _, s := range r.res.Steps {
		what := fmt.Sprintf("step %s, attempt %d", s.Step, s.Attempt)
		remark := ""
		if !s.OK {
			remark = fmt.Sprintf("failed with exit code %d", s.ExitCode)
		}
		row(0, what, s.Seconds, remark)
	}
	return b.String()
}
