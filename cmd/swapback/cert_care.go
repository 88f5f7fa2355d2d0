package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
	"github.com/swapback/swapback/api/certs"
)

func newCertRevoke(a *app, dir *string) *cobra.Command {
	var byName bool
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke CLIENT|SERIAL",
		Short: "Refuse a certificate from now on",
		Long: `Refuse a certificate, or all of a client's that were issued here so far; with --name
all of a client, also those that are issued later or elsewhere. The daemon takes
this within seconds, and ends open connections and what they hold.`,
		Example: `  swapback cert revoke host1 --reason "the machine was sold"
  swapback cert revoke 5fd1c0d26be3a0e0e1b8ad0c0a1f4c11
  swapback cert revoke host1 --name`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(_ *cobra.Command, args []string) error { return runCertRevoke(a, *dir, args[0], byName, reason) },
	}
	cmd.Flags().BoolVar(&byName, "name", false, "refuse the name itself")
	cmd.Flags().StringVar(&reason, "reason", "", "comment for the file of rights")
	return cmd
}

func runCertRevoke(a *app, dir, what string, byName bool, reason string) error {
	unlock, err := certs.Lock(dir)
	if err != nil {
		return certFailed(err)
	}
	defer unlock()
	path := filepath.Join(dir, accessFile)
	text, table, err := readAccess(path)
	if err != nil {
		return certFailed(err)
	}
	var statements []string
	if byName {
		statements = append(statements, "revoke name "+what)
	} else {
		issued, err := certs.Issued(dir)
		if err != nil {
			return certFailed(err)
		}
		for _, c := range issued {
			name, err := certs.ClientName(c)
			if table.Revoked(c) == "" && (err == nil && name == what && a.now().Before(c.NotAfter) || certs.Serial(c) == strings.ToLower(what)) {
				statements = append(statements, "revoke serial "+certs.Serial(c))
			}
		}
	}
	if len(statements) == 0 {
		return &cliError{
			exit: exitNotFound, code: api.CodeNotFound, message: fmt.Sprintf("no certificate of %s in %s that is good and not revoked", what, dir),
			remedy: "swapback cert list shows all; --name refuses a name whoever signed for it",
		}
	}
	comment := a.now().UTC().Format("2006-01-02") + " " + api.Reason(reason)
	for _, s := range statements {
		if text, err = access.Add(text, s, strings.TrimSpace(comment)); err != nil {
			return usagef("cert revoke %s: %v", what, mistake(err))
		}
	}
	if err := certs.Replace(path, text, 0o644); err != nil {
		return certFailed(err)
	}
	return a.done("revoked", statements, fmt.Sprintf("%s says: %s", path, strings.Join(statements, "; ")))
}

func newCertList(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Short:             "List the certificates",
		Long:              `List the certificates that were issued here, oldest first, and whether they are still good.`,
		Example:           `  swapback cert list`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return runCertList(a, *dir) },
	}
}

func runCertList(a *app, dir string) error {
	issued, err := certs.Issued(dir)
	if err != nil {
		return certFailed(err)
	}
	_, table, err := readAccess(filepath.Join(dir, accessFile))
	if err != nil {
		return certFailed(err)
	}
	list := []certJSON{}
	for _, c := range issued {
		j := describeCert(c)
		j.State = a.certState(c, table)
		list = append(list, j)
	}
	return a.print(list, func(w io.Writer) {
		t := newTable("CLIENT", "SERIAL", "EXPIRES", "STATE", "SERVER FOR")
		for _, j := range list {
			t.row(j.Name, j.Serial, a.time(j.Expires), j.State, strings.Join(j.Hosts, " "))
		}
		t.write(w)
	})
}

func (a *app) certState(c *x509.Certificate, table *access.Table) string {
	switch {
	case table.Revoked(c) != "":
		return "revoked"
	case a.now().After(c.NotAfter):
		return "expired"
	}
	return "good"
}

func newCertRenew(a *app, dir *string) *cobra.Command {
	var days int
	cmd := &cobra.Command{
		Use:   "renew [HOST...]",
		Short: "Make a new certificate for the daemon",
		Long: `Make a new certificate and key for the daemon, under the names and addresses of the
present one or under others. The daemon takes it by itself; open connections go on.`,
		Example: `  swapback cert renew
  swapback cert renew storage.example.com 192.0.2.7 2001:db8::7`,
		Args:              args(cobra.ArbitraryArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(_ *cobra.Command, hosts []string) error { return runCertRenew(a, *dir, days, hosts) },
	}
	cmd.Flags().IntVar(&days, "days", 3650, "how long it is good for, at most as long as the authority")
	return cmd
}

func runCertRenew(a *app, dir string, days int, hosts []string) error {
	life, err := lifeOf(days)
	if err != nil {
		return err
	}
	ca, err := certs.Open(dir)
	if err != nil {
		return certFailed(err)
	}
	if len(hosts) == 0 {
		if hosts, err = ca.ServerHosts(); err != nil {
			return certFailed(err)
		}
	} else if err := certs.CheckHosts(hosts); err != nil {
		return usagef("cert renew: %v", err)
	}
	c, err := ca.IssueServer(hosts, life, a.now())
	if err != nil {
		return certFailed(err)
	}
	j := describeCert(c)
	j.File = filepath.Join(dir, certs.ServerFile)
	return a.print(j, func(w io.Writer) {
		fmt.Fprintf(w, "%s is good until %s for %s\n", j.File, a.time(c.NotAfter), strings.Join(j.Hosts, ", "))
	})
}
