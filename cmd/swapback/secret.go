package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/term"

	"github.com/swapback/swapback/backup"
)

// Environment variables that say what opens an encrypted repository. There is
// none for the passphrase itself: others see a process's environment.
const (
	PassphraseFileEnv    = "SWAPBACK_PASSPHRASE_FILE"
	PassphraseCommandEnv = "SWAPBACK_PASSPHRASE_COMMAND"
	IdentityEnv          = "SWAPBACK_IDENTITY_FILE"
)

// secret is what the flags, or else the environment, say about the repository's
// secret. A person is asked when they say nothing.
func (a *app) secret() backup.Secret {
	s := a.given
	if s.PassphraseFile == "" && s.PassphraseCommand == "" && len(s.IdentityFiles) == 0 {
		s.PassphraseFile, s.PassphraseCommand = a.getenv(PassphraseFileEnv), a.getenv(PassphraseCommandEnv)
		if path := a.getenv(IdentityEnv); path != "" {
			s.IdentityFiles = []string{path}
		}
	}
	if a.inTTY && !a.json {
		s.Ask = func(ctx context.Context) ([]byte, error) { return a.ask(ctx, "Passphrase of the repository: ") }
	}
	return s
}

// newSecret is secret for a passphrase that becomes one: a person says it twice.
func (a *app) newSecret() backup.Secret {
	s := a.secret()
	s.IdentityFiles = nil
	if s.Ask != nil {
		s.Ask = func(ctx context.Context) ([]byte, error) {
			p, err := a.ask(ctx, "New passphrase: ")
			if err != nil {
				return nil, err
			}
			again, err := a.ask(ctx, "Once more: ")
			if err == nil && !bytes.Equal(p, again) {
				err = errors.New("the two are not the same")
			}
			return p, err
		}
	}
	return s
}

// ask reads a line from the terminal without showing it.
func (a *app) ask(ctx context.Context, prompt string) ([]byte, error) {
	f, ok := a.in.(*os.File)
	if !ok {
		return nil, errors.New("no terminal to ask on")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fmt.Fprint(a.errOut, prompt)
	defer fmt.Fprintln(a.errOut)
	return term.ReadPassword(int(f.Fd()))
}
