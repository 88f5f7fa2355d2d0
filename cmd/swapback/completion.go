package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent"
)

// completionTimeout bounds what a press of the tab key may take.
const completionTimeout = 2 * time.Second

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeVolumes offers volumes for at most n arguments, any number when n is
// negative.
func (a *app) completeVolumes(n int) completer {
	return a.complete(n, func(ctx context.Context) ([]string, error) {
		c := a.client()
		defer c.Close()
		volumes, err := c.Volumes(ctx, "")
		if err != nil {
			return nil, err
		}
		count := map[string]int{}
		for _, v := range volumes {
			count[v.Name]++
		}
		var names []string
		for _, v := range volumes {
			name := v.Name
			if count[name] > 1 {
				name = v.Pool + "/" + v.Name
			}
			names = append(names, cobra.CompletionWithDesc(name, describeVolume(v)))
		}
		return names, nil
	})
}

func describeVolume(v api.Volume) string {
	s := fmt.Sprintf("%s, %s", formatSize(v.Size), v.State)
	if note := noteOf(v); note != "" {
		s += ", " + note
	}
	return s
}

// completePools offers pools in the same way.
func (a *app) completePools(n int) completer {
	return a.complete(n, func(ctx context.Context) ([]string, error) {
		c := a.client()
		defer c.Close()
		pools, err := c.Pools(ctx)
		var names []string
		for _, p := range pools {
			names = append(names, cobra.CompletionWithDesc(p.Name, formatSize(p.Free)+" free"))
		}
		return names, err
	})
}

// completeBackups offers the repository's backups, the newest first.
func (a *app) completeBackups(n int) completer {
	return a.complete(n, func(ctx context.Context) ([]string, error) {
		repo, err := a.repository(ctx)
		if err != nil {
			return nil, err
		}
		defer repo.Close()
		list, err := repo.List(ctx)
		names := []string{cobra.CompletionWithDesc(hostagent.Latest, "the newest")}
		for i := len(list) - 1; i >= 0; i-- {
			names = append(names, cobra.CompletionWithDesc(list[i].ID, describeBackup(list[i])))
		}
		return names, err
	})
}

func (a *app) complete(n int, list func(context.Context) ([]string, error)) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		// Completion runs without the context that a command gets.
		ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
		defer cancel()
		names, err := list(ctx)
		if err != nil {
			cobra.CompErrorln(err.Error())
		}
		return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

func newCompletion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion {bash|zsh|fish|powershell}",
		Short: "Print a shell's completion script",
		Long: `Print the script that teaches a shell to complete swapback's commands and flags,
and the names of pools, volumes and backups.`,
		Example: `  swapback completion bash > /etc/bash_completion.d/swapback
  swapback completion zsh > "${fpath[1]}/_swapback"
  swapback completion fish > ~/.config/fish/completions/swapback.fish`,
		Args:      args(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			}
			return root.GenPowerShellCompletionWithDesc(a.out)
		},
	}
}
