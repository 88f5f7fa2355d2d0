package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/hostagent/job"
	"github.com/swapback/swapback/hostagent/printable"
	"github.com/swapback/swapback/hostagent/runner"
	"github.com/swapback/swapback/version"
)

func (a *app) newRun() *cobra.Command {
	var anew bool
	cmd := &cobra.Command{
		Use:   "run JOB.yaml",
		Short: "Run a job",
		Long: `Run a job. It is refused before it starts when it could not be recovered now: no
repository, no unused volume and no room for one, somebody on a volume. What
happens is told here and in two files in the folder for logs, one for people and
one with a JSON object to a line. With --json the story goes to stderr and the
result to stdout.

SIGTERM and SIGINT stop the step under way, which then has failed for good; a
second signal breaks off the recovery too.
` + exitCodeHelp,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runJob(cmd.Context(), args[0], anew) },
	}
	cmd.Flags().BoolVar(&anew, "anew", false, "start although the last run died half-way")
	return cmd
}

func (a *app) options(file string) (runner.Options, error) {
	j, err := job.Load(file)
	if err != nil {
		return runner.Options{}, err
	}
	return runner.Options{
		Job: j, File: file, StateDir: a.stateDir, LogDir: a.logDir, RunDir: a.runDir, Logger: a.logger(),
	}, nil
}

func (a *app) runJob(ctx context.Context, file string, anew bool) error {
	o, err := a.options(file)
	if err != nil {
		return err
	}
	c := a.service()
	defer c.Close()
	o.Service, o.Anew, o.Terminal = c, anew, a.out
	if a.json {
		o.Terminal = a.errOut
	}
	res, err := runner.Run(ctx, a.stop, o)
	if err != nil {
		return err
	}
	if a.json {
		if err := a.printJSON(res); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.out, "log: %s\n", res.Log)
	}
	if res.ExitCode != runner.ExitDone {
		return &exitError{code: res.ExitCode}
	}
	return nil
}

func (a *app) newCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check JOB.yaml",
		Short: "Tell whether a job could run, and be recovered, now",
		Long: `Check a job file, and then against the daemon: the volumes are there and free, the
repository opens, and for each volume there is an unused one to restore onto, or
room to create it. Nothing is changed. The exit code is 2 when the job would be
refused.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.check(cmd.Context(), args[0]) },
	}
}

func (a *app) check(ctx context.Context, file string) error {
	o, err := a.options(file)
	if err != nil {
		return err
	}
	c := a.service()
	defer c.Close()
	o.Service = c
	report, err := runner.Check(ctx, o)
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(report)
	} else {
		writeReport(a.out, report)
	}
	if err == nil && !report.OK {
		err = &exitError{code: runner.ExitRefused}
	}
	return err
}

func writeReport(w io.Writer, r runner.Report) {
	for _, n := range r.Notes {
		fmt.Fprintf(w, "  %s\n", printable.Text(n))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "  PROBLEM: %s\n", printable.Text(strings.ReplaceAll(p, "\n", "\n           ")))
	}
	if r.OK {
		fmt.Fprintf(w, "job %s could run, and be recovered, now\n", r.Job)
		return
	}
	fmt.Fprintf(w, "job %s would be refused\n", r.Job)
}

func (a *app) newStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status [JOB]",
		Short: "Tell where jobs stand",
		Long: `Tell where a job, named as in its file, or all jobs stand: running, ended and how,
or died half-way, and then what that means for the volumes and what to do. The
exit code is 3 when a job died half-way.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.status(cmd.Context(), args) },
	}
}

// jobStatus is what "status --json" prints of a job.
type jobStatus struct {
	*runner.State
	Running bool     `json:"running"`
	Died    bool     `json:"died"`
	Text    []string `json:"text"`
}

func (a *app) status(ctx context.Context, args []string) error {
	var states []*runner.State
	var err error
	if len(args) == 1 {
		var s *runner.State
		s, err = runner.ReadState(a.stateDir, args[0])
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("job %s has never run here (states are looked for in %s)", args[0], a.stateDir)
		}
		if s != nil {
			states = append(states, s)
		}
	} else {
		states, err = runner.ReadStates(a.stateDir)
	}
	c := a.client()
	defer c.Close()
	list := []jobStatus{}
	died := false
	for _, s := range states {
		st := jobStatus{State: s, Died: s.Died(), Running: s.Phase != runner.Ended && !s.Died(), Text: runner.Explain(ctx, c, s)}
		died = died || st.Died
		list = append(list, st)
	}
	if a.json {
		err = errors.Join(err, a.printJSON(list))
	} else {
		writeStates(a.out, list)
	}
	switch {
	case err != nil:
		return err
	case died:
		return &exitError{code: runner.ExitNotRestored}
	}
	return nil
}

func writeStates(w io.Writer, list []jobStatus) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no job has run here")
	}
	for _, s := range list {
		fmt.Fprintf(w, "%s: %s\n", s.Job, printable.Text(strings.Join(s.Text, "\n  ")))
		fmt.Fprintf(w, "  log: %s\n", s.Log)
	}
}

func (a *app) newExample() *cobra.Command {
	return &cobra.Command{
		Use:   "example",
		Short: "Print an annotated job file",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(a.out, job.Example)
			return err
		},
	}
}

func (a *app) newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(map[string]string{"version": version.String()})
			}
			_, err := fmt.Fprintln(a.out, "swapback-agent", version.String())
			return err
		},
	}
}
