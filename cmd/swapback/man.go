package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/swapback/swapback/version"
)

func newMan(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write manual pages",
		Long: `Write a manual page for every command into a folder: swapback.1,
swapback-pool-create.1 and so on. Packages do this when they are built.`,
		Example: `  swapback man /usr/local/share/man/man1`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runMan(a, cmd.Root(), args[0])
		},
	}
}

func runMan(a *app, root *cobra.Command, dir string) error {
	var files []string
	var write func(cmd *cobra.Command) error
	write = func(cmd *cobra.Command) error {
		if !cmd.IsAvailableCommand() && cmd.HasParent() {
			return nil
		}
		path := filepath.Join(dir, manName(cmd)+".1")
		var page strings.Builder
		writeMan(&page, cmd)
		if err := os.WriteFile(path, []byte(page.String()), 0o644); err != nil {
			return fmt.Errorf("manual page: %w", err)
		}
		files = append(files, path)
		for _, sub := range cmd.Commands() {
			if err := write(sub); err != nil {
				return err
			}
		}
		return nil
	}
	if err := write(root); err != nil {
		return err
	}
	return a.done("written", files, plural(len(files), "manual page")+" in "+dir)
}

func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// writeMan writes one page in the man(7) macros.
func writeMan(w io.Writer, cmd *cobra.Command) {
	name := manName(cmd)
	fmt.Fprintf(w, ".TH %q 1 \"\" %q \"swapback\"\n", strings.ToUpper(name), "swapback "+version.String())
	fmt.Fprintf(w, ".SH NAME\n%s \\- %s\n", roff(name), roff(cmd.Short))
	fmt.Fprintf(w, ".SH SYNOPSIS\n.nf\n%s\n.fi\n", roff(cmd.UseLine()))
	fmt.Fprintf(w, ".SH DESCRIPTION\n.nf\n%s\n.fi\n", roff(cmd.Long))
	manFlags(w, "OPTIONS", cmd.NonInheritedFlags())
	manFlags(w, "COMMON OPTIONS", cmd.InheritedFlags())
	fmt.Fprintf(w, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(cmd.Example))
	fmt.Fprintf(w, ".SH EXIT STATUS\n%s\n", roff(strings.Join(strings.Fields(exitCodeHelp)[2:], " ")))
	var see []string
	if cmd.HasParent() {
		see = append(see, manName(cmd.Parent()))
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			see = append(see, manName(sub))
		}
	}
	if len(see) > 0 {
		fmt.Fprintf(w, ".SH SEE ALSO\n")
		for i, s := range see {
			end := ","
			if i == len(see)-1 {
				end = ""
			}
			fmt.Fprintf(w, ".BR %s (1)%s\n", roff(s), end)
		}
	}
}

func manFlags(w io.Writer, title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(w, ".SH %s\n", title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		arg, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(w, ".TP\n.B %s\n%s\n", roff(strings.TrimSpace(name+" "+arg)), roff(usage))
	})
}

// roff escapes what the formatter would take for a command or turn into another
// character: backslashes, hyphens, and dots and quotes that begin a line.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
