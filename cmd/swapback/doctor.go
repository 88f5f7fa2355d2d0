package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Outcomes of a check.
const (
	checkOK       = "ok"
	checkDegraded = "degraded" // works, but something is lost or slower
	checkMissing  = "missing"  // swapback cannot serve volumes here without it
)

// check is one line of the doctor's report.
type check struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

func ok(name, format string, args ...any) check {
	return check{Name: name, Status: checkOK, Detail: fmt.Sprintf(format, args...)}
}

func degraded(name, remedy, format string, args ...any) check {
	return check{Name: name, Status: checkDegraded, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

func missing(name, remedy, format string, args ...any) check {
	return check{Name: name, Status: checkMissing, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

// doctorReport is what "doctor --json" prints.
type doctorReport struct {
	OK     bool    `json:"ok"`
	Checks []check `json:"checks"`

	// what the machine can do when all is well.
	what string
}

func newDoctor(a *app) *cobra.Command {
	host := false
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this kernel and machine can do, and what is missing",
		Long: `Look at the kernel, its modules, the privileges, the disks and the daemon, and
say for each whether it is

  ok        as it should be
  degraded  swapback works, but something is lost; the remedy says what to do
  missing   swapback cannot serve volumes here; the remedy says what to do

With --host it looks at what this machine needs to use volumes of another one by
NVMe/TCP, and at the connections that there are.

Nothing is changed and the daemon need not run. The exit code is 1 when
something is missing. Run it as root to see everything.`,
		Example: `  swapback doctor
  swapback doctor --host
  swapback doctor --json`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m := thisMachine()
			if host {
				return tellReport(a, doctorReport{Checks: m.examineHost(), what: "use volumes of other machines here"})
			}
			c := a.client()
			defer c.Close()
			m.daemon = c.Info
			return runDoctor(cmd.Context(), a, m)
		},
	}
	cmd.Flags().BoolVar(&host, "host", false, "look at this machine as one that uses volumes of another")
	return cmd
}

func runDoctor(ctx context.Context, a *app, m *machine) error {
	return tellReport(a, doctorReport{Checks: m.examine(ctx), what: "serve volumes on this machine"})
}

func tellReport(a *app, report doctorReport) error {
	report.OK = true
	var lacking []string
	for _, c := range report.Checks {
		if c.Status == checkMissing {
			report.OK = false
			lacking = append(lacking, c.Name)
		}
	}
	err := a.print(report, func(w io.Writer) { writeDoctor(w, report) })
	if err != nil || report.OK {
		return err
	}
	return problems("missing: " + strings.Join(lacking, ", "))
}

func writeDoctor(w io.Writer, report doctorReport) {
	width := 0
	for _, c := range report.Checks {
		width = max(width, len(c.Name))
	}
	for _, c := range report.Checks {
		indent := "\n" + strings.Repeat(" ", 12+width)
		fmt.Fprintf(w, "%-8s  %-*s  %s\n", c.Status, width, c.Name, strings.Join(wrap(c.Detail, 100), indent))
		if c.Remedy != "" {
			fmt.Fprintf(w, "%s%s\n", indent[1:], strings.Join(wrap("remedy: "+c.Remedy, 100), indent))
		}
	}
	if report.OK {
		fmt.Fprintf(w, "\nswapback can %s\n", report.what)
		return
	}
	fmt.Fprintf(w, "\nswapback cannot %s yet; see what is missing\n", report.what)
}

// wrap breaks a text at blanks into lines of at most width bytes, where it can.
func wrap(text string, width int) []string {
	lines := []string{""}
	for word := range strings.FieldsSeq(text) {
		last := len(lines) - 1
		switch {
		case lines[last] == "":
			lines[last] = word
		case len(lines[last])+1+len(word) > width:
			lines = append(lines, word)
		default:
			lines[last] += " " + word
		}
	}
	return lines
}
