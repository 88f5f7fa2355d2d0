package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/hostagent/afar"
	"github.com/swapback/swapback/hostagent/job"
	"github.com/swapback/swapback/hostagent/nvmehost"
	"github.com/swapback/swapback/hostagent/printable"
	"github.com/swapback/swapback/hostagent/runner"
	"github.com/swapback/swapback/version"
)

const exitCodeHelp = `
Exit codes: 0 all steps done, with or without recoveries; 1 failed, and the
  volumes are back at the save point (or left alone, if the job says so);
  2 not started: bad job file or arguments, or recovery would not be possible;
  3 failed, and the volumes are not at a save point: the outcome explains
`

// Where things are kept when neither a flag nor systemd says otherwise.
const (
	defaultState = "/var/lib/swapback"
	defaultLogs  = "/var/log/swapback"
)

// app is what the commands share. One app runs one command line.
type app struct {
	out, errOut io.Writer
	getenv      func(string) string
	stop        <-chan struct{}

	json     bool
	verbose  bool
	target   api.Target
	stateDir string
	logDir   string
	runDir   string
}

// exitError carries an exit code. What is to be said has been said when it
// wraps nothing.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.newRoot()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return runner.ExitDone
	}
	code := runner.ExitRefused
	var ee *exitError
	if errors.As(err, &ee) {
		code = ee.code
		err = ee.err
	}
	if err != nil {
		a.report(err)
	}
	return code
}

// report tells of an error: as text, or with --json as an object on stderr.
func (a *app) report(err error) {
	if !a.json {
		fmt.Fprintf(a.errOut, "swapback-agent: %s\n", printable.Text(err.Error()))
		return
	}
	e := struct {
		Code     string        `json:"code"`
		Message  string        `json:"message"`
		Mistakes []job.Mistake `json:"mistakes,omitempty"`
		Reasons  []string      `json:"reasons,omitempty"`
	}{Code: api.CodeInvalid, Message: err.Error()}
	var je *job.Error
	var re *runner.RefusedError
	var ae *api.Error
	if errors.As(err, &je) {
		e.Mistakes = je.Mistakes
	}
	if errors.As(err, &re) {
		e.Code, e.Reasons = "refused", re.Reasons
	}
	if errors.As(err, &ae) {
		e.Code = ae.Code
	}
	b, merr := json.Marshal(e)
	if merr != nil {
		b = []byte(err.Error())
	}
	fmt.Fprintf(a.errOut, "%s\n", b)
}

func (a *app) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "swapback-agent",
		Short: "Run jobs whose steps can be taken back",
		Long: `Swapback-agent runs jobs: steps, one after the other, on swapback volumes. Before
the steps that ask for one a save point is taken. When a step fails, the volumes
are put back to the last save point: it is restored onto an unused volume, and
the two are swapped. The job goes on from there as often as it says, or ends.
What failed is kept in quarantine.
` + exitCodeHelp,
		Example: `  swapback-agent example > job.yaml
  swapback-agent check job.yaml
  swapback-agent run job.yaml`,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "print results as JSON")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log what is done below the steps")
	f.StringVar(&a.target.Socket, "socket", "", "unix socket of swapbackd ($"+api.SocketEnv+", default "+api.DefaultSocket+")")
	f.StringVar(&a.target.Server, "server", "", "swapbackd of another machine, HOST or HOST:PORT ($"+api.ServerEnv+"; port "+api.DefaultPort+" unless named)")
	f.StringVar(&a.target.Cert, "cert", "", "client certificate for --server ($"+api.CertEnv+")")
	f.StringVar(&a.target.Key, "key", "", "its key ($"+api.KeyEnv+", default the file of --cert)")
	f.StringVar(&a.target.CA, "ca", "", "authorities of the server's certificate ($"+api.CAEnv+", default the file of --cert)")
	f.StringVar(&a.stateDir, "state-dir", a.dir("STATE_DIRECTORY", defaultState)+"/jobs", "folder that keeps where each job stands")
	f.StringVar(&a.logDir, "log-dir", a.dir("LOGS_DIRECTORY", defaultLogs), "folder for logs of jobs that name none")
	runDir := a.getenv(hostagent.RunDirEnv)
	if runDir == "" {
		runDir = hostagent.DefaultRunDir
	}
	f.StringVar(&a.runDir, "run-dir", runDir, "folder for locks, the same for all programs of the machine ($"+hostagent.RunDirEnv+")")
	root.AddCommand(a.newRun(), a.newCheck(), a.newStatus(), a.newExample(), a.newVersion())
	return root
}

// dir is a folder that systemd made for us (systemd.exec(5)), or the usual one.
func (a *app) dir(env, usual string) string {
	if first, _, _ := strings.Cut(a.getenv(env), ":"); first != "" {
		return first
	}
	return usual
}

func (a *app) client() *api.Client {
	t := a.target
	t.Device = nvmehost.Device
	return t.Client(a.getenv)
}

// service is the daemon's as this machine uses its volumes. What it connects for that ends
// with Close.
func (a *app) service() *afar.Service {
	return afar.New(a.client(), nvmehost.Host{SecretFile: a.getenv(nvmehost.SecretEnv)})
}

func (a *app) logger() *slog.Logger {
	level := slog.LevelError
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{Level: level}))
}

func (a *app) printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = a.out.Write(append(b, '\n'))
	return err
}
