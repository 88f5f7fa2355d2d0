package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/remote"
	"github.com/swapback/swapback/version"
)

// remoteDir is where "swapback cert init" puts what the daemon reads.
const remoteDir = "/etc/swapback/remote/"

// remoteFlags are those of the API for other machines.
func remoteFlags(f *pflag.FlagSet, o *remote.Options) {
	f.StringVar(&o.Listen, "api-listen", "", "address HOST:PORT at which clients with certificates reach the API over TLS, such as 192.0.2.7:"+api.DefaultPort+" or :"+api.DefaultPort+" for all addresses (default: nowhere)")
	f.StringVar(&o.Cert, "api-cert", remoteDir+"server.pem", "the daemon's certificate")
	f.StringVar(&o.Key, "api-key", "", "its key (default: in the file of the certificate)")
	f.StringVar(&o.CA, "api-ca", remoteDir+"ca.pem", "authorities of the clients' certificates")
	f.StringVar(&o.Access, "api-access", remoteDir+"access", "what each client may do to which volumes; read again when it changes")
}

// checkRemote finds what can't be meant. What is wrong with the files is not an end
// of the daemon: it has volumes to serve.
func checkRemote(o remote.Options) error {
	if o.Listen == "" {
		return nil
	}
	if _, port, err := net.SplitHostPort(o.Listen); err != nil || port == "" {
		return usageError{fmt.Errorf("--api-listen=%s: want HOST:PORT, or :PORT for all addresses of this machine", o.Listen)}
	}
	return nil
}

// startRemote serves the API to other machines, if that is asked for, until ctx ends or
// the function that it returns is called, which waits for the end. SIGHUP has its files
// read again.
func startRemote(ctx context.Context, o remote.Options, svc api.Service, metrics http.Handler, log *slog.Logger) (end func()) {
	if o.Listen == "" {
		return func() {}
	}
	o.Service, o.Metrics, o.Version, o.Logger = svc, metrics, version.String(), log
	ctx, cancel := context.WithCancel(ctx)
	srv := remote.New(o)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.Run(ctx)
	}()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for {
			select {
			case <-hup:
				if err := srv.Reload(); err != nil {
					log.Error("certificates and rights not read again", "err", err)
				}
			case <-served:
				return
			}
		}
	}()
	return func() {
		cancel()
		<-served
		<-heard
		signal.Stop(hup)
	}
}
