package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/backup"
)

func newRepoKey(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use:   "key",
		Short: "Say who can open an encrypted repository",
		Long: `An encrypted repository has one master key, wrapped by any number of keys: one for
each passphrase and each age recipient. Whoever has the secret of one of them
reads everything.`,
		Example: `  swapback repo key list --repo /backups`,
	}, newRepoKeyAdd(a), newRepoKeyRemove(a), newRepoKeyList(a))
}

type keyAddOptions struct {
	recipient string
	file      string
	label     string
}

func newRepoKeyAdd(a *app) *cobra.Command {
	var o keyAddOptions
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Add a passphrase or an age recipient",
		Long: `Add one more way to open the repository: a passphrase, that of --new-passphrase-file
or one that you are asked for, or with --recipient the holder of an age identity.`,
		Example: `  swapback repo key add --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
  swapback repo key add --new-passphrase-file /root/second --label "the safe"`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runRepoKeyAdd(cmd.Context(), a, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.recipient, "recipient", "", "age recipient (age1…)")
	f.StringVar(&o.file, "new-passphrase-file", "", "file whose first line is the new passphrase")
	f.StringVar(&o.label, "label", "", "a word for the key, which everybody sees")
	cmd.MarkFlagsMutuallyExclusive("recipient", "new-passphrase-file")
	return cmd
}

func runRepoKeyAdd(ctx context.Context, a *app, o keyAddOptions) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	ko := backup.KeyOptions{Recipient: o.recipient, Label: o.label}
	if o.recipient == "" {
		ko.Secret = backup.Secret{PassphraseFile: o.file}
		if o.file == "" {
			ko.Secret.Ask = a.newSecret().Ask
		}
	}
	k, err := repo.AddKey(ctx, ko)
	if err != nil {
		return err
	}
	return a.print(k, func(w io.Writer) { fmt.Fprintf(w, "key %s added\n", k.ID) })
}

func newRepoKeyRemove(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "remove ID",
		Short: "Remove a key",
		Long: `Remove a key: its secret opens the repository no more. The last key stays. What
its holder could read he may have kept, the master key included: copy the backups to
a new repository if he must not read what comes.`,
		Example:           `  swapback repo key remove 3f9a1c07 --repo /backups`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, args []string) error { return runRepoKeyRemove(cmd.Context(), a, args[0], yes) },
	}
	addYes(cmd, &yes)
	return cmd
}

func runRepoKeyRemove(ctx context.Context, a *app, id string, yes bool) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	if err := a.confirm("remove", []string{"key " + id + " of repository " + repo.Location()}, yes); err != nil {
		return err
	}
	if err := repo.RemoveKey(ctx, id); err != nil {
		return err
	}
	return a.done("removed", []string{id}, "key "+id+" removed")
}

func newRepoKeyList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Short:             "List the keys",
		Long:              `List the passphrases and recipients that open the repository, oldest first.`,
		Example:           `  swapback repo key list --repo /backups`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runRepoKeyList(cmd.Context(), a) },
	}
}

func runRepoKeyList(ctx context.Context, a *app) error {
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	list, err := repo.Keys(ctx)
	if err != nil {
		return err
	}
	return a.print(list, func(w io.Writer) {
		t := newTable("KEY", "KIND", "CREATED", "LABEL", "RECIPIENT")
		for _, k := range list {
			if k.Damaged != "" {
				t.row(k.ID, "damaged", "", k.Damaged)
				continue
			}
			t.row(k.ID, k.Kind, a.time(k.Created), k.Label, k.Recipient)
		}
		t.write(w)
	})
}
