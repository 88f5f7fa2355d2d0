package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
	"github.com/swapback/swapback/api/certs"
)

// certDir is where swapbackd looks for the files of its remote API.
const certDir = "/etc/swapback/remote"

// accessFile is the file of rights in such a folder.
const accessFile = "access"

const day = 24 * time.Hour

// targetFlags are those that name a daemon on another machine.
func targetFlags(f *pflag.FlagSet, t *api.Target) {
	f.StringVar(&t.Server, "server", "", "swapbackd of another machine, HOST or HOST:PORT (default $"+api.ServerEnv+"; port "+api.DefaultPort+" unless named)")
	f.StringVar(&t.Cert, "cert", "", "client certificate for --server (default $"+api.CertEnv+")")
	f.StringVar(&t.Key, "key", "", "its key (default $"+api.KeyEnv+" or the file of --cert)")
	f.StringVar(&t.CA, "ca", "", "authorities of the server's certificate (default $"+api.CAEnv+" or the file of --cert)")
}

func newCert(a *app) *cobra.Command {
	var dir string
	cmd := group(&cobra.Command{
		Use:   "cert",
		Short: "Say which other machines may use the daemon",
		Long: `Other machines reach the daemon over TLS (swapbackd --api-listen), with certificates
of an authority of your own. Its folder, the file of rights in it and all
certificates are made by these commands, on the storage machine or wherever the
folder is kept; the daemon is not asked, and takes changes by itself.`,
		Example: `  swapback cert init storage.example.com 192.0.2.7
  swapback cert issue host1 --allow list,backup,swap --volume tank/db,tank/db-spare
  swapback volume list --server storage.example.com --cert host1.pem`,
	}, newCertInit(a, &dir), newCertRequest(a), newCertIssue(a, &dir), newCertRevoke(a, &dir), newCertList(a, &dir), newCertRenew(a, &dir))
	cmd.PersistentFlags().StringVar(&dir, "dir", certDir, "folder of the authority")
	return cmd
}

// certJSON is a certificate as --json prints it.
type certJSON struct {
	Name    string    `json:"name,omitempty"`
	Hosts   []string  `json:"hosts,omitempty"`
	Serial  string    `json:"serial"`
	SHA256  string    `json:"sha256"`
	Expires time.Time `json:"expires"`
	State   string    `json:"state,omitempty"`
	File    string    `json:"file,omitempty"`
	Allowed string    `json:"allowed,omitempty"`
}

func describeCert(c *x509.Certificate) certJSON {
	j := certJSON{Serial: certs.Serial(c), SHA256: certs.Fingerprint(c), Expires: c.NotAfter.UTC(), Hosts: certs.Hosts(c)}
	j.Name, _ = certs.ClientName(c) // a server's has none
	return j
}

// certFailed gives an error about a file its code and remedy.
func certFailed(err error) error {
	var fe *certs.Error
	if !errors.As(err, &fe) {
		return err
	}
	code := api.CodeInternal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = api.CodeNotFound
	case errors.Is(err, fs.ErrExist):
		code = api.CodeExists
	}
	return &cliError{exit: exitOfAPI(code), code: code, message: fe.File + ": " + fe.Problem, remedy: fe.Remedy}
}

// lifeOf checks a number of days.
func lifeOf(days int) (time.Duration, error) {
	if days < 1 || days > 36500 {
		return 0, usagef("--days %d: want 1 to 36500", days)
	}
	return time.Duration(days) * day, nil
}

func newCertInit(a *app, dir *string) *cobra.Command {
	var days int
	cmd := &cobra.Command{
		Use:   "init HOST...",
		Short: "Make an authority, and the daemon's certificate",
		Long: `Make an authority in a new folder, a certificate for the daemon under the names and
addresses by which others call it, and a file of rights that allows nobody
anything. Whoever has ca.key can make himself any client: keep it secret, if you
can on another machine; the daemon needs server.pem, ca.pem and access only.`,
		Example: `  swapback cert init storage.example.com 192.0.2.7
  swapback cert init storage --dir /root/swapback-ca`,
		Args:              args(cobra.MinimumNArgs(1)),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(_ *cobra.Command, hosts []string) error { return runCertInit(a, *dir, days, hosts) },
	}
	cmd.Flags().IntVar(&days, "days", 3650, "how long the authority, and the daemon's certificate, are good for")
	return cmd
}

