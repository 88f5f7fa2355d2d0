package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
)

func newRepo(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use:   "repo",
		Short: "Make, check and tidy repositories of backups",
		Long: `A repository is a folder that holds backups. It must not lie on a volume that it
keeps backups of.`,
		Example: `  swapback repo init /backups`,
	}, newRepoInit(a), newRepoKey(a), newRepoStats(a), newRepoCheck(a), newRepoHeal(a), newRepoPrune(a))
}

type repoInitOptions struct {
	chunkSize  sizeFlag
	encrypt    bool
	recipients []string
}

func newRepoInit(a *app) *cobra.Command {
	var o repoInitOptions
	cmd := &cobra.Command{
		Use:   "init [DIR]",
		Short: "Make a folder a repository",
		Long: `Make a new or empty folder a repository. Without DIR the one that --repo or
` + RepoEnv + ` names.

With --encrypt, --recipient or a passphrase file or command everything in it is
encrypted (AES-256-GCM) and useless without a key: keep one where no disaster
takes it together with the volumes.`,
		Example: `  swapback repo init /backups
  swapback repo init /backups --encrypt
  swapback repo init /backups --passphrase-file /root/passphrase --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				a.repo = args[0]
			}
			return runRepoInit(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.encrypt, "encrypt", false, "encrypt what is stored, by a passphrase")
	cmd.Flags().StringArrayVar(&o.recipients, "recipient", nil, "encrypt what is stored, for this age recipient (age1…); repeatable")
	cmd.Flags().Var(&o.chunkSize, "chunk-size", "unit that is compressed and deduplicated, 64KiB to 16MiB (default 1MiB)")
	return cmd
}

// repoJSON is what --json prints of a repository.
type repoJSON struct {
	ID        string `json:"id"`
	Location  string `json:"location"`
	Encrypted bool   `json:"encrypted"`
}

func runRepoInit(ctx context.Context, a *app, o repoInitOptions) error {
	location, err := a.repoLocation()
	if err != nil {
		return err
	}
	secret := a.newSecret()
	if !o.encrypt {
		secret.Ask = nil // nobody is asked for a passphrase that is not wanted
	} else if secret.PassphraseFile == "" && secret.PassphraseCommand == "" && secret.Ask == nil {
		return usagef("--encrypt: no passphrase").withRemedy("give --passphrase-file or --passphrase-command, or run it on a terminal to be asked")
	}
	repo, err := backup.Init(ctx, location, backup.InitOptions{ChunkSize: int64(o.chunkSize), Secret: secret, Recipients: o.recipients, Logger: a.logger()})
	if err != nil {
		return err
	}
	defer repo.Close()
	return a.print(repoJSON{repo.ID(), repo.Location(), repo.Encrypted()}, func(w io.Writer) {
		kind := "repository"
		if repo.Encrypted() {
			kind = "encrypted repository"
		}
		fmt.Fprintf(w, "%s %s at %s\n", kind, repo.ID(), repo.Location())
	})
}
