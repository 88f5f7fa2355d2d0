package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"

	"github.com/swapback/swapback/backup"
)

// otherSecret is what opens a repository beside the one of --repo.
type otherSecret struct {
	prefix string
	given  backup.Secret
	none   bool
}

// addTo adds the flags, which begin with the prefix "from" or "to".
func (o *otherSecret) addTo(f *pflag.FlagSet, prefix string) {
	o.prefix = prefix
	f.StringVar(&o.given.PassphraseFile, prefix+"-passphrase-file", "", "file whose first line opens the other repository (default: as for --repo)")
	f.StringVar(&o.given.PassphraseCommand, prefix+"-passphrase-command", "", "shell command whose first line of output opens the other repository")
	f.StringArrayVar(&o.given.IdentityFiles, prefix+"-identity", nil, "age identity file that opens the other repository; repeatable")
	f.BoolVar(&o.none, prefix+"-unencrypted", false, "the other repository is not encrypted, though that of --repo is")
}

// open opens the other repository: by its own secret, or by that of --repo when it
// has none of its own. That it is not encrypted has to be said, lest what is
// encrypted here lies open there unnoticed.
func (o *otherSecret) open(ctx context.Context, a *app, location string) (*backup.Repository, error) {
	s := o.given
	switch {
	case o.none:
		s = backup.Secret{}
	case s.PassphraseFile == "" && s.PassphraseCommand == "" && len(s.IdentityFiles) == 0:
		s = a.secret()
	}
	r, err := backup.Open(ctx, location, s)
	var be *backup.Error
	if errors.Is(err, backup.ErrNotEncrypted) && errors.As(err, &be) {
		e := *be
		e.Remedy = "make sure that it is the right repository; then say --" + o.prefix + "-unencrypted"
		err = &e
	}
	return r, err
}
