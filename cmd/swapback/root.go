package main

import (
	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
)

func newRoot(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "swapback",
		Short: "Virtual disks that can be put back",
		Long: `Swapback serves volumes as block devices from pools of NVMe disks, keeps
point-in-time backups of them, and puts a volume back by restoring a backup onto
an unused second volume and swapping the two: the name keeps its device, the
failed data stays whole under the other name.

Pools, volumes and swaps are the daemon's (swapbackd), reached over a unix socket
(--socket or ` + api.SocketEnv + `), or from another machine over TLS, with a certificate that
it knows (--server and --cert, or ` + api.ServerEnv + ` and ` + api.CertEnv + `). Backups live in a repository (--repo or ` + RepoEnv + `).
A volume is named by NAME, POOL/NAME or UUID. Sizes are bytes or have a binary
unit: 4096, 64K, 4MiB, 1.5G.

With --json a command prints one JSON value. Commands that take long (backup
create, backup restore, backup verify, backup diff, backup copy, backup mount,
repo heal, recover) print one JSON object a line and end with one whose "type" is
"result". Errors are JSON on stderr.`,
		Example: `  swapback doctor
  swapback pool create tank /dev/nvme0n1 /dev/nvme1n1
  swapback volume create db --size 1G
  swapback repo init /backups
  swapback backup create db --repo /backups
  swapback recover db --repo /backups`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	group(cmd,
		newPool(a), newVolume(a), newSwap(a), newExport(a), newRepo(a), newBackup(a), newRecover(a),
		newCert(a), newDoctor(a), newVersion(a), newOpenAPI(a), newCompletion(a), newMan(a))
	f := cmd.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "print JSON for programs")
	f.BoolVar(&a.verbose, "verbose", false, "log what is being done to stderr")
	targetFlags(f, &a.target)
	f.StringVar(&a.target.Socket, "socket", "", "unix socket of swapbackd (default $"+api.SocketEnv+" or "+api.DefaultSocket+")")
	f.StringVar(&a.repo, "repo", "", "repository of backups (default $"+RepoEnv+")")
	f.StringVar(&a.given.PassphraseFile, "passphrase-file", "", "file whose first line opens the repository (default $"+PassphraseFileEnv+")")
	f.StringVar(&a.given.PassphraseCommand, "passphrase-command", "", "shell command whose first line of output opens the repository (default $"+PassphraseCommandEnv+")")
	f.StringArrayVar(&a.given.IdentityFiles, "identity", nil, "age identity file that opens the repository; repeatable (default $"+IdentityEnv+")")
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%s: %v", cmd.CommandPath(), err).withRemedy("usage: " + cmd.UseLine())
	})
	cmd.SetUsageTemplate(cmd.UsageTemplate() + exitCodeHelp)
	cmd.InitDefaultHelpCmd()
	for _, c := range cmd.Commands() {
		if c.Name() == "help" {
			c.Example = "  swapback help volume create"
		}
	}
	return cmd
}
