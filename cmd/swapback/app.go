package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/hostagent/afar"
	"github.com/swapback/swapback/hostagent/nvmehost"
	"github.com/swapback/swapback/hostagent/printable"
)

// RepoEnv is the environment variable that names the repository.
const RepoEnv = "SWAPBACK_REPO"

// app is what all commands share: where they read and write, and the flags that
// every command has. One app runs one command.
type app struct {
	in          io.Reader
	out, errOut io.Writer
	inTTY       bool // somebody can answer a question
	errTTY      bool // progress can be drawn over itself
	getenv      func(string) string
	now         func() time.Time
	yield       func() // makes the process one of low priority; nil: it stays as it is
	local       *time.Location

	json    bool
	verbose bool
	target  api.Target
	repo    string
	given   backup.Secret // by flags
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	// A line that cannot be parsed leaves the flag unset.
	if slices.Contains(args, "--json") {
		a.json = true
	}
	return a.fail(ctx, err)
}

// client returns a client for the daemon, of this machine or of another. Nothing is
// connected or read yet.
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

// repository opens the repository that --repo or the environment names. The
// caller closes it.
func (a *app) repository(ctx context.Context) (*backup.Repository, error) {
	location, err := a.repoLocation()
	if err != nil {
		return nil, err
	}
	return backup.Open(ctx, location, a.secret())
}

func (a *app) repoLocation() (string, error) {
	location := a.repo
	if location == "" {
		location = a.getenv(RepoEnv)
	}
	if location == "" {
		return "", usagef("no repository named").withRemedy("give --repo DIR or set " + RepoEnv)
	}
	return location, nil
}

// locks are what this command keeps the others of the machine from.
func (a *app) locks(what string) *hostagent.Locks {
	return hostagent.NewLocks(a.runDir(), "swapback "+what)
}

// runDir is the folder that the programs of this machine share.
func (a *app) runDir() string {
	if dir := a.getenv(hostagent.RunDirEnv); dir != "" {
		return dir
	}
	return hostagent.DefaultRunDir
}

// logger returns where the libraries below write what is not a result: warnings
// for people, everything with --verbose. A program finds nothing but the one
// error object on stderr, unless it asked for more.
func (a *app) logger() *slog.Logger {
	switch {
	case a.verbose && a.json:
		return slog.New(slog.NewJSONHandler(a.errOut, &slog.HandlerOptions{Level: slog.LevelDebug}))
	case a.verbose:
		return slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{Level: slog.LevelDebug}))
	case a.json:
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// print writes a result: as indented JSON for programs, or with text for people.
func (a *app) print(v any, text func(w io.Writer)) error {
	if a.json {
		return a.printJSON(v)
	}
	var b strings.Builder
	text(&b)
	_, err := io.WriteString(a.out, printable.Text(b.String()))
	return err
}

// say tells people something that others may have named: it is text and no more.
func (a *app) say(w io.Writer, format string, args ...any) {
	fmt.Fprint(w, printable.Text(fmt.Sprintf(format, args...)))
}

func (a *app) printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = a.out.Write(append(b, '\n'))
	return err
}

// done tells people in one sentence, and programs in one object, that something
// is no more: {"deleted": ["db"]}.
func (a *app) done(verb string, names []string, sentence string) error {
	return a.print(map[string][]string{verb: names}, func(w io.Writer) { fmt.Fprintln(w, sentence) })
}

// time writes an instant for people.
func (a *app) time(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.In(a.local).Format("2006-01-02 15:04:05")
}

// group makes a command that only holds others. Without arguments it shows its
// help; an argument that names none of its commands is an error.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(commands...)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		err := usagef("%s has no command %q", cmd.CommandPath(), args[0])
		var known []string
		for _, c := range cmd.Commands() {
			known = append(known, c.Name())
		}
		if found := near(args[0], known); len(found) > 0 {
			return err.withRemedy("did you mean " + strings.Join(found, " or ") + "?")
		}
		return err.withRemedy("see " + cmd.CommandPath() + " --help")
	}
	cmd.Args = cobra.ArbitraryArgs // for RunE to refuse, with a suggestion
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

// args turns the verdict of a check of arguments into a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usagef("%s: %v", cmd.CommandPath(), err).withRemedy("usage: " + cmd.UseLine())
		}
		return nil
	}
}