const accessText = access.Header + `
# Which client may do what with which volumes; see docs/remote.md. Nobody else may do
# anything. swapbackd reads this file again when it changes.
#
#   allow CLIENT RIGHT,RIGHT,... POOL/VOLUME ...     rights: list backup swap manage metrics admin
#   host CLIENT NQN ...                              it speaks for these NVMe hosts
#   revoke name CLIENT | revoke serial HEX | revoke sha256 HEX
`

func runCertInit(a *app, dir string, days int, hosts []string) error {
	life, err := lifeOf(days)
	if err != nil {
		return err
	}
	if err := certs.CheckHosts(hosts); err != nil {
		return usagef("cert init: %v", err)
	}
	ca, err := certs.Init(dir, life, a.now(), map[string][]byte{accessFile: []byte(accessText)})
	if err != nil {
		return certFailed(err)
	}
	c, err := ca.IssueServer(hosts, life, a.now())
	if err != nil {
		return certFailed(err)
	}
	j := describeCert(c)
	j.File = filepath.Join(dir, certs.ServerFile)
	return a.print(j, func(w io.Writer) {
		fmt.Fprintf(w, "authority made in %s; the daemon's certificate is good until %s for %s\n", dir, a.time(c.NotAfter), strings.Join(j.Hosts, ", "))
		fmt.Fprintf(w, "next: swapback cert issue CLIENT --allow RIGHTS --volume POOL/VOLUME, and swapbackd --api-listen :%s\n", api.DefaultPort)
	})
}

type certIssueOptions struct {
	allow   string
	volumes []string
	hosts   []string
	request string
	out     string
	days    int
}

