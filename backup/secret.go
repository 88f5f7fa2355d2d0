package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"filippo.io/age"
)

// Secret is what opens an encrypted repository. It says where secrets are, and is
// none itself: it may be shown and logged.
type Secret struct {
	// PassphraseFile is a file whose first line is the passphrase.
	PassphraseFile string `json:"passphrase_file,omitempty"`
	// PassphraseCommand is run by the shell; its first line of output is the
	// passphrase.
	PassphraseCommand string `json:"passphrase_command,omitempty"`
	// IdentityFiles are age identities, as age-keygen(1) makes them.
	IdentityFiles []string `json:"identity_files,omitempty"`
	// Ask, if not nil, asks a person, when nothing else is given.
	Ask func(ctx context.Context) ([]byte, error) `json:"-"`
}

// empty tells whether nothing but a person could open a repository.
func (s Secret) empty() bool {
	return s.PassphraseFile == "" && s.PassphraseCommand == "" && len(s.IdentityFiles) == 0
}

const (
	maxSecret = 64 << 10
	// commandTime bounds how long a passphrase's command may take.
	commandTime = 2 * time.Minute
)

// passphrase returns the passphrase, nil when there is none.
func (s Secret) passphrase(ctx context.Context) (p []byte, err error) {
	from := "passphrase file " + s.PassphraseFile
	switch {
	case s.PassphraseFile != "" && s.PassphraseCommand != "":
		return nil, &Error{Kind: ErrInvalid, Op: "find the passphrase", Detail: "a passphrase file and a command are given", Remedy: "give one of them"}
	case s.PassphraseFile != "":
		p, err = readSecret(s.PassphraseFile)
	case s.PassphraseCommand != "":
		from = "passphrase command"
		p, err = s.command(ctx)
	case len(s.IdentityFiles) == 0 && s.Ask != nil:
		from = "passphrase"
		p, err = s.Ask(ctx)
	default:
		return nil, nil
	}
	if err != nil {
		return nil, &Error{Kind: ErrSecret, Op: "find the passphrase", Object: from, Err: err}
	}
	p, _, _ = bytes.Cut(p, []byte("\n"))
	if p = bytes.TrimSuffix(p, []byte("\r")); len(p) == 0 {
		return nil, &Error{Kind: ErrSecret, Op: "find the passphrase", Object: from, Detail: "its first line is empty"}
	}
	return p, nil
}

func (s Secret) command(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", s.PassphraseCommand)
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = time.Second
	return cmd.Output()
}

// readSecret reads a file that nobody else may read.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("others may use it (mode %#o); make it private with: chmod 600 %s", st.Mode().Perm(), path)
	}
	p, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(p) > maxSecret {
		err = errors.New("it is too large")
	}
	return p, err
}

// identities reads the identity files.
func (s Secret) identities() (ids []age.Identity, err error) {
	for _, path := range s.IdentityFiles {
		p, err := readSecret(path)
		if err != nil {
			return nil, &Error{Kind: ErrSecret, Op: "read the age identity", Object: path, Err: err}
		}
		// Its error quotes nothing of the file.
		more, err := age.ParseIdentities(strings.NewReader(string(p)))
		if err != nil {
			return nil, &Error{Kind: ErrSecret, Op: "read the age identity", Object: path, Err: errors.New("it has no age identity (AGE-SECRET-KEY-1…)")}
		}
		ids = append(ids, more...)
	}
	return ids, nil
}