func newCertIssue(a *app, dir *string) *cobra.Command {
	var o certIssueOptions
	cmd := &cobra.Command{
		Use:   "issue CLIENT",
		Short: "Make a certificate for another machine",
		Long: `Make a certificate and a key for a client, into one file that also holds the
authority's certificate: all that --cert needs. Bring it to the client by a way
that nobody else reads, mode 0600. With --request the client has made its key
itself (swapback cert request), and the file holds no secret.

With --allow the client may do something:

  list     see volumes and who holds them
  backup   open snapshots, read what has changed, record backups
  swap     swap, and put into quarantine
  manage   create, grow, delete, attach, detach, release from quarantine
  metrics  read the daemon's counters (with --volume '*')
  admin    all of these, --force and --allow-holders; with POOL/* the pool too

A recovery from afar takes list,backup,swap on the volume and on its spares, and
manage where spares are to be created. A volume is POOL/VOLUME, in which *
stands for any characters.

With --host the client speaks for a machine that has the volumes by NVMe/TCP:
when it says that nothing there uses a volume, a swap does not mind that machine.`,
		Example: `  swapback cert issue host1 --allow list,backup,swap,manage --volume 'tank/db,tank/db-spare*' \
    --host nqn.2014-08.org.nvmexpress:uuid:1b4e28ba-2fa1-11d2-883f-0016d3cca427
  swapback cert issue host2 --request host2.csr --allow list --volume 'tank/*'
  swapback cert issue prometheus --allow metrics --volume '*' --out /root/prometheus.pem --days 90`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(_ *cobra.Command, args []string) error { return runCertIssue(a, *dir, o, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.allow, "allow", "", "rights, with commas between them")
	f.StringSliceVar(&o.volumes, "volume", nil, "volumes that they are for; repeatable")
	f.StringSliceVar(&o.hosts, "host", nil, "NVMe host (NQN) that the client speaks for; repeatable")
	f.StringVar(&o.request, "request", "", "file with the client's request for a certificate")
	f.StringVar(&o.out, "out", "", "file to write (default CLIENT.pem)")
	f.IntVar(&o.days, "days", 365, "how long the certificate is good for")
	return cmd
}

func runCertIssue(a *app, dir string, o certIssueOptions, name string) error {
	life, err := lifeOf(o.days)
	if err != nil {
		return err
	}
	if err := certs.CheckName(name); err != nil {
		return usagef("%v", err)
	}
	var statements []string
	if o.allow != "" || len(o.volumes) > 0 {
		if o.allow == "" || len(o.volumes) == 0 {
			return usagef("cert issue %s: --allow and --volume go together", name)
		}
		rights, err := access.ParseRights(o.allow)
		if err != nil {
			return usagef("--allow: %v", err)
		}
		statements = append(statements, access.Allow(name, rights, o.volumes))
	}
	if len(o.hosts) > 0 {
		statements = append(statements, access.Host(name, o.hosts))
	}
	for _, s := range statements {
		if _, err := access.Add([]byte(access.Header+"\n"), s, ""); err != nil {
			return usagef("cert issue %s: %v", name, mistake(err))
		}
	}
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
	if table.NameRevoked(name) {
		return &cliError{exit: exitRefused, code: api.CodeDenied, message: fmt.Sprintf("all certificates of %s are revoked by name", name), remedy: fmt.Sprintf("take \"revoke name %s\" out of %s, or choose another name", name, path)}
	}
	out := o.out
	if out == "" {
		out = name + ".pem"
	}
	if _, err := os.Lstat(out); err == nil { // before a certificate is signed for nothing
		return certFailed(&certs.Error{File: out, Problem: "is there", Remedy: "name another file with --out", Err: fs.ErrExist})
	}
	ca, err := certs.Open(dir)
	if err != nil {
		return certFailed(err)
	}
	c, err := o.issue(ca, name, life, a.now(), out)
	if err != nil {
		return certFailed(err)
	}
	if len(statements) > 0 {
		if err := addStatement(path, text, strings.Join(statements, "\n"), ""); err != nil {
			return certFailed(err)
		}
	}
	j := describeCert(c)
	j.File, j.Allowed = out, strings.Join(statements, "\n")
	return a.print(j, func(w io.Writer) {
		key := ", with its key"
		if o.request != "" {
			key = ""
		}
		fmt.Fprintf(w, "certificate %s for %s, good until %s%s: %s\n", j.Serial, name, a.time(c.NotAfter), key, out)
		for _, s := range statements {
			fmt.Fprintf(w, "%s says: %s\n", path, s)
		}
	})
}

// issue signs the certificate and writes it to a file.
func (o certIssueOptions) issue(ca *certs.Authority, name string, life time.Duration, now time.Time, out string) (*x509.Certificate, error) {
	if o.request == "" {
		c, pem, err := ca.IssueClient(name, life, now)
		if err != nil {
			return nil, err
		}
		return c, certs.WriteNew(out, pem, 0o600)
	}
	request, err := certs.ReadPublic(o.request)
	if err != nil {
		return nil, err
	}
	c, pem, err := ca.IssueRequested(name, request, life, now)
	if err != nil {
		return nil, &certs.Error{File: o.request, Problem: err.Error(), Remedy: "swapback cert request " + name + ", on the client, makes one", Err: err}
	}
	return c, certs.WriteNew(out, pem, 0o644)
}

func newCertRequest(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "request CLIENT",
		Short: "Make a key, and a request for a certificate, on the client",
		Long: `Make a key in CLIENT.key, which stays on this machine, and a request for a
certificate in CLIENT.csr. With that, swapback cert issue CLIENT --request CLIENT.csr makes
CLIENT.pem on the storage machine. Neither of the two files is secret.`,
		Example: `  swapback cert request host2
  swapback volume list --server storage.example.com --cert host2.pem --key host2.key`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(_ *cobra.Command, args []string) error { return runCertRequest(a, args[0]) },
	}
}

func runCertRequest(a *app, name string) error {
	key, request, err := certs.NewRequest(name)
	if err != nil {
		return usagef("%v", err)
	}
	if err := certs.WriteNew(name+".key", key, 0o600); err != nil {
		return certFailed(err)
	}
	if err := certs.WriteNew(name+".csr", request, 0o644); err != nil {
		return certFailed(err)
	}
	return a.done("written", []string{name + ".key", name + ".csr"}, fmt.Sprintf("the key is %s.key; bring %s.csr to the storage machine", name, name))
}

// mistake leaves the number of the line out.
func mistake(err error) error {
	if m := (*access.Mistake)(nil); errors.As(err, &m) {
		return errors.New(m.Problem)
	}
	return err
}

func readAccess(path string) ([]byte, *access.Table, error) {
	text, err := certs.ReadPublic(path)
	if err != nil {
		return nil, nil, err
	}
	table, err := access.Parse(text)
	if err != nil {
		return nil, nil, &certs.Error{File: path, Problem: err.Error(), Remedy: "mend the line first", Err: err}
	}
	return text, table, nil
}

func addStatement(path string, text []byte, statement, comment string) error {
	after, err := access.Add(text, statement, comment)
	if err != nil {
		return &certs.Error{File: path, Problem: err.Error(), Err: err}
	}
	return certs.Replace(path, after, 0o644)
}
